"""Pinned files: mirror, cache, damage, offline; the real files where a mirror is at hand."""

from __future__ import annotations

import hashlib
import os
import urllib.error
from pathlib import Path

import pytest

from harness import sources
from harness.sources import SourceError, coco_captions, locate, rows

CSV = (
    b'case_number,source,prompt,evaluation_seed,coco_id\n0,coco-30k,"A dog, running.\n",41,7\n1,coco-30k,A  cat.,42,8\n'
    b"2,coco-30k,A bird.,43,9\n"
)


@pytest.fixture
def pinned(monkeypatch, tmp_path):
    """A registry of one small file, with neither mirror nor cache nor network."""
    source = sources.Source("owner/name", "0" * 40, "data/a b.csv", len(CSV), hashlib.sha256(CSV).hexdigest())
    monkeypatch.setattr(sources, "SOURCES", {"coco_30k": source})
    monkeypatch.setenv("FIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FIA_MIRROR", raising=False)

    def offline(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(sources.urllib.request, "urlopen", offline)
    return source


def _put(folder: Path, data: bytes) -> Path:
    path = folder / "owner__name" / "data" / "a b.csv"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


def _serve(monkeypatch, data: bytes) -> list[str]:
    import io

    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(data)

    monkeypatch.setattr(sources.urllib.request, "urlopen", urlopen)
    return asked


def test_offline_says_where_to_put_the_file(pinned):
    with pytest.raises(SourceError, match=r"no route.*owner__name/data/a b.csv and set FIA_MIRROR") as caught:
        locate("coco_30k")
    assert "\n" not in str(caught.value)


def test_mirror_comes_first_and_is_checked(pinned, monkeypatch, tmp_path):
    path = _put(tmp_path / "mirror", CSV)
    monkeypatch.setenv("FIA_MIRROR", str(tmp_path / "mirror"))
    assert locate("coco_30k") == path
    path.write_bytes(CSV.replace(b"dog", b"cow"))
    with pytest.raises(SourceError, match=r"not the pinned file .sha256"):
        locate("coco_30k")
    path.write_bytes(CSV.replace(b"\n", b"\r\n"))
    with pytest.raises(SourceError, match="bytes instead of"):
        locate("coco_30k")


def test_download_is_cached_and_a_damaged_cache_is_replaced(pinned, monkeypatch):
    asked = _serve(monkeypatch, CSV)
    path = locate("coco_30k")
    assert path.read_bytes() == CSV and locate("coco_30k") == path
    assert asked == [f"https://raw.githubusercontent.com/owner/name/{'0' * 40}/data/a%20b.csv"]
    path.write_bytes(b"cut")
    assert locate("coco_30k").read_bytes() == CSV and len(asked) == 2


def test_another_file_behind_the_address_is_refused(pinned, monkeypatch, tmp_path):
    _serve(monkeypatch, CSV[:-1] + b"?")
    with pytest.raises(SourceError, match="something else"):
        locate("coco_30k")
    assert not (tmp_path / "cache").exists()


def test_captions_of_the_two_splits(pinned, monkeypatch, tmp_path):
    _put(tmp_path, CSV)
    monkeypatch.setenv("FIA_MIRROR", str(tmp_path))
    assert len(rows("coco_30k")) == 3
    assert coco_captions(2, "test") == [("A dog, running.", 41), ("A cat.", 42)]
    assert coco_captions(1, "tuning") == [("A bird.", 43)]
    with pytest.raises(ValueError, match="1 to 3"):
        coco_captions(4, "test")


def test_unknown_source_has_near_matches():
    with pytest.raises(ValueError, match="did you mean imagenette_"):
        locate("imagenete_a")


@pytest.mark.skipif(not os.environ.get("FIA_MIRROR"), reason="FIA_MIRROR names no folder with the published files")
def test_published_files():
    for version, springer in (
        ("a", "an image of an English Springer in a park"),
        ("b", "an image of an English springer"),
    ):
        table = rows(f"imagenette_{version}")
        assert len(table) == 5000
        assert {row["prompt"] for row in table if row["class"] == "English springer"} == {springer}
    assert len(rows("coco_30k")) == 30_000
    captions = locate("coco_480").read_text().splitlines()
    assert len([caption for caption in captions if caption.strip()]) == 480
    assert coco_captions(1, "test") == [("A bicycle replica with a clock as the front wheel.", 41337)]
