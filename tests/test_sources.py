"""Pinned files: mirror, cache, damage, downloads that break off; the real files where a mirror is at hand."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from experiments import cli
from harness import sources
from harness.lists import BY_HAND, SOURCES, Source, read_table
from harness.sources import (
    SourceError,
    coco_captions,
    coco_rows,
    counted,
    fia_captions,
    locate,
    main,
    no_downloads,
    rows,
)

CSV = (
    b'case_number,source,prompt,evaluation_seed,coco_id\n0,coco-30k,"A dog, running.\n",41,7\n1,coco-30k,A  cat.,42,8\n'
    b"2,coco-30k,A bird.,43,9\n"
)
COLUMNS = ("case_number", "source", "prompt", "evaluation_seed", "coco_id")
needs_mirror = pytest.mark.skipif(
    not os.environ.get("FIA_MIRROR"), reason="FIA_MIRROR names no folder with the published files"
)


@dataclasses.dataclass(frozen=True)
class LocalSource(Source):
    """A source on the test's own server."""

    address: str = ""

    @property
    def url(self) -> str:
        return self.address


class Server:
    """A server of one file, which says what it was asked for.

    Attributes:
        data: the file.
        breaks: bytes after which the next answer breaks off; None for none.
        ranges: whether it goes on where it is asked to.
        asked: the `Range` header of every request, "" for none.
    """

    def __init__(self) -> None:
        self.data, self.breaks, self.ranges = CSV, None, True
        self.asked: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/file"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range", "")
        self.asked.append(wanted)
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        if first >= len(self.data):
            request.send_error(416)
            return
        request.send_response(206 if wanted and self.ranges else 200)
        if wanted and self.ranges:
            request.send_header("Content-Range", f"bytes {first}-{len(self.data) - 1}/{len(self.data)}")
        request.send_header("Content-Length", str(len(self.data) - first))
        request.end_headers()
        request.wfile.write(self.data[first : self.breaks])
        self.breaks = None

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def pinned(monkeypatch, tmp_path, server) -> Source:
    """A registry of one small file on a local server, with neither mirror nor cache."""
    source = LocalSource(
        repo="owner/name",
        commit="0" * 40,
        path="data/a b.csv",
        bytes=len(CSV),
        sha256=hashlib.sha256(CSV).hexdigest(),
        rows=3,
        columns=COLUMNS,
        address=server.address,
    )
    monkeypatch.setattr(sources, "SOURCES", {"coco_30k": source})
    monkeypatch.setenv("FIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FIA_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return source


def _place(folder: Path, data: bytes) -> Path:
    path = folder / "owner__name" / "data" / "a b.csv"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


def _cached(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "000000000000" / "owner__name" / "data" / "a b.csv"


def test_addresses_are_quoted():
    source = Source("owner/name", "0" * 40, "data/a b.csv", 1, "")
    assert source.url == f"https://raw.githubusercontent.com/owner/name/{'0' * 40}/data/a%20b.csv"


def test_without_a_server_it_says_where_to_put_the_file(pinned, server):
    server.stop()
    with pytest.raises(SourceError, match=r"cannot download .*owner__name/data/a b.csv and set FIA_MIRROR") as caught:
        locate("coco_30k")
    assert "\n" not in str(caught.value)


def test_mirror_comes_first_and_is_checked(pinned, server, monkeypatch, tmp_path):
    path = _place(tmp_path / "mirror", CSV)
    monkeypatch.setenv("FIA_MIRROR", str(tmp_path / "mirror"))
    assert locate("coco_30k") == path and server.asked == []
    path.write_bytes(CSV.replace(b"dog", b"cow"))
    with pytest.raises(SourceError, match=r"not the pinned file .sha256"):
        locate("coco_30k")
    path.write_bytes(CSV.replace(b"\n", b"\r\n"))
    with pytest.raises(SourceError, match="bytes instead of"):
        locate("coco_30k")


def test_download_is_cached_and_a_damaged_cache_is_replaced(pinned, server, tmp_path):
    path = locate("coco_30k")
    assert path == _cached(tmp_path) and path.read_bytes() == CSV and locate("coco_30k") == path
    assert server.asked == [""]
    path.write_bytes(b"cut")
    assert locate("coco_30k").read_bytes() == CSV and server.asked == ["", ""]


def test_nothing_is_downloaded_in_a_dry_run(pinned, server, tmp_path):
    with no_downloads(), pytest.raises(SourceError, match=r"a dry run downloads nothing.*FIA_MIRROR"):
        locate("coco_30k")
    assert server.asked == [] and not (tmp_path / "cache").exists()


def test_a_download_that_breaks_off_goes_on_from_there(pinned, server, tmp_path):
    path, part = _cached(tmp_path), _cached(tmp_path).with_name("a b.csv.part")
    server.breaks = 70
    with pytest.raises(SourceError, match=rf"broke off after 70 of {len(CSV)} bytes") as caught:
        locate("coco_30k")
    assert cli.exit_code(caught.value) == cli.FAILED, "the input was right"
    assert not path.exists() and part.read_bytes() == CSV[:70]
    with pytest.raises(SourceError, match="a dry run"), no_downloads():
        locate("coco_30k")
    assert locate("coco_30k").read_bytes() == CSV and not part.exists()
    assert server.asked == ["", "bytes=70-"]


def test_a_killed_download_goes_on_from_there(pinned, server, monkeypatch, tmp_path):
    part = _cached(tmp_path).with_name("a b.csv.part")
    monkeypatch.setattr(sources, "_CHUNK", 32)
    opened = sources.urllib.request.urlopen

    def interrupted(*args, **kwargs):
        response = opened(*args, **kwargs)
        read, answers = response.read, iter([True, True])

        def some(size):
            if not next(answers, False):
                raise KeyboardInterrupt
            return read(size)

        response.read = some
        return response

    with monkeypatch.context() as patch:
        patch.setattr(sources.urllib.request, "urlopen", interrupted)
        assert main(["fetch", "coco_30k"]) == 130
    assert part.read_bytes() == CSV[:64]
    assert locate("coco_30k").read_bytes() == CSV and server.asked == ["", "bytes=64-"]


def test_a_server_without_ranges_is_asked_for_all(pinned, server, tmp_path):
    server.breaks, server.ranges = 70, False
    with pytest.raises(SourceError, match="broke off"):
        locate("coco_30k")
    assert locate("coco_30k").read_bytes() == CSV and server.asked == ["", "bytes=70-"]


@pytest.mark.parametrize("wrong", [CSV[:-1] + b"?", CSV + b"x", b"not found"])
def test_another_file_behind_the_address_is_refused(pinned, server, tmp_path, wrong):
    server.data = wrong
    with pytest.raises(SourceError, match="something else than the pinned file"):
        locate("coco_30k")
    folder = _cached(tmp_path).parent
    assert [path.name for path in folder.iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize("left", [b"?" * 70, CSV + b"x"])
def test_a_half_file_of_something_else_is_refused_once(pinned, server, tmp_path, left):
    path = _cached(tmp_path)
    path.parent.mkdir(parents=True)
    path.with_name("a b.csv.part").write_bytes(left)
    with pytest.raises(SourceError, match="something else than the pinned file"):
        locate("coco_30k")
    assert locate("coco_30k").read_bytes() == CSV


def test_captions_of_the_two_splits(pinned, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(sources, "TUNING_CAPTIONS", 2)
    _place(tmp_path, CSV)
    monkeypatch.setenv("FIA_MIRROR", str(tmp_path))
    assert len(rows("coco_30k")) == 3
    assert coco_captions(1, "test") == [("A dog, running.", 41)] and not caplog.records
    # The same caption has the same place at every n.
    assert coco_captions(1, "tuning") == coco_captions(2, "tuning")[:1] == [("A bird.", 43)]
    assert coco_captions(2, "test") == [("A dog, running.", 41), ("A cat.", 42)]
    assert "beyond 1, test captions are tuning captions too" in caplog.text
    with pytest.raises(ValueError, match="the tuning split of coco_30k has 1 to 2 rows"):
        coco_captions(3, "tuning")
    with pytest.raises(ValueError, match="1 to 3"):
        coco_captions(4, "test")


def test_names_that_are_not_fetched_say_why():
    with pytest.raises(ValueError, match="did you mean imagenette_"):
        locate("imagenete_a")
    for name, entry in BY_HAND.items():
        with pytest.raises(SourceError, match=f"^{name}: {entry.state}, not downloaded here; ") as caught:
            locate(name)
        assert "\n" not in str(caught.value)
    assert BY_HAND["p4d"].state == BY_HAND["mma_diffusion"].state == BY_HAND["ring_a_bell"].state == "gated"


def test_the_registry_is_whole():
    assert not set(SOURCES) & set(BY_HAND)
    assert len({source.sha256 for source in SOURCES.values()}) == len(SOURCES) == 68
    for name, source in SOURCES.items():
        assert len(source.sha256) == 64 and len(source.commit) == 40 and source.bytes > 0 and source.licence, name
        assert source.rows or not source.columns, name
        assert not any(not column or column.startswith("Unnamed") for column in source.columns), name


def test_a_table_is_read_with_empty_cells(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text(
        "name,repo,commit,path,bytes,sha256,rows,columns,licence\n"
        'one,a/b,c,d.csv,5,e,7,"x,y",MIT\n'
        "two,a/b,c,d.npy,5,e,,,MIT\n"
    )
    found = read_table(table)
    assert found["one"] == Source("a/b", "c", "d.csv", 5, "e", 7, ("x", "y"), "MIT")
    assert found["two"].rows is None and found["two"].columns == ()


def test_command_lists_fetches_and_verifies(pinned, server, capsys, tmp_path):
    assert main(["list", "coco_30k", "p4d"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:4] == ["coco_30k", "absent", "3", "rows"] and second.split()[:2] == ["p4d", "gated"]
    assert f"  sha256 {pinned.sha256[:12]}  owner/name@{'0' * 12}/data/a b.csv (" in first
    assert main(["verify"]) == 0 and capsys.readouterr().out.startswith("no pinned file is here: ")
    assert main(["verify", "coco_30k"]) == 1
    assert capsys.readouterr().err == "coco_30k: not on this machine; say python -m harness.sources fetch coco_30k\n"
    assert main(["fetch"]) == 0 and server.asked == [""]
    assert capsys.readouterr().out == f"coco_30k: {_cached(tmp_path)}\n"
    assert main(["list", "coco_30k"]) == 0 and "cache" in capsys.readouterr().out
    assert main(["verify"]) == 0 and capsys.readouterr().out == "coco_30k: right\n"
    _cached(tmp_path).write_bytes(b"cut")
    assert main(["verify"]) == 1 and "3 bytes instead of" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["list"], ["verify"], ["fetch"], ["fetch", "coco_30k"]])
def test_a_mirror_that_is_no_folder_is_said(pinned, server, monkeypatch, capsys, tmp_path, command):
    monkeypatch.setenv("FIA_MIRROR", str(tmp_path / "mirorr"))
    words = f"FIA_MIRROR={tmp_path / 'mirorr'}: there is no such folder; "
    assert main(command) == 2 and server.asked == []
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(words) and err.count("\n") == 1
    with pytest.raises(SourceError, match=r"FIA_MIRROR=.*mirorr: there is no such folder"), counted():
        rows("coco_30k")


def test_verify_checks_rows_and_columns(pinned, monkeypatch, capsys):
    locate("coco_30k")
    for change, message in (({"rows": 4}, "3 rows instead of 4"), ({"columns": COLUMNS[:-1]}, "the columns are ")):
        monkeypatch.setattr(sources, "SOURCES", {"coco_30k": dataclasses.replace(pinned, **change)})
        assert main(["verify"]) == 1 and message in capsys.readouterr().err
    # Without columns it is a text: lines that are not blank. Without rows only the hash counts.
    for change, code in (({"columns": (), "rows": 5}, 0), ({"columns": (), "rows": None}, 0)):
        monkeypatch.setattr(sources, "SOURCES", {"coco_30k": dataclasses.replace(pinned, **change)})
        assert main(["verify"]) == code


def test_every_problem_is_one_line(pinned, server, capsys):
    server.stop()
    assert main(["fetch", "p4d", "coco_30k"]) == 1
    problems = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert [name for name in problems if name in ("p4d", "coco_30k")] == ["p4d", "coco_30k"]
    for bad in (["fetch", "coco_30"], ["fetsh"], [], ["list", "--all"]):
        assert main(bad) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_list_that_is_not_here_is_counted_in_a_dry_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """In the registry's number of rows, of which every consumer makes as many pictures as of the list itself."""
    from harness import artists, i2p
    from harness.task import class_task

    monkeypatch.delenv("FIA_MIRROR", raising=False)
    monkeypatch.setenv("FIA_CACHE", str(tmp_path))
    with counted() as names:
        captions = coco_captions(30_000, "test")
        assert len(captions) == 30_000 and len(fia_captions(480, "test")) == 480
        with pytest.raises(ValueError, match="1 to 30000 rows"):
            coco_captions(30_001, "test")
        task = class_task(
            "t", "object", ["tabby", "lion"], ["peacock"], 130, prompts="diversi50", keep_prompts="neutral"
        )
        classes = task.prompts("classes")
        assert [sum(row.label == name for row in classes) for name in classes.labels] == [130] * 3
        assert classes.source == "diversi50+neutral" and len({row.id for row in classes}) == 390
        assert len(artists.published(["Monet"], 50, "test")) == 50
        views = {view: len(i2p.published("test", None, "columns", view)) for view in i2p.VIEWS}
        assert views == {"all": 4_703, "first300": 300, "nudity_gt0": 854}
        assert {row.guidance for row in i2p.published("test", None, "columns", "all")} == {7.5}
    assert list(names) == ["coco_30k", "coco_480", "diversi50", "artists_monet", "i2p"]
    with no_downloads(), pytest.raises(SourceError, match="not on this machine"):
        rows("coco_30k")


@needs_mirror
def test_a_list_that_is_here_is_read_in_a_dry_run():
    with counted() as names:
        assert coco_captions(1, "test") == [("A bicycle replica with a clock as the front wheel.", 41337)]
    assert not names


@needs_mirror
def test_published_files(capsys):
    """Hash, row count and columns of every pinned file that the mirror has."""
    assert main(["verify"]) == 0
    found = capsys.readouterr().out
    counts = {
        **dict.fromkeys(("imagenette_a", "imagenette_b", "art_50"), 5_000),
        **dict.fromkeys((name for name in SOURCES if name.startswith("artists_") and SOURCES[name].rows == 50), 50),
        **{"i2p": 4_703, "coco_30k": 30_000, "coco_480": 480, "diversi50": 25_000, "confuse15": 7_500, "art_5": 100},
    }
    assert sum(rows == 50 for rows in counts.values()) == 5  # 250 rows over five artists
    for name, count in counts.items():
        assert f"{name}: right\n" in found and SOURCES[name].rows == count


@needs_mirror
def test_published_rows():
    for version, springer in (
        ("a", "an image of an English Springer in a park"),
        ("b", "an image of an English springer"),
    ):
        table = rows(f"imagenette_{version}")
        assert {row["prompt"] for row in table if row["class"] == "English springer"} == {springer}
    assert coco_captions(1, "test") == [("A bicycle replica with a clock as the front wheel.", 41337)]
    tuning = coco_rows(5_000, "tuning")
    assert [int(row["case_number"]) for row in (tuning[0], tuning[-1])] == [29_999, 25_000]
    assert {row["coco_id"] for row in tuning}.isdisjoint(row["coco_id"] for row in coco_rows(25_000, "test"))


@needs_mirror
def test_fia_captions():
    captions = fia_captions(480, "test")
    assert captions[0][0] == "a dog looking at a kid in the stroller"
    assert fia_captions(200, "test") == captions[:200] and len({seed for _, seed in captions}) == 480
    with pytest.raises(ValueError, match="1 to 480"):
        fia_captions(481, "test")
    with pytest.raises(ValueError, match="published test list"):
        fia_captions(3, "tuning")
