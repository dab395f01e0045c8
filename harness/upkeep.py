"""Upkeep of a store: check all of it, clear away what nobody needs, say what takes the room.

    python -m harness.store verify STORE                              one line for everything that is damaged
    python -m harness.store gc STORE [--dry-run] [--older-than DAYS]
    python -m harness.store du STORE

Whole artefacts and pictures are never removed unless `--older-than` names an age. Exit codes: 0, 1 where something is
damaged or cannot be read or written, 2 for bad input.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from .files import MANIFEST, StoreError, size_in_words, storage, sweep
from .picture import read_picture
from .store import (
    LOCKS,
    SCRATCH,
    TEMPORARY,
    UNFINISHED_PICTURES,
    artefact_fault,
    artefact_lock,
    finished_scratch,
    kinds,
)

DAY = 86_400  # seconds
_KEY = re.compile(r"[0-9a-f]{64}")
_SCRATCH = re.compile(rf".+-{_KEY.pattern}")


@dataclass(frozen=True)
class Waste:
    """Something that can go: where it lies, and why."""

    path: Path
    reason: str


def artefacts(root: Path) -> Iterator[Path]:
    """The folders of all stored artefacts, damaged ones included."""
    for kind in kinds(root):
        yield from (path for path in sorted(kind.glob("??/*")) if _KEY.fullmatch(path.name) and path.is_dir())


def pictures(root: Path) -> Iterator[Path]:
    """The files of all stored pictures, damaged ones included."""
    yield from (path for path in sorted((root / "image").glob("??/*.png")) if _KEY.fullmatch(path.stem))


def damaged(root: Path) -> Iterator[Waste]:
    """Every artefact and picture whose bytes are not what was stored. It reads all of them."""
    for path in artefacts(root):
        fault = artefact_fault(path)
        if fault is not None:
            yield Waste(path, fault)
    for path in pictures(root):
        try:
            read_picture(path)
        except FileNotFoundError:  # removed meanwhile
            continue
        except ValueError as error:
            yield Waste(path, str(error))


def left_over(root: Path) -> Iterator[Waste]:
    """What killed processes left and no later run goes on from."""
    for kind in kinds(root):
        yield from (Waste(path, "unfinished") for path in sorted(kind.glob(f"??/{TEMPORARY}*")))
    for folder in (root / UNFINISHED_PICTURES, *sorted((root / "image").glob("??"))):
        yield from (Waste(path, "unfinished") for path in sweep(folder, remove=False))
    yield from (Waste(path, "work on something that is finished") for path in finished_scratch(root))
    for path in _entries(root / SCRATCH):
        if not _SCRATCH.fullmatch(path.name):
            yield Waste(path, "work that no run goes on from")


def aged(root: Path, days: float) -> Iterator[Waste]:
    """Artefacts, pictures and unfinished work that were written more than `days` days ago."""
    until = time.time() - days * DAY
    places = [(path, path / MANIFEST) for path in artefacts(root)]
    places += [(path, path) for path in (*pictures(root), *_entries(root / SCRATCH))]
    for path, dated in places:
        if dated.exists() and dated.stat().st_mtime < until:
            yield Waste(path, f"older than {days:g} days")


def remove(root: Path, path: Path) -> bool:
    """Remove an artefact, a picture or a leftover; False where a process is working on it."""
    try:
        with storage(f"cannot remove {path}"), _lock(root, path):
            if path.is_dir() and _KEY.fullmatch(path.name):
                # In one step: half an artefact would be damage.
                path = path.rename(path.with_name(TEMPORARY + path.name))
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except Timeout:
        return False
    return True


def remove_locks(root: Path, dry_run: bool = False) -> int:
    """Remove the lock files that no process holds; returns their number."""
    count = 0
    for path in _entries(root / LOCKS):
        try:
            with storage(f"cannot remove {path}"), FileLock(path, timeout=0):
                if not dry_run:
                    path.unlink(missing_ok=True)
                count += 1
        except Timeout:
            continue
    return count


def sizes(root: Path) -> dict[str, tuple[int, int]]:
    """Count and bytes by kind: artefacts, pictures, then what is unfinished."""
    table = {kind.name: [path for path in artefacts(root) if path.parent.parent == kind] for kind in kinds(root)}
    table["image"] = list(pictures(root))
    table["unfinished"] = list(dict.fromkeys([*_entries(root / SCRATCH), *(waste.path for waste in left_over(root))]))
    return {name: (len(paths), sum(map(_bytes, paths))) for name, paths in table.items() if paths}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(argv)
    root = options.store.expanduser().absolute()
    if not root.is_dir():
        print(f"{options.store}: no such folder; name a store", file=sys.stderr)
        return 2
    try:
        with storage(f"cannot read {root}"):
            return {"verify": _verify, "gc": _gc, "du": _du}[options.command](root, options)
    except StoreError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.store", description="Upkeep of a store.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (
        ("verify", "read everything and list what is damaged; exit code 1 if anything is"),
        ("gc", "remove what is damaged, unfinished or left over; nothing else without --older-than"),
        ("du", "count and size of every kind"),
    ):
        command = commands.add_parser(name, help=words, description=words)
        command.add_argument("store", type=Path, metavar="STORE")
        if name == "gc":
            command.add_argument("--dry-run", action="store_true", help="only say what would go")
            command.add_argument(
                "--older-than", type=days, metavar="DAYS",
                help="also whole artefacts and pictures that were made so long ago; not while a run uses the store",
            )  # fmt: skip
    return parser


def days(text: str) -> float:
    """A number of days from the command line."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of days")
    return number


def _verify(root: Path, options: argparse.Namespace) -> int:
    found = 0
    for waste in damaged(root):
        found += 1
        print(f"damaged: {waste.path.relative_to(root)}: {waste.reason}")
    checked = (sum(1 for _ in artefacts(root)), sum(1 for _ in pictures(root)))
    print(f"{checked[0]} artefacts and {checked[1]} pictures checked, {found} damaged")
    return 1 if found else 0


def _gc(root: Path, options: argparse.Namespace) -> int:
    waste = [*left_over(root), *damaged(root)]
    if options.older_than is not None:
        waste += aged(root, options.older_than)
    reasons: dict[Path, str] = {}
    for item in waste:
        reasons.setdefault(item.path, item.reason)
    freed, done = 0, "would go" if options.dry_run else "removed"
    for path, reason in reasons.items():
        size = _bytes(path)
        if options.dry_run or remove(root, path):
            freed += size
            print(f"{done}: {path.relative_to(root)}: {reason}")
        else:
            print(f"in use: {path.relative_to(root)}: {reason}")
    print(f"{size_in_words(freed)} and {remove_locks(root, options.dry_run)} unused locks {done}")
    return 0


def _du(root: Path, options: argparse.Namespace) -> int:
    table = sizes(root)
    table["all"] = (sum(count for count, _ in table.values()), sum(size for _, size in table.values()))
    width = max(map(len, table))
    for name, (count, size) in table.items():
        print(f"{name:<{width}}  {count:>9,}  {size_in_words(size):>9}")
    return 0


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())


def _lock(root: Path, path: Path) -> AbstractContextManager[object]:
    """The lock of the process that may be working there. A picture needs none: it is written in one step."""
    if path.parent == root / SCRATCH:
        kind, _, key = path.name.rpartition("-")
    else:
        kind, key = path.relative_to(root).parts[0], path.name
    return nullcontext() if kind in ("", "image") else artefact_lock(root, kind, key, timeout=0)
