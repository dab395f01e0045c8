"""The command line: exit codes, one line for bad input, multiruns. Most calls run in this process."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from experiments import catalogue, cli, sizes

ROOT = Path(__file__).resolve().parents[1]
QUICK = [
    *("method=fia", "method.num_pairs=1", "method.words=[road]", "method.sampler.name=ddim"),
    *("method.sampler.steps=2", "method.steps=1", "method.r2=0.3"),
]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("method=fiaa", "unknown method 'fiaa'; did you mean fia?"),
        ("task=imagenete", "unknown task 'imagenete'; did you mean imagenette"),
        ("model=tinny", "unknown model 'tinny'; did you mean tiny?"),
        ("metod=fia", "unknown key 'metod'; did you mean method?"),
        ("alhpa=0.4", "unknown key 'alhpa'; did you mean method.alpha?"),
        ("method.alhpa=0.4", "unknown key 'method.alhpa'; did you mean method.alpha?"),
        ("method.alpha=0.4,0.6", "say -m"),
        ("--multirn", "unknown option '--multirn'; did you mean --multirun?"),
        ("task.concepts=[tench", "cannot read 'task.concepts=[tench'"),
        ("method.alpha=60", "60 % is written 0.6"),
        ("method.fusion=onion", "did you mean union?"),
        ("+method.beta=1", "beta"),
        ("+colour=red", "unknown key 'colour'"),
        ("seed=one", "seed='one'"),
        ("sampler.guidance=-1", "sampler.guidance must be a finite number >= 0"),
        ("sampler.guidance=nan", "sampler.guidance"),
        ("method.sampler.guidance=inf", "sampler.guidance"),
        ("task.n=100000000", "task.n=100000000: the number of pictures a class is an integer from 1 to 10000"),
        ("quality.n=100000000", "quality.n=100000000"),
        ("model.path=/nope", "/nope: no such folder or file"),
        ("model.dtype=auto", "unknown model.dtype 'auto'"),
        ("task.kind=stile", "unknown task.kind 'stile'; did you mean style?"),
        ("export=.", "export"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(call, argument: str, line: str):
    if argument == "export=.":
        (call.work / "mine").write_text("mine")
    before = files(call.work)
    code, out, err = call(argument, small=False)
    assert code == cli.BAD_INPUT
    assert line in err and err.count("\n") == 1 and out == ""
    assert files(call.work) == before


def test_plain_values_are_checked_before_anything_heavy_is_imported():
    wrong = [
        *("seed=-1", "device=tpu", "dtype=float23", "sampler.steps=0", "task.n=0", "task.concepts=[]", "quality.n=-1"),
        *("model.batch_size=0", "model.path=/nope", "export=run.py", "schedule=jiont"),
    ]
    code = f"""
