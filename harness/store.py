"""Content-addressed artefacts: read what is stored, or make it once and keep it.

An artefact is named by a *kind* (`edit`, `saliency`, ...) and by its *parts*: a JSON-able dictionary of everything
that decides its content. The key is the sha256 of the parts' canonical JSON, so equal parts mean the same artefact on
every machine. Layout under the root:

    KIND/ab/abcd.../            one artefact: its files, `parts.json` for humans, `manifest.json` for the checks
    image/ab/abcd....png        one picture, with its key and a sha256 over key and pixels inside
    .locks/KIND-abcd....lock    empty files: one process computes an artefact, the others wait
    .scratch/KIND-abcd.../      unfinished work on an artefact, such as a checkpoint

Everything is written under a temporary name (KIND/ab/.tmp-abcd..., image/.tmp/...), synced (except pictures) and
renamed: an artefact is whole or absent. Everything is checked when read: what is damaged is reported in one log line
and made again, never used.

    python -m harness.store verify STORE    check every artefact and picture
    python -m harness.store gc STORE        remove what is damaged, unfinished or left over
    python -m harness.store du STORE        count and size of every kind
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from .files import MANIFEST, StoreError, find_fault, seal, storage, sweep, sync, write_atomic
from .picture import png, read_picture

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

log = logging.getLogger(__name__)

PARTS = "parts.json"
_TENSORS = "tensors.safetensors"
_VALUE = "value.json"
_NOTE = "note.json"
TEMPORARY = ".tmp-"  # begins the name of a folder that is being filled
UNFINISHED_PICTURES = Path("image") / ".tmp"
SCRATCH = ".scratch"
LOCKS = ".locks"
_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # never the fault of the code that makes an artefact


def canonical_json(value: Any) -> str:
    """One spelling for equal values: sorted keys, no spaces, no NaN.

    Raises:
        ValueError: `value` holds something that JSON cannot say exactly; the message names where.
    """
    _require_json(value, "parts")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def content_key(value: Any) -> str:
    """Hex sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _require_json(value: Any, where: str) -> None:
    # json.dumps would quietly turn a key 1 into "1" and so give two different dictionaries one key.
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ValueError(f"{where}: the key {name!r} is a {type(name).__name__}; keys are strings")
            _require_json(item, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _require_json(item, f"{where}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}; only finite numbers can name an artefact")
    elif not (value is None or isinstance(value, str | int | bool)):
        raise ValueError(f"{where} is a {type(value).__name__}; use strings, numbers, booleans, lists and dictionaries")


def artefact_fault(folder: Path) -> str | None:
    """What is wrong with a stored artefact: None, or a few words. Its parts have to give its name."""
    fault = find_fault(folder)
    if fault is not None:
        return fault
    try:
        key = content_key(json.loads((folder / PARTS).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return f"its {PARTS} is not readable"
    return None if key == folder.name else f"its {PARTS} belongs to {key[:12]}"


class Store:
    """The artefacts under one root folder; several processes may share it.

    Args:
        root: the folder; made at the first write.
        readonly: read what is there and never write; a missing artefact is then a `StoreError`.
    """

    def __init__(self, root: Path | str, readonly: bool = False) -> None:
        self.root = Path(root).expanduser().absolute()
        self.readonly = readonly
        self._checked: set[Path] = set()  # artefacts whose bytes this process has already compared
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"store={self.root} is a file; name a folder")
        if not readonly and self.root.exists():
            self._remove_unfinished()

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r}, readonly={self.readonly})"

    def key(self, **parts: Any) -> str:
        """Hex sha256 that names the artefact with these parts."""
        return content_key(parts)

    def has(self, kind: str, parts: Mapping[str, Any]) -> bool:
        """True where the artefact is stored and whole."""
        return self._read(self._path(kind, parts)) is None

    def folder(self, kind: str, parts: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The artefact's folder; where it is missing or damaged, `make(empty_folder)` fills it first.

        Args:
            kind: a short name such as `edit`; letters, digits, `.`, `_` and `-`.
            parts: everything that decides the content.
            make: writes the artefact's files; runs in one process at a time per artefact. It may use other artefacts
                of the store, but not this one.

        Returns:
            A folder that is to be read only.

        Raises:
            ValueError: the kind is not a plain name, or the parts are not JSON.
            StoreError: the store cannot be written, or is read-only and lacks the artefact.
        """
        path = self._path(kind, parts)
        fault = self._read(path)
        if fault is None:
            return path
        if self.readonly:
            raise StoreError(f"the read-only store {self.root} has no usable {kind} {path.name[:12]}: {fault}")
        with self._lock(kind, path.name):
            fault = self._read(path)  # another process may have made it while this one waited
            if fault is not None:
                if path.exists():
                    log.warning("%s %s is damaged (%s); it is made again", kind, path.name[:12], fault)
                self._make(path, parts, make)
        return path

    def tensors(
        self,
        kind: str,
        parts: Mapping[str, Any],
        make: Callable[[], Mapping[str, Tensor]],
        note: Callable[[], Any] | None = None,
    ) -> dict[str, Tensor]:
        """Named tensors, on the CPU, stored as safetensors. They are always what was read back, also the first time.

        Args:
            note: asked after `make` for a JSON value about the making, which is kept beside the tensors (`note`).
        """
        # A run that finds everything stored should not wait for torch to load.
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save_file

        def write(folder: Path) -> None:
            tensors = _independent(make())
            try:
                save_file(tensors, folder / _TENSORS)
            except SafetensorError as error:
                raise StoreError(f"cannot write {folder / _TENSORS}: {error}") from error
            if note is not None:
                (folder / _NOTE).write_text(canonical_json(note()), encoding="utf-8")

        return load_file(self.folder(kind, parts, write) / _TENSORS)

    def note(self, kind: str, parts: Mapping[str, Any]) -> Any:
        """What `tensors` kept beside this stored artefact; `FileNotFoundError` where there is none."""
        return json.loads((self._path(kind, parts) / _NOTE).read_text(encoding="utf-8"))

    def json(self, kind: str, parts: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """A JSON value (finite numbers only), read back from the store."""

        def write(folder: Path) -> None:
            (folder / _VALUE).write_text(canonical_json(make()), encoding="utf-8")

        return json.loads((self.folder(kind, parts, write) / _VALUE).read_text(encoding="utf-8"))

    def scratch(self, kind: str, parts: Mapping[str, Any]) -> Path:
        """Where unfinished work on this artefact may lie, such as a checkpoint: it outlives a kill.

        The folder is made by whoever writes there, is not checked, and goes once the artefact is stored.
        """
        self._require_writable(f"unfinished {kind}")
        return self._scratch(kind, self._path(kind, parts).name)

    def image_path(self, parts: Mapping[str, Any]) -> Path:
        """Where the picture with these parts lies, or will lie."""
        key = content_key(parts)
        return self.root / "image" / key[:2] / f"{key}.png"

    def has_image(self, parts: Mapping[str, Any]) -> bool:
        """True where a file of that name exists; only `read_image` looks inside."""
        return self.image_path(parts).is_file()

    def read_image(self, parts: Mapping[str, Any]) -> np.ndarray | None:
        """The stored picture, uint8 [height, width, 3]; None where there is none.

        A damaged file (cut off, changed, another picture's, not ours) is removed and counts as missing.
        """
        path = self.image_path(parts)
        try:
            return read_picture(path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            log.warning("image %s is damaged (%s); it counts as missing", path.name[:12], error)
        if not self.readonly:
            with storage(f"cannot remove {path}"):
                path.unlink(missing_ok=True)
        return None

    def write_image(self, parts: Mapping[str, Any], array: np.ndarray, text: Mapping[str, str] | None = None) -> Path:
        """Store a picture as PNG.

        Args:
            parts: everything that decides the pixels.
            array: uint8 [height, width, 3].
            text: notes kept in the file's text chunks, such as the prompt.
        """
        path = self.image_path(parts)
        self._require_writable(f"image {path.stem[:12]}")
        data = png(array, path.stem, text or {})
        # `read_image` checks the file, so a power cut does no harm. The temporary files lie in one folder, so that
        # opening a store of a million pictures finds those of killed processes at once.
        write_atomic(path, data, durable=False, via=self.root / UNFINISHED_PICTURES)
        return path

    def _path(self, kind: str, parts: Mapping[str, Any]) -> Path:
        if not _KIND.fullmatch(kind) or kind == "image":
            raise ValueError(f"{kind!r} is not a kind of artefact: use letters, digits, '.', '_', '-', and not 'image'")
        key = content_key(parts)
        return self.root / kind / key[:2] / key

    def _read(self, path: Path) -> str | None:
        """None where the artefact is whole, else what is wrong with it."""
        if path in self._checked and (path / MANIFEST).is_file():
            return None
        fault = artefact_fault(path)
        if fault is None:
            self._checked.add(path)
        return fault

    def _make(self, path: Path, parts: Mapping[str, Any], make: Callable[[Path], None]) -> None:
        # The lock is held, so a folder of this name is what a killed process left behind.
        temporary = path.with_name(TEMPORARY + path.name)
        self._checked.discard(path)
        with storage(f"cannot write {path}"):
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(path, ignore_errors=True)
            temporary.mkdir(parents=True)
        try:
            with storage(f"cannot write {path}", only=_STORAGE_ERRNOS):
                make(temporary)
            with storage(f"cannot write {path}"):
                (temporary / PARTS).write_text(json.dumps(parts, indent=1, sort_keys=True), encoding="utf-8")
                seal(temporary)
                os.rename(temporary, path)
                sync(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._checked.add(path)
        shutil.rmtree(self._scratch(path.parent.parent.name, path.name), ignore_errors=True)

    def _remove_unfinished(self) -> None:
        """Remove what killed processes left: half-filled folders, half-written pictures, work on finished artefacts."""
        sweep(self.root / UNFINISHED_PICTURES)
        for folder in finished_scratch(self.root):
            shutil.rmtree(folder, ignore_errors=True)
        for kind in kinds(self.root):
            for left in kind.glob(f"*/{TEMPORARY}*"):
                try:
                    # Whoever fills a folder holds its artefact's lock.
                    with contextlib.suppress(Timeout), artefact_lock(self.root, kind.name, left.name, timeout=0):
                        shutil.rmtree(left, ignore_errors=True)
                except OSError as error:  # such as a disk that can only be read, which is enough for what is stored
                    log.warning("cannot remove the unfinished %s: %s", left, error.strerror or error)

    def _scratch(self, kind: str, key: str) -> Path:
        return self.root / SCRATCH / f"{kind}-{key}"

    def _require_writable(self, what: str) -> None:
        if self.readonly:
            raise StoreError(f"the store {self.root} is read-only: cannot write {what}")

    @contextlib.contextmanager
    def _lock(self, kind: str, key: str) -> Iterator[None]:
        with storage(f"cannot lock {kind} {key[:12]} in {self.root}"):
            lock = artefact_lock(self.root, kind, key)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.info("waiting for another process that makes %s %s", kind, key[:12])
                lock.acquire()
        try:
            yield
        finally:
            lock.release()


def kinds(root: Path) -> list[Path]:
    """The folders of all kinds of artefacts, without the pictures."""
    return sorted(
        path for path in root.iterdir() if _KIND.fullmatch(path.name) and path.name != "image" and path.is_dir()
    )


def artefact_lock(root: Path, kind: str, key: str, timeout: float = -1) -> FileLock:
    """The lock of an artefact, also by the name of its temporary folder; not acquired yet, and of any thread."""
    path = root / LOCKS / f"{kind}-{key.removeprefix(TEMPORARY)}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, timeout=timeout, thread_local=False)


def finished_scratch(root: Path) -> list[Path]:
    """Folders of unfinished work whose artefact is stored: their process was killed before it removed them."""
    folders = sorted((root / SCRATCH).iterdir()) if (root / SCRATCH).is_dir() else []
    found = []
    for folder in folders:
        kind, _, key = folder.name.rpartition("-")
        if (root / kind / key[:2] / key / MANIFEST).is_file():
            found.append(folder)
    return found


def _independent(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, no two sharing memory, as safetensors wants them."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage()
        if memory.nbytes() != tensor.nbytes or memory.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result


if __name__ == "__main__":
    from .upkeep import main

    sys.exit(main())
