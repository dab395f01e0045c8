"""Pinned prompt files: where each comes from, and the one way to get it.

`locate(name)` looks in the mirror folder that `FIA_MIRROR` names (layout `OWNER__REPO/path`), then in the cache
(`FIA_CACHE`, by default `~/.cache/forget-bench`), then downloads from GitHub. Size and sha256 are checked every time,
so a file of the same name with other prompts is never used silently.

The two published Imagenette lists differ in 1,000 prompts and have different names here: `imagenette_a` says
"an image of an English Springer in a park" and "an image of a golf ball in a room", `imagenette_b` does not.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from .files import write_atomic
from .names import unknown

log = logging.getLogger(__name__)

_TIMEOUT = 30  # seconds without a byte
_downloads: ContextVar[bool] = ContextVar("downloads", default=True)


class SourceError(ValueError):
    """A pinned file is not available or is not the pinned one; the message says what to do."""


@dataclass(frozen=True)
class Source:
    """One file at one commit of a public GitHub repository."""

    repo: str
    commit: str
    path: str
    bytes: int
    sha256: str

    @property
    def relative(self) -> str:
        """Its place in a mirror folder or in the cache."""
        return f"{self.repo.replace('/', '__')}/{self.path}"

    @property
    def url(self) -> str:
        return f"https://raw.githubusercontent.com/{self.repo}/{self.commit}/{urllib.parse.quote(self.path)}"


SOURCES = {
    # 5,000 rows: case_number, prompt, class, evaluation_seed; 500 rows a class
    "imagenette_a": Source(
        repo="kaiyuan02415/Forget-It-All",
        commit="4904518b6b5d56b7d6c6baf7ba61e044e67d51b2",
        path="datasets/imagenette.csv",
        bytes=239_870,
        sha256="45ea8e7ec3f5f3c52a1acabaff7711f946d92862dee2e9e9a7a5353e9b0b14ec",
    ),
    "imagenette_b": Source(
        repo="rohitgandikota/unified-concept-editing",
        commit="28c81ed5a3e41277c1a0dc55f738e7ab188e9718",
        path="data/imagenette.csv",
        bytes=234_872,
        sha256="6f82b5a186f7c44e443052dac15bafe07b4d4e821e7435288642b5756d705b5c",
    ),
    # 30,000 rows: case_number, source, prompt, evaluation_seed, coco_id; captions of COCO val2014, one a photo
    "coco_30k": Source(
        repo="rohitgandikota/unified-concept-editing",
        commit="28c81ed5a3e41277c1a0dc55f738e7ab188e9718",
        path="data/coco_30k.csv",
        bytes=2_413_151,
        sha256="87a3f463164120ca2d1efdbc251f443c7b0043214f767cd1852419d295db9ab5",
    ),
    # 480 captions, one a line (and one empty line), without seeds: the list that the FIA release scores CLIP on
    "coco_480": Source(
        repo="kaiyuan02415/Forget-It-All",
        commit="4904518b6b5d56b7d6c6baf7ba61e044e67d51b2",
        path="datasets/coco_prompts.txt",
        bytes=25_693,
        sha256="84fca862c8ad296bf4fed471cd5eb034eace9001e765387f99822776d7584e72",
    ),
}


def cache_folder() -> Path:
    """Where downloads are kept: `FIA_CACHE`, else `forget-bench` in the user's cache folder."""
    chosen = os.environ.get("FIA_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "forget-bench"


def locate(name: str) -> Path:
    """The checked file with this name in `SOURCES`.

    Raises:
        SourceError: the file is damaged in the mirror, or it is nowhere and cannot be downloaded.
    """
    if name not in SOURCES:
        raise unknown("source", name, SOURCES)
    source = SOURCES[name]
    mirror = os.environ.get("FIA_MIRROR")
    if mirror:
        path = Path(mirror).expanduser() / source.relative
        if path.is_file():
            fault = _fault(path.read_bytes(), source)
            if fault:
                raise SourceError(f"{name}: {path} is not the pinned file ({fault}); replace it or unset FIA_MIRROR")
            return path
    # The commit is in the cached path, so that a new pin cannot meet an old file.
    path = cache_folder() / source.commit[:12] / source.relative
    if path.is_file():
        fault = _fault(path.read_bytes(), source)
        if fault is None:
            return path
        log.warning("%s: the cached %s is not the pinned file (%s); downloading it again", name, path, fault)
    write_atomic(path, _download(name, source))
    return path


@contextlib.contextmanager
def no_downloads() -> Iterator[None]:
    """Within this, a file that is not on this machine is a SourceError."""
    token = _downloads.set(False)
    try:
        yield
    finally:
        _downloads.reset(token)


def rows(name: str) -> list[dict[str, str]]:
    """The rows of a CSV source; every value is text, also an empty one."""
    text = locate(name).read_bytes().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def coco_captions(n: int, split: str) -> list[tuple[str, int]]:
    """The first `n` captions and seeds of the 30k list; for the tuning split the last `n`, at most 5,000.

    The two splits share no row as long as the test split uses at most 25,000.
    """
    pinned = rows("coco_30k")
    limit = len(pinned) if split == "test" else 5_000
    if not 1 <= n <= limit:
        raise ValueError(f"quality.n={n}: the {split} split of coco_30k has 1 to {limit} rows")
    chosen = pinned[:n] if split == "test" else pinned[-n:]
    # A few captions end in a line break or hold double blanks; the tokenizer reads them the same either way.
    return [(" ".join(row["prompt"].split()), int(row["evaluation_seed"])) for row in chosen]


def _fault(data: bytes, source: Source) -> str | None:
    if len(data) != source.bytes:
        return f"{len(data)} bytes instead of {source.bytes}"
    digest = hashlib.sha256(data).hexdigest()
    return None if digest == source.sha256 else f"sha256 {digest[:12]}... instead of {source.sha256[:12]}..."


def _download(name: str, source: Source) -> bytes:
    how = f"put the file at FOLDER/{source.relative} and set FIA_MIRROR=FOLDER"
    if not _downloads.get():
        raise SourceError(f"{name}: not on this machine, and a dry run downloads nothing; {how}")
    log.info("%s: downloading %s", name, source.url)
    try:
        with urllib.request.urlopen(source.url, timeout=_TIMEOUT) as response:
            data = response.read(source.bytes + 1)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise SourceError(f"{name}: cannot download {source.url} ({reason}); {how}") from error
    fault = _fault(data, source)
    if fault:
        raise SourceError(f"{name}: {source.url} sent something else than the pinned file ({fault}); {how}")
    return data
