"""Files that are whole or absent: atomic writes, and folders sealed with a manifest of sizes and hashes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MANIFEST = "manifest.json"
_UNFINISHED = ".tmp"  # ends the name of a file that is being written


class StoreError(RuntimeError):
    """The store cannot be read or written (full, read-only, not a folder): the run fails, its input is not at fault."""


def write_atomic(path: Path | str, data: bytes, durable: bool = True, via: Path | None = None) -> None:
    """Write a file so that a reader sees the old content or the new.

    What killed processes left of the same file is removed.

    Args:
        path: the file; its folder is made.
        data: the whole content.
        durable: also after a power cut. Without, a cut may leave an empty or torn file, so it is for files that are
            checked when read and cheap to make again; flushing many small ones takes longer than making them.
        via: the folder, on the same disk, in which the file lies while it is written; by default its own.

    Raises:
        StoreError: the folder cannot be made or written.
    """
    path = Path(path)
    via = via or path.parent
    prefix = f".{path.name[:80]}."
    with storage(f"cannot write {path}"):
        for folder in (path.parent, via):
            folder.mkdir(parents=True, exist_ok=True)
        sweep(via, prefix)
        file, temporary = _begin(via, prefix)
        try:
            with file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
                os.replace(temporary, path)  # while it is open, and so ours
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync(path.parent)


def _begin(folder: Path, prefix: str) -> tuple[BinaryIO, Path]:
    """A new temporary file that is ours, so that no `sweep` takes it, for as long as it is open."""
    while True:
        path = folder / f"{prefix}{secrets.token_hex(6)}{_UNFINISHED}"
        file = open(path, "xb")
        # A disk that knows no locks has no sweeping either.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():
            return file, path
        file.close()  # swept between the two lines above


def sweep(folder: Path, prefix: str = ".", remove: bool = True) -> list[Path]:
    """Remove the files in `folder` that `write_atomic` began in processes that are gone; returns them.

    Args:
        prefix: only names that begin with it.
        remove: False only looks.
    """
    left = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(prefix) and path.name.endswith(_UNFINISHED) and path.is_file():
            # What is finished meanwhile is gone, what somebody writes is locked.
            with contextlib.suppress(OSError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if remove:
                    path.unlink()
                left.append(path)
    return left


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make a folder that is empty and this process's inside the block; what a killed process left in it goes.

    Raises:
        StoreError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        # A disk that knows no locks cannot say whether another process is at work there.
        with contextlib.suppress(OSError):
            _lock(handle, folder)
        if not (folder.exists() and os.path.samestat(os.fstat(handle), folder.stat())):
            raise StoreError(f"another process has just taken {folder} away; try again")
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        yield
    finally:
        os.close(handle)


def _lock(handle: int, path: Path) -> None:
    """Lock an open file or folder until it is closed; `StoreError` where another process holds it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreError(f"another process is working in {path}") from None


@contextlib.contextmanager
def passing_folder(prefix: str) -> Iterator[Path]:
    """A folder among the system's temporary ones that goes with the block; those that killed processes left go first.

    Args:
        prefix: begins its name, and the names of those that are looked for.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        # What cannot be claimed is a living process's or another user's.
        with contextlib.suppress(OSError, StoreError):
            if left.lstat().st_uid == os.getuid():
                with claimed(left):
                    left.rmdir()
    with tempfile.TemporaryDirectory(prefix=prefix) as folder, claimed(Path(folder)):
        yield Path(folder)


@contextlib.contextmanager
def storage(what: str, only: set[int] | None = None) -> Iterator[None]:
    """Turn the operating system's refusals into one line; with `only`, just those error numbers."""
    try:
        yield
    except OSError as error:
        if only is not None and error.errno not in only:
            raise
        raise StoreError(f"{what}: {error.strerror or error}") from error


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _files(folder: Path) -> dict[str, Path]:
    """Every entry below `folder` that is not a folder, by its relative name with forward slashes."""
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_symlink() or not p.is_dir()}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path) -> None:
    """Write the manifest of a finished folder and flush all of it."""
    manifest = {}
    for name, path in _files(folder).items():
        if path.is_symlink() or not path.is_file():
            raise ValueError(f"an artefact holds plain files only; {name} is a link or a special file")
        manifest[name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
        sync(path)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
    sync(folder / MANIFEST)
    for sub in [path for path in folder.rglob("*") if path.is_dir()]:
        sync(sub)
    sync(folder)


def find_fault(folder: Path) -> str | None:
    """What is wrong with a stored folder: None, or a few words."""
    if not folder.is_dir():
        return "it is not stored"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in manifest.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is not readable"
    files = _files(folder)
    files.pop(MANIFEST, None)
    if set(files) != set(expected):
        odd = sorted(set(files) ^ set(expected))[0]
        return f"{odd} is {'missing' if odd in expected else 'not in the manifest'}"
    for name, (size, digest) in expected.items():
        if files[name].is_symlink() or files[name].stat().st_size != size or _sha256(files[name]) != digest:
            return f"{name} has changed"
    return None


def size_in_words(count: float) -> str:
    """Bytes in a unit that suits them: `12 kB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
