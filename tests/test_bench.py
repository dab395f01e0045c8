"""The benchmark of speed measures what it says, on a small random model."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_suite
from hydra import compose, initialize_config_dir

from experiments import (
    bench,
    bench_closed,
    bench_judges,
    bench_pictures,
    bench_released,
    bench_startup,
    bench_stored,
    cli,
    goals,
    random_weights,
)
from experiments.setup import setup

ROOT = Path(__file__).resolve().parents[1]
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
    assert bench.main(["--rounds", "2", "--parts", "pictures", "--profile", *settings]) == 0
    result = written(tmp_path, "pictures-folder-cpu.json")
    assert len(result["rounds"]) == 2 and all(value > 0 for one in result["rounds"] for value in one.values())
    ratios = [one["stock"] / one["ours"] for one in result["rounds"]]
    assert result["medians"]["ratio"] == pytest.approx(statistics.median(ratios))
    # The stock pipeline rounds elsewhere: one step of 8 bits.
    assert result["largest_difference"] <= 1
    assert result["unet_gflop"] > 0 and result["environment"]["hardware"]["cores"] >= 1
    table = (tmp_path / "results" / "bench" / "pictures-folder-cpu.md").read_text(encoding="utf-8")
    assert "stock diffusers" in table and table in capsys.readouterr().out
    assert f"torch {result['environment']['versions']['torch']}, diffusers" in table
    # One more pass: two batches of guided pictures, two steps each.
    shares = [one["share"] for one in result["operations"]]
    assert len(shares) == 10 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
    assert max(one["calls"] for one in result["operations"] if "conv" in one["name"]) >= 2 * 2
    for one in result["operations"]:
        assert f"| {one['name']}, share of all self time ({one['calls']:,} calls) |" in table
    assert not (tmp_path / "store").exists(), "measuring must not read or fill the store"


def test_judges_say_the_same_of_pictures_in_memory_and_in_the_store(settings, tmp_path, monkeypatch):
    own = f"hydra.searchpath=[file://{toy_suite.write(tmp_path / 'own')}]"
    quick = [*settings, own, "suite=toy", "task.n=1", "quality.n=2"]
    monkeypatch.setattr(bench_judges, "MOST", 1e9)  # a goal is no matter of a test
    assert bench.main(["--rounds", "1", "--parts", "judges", *quick]) == 0
    result = written(tmp_path, "judges-folder-cpu.json")
    assert result["equal"] is True
    (spent,) = result["rounds"]
    assert spent["NudeNet, 512 pixels, on the processor"] > 0
    for name, metric in (("classes", "classify"), ("quality", "features")):
        memory, store = (next(one for one in spent if metric in one and place in one) for place in ("memory", "store"))
        assert spent[memory] > 0 and spent[store] > 0
        assert result["ratios"][name]["judges"] == pytest.approx(spent[memory] / spent[f"making: {name}"])
        assert result["ratios"][name]["reading"] == pytest.approx(spent[f"reading: {name}"] / spent[f"making: {name}"])
    table = (tmp_path / "results" / "bench" / "judges-folder-cpu.md").read_text(encoding="utf-8")
    for name in ("classes", "quality"):
        assert f"| all judges of {name} : making its pictures |" in table
        assert f"| reading a stored picture of {name} : making it |" in table
    assert not (tmp_path / "store").exists()


def test_startup_times_whole_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results" / "bench")
    seen = []
    monkeypatch.setattr(bench_startup, "_seconds", lambda arguments: seen.append(arguments) or 1.5)
    assert bench.main(["--rounds", "2", "--parts", "startup", "device=cpu", "task.n=1"]) == 0
    assert written(tmp_path, "startup-tiny-cpu.json")["medians"] == {"help": 1.5, "dry run": 1.5}
    assert seen[0] == ["--help"] and {"task.n=1", "dry_run=true"} <= set(seen[1]) and len(seen) == 2 * 3
    assert not any("edit_only=true" in arguments for arguments in seen)


@pytest.mark.parametrize("part", [bench_startup, bench_stored])
def test_a_run_on_the_device_that_was_found_shows_its_name(part, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench_startup, "_seconds", lambda arguments: 1.5)
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        result = part.measure(compose("config", part.SETTINGS), [], 1)
    assert (result["device"], result["dtype"]) == ("cuda", "float32")
    hardware = {"gpus": ["a GPU"], "cpu": "a processor", "threads": 2}
    assert "float32 on cuda (a GPU, 2 threads)" in bench.heading({**result, "environment": {"hardware": hardware}})


@pytest.mark.parametrize(
    ("limit", "least", "met"), [(2, False, True), (1, False, False), (2, True, False), (1, True, True)]
)
def test_a_missed_goal_is_a_failure_in_words(settings, monkeypatch, tmp_path, capsys, limit, least, met):
    goal = goals.Goal("the speed of light", 1.5, limit, least)
    monkeypatch.setattr(bench_closed, "METHODS", ("uce",))
    monkeypatch.setattr(bench_closed, "goals", lambda result: [goal])
    assert bench.main(["--rounds", "1", "--parts", "closed", *settings]) == (0 if met else 1)
    words = "least" if least else "most"
    assert (f"the speed of light is 1.5, the goal is at {words} {limit}" in capsys.readouterr().err) == (not met)
    result = written(tmp_path, "closed-folder-cpu.json")
    assert result["goals"][0]["met"] is met
    table = (tmp_path / "results" / "bench" / "closed-folder-cpu.md").read_text(encoding="utf-8")
    assert f"| goal of the speed of light: at {words} {limit} | {'met' if met else 'missed'} |" in table


def test_every_part_has_the_goals_that_are_written_down():
    """Numbers of the page's goals, by what a measurement of that size and place would be held against."""
    closed = {
        "device": "cpu",
        "weights": bench_closed.SD15_WEIGHTS,
        "medians": {"uce": 1.0, "scapre_reconstruction": 11.0},
    }
    assert [goal.limit for goal in bench_closed.goals(closed)] == [10]
    assert [goal.limit for goal in bench_closed.goals({**closed, "device": "cuda:0"})] == [1]
    assert bench_closed.goals({**closed, "weights": 5}) == []
    assert [goal.limit for goal in bench_startup.goals({"medians": {"help": 1, "dry run": 3}})] == [2]
    assert [goal.limit for goal in bench_stored.goals({"medians": {"stored run": 1}})] == [10]
    assert [goal.limit for goal in bench_judges.goals({"ratios": {"classes": {"judges": 0.1}}})] == [1]
    released = {"device": "cpu", "concepts": ["a", "b", "c"], "medians": {"ratio": 28.0}}
    assert [(goal.limit, goal.least) for goal in bench_released.goals(released)] == [(10, True)]
    assert [goal.limit for goal in bench_released.goals({**released, "device": "cuda"})] == [20]
    assert bench_released.goals({**released, "concepts": ["a"]}) == []
    pictures = {
        "device": "cuda", "dtype": "float16", "compile": True, "size": 512, "largest_difference": 3,
        "sampler": {"name": "pndm", "steps": 50}, "medians": {"ratio": 5.0, "images_per_second": 3.0},
    }  # fmt: skip
    assert [(goal.limit, goal.met) for goal in bench_pictures.goals(pictures)] == [(4, True), (4, False)]
    exact = {**pictures, "device": "cpu", "dtype": "float32", "compile": False}
    assert [(goal.limit, goal.met) for goal in bench_pictures.goals(exact)] == [(1, False)]


