"""A record as a Weights & Biases run (`logger=wandb`). This is the only module that imports wandb.

The run's id follows from the record's identity, so a repeated run updates its own page instead of adding another. The
jobs of a multirun share a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.record import Record

from . import sweep, values

# Column of the table of metrics -> part of a difference.
DIFFERENCE = {"difference": "value", "difference_low": "low", "difference_high": "high"}
CLASSES = ("class", "side", "metric", "unedited", "edited")
STAGES = ("stage", "forgotten", "metric", "subject", "value")
COLUMNS = ("id", "subject", "value", "n", "low", "high", "higher_is_better", "sd", "repeats")


def log_record(record: Record, grid: Path | None, settings: Mapping[str, Any], records: Path) -> None:
    """Log configuration, scores, a table of all metrics and one of the classes, and the picture grid; of a sequential
    schedule also the scores of every stage, as curves over the stage's number and as a table.

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
        group=settings["group"] or sweep.group(),
        tags=[*settings["tags"], record.method, record.task, record.model],
        name=f"{record.method}-{record.task}-{record.model}",
        id=record.identity[:32],
        resume="allow",
        dir=folder,
        config={**data["config"], "fingerprints": data["fingerprints"], "preset": record.preset, "world": record.world},
        notes=record.note,
    )
    try:
        entries: dict[str, Any] = {
            "metrics": wandb.Table(columns=["model", *COLUMNS, *DIFFERENCE], data=all_metrics(data)),
            "classes": wandb.Table(columns=list(CLASSES), data=by_class(data)),
        }
        if grid is not None:
            entries["pictures"] = wandb.Image(str(grid), caption=record.note)
        if record.stages:
            rows = by_stage(data)
            entries["stages"] = wandb.Table(columns=list(STAGES), data=rows)
            run.define_metric("stage", hidden=True)
            run.define_metric("stages/*", step_metric="stage")
            for point in curves(rows):
                run.log(point)
        run.log(entries)
        run.summary.update(scores(data))
        run.summary.update({"seconds": record.cost["seconds"], "unet_samples": record.cost["unet_samples"]})
    finally:
        run.finish()


def all_metrics(data: Mapping[str, Any]) -> list[list[Any]]:
    """Every value of either side, as in the record, with its difference to the unedited model in columns."""
    rows = []
    for who, name in (("unedited", "unedited"), ("metrics", "edited")):
        for metric in data[who]:
            difference = metric.get("difference") or {}
            rows.append([name, *map(metric.get, COLUMNS), *map(difference.get, DIFFERENCE.values())])
    return rows


def by_class(data: Mapping[str, Any]) -> list[list[Any]]:
    """Every class, artist or part, before and after the edit, in the unit in which tables show it."""
    side = {concept["name"]: "forget" for concept in data["concepts"]} | dict.fromkeys(data["keep"], "keep")
    rows = []
    for metric in data["metrics"]:
        id, subject = metric["id"], metric["subject"]
        if subject != "all":
            scale = values.unit(id).scale
            pair = values.pick(data["unedited"], id, subject), metric
            numbers = [None if not entry or entry["value"] is None else scale * entry["value"] for entry in pair]
            rows.append([subject, side.get(subject, ""), id, *numbers])
    return rows


def by_stage(data: Mapping[str, Any]) -> list[list[Any]]:
    """The values of a sequential schedule in the record's units: of the unedited model (stage 0), then of every stage,
    with the name of what was forgotten in it."""
    stages = [stage["metrics"] for stage in data["stages"]]
    scored = {(metric["id"], metric["subject"]) for metric in stages[0]}
    unedited = [metric for metric in data["unedited"] if (metric["id"], metric["subject"]) in scored]
    names = ["", *(stage["concepts"][-1] for stage in data["stages"])]
    return [
        [number, name, metric["id"], metric["subject"], metric["value"]]
        for number, (name, metrics) in enumerate(zip(names, [unedited, *stages], strict=True))
        for metric in metrics
    ]


def curves(rows: Sequence[Sequence[Any]]) -> list[dict[str, float]]:
    """Of the rows of `by_stage`, one point a stage: `stage`, and `stages/ID` -> value of every aggregate."""
    points: dict[int, dict[str, float]] = {}
    for stage, _, id, subject, value in rows:
        if subject == "all" and value is not None and values.family(id):
            points.setdefault(stage, {"stage": stage})[f"stages/{id}"] = value
    return list(points.values())


def scores(data: Mapping[str, Any]) -> dict[str, float]:
    """`edited/ID` and `unedited/ID` -> value, in the record's units (fractions), of the aggregates; `.../sd` is the
    standard deviation over repeats."""
    found = {}
    for who, name in (("metrics", "edited"), ("unedited", "unedited")):
        for metric in data[who]:
            if metric["subject"] == "all" and metric["value"] is not None and values.family(metric["id"]):
                found[f"{name}/{metric['id']}"] = metric["value"]
                if "sd" in metric:
                    found[f"{name}/{metric['id']}/sd"] = metric["sd"]
    return found
