"""A record as a Weights & Biases run (`logger=wandb`). This is the only module that imports wandb.

The run's id follows from the record's identity, so a repeated run updates its own page instead of adding another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.record import Record

from . import values


def log_record(record: Record, grid: Path | None, settings: Mapping[str, Any], records: Path) -> None:
    """Log configuration, scores, the table of all metrics, and the picture grid.

    Args:
        record: as it was written.
        grid: the PNG beside it, or None.
        settings: of conf/logger/wandb.yaml.
        records: the folder of records; W&B's own folder goes into it unless `settings` names another.
    """
    import wandb

    data = record.as_dict()
    folder = Path(settings["dir"] or records)  # W&B adds a folder `wandb` of its own
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=settings["project"],
        entity=settings["entity"],
        group=settings["group"],
        tags=[*settings["tags"], record.method, record.task, record.model],
        name=f"{record.method}-{record.task}-{record.model}",
        id=record.identity[:32],
        resume="allow",
        dir=folder,
        config={**data["config"], "fingerprints": data["fingerprints"], "preset": record.preset, "world": record.world},
        notes=record.note,
    )
    try:
        columns = ("id", "subject", "value", "n", "low", "high", "higher_is_better")
        table = wandb.Table(columns=["model", *columns])
        for who in ("unedited", "metrics"):
            for metric in data[who]:
                table.add_data("edited" if who == "metrics" else who, *(metric[name] for name in columns))
        entries: dict[str, Any] = {"metrics": table}
        if grid is not None:
            entries["pictures"] = wandb.Image(str(grid), caption=record.note)
        run.log(entries)
        run.summary.update(scores(data))
        run.summary.update({"seconds": record.cost["seconds"], "unet_samples": record.cost["unet_samples"]})
    finally:
        run.finish()


def scores(data: Mapping[str, Any]) -> dict[str, float]:
    """`edited/ID` and `unedited/ID` -> value, in the record's units (fractions), of the aggregates."""
    found = {}
    for who, name in (("metrics", "edited"), ("unedited", "unedited")):
        for metric in data[who]:
            if metric["subject"] == "all" and metric["value"] is not None and values.family(metric["id"]):
                found[f"{name}/{metric['id']}"] = metric["value"]
    return found
