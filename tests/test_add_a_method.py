"""docs/add-a-method.md at its word: its files, kept outside the project, run with `--config-dir`."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "add-a-method.md"
FILE = re.compile(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```$", re.M | re.S)


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    files = dict(FILE.findall(PAGE.read_text()))
    assert set(files) == {
        *("project_out.py", "conf/method/project_out.yaml", "conf/task/garden.yaml"),
        *("no_prompt.py", "conf/method/no_prompt.yaml"),
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def run(mine: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "run.py", "--config-dir", mine / "conf", *arguments],
        cwd=mine,
        env={**os.environ, "PYTHONPATH": str(mine)},
        capture_output=True,
        text=True,
    )


def test_own_method_and_own_task_run_end_to_end(mine):
    done = run(
        mine, "method=project_out", "task=garden", "task.n=2", "quality=off", "sampler.steps=3", "model.batch_size=5"
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((mine / done.stdout.strip().splitlines()[-1].removeprefix("record: ")).read_text())
    assert (record["method"], record["task"]) == ("project_out", "garden")
    assert [concept["name"] for concept in record["concepts"]] == ["golf ball", "parachute"]
    assert record["edit"]["kind"] == "delta"
    counted = {
        value["subject"]: value["n"] for value in record["metrics"] if value["id"].startswith("preserve_accuracy")
    }
    assert counted["all"] == 6


def test_own_parameters_are_checked_by_the_method(mine, monkeypatch, capsys):
    import run as entry

    monkeypatch.chdir(mine)
    monkeypatch.syspath_prepend(mine)
    monkeypatch.setattr(sys, "argv", sys.argv[:1])  # run.main sets it; put back afterwards
    code = entry.main(["--config-dir", str(mine / "conf"), "method=project_out", "method.s=3", "dry_run=true"])
    out, err = capsys.readouterr()
    assert code == 2 and "method.s is 3" in err + out
    assert "Traceback" not in err


def test_own_training_method_trains(mine, random_sd_model, monkeypatch):
    from training_stage import Stage, same_weights, weights

    from harness.task import Concept
    from harness.trainer import parameter_names

    monkeypatch.syspath_prepend(mine)
    config = yaml.safe_load((mine / "conf" / "method" / "no_prompt.yaml").read_text())
    module, name = config.pop("_target_").split(".")
    method = getattr(importlib.import_module(module), name)
    assert method(**config) == method(), "the file holds the defaults"
    concepts = [Concept("tench", "object"), Concept("church", "object")]
    before, stage = weights(random_sd_model), Stage()

    def edit(seed: int):
        return method(steps=1, batch=2).edit(random_sd_model, concepts, seed, stage)

    made = edit(seed=0)
    assert set(made.tensors) == set(parameter_names(random_sd_model, "xattn"))
    assert same_weights(random_sd_model, before)
    calls = random_sd_model.calls
    assert edit(seed=0).fingerprint == made.fingerprint and random_sd_model.calls == calls, "the training is stored"
    assert edit(seed=1).fingerprint != made.fingerprint