def test_measurements_of_another_dtype_or_compiled_have_files_of_their_own():
    plain = {"model": "sd15-random", "device": "cuda:0", "dtype": "float32"}
    assert bench._of_what(plain) == "sd15-random-cuda0"
    assert bench._of_what({**plain, "dtype": "float16", "compile": True}) == "sd15-random-cuda0-float16-compiled"


def test_closed_forms_are_timed_on_fifty_concepts(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_closed, "METHODS", ("uce", "scapre"))
    seen = []
    make = bench_closed.method
    monkeypatch.setattr(bench_closed, "method", lambda name: seen.append(make(name)) or seen[-1])
    assert bench.main(["--rounds", "1", "--parts", "closed", *settings]) == 0
    result = written(tmp_path, "closed-folder-cpu.json")
    assert result["goals"] == [], "they are for SD 1.5's sizes"
    monkeypatch.setattr(bench_closed, "SD15_WEIGHTS", result["weights"])
    monkeypatch.setattr(bench_closed, "GOALS", {"cpu": 0.0})
    assert bench.main(["--rounds", "1", "--parts", "closed", *settings]) == 1
    slow = written(tmp_path, "closed-folder-cpu.json")
    assert "scapre, s an edit is" in slow["wrong"] and slow["wrong"] in capsys.readouterr().err
    seen[2:] = []
    assert result["medians"].keys() == {"uce", "scapre"} and all(value > 0 for value in result["medians"].values())
    assert result["concepts"] == 50 and result["matrices"] == 8 and [one.name for one in seen] == ["uce", "scapre"]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ([], ["pictures", "judges", "startup", "closed", "masks", "stored"]),
        (["--released", "clone"], ["pictures", "judges", "startup", "closed", "masks", "stored", "released"]),
        (["--random"], ["pictures", "closed", "masks"]),
        (["--random", "model=sdxl"], ["pictures", "closed", "masks"]),
        (["--parts", "masks,closed", "--profile"], ["masks", "closed"]),
    ],
)
def test_every_part_has_its_turn_on_the_model_that_is_meant(options, parts, tmp_path, monkeypatch):
    seen: list[tuple[str, list[str], dict[str, Any]]] = []

    def note(name: str, settings: list[str], rounds: int, **more: Any) -> tuple[Path, str]:
        seen.append((name, settings, more))
        return bench.RESULTS / f"{name}.json", "too slow" if name == "stored" else ""

    monkeypatch.setattr(bench, "run", note)
    monkeypatch.setattr(bench, "random_model", lambda size: contextlib.nullcontext([f"model={size}"]))
    assert bench.main([*options, "seed=1"]) == (1 if "stored" in parts else 0)
    assert [name for name, *_ in seen] == parts
    for name, settings, more in seen:
        asked = "sdxl" if "model=sdxl" in options else "sd15"
        size = asked if "--random" in options else "small" if name == "released" else None
        assert settings == [*([f"model={size}"] if size else []), "seed=1"]
        defaults: dict[str, Any] = {"masks": {"steps": None, "concepts": 2}, "released": {"folder": Path("clone")}}
        own = defaults.get(name, {})
        assert more == own | ({"profile": True} if "--profile" in options and name == "masks" else {})


