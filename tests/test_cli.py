"""The command line: exit codes, one line for bad input, multiruns. Most calls run in this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import cli

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
    monkeypatch.setenv("FIA_CACHE", str(tmp_path / "empty"))
    monkeypatch.delenv("FIA_MIRROR", raising=False)
    return asked


def test_the_model_is_looked_for_before_the_captions(call, offline: list[str]):
    code, _, err = call("model=sd15", small=False)
    assert code == cli.FAILED and err.startswith("stable-diffusion-v1-5/") and "no network" in err
    assert offline == ["cache", "hub"] and files(call.work) == []


def test_a_dry_run_downloads_nothing_and_says_what_is_missing(call, offline: list[str], random_sd_folder: Path):
    code, out, err = call("model=sd15", "quality=off", "dry_run=true", small=False)
    assert code == cli.DONE and "a dry run downloads nothing; run `hf download" in out
    # Ten classes, twenty pictures each: unedited and edited, guided, with PNDM's 51 calls.
    assert "classes, edited: 200 of 200 pictures to make" in out and f"UNet samples: {400 * 2 * 51}" in out
    code, _, err = call("model=folder", f"model.path={random_sd_folder}", "dry_run=true", small=False)
    assert code == cli.BAD_INPUT and err.startswith("coco_30k: not on this machine, and a dry run downloads nothing")
    assert offline == ["cache"] and files(call.work) == []


@pytest.mark.skipif("FIA_MIRROR" not in os.environ, reason="FIA_MIRROR names no folder with the public prompt lists")
@pytest.mark.parametrize("name", ["fia_fig4", "fia_table3", "fia_table5", "scaling50"])
def test_an_experiment_on_stable_diffusion_says_what_it_would_compute(call, name: str):
    code, out, _ = call(f"+experiment={name}", "method=fia", "quality=off", "dry_run=true", small=False)
    assert code == cli.DONE and "Stable Diffusion 1." in out and "UNet samples: " in out and files(call.work) == []


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


def test_a_run_without_effect_fails_with_the_reason(call):
    code, out, err = call(*QUICK, "edit_only=true", "task.concepts=[tench]", "method.single_concept=paper_noop")
    assert code == cli.FAILED
    assert "tau_ca" in err.rstrip().splitlines()[-1] and "record:" not in out


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


def test_a_multirun_that_cannot_be_composed_leaves_nothing(call):
    code, _, err = call("-m", "method=none,fiaa", small=False)
    assert code == cli.BAD_INPUT and "did you mean fia?" in err
    assert files(call.work) == []


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
