"""The pipeline: task -> edit -> pictures -> scores -> record. `benchmark(cfg)` is what `run.py` and notebooks call.

Every stage reads the previous stage's artefact and its own configuration; what is stored is not computed again, and a
run whose results are all stored loads no weights.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from harness.edit import Edit, NoEffectError, export, pruned_shares
from harness.generate import ImageSet, generate, image_parts
from harness.method import Cost
from harness.record import Record

from .scores import score
from .setup import Setup, setup

log = logging.getLogger(__name__)

EDIT_FILE, META_FILE = "edit.safetensors", "meta.json"
# Bytes of one stored PNG a pixel: measured on photos, an upper bound for drawings.
PNG_BYTES_PER_PIXEL = 1.6


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
        edit, meta = stored_edit(parts)
    if parts.config["export"] is not None:
        with cost.stage("export"):
            folder = export(parts.model(), edit, parts.config["export"])
        log.info("exported a plain diffusers folder to %s", folder)
    result = _Result()
    if not parts.config["edit_only"]:
        result = _measure(parts, edit, cost)
    record = _record(parts, edit, meta, cost, result)
    path = record.write(Path(parts.config["records"]).expanduser())
    grid = _grid(parts, result, path)
    if parts.config["logger"]["name"] == "wandb":
        from .wandb_log import log_record

        log_record(record, grid, parts.config["logger"], path.parent)
    return record, path


def stored_edit(parts: Setup) -> tuple[Edit, dict[str, Any]]:
    """The edit, read from the store or made, and what is known about its making.

    Returns:
        The edit and {shares, cost, no_effect}: pruned shares, the cost of making it (also when it was stored), and the
        reason where it changes nothing.
    """
    made = []

    def make(folder: Path) -> None:
        meta: dict[str, Any] = {"no_effect": ""}
        model = parts.model()
        cost = Cost(model, parts.device)
        try:
            with cost.stage("edit"):
                edit = parts.method.edit(model, parts.task.concepts, parts.config["seed"], _stage(parts))
            if edit.kind != "none":
                edit.require_effect(model)
        except NoEffectError as error:
            if not parts.config["allow_noop"]:
                raise
            edit, meta["no_effect"] = Edit.make("none", {}, model), str(error)
        edit.save(folder / EDIT_FILE)
        meta |= {"shares": pruned_shares(edit, model), "cost": cost.as_dict()}
        (folder / META_FILE).write_text(json.dumps(meta, indent=1), encoding="utf-8")
        made.append(True)

    folder = parts.store.folder("edit", parts.edit_parts, make)
    edit = Edit.load(folder / EDIT_FILE)
    meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
    # Stored by a run that allowed it; this one may not.
    if meta["no_effect"] and not parts.config["allow_noop"]:
        raise NoEffectError(meta["no_effect"])
    meta["reused"] = not made
    return edit, meta


def plan(cfg: DictConfig) -> dict[str, Any]:
    """What a run of this configuration would compute, without computing it.

    Returns:
        {model, method, task, edit_stored, sets: [{name, edited, rows, stored, make}], unet_samples, disk_bytes};
        pictures of an edit that is not stored yet all count as to be made, its own UNet samples are not known before.
    """
    parts = setup(cfg)
    has_edit = parts.store.has("edit", parts.edit_parts)
    edit = stored_edit(parts)[0] if has_edit else None
    unedited = parts.config["method"]["name"] == "none"
    sets, samples, disk = [], 0, 0
    for name, prompts in ({} if parts.config["edit_only"] else parts.task.sets).items():
        for edited in (False,) if unedited else (False, True):
            rows = [image_parts(parts.model, edit if edited else None, row, parts.sampler) for row in prompts]
            todo = rows
            if not edited or has_edit:
                todo = [row for row in rows if not parts.store.has_image(row)]
            # A guidance of exactly 1 needs one UNet sample a call, any other two.
            samples += sum((1 if row["guidance"] == 1 else 2) * parts.sampler.calls() for row in todo)
            disk += sum(int(row["width"] * row["height"] * PNG_BYTES_PER_PIXEL) for row in todo)
            stored = len(rows) - len(todo)
            sets.append({"name": name, "edited": edited, "rows": len(rows), "stored": stored, "make": len(todo)})
    return {
        "method": parts.config["method"]["name"],
        "task": parts.task.name,
        "model": parts.config["model"]["name"],
        "words": parts.model.words,
        "edit_stored": has_edit,
        "sets": sets,
        "unet_samples": samples,
        "disk_bytes": disk,
    }


@dataclass
class _Result:
    """Pictures and scores of a run; empty for `edit_only`."""

    before: Mapping[str, ImageSet] | None = None
    after: Mapping[str, ImageSet] | None = None
    unedited: tuple[Any, ...] = ()
    metrics: tuple[Any, ...] = ()


def _measure(parts: Setup, edit: Edit, cost: Cost) -> _Result:
    """Pictures before and after the edit, and the values of every metric for both."""

    def pictures(change: Edit | None, words: str) -> dict[str, ImageSet]:
        with cost.stage(f"pictures {words}"):
            return {
                name: generate(parts.model, change, prompts, parts.sampler, parts.store, batch_size=parts.batch_size)
                for name, prompts in parts.task.sets.items()
            }

    before = pictures(None, "unedited")
    after = before if edit.kind == "none" else pictures(edit, "edited")
    with cost.stage("scores"):
        unedited, metrics = score(parts, before, after)
    return _Result(before, after, unedited, metrics)


def _stage(parts: Setup) -> Callable[[str, dict[str, Any], Callable[[], dict[str, Tensor]]], dict[str, Tensor]]:
    """The method's read-or-make: the store, under the model's fingerprint."""

    def stage(name: str, key: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return parts.store.tensors(name, {"model": parts.model.fingerprint, "key": key}, make)

    return stage


def _record(parts: Setup, edit: Edit, meta: Mapping[str, Any], cost: Cost, result: _Result) -> Record:
    sets = [*(result.before or {}).values()]
    if result.after is not result.before:
        sets += (result.after or {}).values()
    world = _stamp(parts.config["suite"].get("world"))
    note = f"{parts.model.words or parts.model.name}."
    if meta["no_effect"]:
        note += f" The edit changes nothing: {meta['no_effect']}"
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
        # `edit_made` is what the edit cost when it was made, which may have been an earlier run.
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


def _stamp(world: str | None) -> str:
    """Name and hash of the embedded world whose judges scored, such as `tiny-v1@0123456789ab`; empty for none."""
    if not world:
        return ""
    from tinyworld.freeze import WORLD, stamp

    return stamp(WORLD.parent / world)


def _grid(parts: Setup, result: _Result, record: Path) -> Path | None:
    """The before/after picture beside the record; None where there are no class pictures."""
    if result.before is None or "classes" not in result.before:
        return None
    from .grid import picture_grid, save_png

    def by_class(images: ImageSet) -> dict[str, list[Any]]:
        groups: dict[str, list[Any]] = {}
        for i, row in enumerate(images.prompts):
            groups.setdefault(row.label, []).append(i)
        return {label: [images.images[i] for i in indices[:3]] for label, indices in groups.items()}

    sheet = picture_grid(
        by_class(result.before["classes"]),
        by_class(result.after["classes"]),
        parts.task.forget,
        caption=f"{parts.config['method']['name']}, {parts.task.name}: {parts.model.words or parts.model.name}",
    )
    return save_png(sheet, record.with_suffix(".png"))
