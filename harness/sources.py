"""Pinned prompt files: the one way to get them, `python -m harness.sources list|fetch|verify [NAMES]`.

`lists` says what they are. `locate(name)` looks in the mirror folder that `FIA_MIRROR` names (layout
`OWNER__REPO/path`), then in the cache (`FIA_CACHE`, by default `~/.cache/forget-bench`), then downloads from GitHub.
Size and sha256 are checked every time, so a file of the same name with other prompts is never used silently. A download
that is interrupted stays beside its place as `NAME.part` and goes on from there; only a whole and right file gets the
name.

The two published Imagenette lists differ in 1,000 prompts and have different names here: `imagenette_a` says
"an image of an English Springer in a park" and "an image of a golf ball in a room", `imagenette_b` does not.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import http.client
import io
import logging
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import NoReturn

from filelock import FileLock

from .files import StoreError, storage, sync
from .lists import BY_HAND, SOURCES, Source
from .names import unknown
from .seeds import own_seed

log = logging.getLogger(__name__)

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
TUNING_CAPTIONS = 5_000  # of coco_30k, from its end

_TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 16  # bytes
_downloads: ContextVar[bool] = ContextVar("downloads", default=True)
_counted: ContextVar[dict[str, None] | None] = ContextVar("counted", default=None)
# In rows of a list that is counted only, the columns that decide how a picture is drawn; the others hold numbers.
_STAND_IN = {"prompt": "a picture", "evaluation_guidance": "7.5", "sd_image_width": "512", "sd_image_height": "512"}


class SourceError(ValueError):
    """A pinned file is not available or is not the pinned one; the message says what to do."""


class DownloadFailed(SourceError):
    """The network failed, or the server sent something else."""


def cache_folder() -> Path:
    """Where downloads are kept: `FIA_CACHE`, else `forget-bench` in the user's cache folder."""
    chosen = os.environ.get("FIA_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "forget-bench"


def locate(name: str) -> Path:
    """The checked file with this name in `SOURCES`.

    Raises:
        SourceError: FIA_MIRROR names no folder, the file is damaged there, or nobody may download it for you (gated and
            unreleased lists).
        DownloadFailed: the file is nowhere and cannot be downloaded.
        StoreError: the cache cannot be written.
    """
    source = _source(name)
    path = _mirrored(source)
    if path is not None:
        fault = _fault(path.read_bytes(), source)
        if fault:
            raise SourceError(f"{name}: {path} is not the pinned file ({fault}); replace it or unset FIA_MIRROR")
        return path
    path = _cached(source)
    if path.is_file() and _fault(path.read_bytes(), source) is None:
        return path
    if not _downloads.get():
        raise SourceError(f"{name}: not on this machine, and a dry run downloads nothing; {_by_mirror(source)}")
    # Two runs that want the same file: one downloads, the other waits and finds it.
    lock = FileLock(path.with_name(path.name + ".lock"))
    with storage(f"cannot write {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        if path.is_file():
            fault = _fault(path.read_bytes(), source)
            if fault is None:
                return path
            log.warning("%s: the cached %s is not the pinned file (%s); downloading it again", name, path, fault)
        _download(name, source, path)
    finally:
        lock.release()
    return path


@contextlib.contextmanager
def no_downloads() -> Iterator[None]:
    """Within this, a file that is not on this machine is a SourceError."""
    token = _downloads.set(False)
    try:
        yield
    finally:
        _downloads.reset(token)


@contextlib.contextmanager
def counted() -> Iterator[dict[str, None]]:
    """For a dry run: within this nothing is downloaded, and a list that is not on this machine has rows of the
    registry's number without its content. Gives the names of such lists, as they are asked for."""
    names: dict[str, None] = {}
    token = _counted.set(names)
    try:
        with no_downloads():
            yield names
    finally:
        _counted.reset(token)


def stands_in(name: str) -> bool:
    """Whether the rows of a list are counted only (`counted`)."""
    source, names = _source(name), _counted.get()
    if names is None or _state(source) != "absent":
        return False
    names[name] = None
    return True


def rows(name: str, classes: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV source; every value is text, also an empty one.

    Args:
        classes: among which rows are dealt out that are counted only.
    """
    if not stands_in(name):
        return _table(locate(name).read_bytes())
    source = SOURCES[name]
    counted_rows = [{**dict.fromkeys(source.columns, str(i)), **_STAND_IN} for i in range(source.rows or 0)]
    for i, row in enumerate(counted_rows):
        row["class"] = classes[i % len(classes)] if classes else ""
        # As many rows of I2P as its authors found nude pictures of.
        row["nudity_percentage"] = str(int(i < (SOURCES["i2p_nudity_spm"].rows or 0)))
    return counted_rows


def lines(name: str) -> list[str]:
    """The lines of a text source that are not blank, stripped."""
    if stands_in(name):
        return [_STAND_IN["prompt"]] * (SOURCES[name].rows or 0)
    return _lines(locate(name).read_bytes())


def coco_rows(n: int, split: str) -> list[dict[str, str]]:
    """`n` rows of the 30k list: the first ones, or for the tuning split the last ones from the end.

    Row i of a split is the same caption whatever `n` is. The splits share no row as long as the test split uses at
    most 25,000; the whole list is the published protocol of FID, and then holds the tuning captions too.
    """
    pinned = rows("coco_30k")
    limit = len(pinned) if split == "test" else min(TUNING_CAPTIONS, len(pinned))
    if not 1 <= n <= limit:
        raise ValueError(f"quality.n={n}: the {split} split of coco_30k has 1 to {limit} rows")
    return pinned[:n] if split == "test" else pinned[: -n - 1 : -1]


def coco_captions(n: int, split: str) -> list[tuple[str, int]]:
    """Captions and seeds of `coco_rows`."""
    chosen = coco_rows(n, split)
    listed = SOURCES["coco_30k"].rows
    assert listed is not None
    apart = listed - TUNING_CAPTIONS
    if split == "test" and n > apart:
        log.warning("quality.n=%d: beyond %d, test captions are tuning captions too", n, apart)
    return [(_one_line(row["prompt"]), int(row["evaluation_seed"])) for row in chosen]


def fia_captions(n: int, split: str) -> list[tuple[str, int]]:
    """The first `n` of the 480 captions that the FIA release scores CLIP on (its script takes 200).

    The list has no seeds, and the release draws noise in batches from one global seed; the seeds here are our own. Like
    the other published lists without a split it is for the test split only.
    """
    if split != "test":
        raise ValueError("coco_480 is a published test list; choose settings with another quality set, or quality=off")
    captions = lines("coco_480")
    if not 1 <= n <= len(captions):
        raise ValueError(f"quality.n={n}: coco_480 has 1 to {len(captions)} rows")
    return [(_one_line(text), own_seed("coco_480", str(i))) for i, text in enumerate(captions[:n])]


def main(argv: Sequence[str] | None = None) -> int:
    """`list`, `fetch` or `verify` by name; returns 0, 1 (a file is missing or wrong), 2 (bad input) or 130."""
    parser = _Parser(prog="python -m harness.sources", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("list", "fetch", "verify"))
    parser.add_argument("names", nargs="*", help="of sources; without any: all (verify: those that are here)")
    try:
        args = parser.parse_args(argv)
        for name in args.names:
            _known(name)
        _mirror()
    except ValueError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return {"list": _list, "fetch": _fetch, "verify": _verify}[args.command](args.names)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (python -m harness.sources list|fetch|verify [NAMES])")


def _list(names: Sequence[str]) -> int:
    """One line a source: name, where it is, rows, bytes, the first digits of its sha256, and the file at its commit
    with the licence, or how to get it."""
    for name in names or [*SOURCES, *BY_HAND]:
        if name in BY_HAND:
            print(f"{name:<28} {BY_HAND[name].state:<11} {BY_HAND[name].how}")
            continue
        source = SOURCES[name]
        rows = "-" if source.rows is None else f"{source.rows:,}"
        print(
            f"{name:<28} {_state(source):<11} {rows:>6} rows {source.bytes:>9,} bytes  sha256 {source.sha256[:12]}  "
            f"{source.repo}@{source.commit[:12]}/{source.path} ({source.licence})"
        )
    return DONE


def _fetch(names: Sequence[str]) -> int:
    """Bring every named source to this machine; a problem with one does not stop the others."""
    problems = 0
    for name in names or SOURCES:
        try:
            print(f"{name}: {locate(name)}")
        except (SourceError, StoreError) as error:
            print(error, file=sys.stderr)
            problems += 1
    return FAILED if problems else DONE


def _verify(names: Sequence[str]) -> int:
    """Check hash, row count and columns of the sources that are here; a named one has to be."""
    problems = []
    names = names or [name for name, source in SOURCES.items() if _state(source) != "absent"]
    if not names:
        print("no pinned file is here: say python -m harness.sources fetch, or set FIA_MIRROR to a folder with them")
    for name in names:
        try:
            source = _source(name)
        except SourceError as error:
            problems.append(str(error))
            continue
        path = _mirrored(source) or _cached(source)
        if not path.is_file():
            problems.append(f"{name}: not on this machine; say python -m harness.sources fetch {name}")
            continue
        data = path.read_bytes()
        fault = _fault(data, source) or _misshapen(data, source)
        if fault:
            problems.append(f"{name}: {path} is not the pinned file ({fault})")
        else:
            print(f"{name}: right")
    for problem in problems:
        print(problem, file=sys.stderr)
    return FAILED if problems else DONE


def _known(name: str) -> None:
    if name not in SOURCES and name not in BY_HAND:
        raise unknown("source", name, [*SOURCES, *BY_HAND])


def _source(name: str) -> Source:
    _known(name)
    if name in BY_HAND:
        raise SourceError(f"{name}: {BY_HAND[name].state}, not downloaded here; {BY_HAND[name].how}")
    return SOURCES[name]


def _mirror() -> Path | None:
    """The folder that FIA_MIRROR names; SourceError where it is none."""
    given = os.environ.get("FIA_MIRROR")
    folder = Path(given).expanduser() if given else None
    if folder is not None and not folder.is_dir():
        raise SourceError(f"FIA_MIRROR={given}: there is no such folder; name one with published files, or unset it")
    return folder


def _mirrored(source: Source) -> Path | None:
    folder = _mirror()
    path = folder / source.relative if folder else None
    return path if path is not None and path.is_file() else None


def _cached(source: Source) -> Path:
    # The commit is in the path, so that a new pin cannot meet an old file.
    return cache_folder() / source.commit[:12] / source.relative


def _state(source: Source) -> str:
    if _mirrored(source) is not None:
        return "mirror"
    return "cache" if _cached(source).is_file() else "absent"


def _by_mirror(source: Source) -> str:
    return f"put the file at FOLDER/{source.relative} and set FIA_MIRROR=FOLDER"


def _table(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))


def _lines(data: bytes) -> list[str]:
    return [line.strip() for line in data.decode("utf-8-sig").splitlines() if line.strip()]


def _one_line(text: str) -> str:
    """A few captions end in a line break or hold double blanks; the tokenizer reads them the same either way."""
    return " ".join(text.split())


def _fault(data: bytes, source: Source) -> str | None:
    if len(data) != source.bytes:
        return f"{len(data)} bytes instead of {source.bytes}"
    digest = hashlib.sha256(data).hexdigest()
    return None if digest == source.sha256 else f"sha256 {digest[:12]}... instead of {source.sha256[:12]}..."


def _misshapen(data: bytes, source: Source) -> str | None:
    """What is wrong with the rows and columns that a file of the right hash is read as; None if nothing is."""
    if source.rows is None:
        return None
    found: list[str] | list[dict[str, str]]
    if not source.columns:
        found = _lines(data)
    else:
        found = _table(data)
        columns = tuple(name for name in (found[0] if found else ()) if name and not name.startswith("Unnamed"))
        if columns != source.columns:
            return f"the columns are {', '.join(columns)}, not {', '.join(source.columns)}"
    return None if len(found) == source.rows else f"{len(found)} rows instead of {source.rows}"


def _download(name: str, source: Source, path: Path) -> None:
    """Download to `path`, going on from what an interrupted download has left in `path.part`."""
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.is_file() else 0
    log.info("%s: downloading %s%s", name, source.url, f" from byte {have}" if have else "")
    try:
        fault = _receive(source, part, have) if have < source.bytes else None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DownloadFailed(f"{name}: cannot download {source.url} ({reason}); {_by_mirror(source)}") from error
    if fault is None:
        data = part.read_bytes()
        if len(data) < source.bytes:
            raise DownloadFailed(
                f"{name}: {source.url} broke off after {len(data)} of {source.bytes} bytes; try again, it goes on there"
            )
        fault = _fault(data, source)
    if fault:
        part.unlink(missing_ok=True)
        raise DownloadFailed(
            f"{name}: {source.url} sent something else than the pinned file ({fault}); {_by_mirror(source)}"
        )
    with storage(f"cannot write {path}"):
        sync(part)
        os.replace(part, path)
        sync(path.parent)


def _receive(source: Source, part: Path, have: int) -> str | None:
    """Write `part` from byte `have` on, or anew where the server does not go on; never more than one byte too many.

    Returns:
        What is wrong with the file that the server announces; None if nothing is.
    """
    request = urllib.request.Request(source.url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        begin, _, total = response.headers.get("Content-Range", "").partition("/")
        goes_on = begin.startswith(f"bytes {have}-")
        size = total if goes_on else response.headers.get("Content-Length", "")
        if size.isdecimal() and int(size) != source.bytes:
            return f"{size} bytes instead of {source.bytes}"
        with storage(f"cannot write {part}"):
            file = open(part, "ab" if goes_on else "wb")
        with file:
            left = source.bytes + 1 - (have if goes_on else 0)
            while chunk := response.read(min(_CHUNK, left)):
                with storage(f"cannot write {part}"):
                    file.write(chunk)
                left -= len(chunk)
    return None


if __name__ == "__main__":
    sys.exit(main())