# SDXL's parts and their joints, with few channels.
SMALL_SDXL = (
    random_weights.SDXL_UNET
    | {
        "block_out_channels": (32, 64, 64),
        "attention_head_dim": 8,
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": 128,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
    },
    random_weights.SMALL_VAE,
    [random_weights.SMALL_TEXT, random_weights.SMALL_TEXT | {"projection_dim": 32}],
)


@pytest.mark.parametrize(
    ("size", "pixels", "sampler", "width", "layers"), [("small", 64, "pndm", 64, 7), ("sdxl", 1024, "euler", 128, 17)]
)
def test_random_weights_are_a_model_like_any_other(size, pixels, sampler, width, layers, monkeypatch):
    monkeypatch.setitem(random_weights.PARTS, "sdxl", SMALL_SDXL)
    with random_weights.random_model(size) as settings, initialize_config_dir(str(cli.CONF), version_base="1.3"):
        parts = setup(compose("config", [*settings, "edit_only=true", "device=cpu"]))
        model = parts.model()
        assert (model.name, model.size, parts.sampler.name) == (f"{size}-random", pixels, sampler)
        assert model.encode(["a church"]).hidden.shape == (1, 77, width) and len(model.layers("ffn2")) == layers


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("said", "command"),
    [
        ([], "experiments.bench"),
        (["RELEASED=my clone"], 'experiments.bench --released "my clone"'),
        (["ARGS=--parts masks model=sd15"], "experiments.bench --parts masks model=sd15"),
    ],
)
def test_make_bench_is_one_command(said, command):
    # The tests may have been started by make themselves, whose settings a make below it takes over.
    alone = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKEOVERRIDES", "ARGS")}
    command_line = ["make", "-n", "bench", *said]
    plan = subprocess.run(command_line, cwd=ROOT, env=alone, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in plan.splitlines() if "-m experiments.bench" in line]
    assert " ".join(line.split()).endswith(f"-m {command}")


def test_kept_measurements_say_what_they_are_of():
    kept = ROOT / "results" / "bench_kept"
    paths = sorted(kept.glob("*.json"))
    assert paths
    for path in paths:
        result = json.loads(path.read_text(encoding="utf-8"))
        code = result["environment"]["code"]
        assert result["rounds"] and code["commit"] and code["dirty"] is False, path.name
        assert bench.heading(result) in path.with_suffix(".md").read_text(encoding="utf-8")
        assert f"`{path.stem}`" in (kept / "README.md").read_text(encoding="utf-8"), path.name


def test_a_run_that_fails_is_not_timed():
    with pytest.raises(RuntimeError, match=r"run.py --hepl ended with 2: .*--hepl"):
        bench_startup._seconds(["--hepl"])


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["device=warp9"], "device"),
        (["--rounds", "0"], "at least 1"),
        (["--steps", "0"], "--steps 0: at least 1"),
        (["--random", "--parts", "closed"], "--random model=folder: random weights are made for sd15 and sdxl"),
        (["--parts", "pictures,speed"], "--parts speed: there are pictures, judges"),
        (["--parts", "released"], "--parts released: say --released DIR"),
        (["--parts", "closed", "--profile"], "--profile: there is nothing to profile in closed; say --parts masks"),
        (["model.compile=perhaps"], "model.compile='perhaps': say true or false"),
    ],
)
def test_bad_input_is_one_line(settings: list[str], extra: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    assert bench.main([*settings, *extra]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1
