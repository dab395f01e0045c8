"""The benchmark of speed measures what it says, on a small random model."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from experiments import bench, bench_closed, bench_startup

SMALL = [
    "model=folder",
    "device=cpu",
    "sampler=ddim20",
    "sampler.steps=2",
    "task.concepts=[tench,church]",
    "task.keep=[]",
]


@pytest.fixture
def settings(random_sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results" / "bench")
    return [*SMALL, f"model.path={random_sd_folder}", f"store={tmp_path / 'store'}", f"records={tmp_path / 'runs'}"]


def written(tmp_path: Path, name: str) -> dict[str, Any]:
    return json.loads((tmp_path / "results" / "bench" / name).read_text(encoding="utf-8"))


def test_pictures_are_those_of_stock_diffusers_and_both_are_timed(settings, tmp_path, capsys):
    assert bench.main(["--rounds", "2", "--parts", "pictures", *settings]) == 0
    result = written(tmp_path, "pictures-folder-cpu.json")
    assert len(result["rounds"]) == 2 and all(value > 0 for one in result["rounds"] for value in one.values())
    ratios = [one["stock"] / one["ours"] for one in result["rounds"]]
    assert result["medians"]["ratio"] == pytest.approx(statistics.median(ratios))
    # The stock pipeline rounds elsewhere: one step of 8 bits.
    assert result["largest_difference"] <= 1
    assert result["unet_gflop"] > 0 and result["environment"]["hardware"]["cores"] >= 1
    table = (tmp_path / "results" / "bench" / "pictures-folder-cpu.md").read_text(encoding="utf-8")
    assert "stock diffusers" in table and table in capsys.readouterr().out
    assert not (tmp_path / "store").exists(), "measuring must not read or fill the store"


def test_judges_say_the_same_of_pictures_in_memory_and_in_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results" / "bench")
    quick = ["device=cpu", "task.n=1", "quality.n=2", f"store={tmp_path / 'store'}"]
    assert bench.main(["--rounds", "1", "--parts", "judges", *quick]) == 0
    result = written(tmp_path, "judges-tiny-cpu.json")
    assert result["equal"] is True
    places = [name.rpartition(" ")[2] for name in result["medians"]]
    assert places.count("(memory)") == places.count("(store)") >= 3


def test_startup_times_whole_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results" / "bench")
    seen = []
    monkeypatch.setattr(bench_startup, "_seconds", lambda arguments: seen.append(arguments) or 1.5)
    assert bench.main(["--rounds", "2", "--parts", "startup", "device=cpu", "task.n=1"]) == 0
    assert written(tmp_path, "startup-tiny-cpu.json")["medians"] == {"help": 1.5, "dry run": 1.5}
    assert seen[0] == ["--help"] and {"task.n=1", "dry_run=true"} <= set(seen[1]) and len(seen) == 2 * 3


def test_closed_forms_are_timed_on_fifty_concepts(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_closed, "METHODS", ("uce", "scapre"))
    seen = []
    make = bench_closed.method
    monkeypatch.setattr(bench_closed, "method", lambda name: seen.append(make(name)) or seen[-1])
    assert bench.main(["--rounds", "1", "--parts", "closed", *settings]) == 0
    result = written(tmp_path, "closed-folder-cpu.json")
    assert result["medians"].keys() == {"uce", "scapre"} and all(value > 0 for value in result["medians"].values())
    assert result["concepts"] == 50 and result["matrices"] == 8 and [one.name for one in seen] == ["uce", "scapre"]


def test_a_run_that_fails_is_not_timed():
    with pytest.raises(RuntimeError, match=r"run.py --hepl ended with 2: .*--hepl"):
        bench_startup._seconds(["--hepl"])


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["device=warp9"], "device"),
        (["--rounds", "0"], "at least 1"),
        (["--parts", "pictures,speed"], "--parts speed: there are pictures, judges"),
        (["model.compile=perhaps"], "model.compile='perhaps': say true or false"),
    ],
)
def test_bad_input_is_one_line(settings: list[str], extra: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    assert bench.main([*settings, *extra]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1
