"""The pipeline: task -> edit -> pictures -> scores -> record. `benchmark(cfg)` is what `run.py` and notebooks call.

Every stage reads the previous stage's artefact and its own configuration; what is stored is not computed again, and a
run whose results are all stored loads no weights.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from harness.edit import Edit, export
from harness.generate import Chunks, ImageSet, generate, image_parts, passing
from harness.i2p import SET as EXPLICIT
from harness.method import Cost
from harness.record import Record
from harness.schedule import ordered

from .edits import has_edit, stored_edits
from .scores import missing_rows, score, score_passing
from .setup import Setup, setup
from .sizes import PNG_BYTES_PER_PIXEL

log = logging.getLogger(__name__)

# What is drawn and scored after every stage of a sequential schedule.
STAGE_SET = "classes"
# The picture grid shows the first of these that a task has.
GRID_SETS = ("classes", "artists", EXPLICIT)


def benchmark(cfg: DictConfig) -> tuple[Record, Path]:
    """Run one configuration.

    Returns:
        The record and the path it was written to.

    Raises:
        ValueError: bad input, in one line.
        NoEffectError: the edit changes nothing and `allow_noop` is false.
    """
    parts = setup(cfg)
    cost = Cost(parts.model, parts.device)
    log.info("%s, %s: %s", parts.config["method"]["name"], parts.task.name, parts.model.words or parts.model.name)
    with cost.stage("edit"):
        edits, meta = stored_edits(parts)
    edit = edits[-1]
    if parts.config["export"] is not None:
        with cost.stage("export"):
            folder = export(parts.model(), edit, parts.config["export"])
        log.info("exported a plain diffusers folder to %s", folder)
    result = _Result()
    if not parts.config["edit_only"]:
        result = _measure(parts, edits, cost)
    record = _record(parts, edit, meta, cost, result)
    path = record.write(Path(parts.config["records"]).expanduser())
    grid = _grid(parts, result, path)
    if parts.config["logger"]["name"] == "wandb":
        from .wandb_log import log_record

        log_record(record, grid, parts.config["logger"], path.parent)
    return record, path


def plan(cfg: DictConfig) -> dict[str, Any]:
    """What a run of this configuration would compute, without computing it.

    Returns:
        {model, method, task, words, absent, edit_stored, sets: [{name, edited, rows, stored, make}], unet_samples,
        disk_bytes}; `absent` says why the model is not on this machine, or is empty. A sequential schedule has edited
        class pictures for every stage. Pictures of an edit that is not stored yet all count as to be made, its own UNet
        samples are not known before.
    """
    parts = setup(cfg)
    found = has_edit(parts)
    stages = len(parts.task.concepts) if parts.config["schedule"] == "sequential" else 1
    # None: not stored yet.
    edits = stored_edits(parts)[0] if found else [None] * stages
    unedited = parts.config["method"]["name"] == "none"
    sets, samples, disk = [], 0, 0
    for name, prompts in ({} if parts.config["edit_only"] else parts.task.sets).items():
        drawn = [] if unedited else edits if name == STAGE_SET else edits[-1:]
        for edited, edit in [(False, None), *((True, edit) for edit in drawn)]:
            rows = {row.id: image_parts(parts.model, edit, row, parts.sampler) for row in prompts}
            todo = list(rows.values())
            if not edited or found:
                scored = _scored(parts, name, edit) if name in parts.task.unkept else set()
                todo = [row for i, row in rows.items() if i not in scored and not parts.store.has_image(row)]
            # A guidance of exactly 1 needs one UNet sample a call, any other two.
            samples += sum((1 if row["guidance"] == 1 else 2) * parts.sampler.calls() for row in todo)
            if name not in parts.task.unkept:
                disk += sum(int(row["width"] * row["height"] * PNG_BYTES_PER_PIXEL) for row in todo)
            stored = len(rows) - len(todo)
            sets.append({"name": name, "edited": edited, "rows": len(rows), "stored": stored, "make": len(todo)})
    return {
        "method": parts.config["method"]["name"],
        "task": parts.task.name,
        "model": parts.config["model"]["name"],
        "words": parts.model.words,
        "absent": getattr(parts.model, "reason", ""),
        "edit_stored": found,
        "sets": sets,
        "unet_samples": samples,
        "disk_bytes": disk,
    }


def _scored(parts: Setup, name: str, edit: Edit | None) -> set[str]:
    """Of a set that is not kept, the ids of the rows whose pictures nobody needs: all their scores are stored."""
    before, after = (_passing(parts, name, change) for change in (None, edit))
    edited = edit is not None and edit.kind != "none"
    return {
        row.id
        for chunk, plain in zip(after.parts, before.parts, strict=True)
        if not missing_rows(parts, name, chunk, plain if edited else None)
        for row in chunk.prompts
    }


def _passing(parts: Setup, name: str, edit: Edit | None) -> Chunks:
    prompts = parts.task.sets[name]
    return passing(parts.model, edit, prompts, parts.sampler, parts.store, batch_size=parts.batch_size)


@dataclass
class _Result:
    """Pictures and scores of a run; empty for `edit_only`."""

    before: Mapping[str, ImageSet | Chunks] | None = None
    after: Mapping[str, ImageSet | Chunks] | None = None
    unedited: tuple[Any, ...] = ()
    metrics: tuple[Any, ...] = ()
    # Of a sequential schedule: what was to be gone after each stage, and the scores of the class pictures.
    stages: tuple[dict[str, Any], ...] = ()
    stage_sets: tuple[ImageSet, ...] = ()


def _measure(parts: Setup, edits: Sequence[Edit], cost: Cost) -> _Result:
    """Pictures before and after the edit, and the values of every metric for both; of a schedule, after each stage."""

    unkept = parts.task.unkept

    def pictures(change: Edit | None, words: str, sets: Sequence[str]) -> dict[str, ImageSet | Chunks]:
        with cost.stage(f"pictures {words}"):
            return {
                name: _passing(parts, name, change)
                if name in unkept
                else generate(
                    parts.model, change, parts.task.sets[name], parts.sampler, parts.store, batch_size=parts.batch_size
                )
                for name in sets
            }

    every = list(parts.task.sets)
    before = pictures(None, "unedited", every)
    after = before if edits[-1].kind == "none" else pictures(edits[-1], "edited", every)
    for name in unkept:
        score_passing(parts, name, before[name], after[name], cost.stage)
    with cost.stage("scores"):
        unedited, metrics = score(parts, before, after)
    stages, stage_sets = [], []
    if len(edits) > 1 and edits[-1].kind != "none" and STAGE_SET in every:
        concepts = ordered(parts.task.concepts, parts.config["order"])
        for number, edit in enumerate(edits, start=1):
            seen = pictures(edit, f"after stage {number}", [STAGE_SET])
            stage_sets += seen.values()
            with cost.stage("scores"):
                _, values = score(parts, {STAGE_SET: before[STAGE_SET]}, seen)
            stages.append({"concepts": [concept.name for concept in concepts[:number]], "metrics": list(values)})
    # The last stage's pictures are the edited ones, counted already.
    return _Result(before, after, unedited, metrics, tuple(stages), tuple(stage_sets[:-1]))


def _record(parts: Setup, edit: Edit, meta: Mapping[str, Any], cost: Cost, result: _Result) -> Record:
    sets = [*(result.before or {}).values()]
    if result.after is not result.before:
        sets += (result.after or {}).values()
    sets += result.stage_sets
    world = _stamp(parts.config["suite"].get("world"))
    note = f"{parts.model.words or parts.model.name}."
    if meta["no_effect"]:
        note += f" The edit changes nothing: {meta['no_effect']}"
    note += _screened(parts)
    return Record(
        method=parts.config["method"]["name"],
        task=parts.task.name,
        model=parts.config["model"]["name"],
        suite=parts.config["suite"]["name"],
        split=parts.task.split,
        config=parts.config,
        fingerprints={
            "base": parts.model.fingerprint,
            "edit": edit.fingerprint,
            **{name: prompts.key for name, prompts in parts.task.sets.items()},
        },
        concepts=list(parts.task.concepts),
        keep=list(parts.task.keep),
        metrics=list(result.metrics),
        unedited=list(result.unedited),
        stages=list(result.stages),
        # What this run spent, and as `edit_made` the full cost of the edit, earlier runs included.
        cost={**cost.as_dict(), "edit_made": meta["cost"]},
        counts={
            "images_made": sum(images.made for images in sets),
            "images_reused": sum(images.reused for images in sets),
            "images_black": sum(images.black for images in sets),
            "screened": parts.task.screened,
            "edit_reused": int(meta["reused"]),
        },
        edit={"kind": edit.kind, "shares": meta["shares"], **edit.info},
        preset=parts.preset,
        world=world,
        note=note,
    )


def _screened(parts: Setup) -> str:
    """Which sets the prompt screen shortened, and by how much: published totals over a whole list are other numbers."""
    words = (
        f" The prompt screen refused {prompts.screened} of {len(prompts) + prompts.screened} {name} prompts; values are"
        f" over the other {len(prompts)}."
        for name, prompts in parts.task.sets.items()
        if prompts.screened
    )
    return "".join(words)


def _stamp(world: str | None) -> str:
    """Name and hash of the embedded world whose judges scored, such as `tiny-v1@0123456789ab`; empty for none."""
    if not world:
        return ""
    from tinyworld.freeze import WORLD, stamp

    return stamp(WORLD.parent / world)


def _grid(parts: Setup, result: _Result, record: Path) -> Path | None:
    """The before/after picture beside the record; None where no pictures of classes or artists were made.

    Pictures that are not kept are not shown either; explicit ones that are kept are shown blurred.
    """
    shown = next((name for name in GRID_SETS if name in (result.before or {}) and name not in parts.task.unkept), None)
    if shown is None:
        return None
    from .grid import blurred, picture_grid, save_png

    def by_class(images: ImageSet) -> dict[str, list[Any]]:
        groups: dict[str, list[Any]] = {}
        for i, row in enumerate(images.prompts):
            groups.setdefault(row.label or shown, []).append(i)
        look = blurred if shown == EXPLICIT else np.asarray
        return {label: [look(images.images[i]) for i in indices[:3]] for label, indices in groups.items()}

    before = by_class(result.before[shown])
    sheet = picture_grid(
        before,
        by_class(result.after[shown]),
        list(before) if shown == EXPLICIT else parts.task.forget,
        caption=f"{parts.config['method']['name']}, {parts.task.name}: {parts.model.words or parts.model.name}",
    )
    return save_png(sheet, record.with_suffix(".png"))
