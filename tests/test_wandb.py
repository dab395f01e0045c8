"""Logging to Weights & Biases, offline and for real: what is read back is what the run wrote."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiments.grid import save_png
from experiments.wandb_log import log_record, scores
from harness.record import Record

METRIC = {"subject": "all", "n": 10, "low": 0.1, "high": 0.4, "higher_is_better": False}
BEATS = {"difference": {"value": -0.7, "low": -0.8, "high": -0.5}}
SETTINGS = {"project": "forget-bench", "entity": None, "group": None, "tags": ["test"], "dir": None}


@pytest.fixture
def record() -> Record:
    return Record(
        method="fia",
        task="imagenette_5v5",
        model="tiny",
        suite="tiny",
        split="test",
        config={"method": {"name": "fia", "alpha": 0.6}, "task": {"n": 10}},
        fingerprints={"base": "0" * 64},
        concepts=[{"name": "tench", "kind": "object"}],
        metrics=[
            {**METRIC, "id": "forget_accuracy/toy", "value": 0.25, "sd": 0.1, "repeats": 3, **BEATS},
            {**METRIC, "id": "forget_accuracy/toy", "subject": "tench", "value": 0.2},
        ],
        unedited=[
            {**METRIC, "id": "forget_accuracy/toy", "value": 0.95},
            {**METRIC, "id": "forget_accuracy/toy", "subject": "tench", "value": 0.9},
        ],
        cost={"seconds": 1.5, "unet_samples": 7},
        note="the tiny world, not Stable Diffusion.",
    )


def entries(log: Path) -> Iterator[Any]:
    """The messages in a .wandb file: after a header of 7 bytes, LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data, position, message = log.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:  # no room for another header in this block
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole message, or the last part of one
            entry = wandb_internal_pb2.Record()
            entry.ParseFromString(message)
            yield entry
            message = b""


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B writes to this machine only, and keeps its own files in the test's folder."""
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def written(log: Path) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """Configuration, summary, and the run messages of a log."""
    config, summary, runs = {}, {}, []
    for entry in entries(log):
        changed = [*entry.run.config.update, *entry.config.update]
        config.update({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in changed})
        changed = [*entry.summary.update, *entry.history.item]
        summary.update({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in changed})
        if entry.run.run_id:
            runs.append(entry.run)
    return config, summary, runs


def points(log: Path) -> list[dict[str, Any]]:
    """The points of curves over a stage's number, in order."""
    found = [{i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in e.history.item} for e in entries(log)]
    return [{k: v for k, v in point.items() if not k.startswith("_")} for point in found if "stage" in point]


def table(log: Path, name: str) -> list[dict[str, Any]]:
    """The rows of the table that was logged under this name, as dictionaries."""
    (path,) = log.parent.rglob(f"media/**/{name}_*.table.json")
    data = json.loads(path.read_text())
    return [dict(zip(data["columns"], row, strict=True)) for row in data["data"]]


def test_an_offline_run_holds_config_scores_tables_and_grid(record: Record, tmp_path: Path, offline: None):
    import wandb

    grid = save_png(Image.new("RGB", (8, 8), (200, 0, 0)), tmp_path / "grid.png")
    log_record(record, grid, SETTINGS, tmp_path / "records")
    wandb.teardown()  # its service has ended, so all of the log is on the disk

    (log,) = (tmp_path / "records" / "wandb").rglob("*.wandb")
    assert record.identity[:32] in log.name
    config, summary, (run, *_) = written(log)
    assert config["method"] == {"name": "fia", "alpha": 0.6}
    assert summary["edited/forget_accuracy/toy"] == 0.25 and summary["edited/forget_accuracy/toy/sd"] == 0.1
    assert summary["unedited/forget_accuracy/toy"] == 0.95
    assert run.run_group == "" and set(run.tags) == {"test", "fia", "imagenette_5v5", "tiny"}
    (picture,) = log.parent.rglob("media/**/*.png")
    assert picture.read_bytes() == grid.read_bytes()
    metrics = table(log, "metrics")
    first = next(row for row in metrics if (row["model"], row["subject"]) == ("edited", "all"))
    assert first["value"] == 0.25 and (first["difference"], first["difference_high"]) == (-0.7, -0.5)
    assert (first["sd"], first["repeats"], len(metrics)) == (0.1, 3, 4)
    assert table(log, "classes") == [
        {"class": "tench", "side": "forget", "metric": "forget_accuracy/toy", "unedited": 90.0, "edited": 20.0}
    ]
    assert wandb.run is None  # finished


