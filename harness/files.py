"""Files that are whole or absent: atomic writes, and folders sealed with a manifest of sizes and hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

MANIFEST = "manifest.json"


class StoreError(RuntimeError):
    """The store cannot be read or written (full, read-only, not a folder): the run fails, its input is not at fault."""


def write_atomic(path: Path | str, data: bytes, durable: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new.

    Args:
        path: the file; its folder is made.
        data: the whole content.
        durable: also after a power cut. Without, a cut may leave an empty or torn file, so it is for files that are
            checked when read and cheap to make again; flushing many small ones takes longer than making them.

    Raises:
        StoreError: the folder cannot be made or written.
    """
    path = Path(path)
    with storage(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(6)}.tmp")
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync(path.parent)


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
