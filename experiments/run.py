"""The pipeline: task -> edit -> pictures -> scores -> record. `benchmark(cfg)` is what `run.py` and notebooks call.

Every stage reads the previous stage's artefact and its own configuration; what is stored is not computed again, and a
run whose results are all stored loads no weights.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from harness.edit import Edit, NoEffectError, export
from harness.generate import Chunks, ImageSet, generate, image_parts, passing
from harness.i2p import SET as EXPLICIT
from harness.method import Cost
from harness.processes import join
from harness.record import Record, environment
from harness.schedule import ordered

from .edits import has_edit, stored_edits
from .scores import Scored, missing_rows, score, score_part, score_passing, summed_up
from .setup import Setup, repeated, setup
from .sizes import PNG_BYTES_PER_PIXEL

log = logging.getLogger(__name__)

# A task's concepts are scored on the first of these that it has; a sequential schedule draws it after every stage, and
# the picture grid shows it.
SCORED_SETS = ("classes", "artists", EXPLICIT)


def benchmark(cfg: DictConfig) -> tuple[Record, Path]:
    """Run one configuration, on several processes where `accelerate launch` or `torchrun` started them.

    Returns:
        The record and the path it was written to, in every process.

    Raises:
        ValueError: bad input, in one line.
        NoEffectError: the edit changes nothing and `allow_noop` is false.
        PeerLost: another process of this run ended before its work was done.
    """
    team = join(str(cfg.device))
    environment()  # the code that is here now is the one that runs
    with team.main_first():
        parts = setup(cfg, team)
    cost = Cost(parts.model, parts.device)
    log.info("%s, %s: %s", parts.config["method"]["name"], parts.task.name, parts.model.words or parts.model.name)
    runs: list[_Run] = []
    for one in repeated(parts):
        runs.append(_run(one, cost))
        if (runs[-1].edit["kind"] == "none") != (runs[0].edit["kind"] == "none"):
            raise NoEffectError(
                f"some edits of these repeats change nothing and others do, as with seed={one.config['seed']}; run the "
                "seeds one by one"
            )
        if len(runs) > 1:
            runs[-1].shown = None  # the grid is the first one's
    if team.main:
        _say_equal_edits(parts, runs)
    cost.add(team.gather(cost.stages)[1:])
    done = _written(parts, runs, cost) if team.main else None
    return team.gather(done)[0]


def _written(parts: Setup, runs: Sequence[_Run], cost: Cost) -> tuple[Record, Path]:
    """The record, with the picture grid beside it, and where it was written to."""
    record = _record(parts, runs, cost)
    path = record.write(Path(parts.config["records"]).expanduser())
    grid = _grid(parts, runs[0].shown, path)
    if parts.config["logger"]["name"] == "wandb":
        from .wandb_log import log_record

        log_record(record, grid, parts.config["logger"], path.parent)
    return record, path


def plan(cfg: DictConfig) -> dict[str, Any]:
    """What a run of this configuration would compute, without computing it.

    Returns:
        {model, method, task, words, absent, counted, repeats, edits_stored, sets: [{name, edited, rows, stored, make}],
        unet_samples, disk_bytes}, over all repeats; `absent` says why the model is not on this machine, or is empty;
        `counted` names the prompt lists that are not. A sequential schedule has edited pictures of the concepts for
        every stage. Pictures of an edit that is not stored yet all count as to be made, its own UNet samples are not
        known before.
    """
    parts = setup(cfg)
    runs = repeated(parts)
    absent = getattr(parts.model, "reason", "")
    stages = len(parts.task.concepts) if parts.config["schedule"] == "sequential" else 1
    unedited = parts.config["method"]["name"] == "none"
    sets: dict[tuple[str, int], dict[str, Any]] = {}
    samples, disk = 0, 0
    for one in runs:
        found = has_edit(one)
        # None: not stored yet.
        edits = stored_edits(one)[0] if found else [None] * stages
        for name, prompts in ({} if one.config["edit_only"] else one.task.sets).items():
            drawn = [] if unedited else edits if name == _scored_set(one) else edits[-1:]
            for stage, edit in enumerate([None, *drawn]):
                rows = {row.id: image_parts(one.model, edit, row, one.sampler) for row in prompts}
                todo = list(rows.values())
                if not absent and (not stage or found):
                    scored = _scored(one, name, edit) if name in one.task.unkept else set()
                    todo = [row for i, row in rows.items() if i not in scored and not one.store.has_image(row)]
                # A guidance of exactly 1 needs one UNet sample a call, any other two.
                samples += sum((1 if row["guidance"] == 1 else 2) * one.sampler.calls() for row in todo)
                if name not in one.task.unkept:
                    disk += sum(int(row["width"] * row["height"] * PNG_BYTES_PER_PIXEL) for row in todo)
                entry = sets.setdefault(
                    (name, stage), {"name": name, "edited": stage > 0, "rows": 0, "stored": 0, "make": 0}
                )
                counts = {"rows": len(rows), "stored": len(rows) - len(todo), "make": len(todo)}
                entry |= {word: entry[word] + count for word, count in counts.items()}
    return {
        "method": parts.config["method"]["name"],
        "task": parts.task.name,
        "model": parts.config["model"]["name"],
        "words": parts.model.words,
        "absent": absent,
        "counted": list(parts.counted),
        "repeats": len(runs),
        "edits_stored": sum(map(has_edit, runs)),
        "sets": list(sets.values()),
        "unet_samples": samples,
        "disk_bytes": disk,
    }


def _scored_set(parts: Setup) -> str | None:
    """The prompt set that shows whether the concepts are gone; None for a task with captions only."""
    return next((name for name in SCORED_SETS if name in parts.task.sets), None)


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
class _Run:
    """What is left of one repeat when it is done; scores and pictures are empty for `edit_only`.

    Attributes:
        edit: its kind, fingerprint and info, and what `stored_edits` says about its making.
        scored: every metric's values.
        counts: of pictures made, reused and of one colour.
        stages: of a sequential schedule, what was to be gone after each stage, and the scores of its pictures.
        shown: the unedited and the edited pictures of the grid, where there is one.
    """

    edit: dict[str, Any]
    scored: Sequence[Scored] = ()
    counts: Counter[str] = field(default_factory=Counter)
    stages: Sequence[dict[str, Any]] = ()
    shown: tuple[ImageSet, ImageSet] | None = None


def _run(parts: Setup, cost: Cost) -> _Run:
    """One repeat: the edit, and pictures and scores before and after it."""
    with cost.stage("edit"), parts.team.main_first():
        edits, meta = stored_edits(parts)
    edit = edits[-1]
    if parts.config["export"] is not None and parts.team.main:
        with cost.stage("export"):
            folder = export(parts.model(), edit, parts.config["export"])
        log.info("exported a plain diffusers folder to %s", folder)
    found = _Run({"kind": edit.kind, "fingerprint": edit.fingerprint, "info": edit.info, **meta})
    if not parts.config["edit_only"]:
        _measure(parts, edits, cost, found)
    return found


def _measure(parts: Setup, edits: Sequence[Edit], cost: Cost, found: _Run) -> None:
    """Pictures before and after the edit, and the values of every metric for both; of a schedule, after each stage."""
    unkept = parts.task.unkept
    before: dict[str, ImageSet | Chunks] = {}

    def scored(name: str, change: Edit | None, number: int, images: ImageSet) -> None:
        reference = None if change is None else before[name].scored()[number]
        score_part(parts, name, images, reference, cost.aside)

    def pictures(change: Edit | None, words: str, sets: Sequence[str]) -> dict[str, ImageSet | Chunks]:
        with cost.stage(f"pictures {words}"):
            return {
                name: _passing(parts, name, change)
                if name in unkept
                else generate(
                    parts.model,
                    change,
                    parts.task.sets[name],
                    parts.sampler,
                    parts.store,
                    batch_size=parts.batch_size,
                    team=parts.team,
                    ready=partial(scored, name, change),
                )
                for name in sets
            }

    every = list(parts.task.sets)
    before |= pictures(None, "unedited", every)
    after = before if edits[-1].kind == "none" else pictures(edits[-1], "edited", every)
    for name in unkept:
        score_passing(parts, name, before[name], after[name], cost.stage)
    with cost.stage("scores"):
        found.scored = score(parts, before, after)
    stages, stage_sets, name = [], [], _scored_set(parts)
    if len(edits) > 1 and edits[-1].kind != "none" and name is not None:
        concepts = ordered(parts.task.concepts, parts.config["order"])
        for number, edit in enumerate(edits, start=1):
            seen = pictures(edit, f"after stage {number}", [name])
            stage_sets += seen.values()
            if name in unkept:
                score_passing(parts, name, before[name], seen[name], cost.stage)
            with cost.stage("scores"):
                _, values = summed_up(parts.task, [score(parts, {name: before[name]}, seen)])
            stages.append({"concepts": [concept.name for concept in concepts[:number]], "metrics": list(values)})
    found.stages = stages
    # The last stage's pictures are the edited ones, counted already.
    for images in [*before.values(), *(after.values() if after is not before else ()), *stage_sets[:-1]]:
        found.counts.update(images_made=images.made, images_reused=images.reused, images_black=images.black)
    if name is not None and name not in unkept:
        found.shown = before[name], after[name]


def _record(parts: Setup, runs: Sequence[_Run], cost: Cost) -> Record:
    """The record of all repeats; of what each edit says of itself it has the first one's."""
    with cost.stage("scores"):
        unedited, metrics = summed_up(parts.task, [run.scored for run in runs])
    edit = runs[0].edit
    counts = sum((run.counts for run in runs), Counter())
    note = f"{parts.model.words or parts.model.name}."
    if edit["no_effect"]:
        note += f" The edit changes nothing: {edit['no_effect']}"
    note += _screened(parts)
    if counts["images_black"]:
        note += f" {counts['images_black']} pictures of the edited model are of one single colour."
    return Record(
        method=parts.config["method"]["name"],
        task=parts.task.name,
        model=parts.config["model"]["name"],
        suite=parts.config["suite"]["name"],
        split=parts.task.split,
        config=parts.config,
        fingerprints={
            "base": parts.model.fingerprint,
            "edit": edit["fingerprint"],
            **{f"edit.{number}": run.edit["fingerprint"] for number, run in enumerate(runs) if number},
            **{name: prompts.key for name, prompts in parts.task.sets.items()},
        },
        concepts=list(parts.task.concepts),
        keep=list(parts.task.keep),
        metrics=list(metrics),
        unedited=list(unedited),
        stages=list(runs[0].stages),
        # What this run spent, and as `edit_made` the full cost of the edit, earlier runs included.
        cost={**cost.as_dict(), "processes": parts.team.count, "edit_made": edit["cost"]},
        counts={
            **{name: counts[name] for name in ("images_made", "images_reused", "images_black")},
            "screened": parts.task.screened,
            "edit_reused": sum(run.edit["reused"] for run in runs),
        },
        edit={"kind": edit["kind"], "shares": edit["shares"], **edit["info"]},
        preset=parts.preset,
        world=parts.world,
        note=note,
        environment=environment() | _judged_by(runs[0].scored),
    )