def test_every_stage_of_a_sequential_schedule_is_a_point(record: Record, tmp_path: Path, offline: None):
    import wandb

    def value(id: str, value: float, subject: str = "all") -> dict[str, Any]:
        return {**METRIC, "id": id, "value": value, "subject": subject}

    def stage(names: list[str], forget: float, tench: float, keep: float) -> dict[str, Any]:
        forgotten = [value("forget_accuracy/toy", forget), value("forget_accuracy/toy", tench, "tench")]
        return {"concepts": names, "metrics": [*forgotten, value("preserve_accuracy/toy", keep)]}

    record.unedited += [value("preserve_accuracy/toy", 0.9), value("clip/x", 30.0)]
    record.stages = [stage(["tench"], 0.5, 0.1, 0.8), stage(["tench", "church"], 0.25, 0.2, 0.7)]
    log_record(record, None, SETTINGS, tmp_path)
    wandb.teardown()

    (log,) = (tmp_path / "wandb").rglob("*.wandb")
    forget, keep = "stages/forget_accuracy/toy", "stages/preserve_accuracy/toy"
    assert points(log) == [
        {"stage": 0, forget: 0.95, keep: 0.9},
        {"stage": 1, forget: 0.5, keep: 0.8},
        {"stage": 2, forget: 0.25, keep: 0.7},
    ]
    assert ("stages/*", "stage") in {(m.glob_name, m.step_metric) for m in (e.metric for e in entries(log))}
    rows = [tuple(row.values()) for row in table(log, "stages") if row["subject"] == "tench"]
    given = ("forget_accuracy/toy", "tench")
    assert rows == [(0, "", *given, 0.9), (1, "tench", *given, 0.1), (2, "church", *given, 0.2)]


def test_a_repeated_record_goes_to_the_same_page_and_another_one_to_its_own(
    record: Record, tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
):
    import wandb

    asked, start = [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **given: asked.append(given["resume"]) or start(**given))
    again = replace(record, created="2031-01-01T00:00:00+00:00", cost={"seconds": 9.0, "unet_samples": 0})
    runs = []
    for name, one in {"first": record, "again": again, "other": replace(record, split="tuning")}.items():
        log_record(one, None, SETTINGS, tmp_path / name)
        wandb.teardown()
        (log,) = (tmp_path / name / "wandb").rglob("*.wandb")
        runs += written(log)[2][:1]
    assert asked == ["allow"] * 3
    assert [run.run_id for run in runs[:2]] == [record.identity[:32]] * 2 != [run.run_id for run in runs[1:]]
    assert runs[0].project == runs[1].project == "forget-bench"


def test_the_jobs_of_a_multirun_share_a_group(call, offline: None):
    code, _, err = call("-m", "method=none", "logger=wandb", "sampler.steps=1,2", "hydra.sweep.dir=sweeps/mine")
    assert code == 0, err
    import wandb

    wandb.teardown()
    logs = list((call.work / "runs" / "wandb").rglob("*.wandb"))
    assert len(logs) == 2 and {written(log)[2][0].run_group for log in logs} == {"mine"}


def test_scores_are_named_by_side_and_full_id(record: Record):
    name = "forget_accuracy/toy"
    assert scores(record.as_dict()) == {f"edited/{name}": 0.25, f"edited/{name}/sd": 0.1, f"unedited/{name}": 0.95}


def test_nothing_imports_wandb_unless_it_is_asked_for():
    code = "import experiments.run, experiments.show, sys; print('wandb' in sys.modules)"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "False", done.stderr
