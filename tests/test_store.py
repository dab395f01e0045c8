"""The store: keys, one computation, damage, interruption, read-only and full disks, pictures."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from harness import upkeep
from harness.files import passing_folder, sweep, write_atomic
from harness.store import MANIFEST, PARTS, Store, StoreError, content_key

ROOT = Path(__file__).resolve().parents[1]
PARTS_A = {"model": "abc", "r": [0.1, 2], "deep": {"x": None, "y": True}}


def _never(*_):
    raise AssertionError("made again although it is stored")


def _write_one(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "a.txt").write_text("hello")
    (folder / "b.bin").write_bytes(b"\x00\x01")


def test_key_depends_on_content_not_on_order():
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    assert content_key({"a": (1, 2)}) == content_key({"a": [1, 2]})
    assert len({content_key(p) for p in ({"a": 1}, {"a": "1"}, {"a": None}, {"a": [1]}, {"b": 1}, {"a": True})}) == 6
    # Computed outside (sha256sum) for {"a":1,"b":["x"]}; a change of spelling would orphan every store.
    assert content_key({"b": ["x"], "a": 1}) == "fd5e92badbe24726f55b88132dd5fa1ceec0efd960b3bcd44f527b4bcc84af34"


@pytest.mark.parametrize(
    ("parts", "where"),
    [
        ({"a": float("nan")}, "parts.a"),
        ({"a": [1, float("inf")]}, r"parts.a\[1\]"),
        ({"a": {"b": torch.zeros(1)}}, "parts.a.b is a Tensor"),
        ({1: "x"}, "key 1 is a int"),
        ({"a": b"x"}, "bytes"),
    ],
)
def test_parts_that_json_cannot_say_are_refused(parts, where):
    with pytest.raises(ValueError, match=where):
        content_key(parts)


def test_folder_is_made_once_and_described(tmp_path):
    store = Store(tmp_path / "s")
    assert not store.has("edit", PARTS_A)
    path = store.folder("edit", PARTS_A, _write_one)
    key = store.key(**PARTS_A)
    assert path == tmp_path / "s" / "edit" / key[:2] / key
    assert json.loads((path / PARTS).read_text()) == PARTS_A
    assert set(json.loads((path / MANIFEST).read_text())) == {"sub/a.txt", "b.bin", PARTS}
    assert Store(tmp_path / "s").folder("edit", PARTS_A, _never) == path
    assert store.has("edit", PARTS_A) and not store.has("edit", {"other": 1}) and not store.has("mask", PARTS_A)


@pytest.mark.parametrize("kind", ["../x", "a/b", "", ".hidden", "a\\b", "/abs", "image", "a b", "..", "a\n"])
def test_kinds_cannot_leave_the_root(tmp_path, kind):
    with pytest.raises(ValueError, match="not a kind"):
        Store(tmp_path).folder(kind, {}, _write_one)
    assert list(tmp_path.iterdir()) == []


def test_links_are_not_stored(tmp_path):
    with pytest.raises(ValueError, match="plain files only"):
        Store(tmp_path).folder("edit", {}, lambda folder: (folder / "link").symlink_to("/etc/hosts"))
    assert not Store(tmp_path).has("edit", {})


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def _rename_parts(folder: Path) -> None:
    """Whole, but of another key: as if a folder had been moved by hand."""
    other = Store(folder.parents[3] / "other").folder("edit", {"other": 1}, _write_one)
    for name in (PARTS, MANIFEST):
        (folder / name).write_bytes((other / name).read_bytes())


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: _flip(p / "b.bin"),
        lambda p: (p / "b.bin").write_bytes(b""),
        lambda p: (p / "sub" / "a.txt").unlink(),
        lambda p: (p / "extra").write_text("?"),
        lambda p: (p / MANIFEST).unlink(),
        lambda p: (p / MANIFEST).write_text("{"),
        lambda p: (p / MANIFEST).write_text("[]"),
        lambda p: _rename_parts(p),
    ],
    ids=["flipped", "cut", "missing", "extra", "no manifest", "half a manifest", "another manifest", "another's"],
)
def test_damaged_folder_is_reported_and_made_again(tmp_path, damage, caplog):
    path = Store(tmp_path).folder("edit", PARTS_A, _write_one)
    damage(path)
    assert not Store(tmp_path).has("edit", PARTS_A)
    with pytest.raises(StoreError, match="read-only"):
        Store(tmp_path, readonly=True).folder("edit", PARTS_A, _never)
    with caplog.at_level(logging.WARNING):
        Store(tmp_path).folder("edit", PARTS_A, _write_one)
    assert [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
    assert (path / "b.bin").read_bytes() == b"\x00\x01" and not (path / "extra").exists()
    assert Store(tmp_path).folder("edit", PARTS_A, _never) == path


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_interrupted_making_leaves_nothing(tmp_path, error):
    def make(folder: Path) -> None:
        (folder / "half").write_text("h")
        raise error

    store = Store(tmp_path)
    with pytest.raises(type(error)):
        store.folder("edit", {}, make)
    assert not store.has("edit", {})
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"] == []


def test_leftover_of_a_killed_process_is_cleared(tmp_path):
    store = Store(tmp_path)
    key = content_key({})
    stale = tmp_path / "edit" / key[:2] / f".tmp-{key}"
    stale.mkdir(parents=True)
    (stale / "half").write_text("h")
    path = store.folder("edit", {}, _write_one)
    assert not stale.exists() and not (path / "half").exists()


def _left_behind(root: Path, kind: str, key: str) -> Path:
    folder = root / kind / key[:2] / f".tmp-{key}"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "half").write_text("h")
    return folder


def test_opening_removes_what_killed_processes_left(tmp_path):
    path = Store(tmp_path).folder("edit", {}, _write_one)
    left = _left_behind(tmp_path, "edit", "ab" * 32)
    others = [_left_behind(tmp_path, "image", "ab" * 32), tmp_path / "notes" / "mine" / "kept"]
    others[1].mkdir(parents=True)
    Store(tmp_path, readonly=True)
    assert left.exists()
    Store(tmp_path)
    assert not left.exists() and path.is_dir() and all(other.is_dir() for other in others)


def test_opening_leaves_what_a_living_process_makes(tmp_path):
    """The second opening is another process, as the lock belongs to the first."""
    context = multiprocessing.get_context("fork")

    def make(folder: Path) -> None:
        worker = context.Process(target=Store, args=(tmp_path,))
        worker.start()
        worker.join(timeout=30)
        assert worker.exitcode == 0
        Store(tmp_path)  # and the same process once more
        _write_one(folder)

    assert (Store(tmp_path).folder("edit", {}, make) / "b.bin").is_file()


def test_opening_a_store_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog):
    left = _left_behind(tmp_path, "edit", "ab" * 32)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("harness.store.FileLock", refuse)
    Store(tmp_path)
    assert left.exists() and "Read-only file system" in caplog.text


def test_a_note_is_kept_beside_the_tensors(tmp_path):
    store, order = Store(tmp_path), []

    def make():
        order.append("made")
        return {"a": torch.ones(2)}

    def note():
        order.append("noted")
        return {"seconds": 1.5}

    for _ in range(2):
        assert torch.equal(store.tensors("stage", {}, make, note=note)["a"], torch.ones(2))
        assert store.note("stage", {}) == {"seconds": 1.5} and order == ["made", "noted"]
    store.tensors("stage", {"other": 1}, make)
    with pytest.raises(FileNotFoundError):
        store.note("stage", {"other": 1})


def test_tensors_round_trip_also_when_they_share_memory(tmp_path):
    base = torch.arange(6, dtype=torch.float16)
    made = {"a": base, "view": base[1:3], "t": base.reshape(2, 3).T, "flag": torch.tensor(True), "none": torch.zeros(0)}
    store = Store(tmp_path)
    first = store.tensors("stage-x", {"c": 1}, lambda: made)
    again = Store(tmp_path).tensors("stage-x", {"c": 1}, _never)
    for name, tensor in made.items():
        assert torch.equal(first[name], tensor) and torch.equal(again[name], tensor)
        assert again[name].dtype == tensor.dtype
    assert store.tensors("stage-x", {"c": 2}, dict) == {}


def test_json_is_read_back_and_refuses_nan(tmp_path):
    store = Store(tmp_path)
    assert store.json("cost", {}, lambda: {"x": (1, 2.5, None, "é")}) == {"x": [1, 2.5, None, "é"]}
    assert store.json("cost", {}, _never) == {"x": [1, 2.5, None, "é"]}
    with pytest.raises(ValueError, match="nan"):
        store.json("cost", {"n": 1}, lambda: float("nan"))
    assert not store.has("cost", {"n": 1})


def test_an_artefact_may_be_made_from_others(tmp_path):
    store = Store(tmp_path)
    outer = store.json("outer", {}, lambda: store.json("inner", {}, lambda: 3) + 1)
    assert outer == 4 and store.has("inner", {})


def _slow_make(root: str, barrier, results) -> None:
    def make(folder: Path) -> None:
        time.sleep(0.3)
        (folder / "pid").write_text(str(os.getpid()))

    barrier.wait()
    path = Store(root).folder("edit", {"shared": 1}, make)
    results.put((os.getpid(), (path / "pid").read_text()))


def test_two_processes_make_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_slow_make, args=(str(tmp_path), barrier, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    seen = [results.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join()
    assert len({pid for pid, _ in seen}) == 3 and len({maker for _, maker in seen}) == 1


def test_readonly_store_reads_and_never_writes(tmp_path):
    Store(tmp_path).folder("edit", {}, _write_one)
    before = sorted(tmp_path.rglob("*"))
    store = Store(tmp_path, readonly=True)
    assert store.folder("edit", {}, _never).is_dir()
    for attempt in (
        lambda: store.folder("edit", {"new": 1}, _write_one),
        lambda: store.write_image({}, np.zeros((2, 2, 3), np.uint8)),
    ):
        with pytest.raises(StoreError, match="read-only"):
            attempt()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_one_clear_line(tmp_path):
    def make(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match=r"cannot write .*No space left on device") as caught:
        Store(tmp_path).folder("edit", {}, make)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):  # an error of the maker itself is not the store's
        Store(tmp_path).folder("edit", {}, lambda folder: Path("/nonexistent").read_bytes())


def test_a_root_that_is_no_folder(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        Store(file)
    with pytest.raises(StoreError, match="cannot"):
        Store(file / "below").folder("edit", {}, _write_one)
    with pytest.raises(StoreError, match="cannot write"):
        write_atomic(file / "below" / "x", b"")


def test_write_atomic_replaces_and_leaves_no_temporary(tmp_path):
    write_atomic(tmp_path / "d" / "x", b"one")
    write_atomic(tmp_path / "d" / "x", b"two")
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["x"] and (tmp_path / "d" / "x").read_bytes() == b"two"
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(StoreError):
        write_atomic(tmp_path / "folder", b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "folder"]


def test_a_killed_writer_s_file_goes_and_a_living_one_s_stays(tmp_path):
    (tmp_path / ".x.0123456789ab.tmp").write_bytes(b"half")
    (tmp_path / ".other.0123456789ab.tmp").write_bytes(b"half")
    write_atomic(tmp_path / "x", b"one")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.0123456789ab.tmp", "x"]

    import fcntl

    with open(tmp_path / ".x.ba9876543210.tmp", "xb") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        assert [path.name for path in sweep(tmp_path, remove=False)] == [".other.0123456789ab.tmp"]
        assert [path.name for path in sweep(tmp_path)] == [".other.0123456789ab.tmp"]
        write_atomic(tmp_path / "x", b"two")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.ba9876543210.tmp", "x"]
    assert (tmp_path / "x").read_bytes() == b"two"


def test_a_passing_folder_goes_and_so_do_those_of_killed_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("mine-killed", "other"):
        (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / "mine-link").symlink_to(tmp_path / "other")
    with passing_folder("mine-") as living, passing_folder("mine-") as second:
        assert living.is_dir() and second.is_dir() and not (tmp_path / "mine-killed").exists()
    assert not living.exists() and not second.exists() and (tmp_path / "other" / "deep").is_dir()


def test_a_half_written_picture_goes_when_the_store_is_opened(tmp_path):
    Store(tmp_path).write_image({}, _picture())
    left = tmp_path / "image" / ".tmp" / ".abc.png.0123456789ab.tmp"
    left.write_bytes(b"half")
    Store(tmp_path, readonly=True)
    assert left.exists()
    Store(tmp_path)
    assert not left.exists() and Store(tmp_path).has_image({})


def test_unfinished_work_lies_in_the_store_and_goes_with_what_it_was_for(tmp_path):
    store = Store(tmp_path)
    scratch = store.scratch("edit", {})
    assert tmp_path in scratch.parents and not scratch.exists()
    with pytest.raises(ValueError, match="not a kind"):
        store.scratch("../edit", {})

    def make(folder: Path) -> None:
        scratch.mkdir(parents=True)
        (scratch / "checkpoint").write_text("half")
        _write_one(folder)

    store.folder("edit", {}, make)
    assert not scratch.exists()
    # A kill between the two steps leaves it to the next opening; work on something unfinished stays.
    other = store.scratch("edit", {"other": 1})
    for folder in (scratch, other):
        folder.mkdir(parents=True)
    Store(tmp_path)
    assert not scratch.exists() and other.is_dir()


# Upkeep


@pytest.fixture
def worn(tmp_path, capsys):
    """A store with everything that can be in one; `worn(*arguments)` runs the command line on it: (code, lines)."""
    root = tmp_path / "s"
    store = Store(root)
    store.folder("edit", {"whole": 1}, _write_one)
    _flip(store.folder("rows", {"damaged": 1}, _write_one) / "b.bin")
    store.write_image({"whole": 1}, _picture())
    damaged = store.write_image({"damaged": 1}, _picture())
    damaged.write_bytes(damaged.read_bytes()[:-30])
    _left_behind(root, "edit", "ab" * 32)
    (root / "image" / ".tmp" / ".k.png.0123456789ab.tmp").write_text("half")
    for parts in ({"whole": 1}, {"unfinished": 1}):
        store.scratch("edit", parts).mkdir(parents=True)

    def run(command: str, *options: str) -> tuple[int, list[str]]:
        code = upkeep.main([command, str(root), *options])
        return code, capsys.readouterr().out.splitlines()

    run.root, run.store = root, store
    return run


def _names(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def test_verify_lists_what_is_damaged_and_changes_nothing(worn):
    before = _names(worn.root)
    code, lines = worn("verify")
    assert code == 1 and len(lines) == 3 and _names(worn.root) == before
    assert lines[0].startswith("damaged: rows/") and lines[0].endswith("b.bin has changed")
    assert lines[1].startswith("damaged: image/") and lines[2] == "2 artefacts and 2 pictures checked, 2 damaged"


def test_gc_removes_waste_and_nothing_else(worn):
    before = _names(worn.root)
    code, dry = worn("gc", "--dry-run")
    assert code == 0 and _names(worn.root) == before and all("would go" in line for line in dry)
    code, lines = worn("gc")
    assert code == 0 and [line.replace("removed", "would go") for line in lines[:-1]] == dry[:-1] and len(dry) == 6
    assert worn("verify") == (0, ["1 artefacts and 1 pictures checked, 0 damaged"])
    assert worn.store.has("edit", {"whole": 1}) and worn.store.has_image({"whole": 1})
    assert worn.store.scratch("edit", {"unfinished": 1}).is_dir(), "a run goes on from there"
    assert not list((worn.root / ".locks").iterdir())
    assert worn("gc") == (0, ["0 B and 0 unused locks removed"])


def test_gc_by_age(worn):
    worn("gc")
    old = worn.store.folder("edit", {"whole": 1}, _never)
    os.utime(old / MANIFEST, (0, 0))
    worn("gc", "--older-than", "1")
    assert not worn.store.has("edit", {"whole": 1}) and worn.store.has_image({"whole": 1})
    worn("gc", "--older-than", "0")
    assert not [path for path in worn.root.rglob("*") if path.is_file()]


def test_gc_leaves_what_a_living_process_makes(tmp_path, capsys):
    context = multiprocessing.get_context("fork")

    def make(folder: Path) -> None:
        worker = context.Process(target=upkeep.main, args=(["gc", str(tmp_path)],))
        worker.start()
        worker.join(timeout=30)
        assert worker.exitcode == 0
        _write_one(folder)

    assert (Store(tmp_path).folder("edit", {}, make) / "b.bin").is_file()


def test_du_sums_by_kind(worn):
    code, lines = worn("du")
    table = {line.split()[0]: int(line.split()[1]) for line in lines}
    assert code == 0 and table == {"edit": 1, "rows": 1, "image": 2, "unfinished": 4, "all": 8}


def test_upkeep_of_something_that_is_no_store(tmp_path, capsys):
    assert upkeep.main(["verify", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "docs" / "ab").mkdir(parents=True)
    (tmp_path / "docs" / "ab" / "mine").write_text("mine")
    before = _names(tmp_path)
    assert upkeep.main(["gc", str(tmp_path), "--older-than", "0"]) == 0 and _names(tmp_path) == before


def test_upkeep_starts_without_torch(tmp_path):
    code = "import sys, harness.upkeep; print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "harness.store", "du", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stderr == "" and done.stdout.split()[0] == "all"


def _picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def test_picture_round_trip(tmp_path):
    store, array = Store(tmp_path), _picture()
    assert store.read_image(PARTS_A) is None and not store.has_image(PARTS_A)
    path = store.write_image(PARTS_A, array, text={"prompt": "an image of a café ☕"})
    assert path == store.image_path(PARTS_A) and path.parent.name == path.name[:2] and path.suffix == ".png"
    assert store.has_image(PARTS_A)
    again = Store(tmp_path, readonly=True).read_image(PARTS_A)
    assert again.dtype == np.uint8 and np.array_equal(again, array)
    from PIL import Image

    with Image.open(path) as image:
        assert image.text["prompt"] == "an image of a café ☕"


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("how", ["cut", "zeroed"])
def test_damaged_picture_counts_as_missing(tmp_path, position, how, caplog):
    store = Store(tmp_path)
    path = store.write_image({}, _picture())
    data = path.read_bytes()
    at = int(len(data) * position)
    path.write_bytes(data[:at] if how == "cut" else data[:at] + bytes(8) + data[at + 8 :])
    with caplog.at_level(logging.WARNING):
        assert store.read_image({}) is None
    assert len(caplog.records) == 1 and not path.exists() and not store.has_image({})


def test_a_picture_under_another_s_name_is_damage(tmp_path, caplog):
    """Whole as a file, and with the sha256 of its own pixels: as if copied by hand."""
    store = Store(tmp_path)
    store.write_image({"a": 1}, _picture())
    other = store.write_image({"b": 1}, 255 - _picture())
    store.image_path({"a": 1}).write_bytes(other.read_bytes())
    (damaged,) = upkeep.damaged(tmp_path)
    assert damaged.path == store.image_path({"a": 1}) and damaged.reason == f"it is the picture {other.stem[:12]}"
    assert store.read_image({"a": 1}) is None and "it is the picture" in caplog.text
    assert not store.has_image({"a": 1}) and store.read_image({"b": 1}) is not None


def test_the_notes_of_a_picture_are_checked_too(tmp_path):
    from PIL import Image, PngImagePlugin

    path = Store(tmp_path).write_image({}, _picture(), text={"prompt": "a road"})
    with Image.open(path) as image:
        pixels, notes = image.convert("RGB"), PngImagePlugin.PngInfo()
        for name, note in image.text.items():
            notes.add_text(name, note.replace("road", "tree"))
    pixels.save(path, pnginfo=notes)
    (damaged,) = upkeep.damaged(tmp_path)
    assert damaged.reason == "it does not match its sha256"


def test_somebody_elses_picture_is_not_used(tmp_path):
    from PIL import Image

    store = Store(tmp_path)
    path = store.image_path({})
    path.parent.mkdir(parents=True)
    Image.fromarray(_picture()).save(path)
    assert store.read_image({}) is None and not path.exists()


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_only_rgb_bytes_are_pictures(tmp_path, array):
    with pytest.raises(ValueError, match="uint8"):
        Store(tmp_path).write_image({}, array)