def _say_equal_edits(parts: Setup, runs: Sequence[_Run]) -> None:
    """One line where repeats say nothing about the spread of edits."""
    if len(runs) > 1 and runs[0].edit["kind"] != "none" and len({one.edit["fingerprint"] for one in runs}) == 1:
        own = getattr(parts.method, "seed", None) is not None
        hint = "; method.seed=null gives each an edit of its own" if own else ""
        log.warning("all %d repeats have the same edit, only the pictures' noise differs%s", len(runs), hint)


def _judged_by(scored: Sequence[Scored]) -> dict[str, dict[str, str]]:
    """Which files the numbers rest on, by metric id: the judges' weights, and the photos that were compared with."""
    return {
        "judges": {one.metric.id: getattr(one.metric, "sha256", one.metric.fingerprint) for one in scored},
        "photos": {one.metric.id: one.photos for one in scored if one.photos is not None},
    }


def _screened(parts: Setup) -> str:
    """Which sets the prompt screen shortened, and by how much: published totals over a whole list are other numbers."""
    words = (
        f" The prompt screen refused {prompts.screened} of {len(prompts) + prompts.screened} {name} prompts; values are"
        f" over the other {len(prompts)}."
        for name, prompts in parts.task.sets.items()
        if prompts.screened
    )
    return "".join(words)


def _grid(parts: Setup, shown: tuple[ImageSet, ImageSet] | None, record: Path) -> Path | None:
    """The before/after picture beside the record; None where no pictures of classes or artists were made.

    Pictures that are not kept are not shown either; explicit ones that are kept are shown blurred.
    """
    if shown is None:
        return None
    from .grid import blurred, picture_grid, save_png

    name = shown[0].prompts.name

    def by_class(images: ImageSet) -> dict[str, list[Any]]:
        groups: dict[str, list[Any]] = {}
        for i, row in enumerate(images.prompts):
            groups.setdefault(row.label or name, []).append(i)
        look = blurred if name == EXPLICIT else np.asarray
        return {label: [look(images.images[i]) for i in indices[:3]] for label, indices in groups.items()}

    before, after = map(by_class, shown)
    sheet = picture_grid(
        before,
        after,
        list(before) if name == EXPLICIT else parts.task.forget,
        caption=f"{parts.config['method']['name']}, {parts.task.name}: {parts.model.words or parts.model.name}",
    )
    return save_png(sheet, record.with_suffix(".png"))
