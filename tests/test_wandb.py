"""Logging to Weights & Biases, offline and for real: what is read back is what the run wrote."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiments.grid import save_png
from experiments.wandb_log import log_record, scores
from harness.record import Record

METRIC = {"subject": "all", "n": 10, "low": 0.1, "high": 0.4, "higher_is_better": False}
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
        metrics=[{**METRIC, "id": "forget_accuracy/toy", "value": 0.25}],
        unedited=[{**METRIC, "id": "forget_accuracy/toy", "value": 0.95}],
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


def test_an_offline_run_holds_config_scores_table_and_grid(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import wandb

    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    grid = save_png(Image.new("RGB", (8, 8), (200, 0, 0)), tmp_path / "grid.png")
    log_record(record, grid, SETTINGS, tmp_path / "records")
    wandb.teardown()  # its service has ended, so all of the log is on the disk

    (log,) = (tmp_path / "records" / "wandb").rglob("*.wandb")
    assert record.identity[:32] in log.name
    config, summary = {}, {}
    for entry in entries(log):
        changed = [*entry.run.config.update, *entry.config.update]
        config.update({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in changed})
        changed = [*entry.summary.update, *entry.history.item]
        summary.update({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in changed})
    assert config["method"] == {"name": "fia", "alpha": 0.6}
    assert summary["edited/forget_accuracy/toy"] == 0.25
    assert summary["unedited/forget_accuracy/toy"] == 0.95
    media = {path.suffix for path in log.parent.rglob("media/**/*") if path.is_file()}
    assert {".png", ".json"} <= media  # the grid and the table
    (table,) = log.parent.rglob("media/**/*.table.json")
    assert ["edited", "forget_accuracy/toy", "all", 0.25] in [row[:4] for row in json.loads(table.read_text())["data"]]
    assert wandb.run is None  # finished


def test_scores_are_named_by_side_and_full_id(record: Record):
    assert scores(record.as_dict()) == {"edited/forget_accuracy/toy": 0.25, "unedited/forget_accuracy/toy": 0.95}


def test_nothing_imports_wandb_unless_it_is_asked_for():
    code = "import experiments.run, experiments.show, sys; print('wandb' in sys.modules)"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "False", done.stderr