import sys, run
codes = {{item: run.main([item]) for item in {wrong!r}}}
print(codes == dict.fromkeys({wrong!r}, 2), sorted({{"torch", "diffusers", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "True []\n" and done.stderr.count("\n") == len(wrong), done.stderr


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Nothing is cached and nothing answers; the list says what was asked for."""
    import diffusers
    import huggingface_hub

    from harness import sources

    asked = []

    def refuse(who: str, error: Exception):
        def call(*args, **kwargs):
            asked.append(who)
            raise error

        return call

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse("cache", FileNotFoundError("not cached")))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", refuse("hub", ConnectionError("no network")))
    monkeypatch.setattr(sources.urllib.request, "urlopen", refuse("captions", OSError("no network")))
    # Whatever else would look for a way out.
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse("socket", OSError("no network")))
    monkeypatch.setenv("FIA_CACHE", str(tmp_path / "empty"))
    monkeypatch.delenv("FIA_MIRROR", raising=False)
    return asked


def test_the_model_is_looked_for_before_the_captions(call, offline: list[str]):
    code, _, err = call("model=sd15", small=False)
    assert code == cli.FAILED and err.startswith("stable-diffusion-v1-5/") and "no network" in err
    assert offline == ["cache", "hub"] and files(call.work) == []


def test_a_dry_run_downloads_nothing_and_says_what_is_missing(call, offline: list[str], random_sd_folder: Path):
    code, out, _ = call("model=sd15", "quality=off", "dry_run=true", small=False)
    assert code == cli.DONE and "a dry run downloads nothing; run `hf download" in out
    # Ten classes, twenty pictures each: unedited and edited, guided, with PNDM's 51 calls.
    assert "classes, edited: 200 of 200 pictures to make" in out and f"UNet samples: {400 * 2 * 51}" in out
    code, out, _ = call("model=folder", f"model.path={random_sd_folder}", "dry_run=true", small=False)
    assert code == cli.DONE and "before the prompt screen, and as not drawn yet: coco_30k\n" in out
    assert offline == ["cache"] and files(call.work) == []


def test_a_multirun_of_dry_runs_shows_every_plan_and_leaves_nothing(call, offline: list[str]):
    code, out, err = call("-m", "method=uce", "task.n=1,2", "quality.n=0", "dry_run=true")
    assert code == cli.DONE, err
    for side in ("unedited", "edited"):
        assert re.findall(rf"classes, {side}: (\d+) of \1 pictures to make", out) == ["3", "6"]
    assert "record:" not in out and offline == [] and files(call.work) == []


PLANNED: set[str] = set()


@cache
def counted_captions(source, n: int, split: str, name: str):
    """`quality_set`, so that thirty thousand captions are counted once for all experiments."""
    from harness.task import quality_set

    return quality_set(source, n, split, name)


@pytest.mark.parametrize("name", catalogue.names())
def test_every_experiment_says_what_it_would_compute_in_a_fresh_clone(
    call, offline: list[str], name: str, monkeypatch: pytest.MonkeyPatch
):
    """In its full size, by the numbers that docs/reproduce.md adds up; no list and no model of the Hub is here."""
    from experiments import setup

    monkeypatch.setattr(setup, "quality_set", lambda provider, *rest: counted_captions(provider.func, *rest))
    experiment = catalogue.load(name)
    key = json.dumps(experiment.config | {"records": "", "store": ""})
    if key in PLANNED:  # tables of the same runs
        return
    PLANNED.add(key)
    code, out, err = call(f"+experiment={name}", "dry_run=true", small=False)
    assert code == cli.DONE, err
    assert f"model {experiment.config['model']['name']}" in out and "UNet samples: " in out
    assert files(call.work) == [] and set(offline) <= {"cache"}
    made = sum(int(count) for count in re.findall(r", unedited: (\d+) of \1 pictures to make", out))
    wanted = {} if experiment.config["edit_only"] else sizes.pictures(experiment.config)
    assert made == sum(wanted.values())


def test_a_missing_value_is_named(call):
    code, _, err = call("model=folder", small=False)
    assert (code, err) == (cli.BAD_INPUT, "model.path is not set: say model.path=...\n")


def test_debug_shows_the_traceback(call):
    code, _, err = call("method.alpha=60", "debug=true", small=False)
    assert code == cli.BAD_INPUT and "Traceback" in err and err.rstrip().splitlines()[-1].startswith("fia: alpha")


def test_a_run_ends_with_its_record(call):
    code, out, _ = call("method=none")
    assert code == cli.DONE
    last = out.rstrip().splitlines()[-1]
    assert last.startswith("record: ")
    path = Path(last.removeprefix("record: "))
    assert json.loads(path.read_text())["method"] == "none"
    assert files(call.work) == ["runs", "store"]
    assert "a model from" in out and "forget %" in out and "unedited" in out


def test_pictures_of_classes_with_sexual_names_are_neither_kept_nor_shown(call, monkeypatch):
    run = ("method=uce", "schedule=sequential", "quality.n=0")
    code, out, err = call(*run, "store=kept", "records=kept")
    assert code == cli.DONE and list(call.work.glob("kept/*.png")) and list(call.work.rglob("image/*/*.png")), err
    monkeypatch.setattr("harness.task.is_sexual", lambda name: name == "golf ball")
    code, lean, err = call(*run, "store=lean", "records=lean")
    assert code == cli.DONE and not list((call.work / "lean").rglob("*.png")), err
    assert lean.replace("lean", "kept").splitlines()[-1] == out.splitlines()[-1]
    one, other = (json.loads((call.work / text.rpartition("record: ")[2].strip()).read_text()) for text in (out, lean))
    for name in ("metrics", "unedited", "stages", "counts"):
        assert one[name] == other[name]


def test_a_run_without_effect_fails_with_the_reason(call):
    code, out, err = call(*QUICK, "edit_only=true", "task.concepts=[tench]", "method.single_concept=paper_noop")
    assert code == cli.FAILED
    assert "tau_ca" in err.rstrip().splitlines()[-1] and "record:" not in out
    assert err.rstrip().endswith("or say allow_noop=true")


def test_a_dry_run_prints_the_plan_and_writes_nothing(call):
    code, out, _ = call("method=none", "dry_run=true")
    assert code == cli.DONE
    assert "classes, unedited: 3 of 3 pictures to make" in out and "UNet samples: 20" in out
    assert files(call.work) == []


def test_a_multirun_goes_on_after_a_failure_and_ends_with_one_table(call):
    # An alpha of 0.4 keeps every weight that even one of the two concepts selects: no effect.
    code, out, err = call("-m", *QUICK, "method.alpha=0.4,0.8,1.0")
    assert code == cli.FAILED
    assert "method.alpha=0.4" in next(line for line in err.splitlines() if line.startswith("failed: "))
    assert out.rstrip().splitlines()[-1].startswith("record: ")
    records = [line.removeprefix("record: ") for line in out.splitlines() if line.startswith("record: ")]
    assert len(set(records)) == 2 and all(Path(path).exists() for path in records)
    table = [line for line in out.splitlines() if line.startswith("| ")]
    assert table[0].startswith("| method | alpha | n |")
    # Scores, then general quality, which here is a comparison with the unedited model only.
    assert [line.split("|")[1].strip() for line in table[2:5]] == ["unedited", "fia", "fia"]
    assert [line.split("|")[1].strip() for line in table[5:9]] == ["method", "---", "fia", "fia"]
    # The second edit minus the first one, from the rows in the store.
    assert "Minus fia 0.8, on the same prompts and noise" in out
    assert [line.split("|")[1].strip() for line in table[9:]] == ["method", "---", "fia"]
    assert table[9].startswith("| method | alpha | forget % | preserve % | overall % |")
    second = json.loads(Path(records[-1]).read_text())
    assert second["cost"]["stages"]["edit"]["unet_samples"] == 0  # saliency is shared between the jobs
    assert files(call.work) == ["runs", "store"]


def test_the_multirun_of_the_readme_gives_one_table_of_all_methods(call):
    """Their sizes come from presets of the toy suite, as in the tiny world from its own."""
    methods = "fia,conceptprune,uce,scapre,salun,mim_mu"
    assert f"`python run.py -m method={methods}`" in (ROOT / "README.md").read_text()
    sampler = "sampler: {name: ddim, steps: 2}"
    training = f"images: 2, epochs: 1, precision: float32, learning_rate: 1.0e-3, {sampler}"
    small = {
        "fia": f"words: [road], num_pairs: 1, steps: 1, r2: 0.3, alpha: 1.0, {sampler}",
        "conceptprune": f"words: [road], tau: 2, k: 0.05, {sampler}",
        "salun": f"retain_images: 2, {training}",
        "mim_mu": training,
    }
    (call.own / "preset" / "toy").mkdir(parents=True)
    for name, settings in small.items():
        (call.own / "preset" / "toy" / f"{name}.yaml").write_text(f"method: {{preset: toy, {settings}}}")
    code, out, err = call("-m", f"method={methods}", "quality=off")
    assert code == cli.DONE, err
    records = {line.removeprefix("record: ") for line in out.splitlines() if line.startswith("record: ")}
    assert {json.loads(Path(path).read_text())["method"] for path in records} == set(methods.split(","))
    table = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")]
    assert table[2:9] == ["unedited", *methods.split(",")]


def test_a_multirun_that_cannot_be_composed_leaves_nothing(call):
    code, _, err = call("-m", "method=none,fiaa", small=False)
    assert code == cli.BAD_INPUT and "did you mean fia?" in err
    assert files(call.work) == []


def test_a_multirun_of_bad_input_removes_what_it_made_and_nothing_else(call):
    keep = call.work / "keep"
    (keep / "1").mkdir(parents=True)
    for name in ("mine", "1/mine"):
        (keep / name).write_text("mine")
    for folder in ("keep", "a/new"):
        code, out, err = call("-m", "seed=-1,-2", f"hydra.sweep.dir={folder}", small=False)
        assert code == cli.BAD_INPUT and out == "", err
        assert sum(line.startswith("failed: ") for line in err.splitlines()) == 2
    assert files(call.work) == ["keep"] and files(keep) == ["1", "mine"]
    assert files(keep / "1") == ["mine"] and (keep / "mine").read_text() == "mine"


def test_an_error_from_inside_a_library_is_a_failure_and_not_bad_input():
    with pytest.raises(ValueError) as caught:
        json.loads("{")
    assert cli.exit_code(caught.value) == cli.FAILED
    assert cli.one_line(OSError(28, "No space left on device")).startswith("OSError: ")


def test_an_interrupted_run_says_so_and_exits_with_130(tmp_path: Path, random_sd_folder: Path):
    command = [
        *(sys.executable, str(ROOT / "run.py"), "model=folder", f"model.path={random_sd_folder}", "task=custom"),
        *("task.concepts=[tench]", "edit_only=true", "method.sampler.name=ddim", "method.sampler.steps=900"),
        "method.steps=null",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        # Tests that were started in the background ignore SIGINT, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    seen = []
    for line in process.stderr:  # the model is loaded, so the calibration is about to run
        seen.append(line)
        if "loading" in line:
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == cli.INTERRUPTED, "".join(seen) + err
    assert "interrupted" in err and "Traceback" not in err and "record:" not in out
    assert not list(tmp_path.glob("store/*/*/.tmp-*"))  # nothing half made is left
