"""Schedules: how several concepts meet a method.

`joint` hands all concepts to the method at once. `sequential` edits one concept after another, each on the model that
the edits before left, so that resurgence of the earlier ones can be seen. `merged` edits the untouched model once a
concept and adds the changes up.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .edit import Edit, NoEffectError
from .method import Method, Stage
from .model import DiffusionModel
from .names import unknown
from .task import Concept

log = logging.getLogger(__name__)

SCHEDULES = ("joint", "sequential", "merged")
GIVEN = "given"


def ordered(concepts: Sequence[Concept], order: str | int) -> tuple[Concept, ...]:
    """The concepts as they are given, or shuffled by a seed."""
    if order == GIVEN:
        return tuple(concepts)
    if isinstance(order, bool) or not isinstance(order, int) or order < 0:
        raise ValueError(f"order is {order!r}; it must be `{GIVEN}` or a seed (a whole number from 0)")
    return tuple(concepts[i] for i in np.random.default_rng(order).permutation(len(concepts)))


def scheduled(
    schedule: str,
    method: Method,
    model: DiffusionModel,
    concepts: Sequence[Concept],
    seed: int,
    stage: Stage,
    *,
    allow_noop: bool = False,
) -> list[Edit]:
    """The edits of a schedule, in order; every one leads from the untouched model to the state after its stage.

    Args:
        allow_noop: in `sequential` and `merged`, leave out a concept whose edit changes nothing (`without_effect` says
            which); where all are left out, the result is an edit of kind `none`.

    Returns:
        One edit, or one a concept for `sequential`. The last is the result. Where single edits were combined, `info`
        names all their concepts and holds the single edits' own information as `parts`.

    Raises:
        NoEffectError: an edit changes nothing; for single concepts the message names which.
        ValueError: the method's edit does not depend on the concepts (`joint_only`), so there is nothing to schedule.
    """
    if schedule == "joint":
        return [method.edit(model, concepts, seed, stage)]
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    if getattr(method, "joint_only", False):
        raise ValueError(f"schedule={schedule}: {method.name} gives one edit whatever the concepts; say schedule=joint")
    if schedule == "merged":
        singles = [_single(method, model, concept, seed, stage, allow_noop) for concept in concepts]
        return [_described(merged(model, singles), schedule, concepts, singles)]
    edits: list[Edit] = []
    singles = []
    for number, concept in enumerate(concepts, start=1):
        with rebased(model, edits[-1]) if edits and edits[-1].kind != "none" else contextlib.nullcontext():
            singles.append(_single(method, model, concept, seed, stage, allow_noop))
            edit = followed(model, edits[-1], singles[-1]) if edits else singles[-1]
        edits.append(_described(edit, schedule, concepts[:number], singles))
    return edits


def without_effect(edit: Edit) -> list[str]:
    """Why concepts of a schedule were left out: one text a concept, which begins with its name."""
    return [part["no_effect"] for part in edit.info.get("parts", ()) if "no_effect" in part]


def _single(method: Method, model: DiffusionModel, concept: Concept, seed: int, stage: Stage, allow_noop: bool) -> Edit:
    """The edit of one concept on the model as it is; one without effect is seen here, where its concept is known."""
    try:
        edit = method.edit(model, [concept], seed, stage)
        if edit.kind != "none":
            edit.require_effect(model)
        return edit
    except NoEffectError as error:
        reason = f"{concept.name}: {error}"
        if not allow_noop:
            raise NoEffectError(reason) from error
    log.warning("%s; the schedule goes on without it", reason)
    return Edit.make("none", {}, model, {"no_effect": reason})


def _described(edit: Edit, schedule: str, concepts: Sequence[Concept], singles: Sequence[Edit]) -> Edit:
    """The edit with information about all of its concepts instead of the last one's."""
    own = ("method", "version", "config")
    info: dict[str, Any] = {key: one.info[key] for one in singles for key in own if key in one.info}
    info |= {
        "base": edit.base,
        "schedule": schedule,
        "concepts": [{"name": concept.name, "kind": concept.kind} for concept in concepts],
        "parts": [single.info for single in singles],
    }
    return Edit(edit.kind, edit.tensors, info)


@contextlib.contextmanager
def rebased(model: DiffusionModel, edit: Edit) -> Iterator[DiffusionModel]:
    """Inside the block the edited model counts as a model of its own: a method can edit it further.

    Its fingerprint follows from the base's and the edit's, so that nothing stored for one is used for the other. The
    weights that the edit replaced stay at hand as `model.untouched`.
    """
    base, before = model.fingerprint, model.untouched
    with edit.applied(model):
        model.edit, model.untouched = None, {**edit.replaced, **before}
        model.fingerprint = hashlib.sha256(f"{base} {edit.fingerprint}".encode()).hexdigest()
        try:
            yield model
        finally:
            model.fingerprint, model.edit, model.untouched = base, edit, before


@torch.no_grad()
def followed(model: DiffusionModel, first: Edit, second: Edit) -> Edit:
    """One edit with the effect of `first` and then `second`; call it inside `rebased(model, first)`.

    Two masks give their union; anything else a delta that holds the final weights.
    """
    second.check(model)
    info = {**second.info, "base": first.base}
    if "none" in (first.kind, second.kind):
        kept = first if second.kind == "none" else second
        return Edit(kept.kind, kept.tensors, info)
    if first.kind == second.kind == "mask":
        return Edit("mask", _union([first, second]), info)
    names = first.tensors.keys() | second.tensors.keys()
    parameters = dict(model.unet.named_parameters())
    with second.applied(model):
        return Edit("delta", {name: parameters[name].detach().cpu().clone() for name in sorted(names)}, info)


@torch.no_grad()
def merged(model: DiffusionModel, edits: Sequence[Edit]) -> Edit:
    """Edits of the same untouched model as one: the union of masks, or the weights plus the sum of all changes.

    Sums are taken in float64 and rounded once to the weights' type.
    """
    info = edits[-1].info
    edits = [edit for edit in edits if edit.kind != "none"]
    if not edits:
        return Edit("none", {}, info)
    if all(edit.kind == "mask" for edit in edits):
        return Edit("mask", _union(edits), info)
    changes: dict[str, torch.Tensor] = {}
    for edit in edits:
        for name, old in edit.check(model).items():
            old = old.detach().cpu()
            tensor = edit.tensors[name]
            new = old.masked_fill(tensor, 0) if edit.kind == "mask" else tensor
            change = new.double() - old.double()
            changes[name] = changes[name] + change if name in changes else change
    parameters = dict(model.unet.named_parameters())
    tensors = {
        name: (parameters[name].detach().cpu().double() + change).to(parameters[name].dtype)
        for name, change in sorted(changes.items())
    }
    return Edit("delta", tensors, info)


def _union(edits: Sequence[Edit]) -> dict[str, torch.Tensor]:
    union: dict[str, torch.Tensor] = {}
    for edit in edits:
        for name, tensor in edit.tensors.items():
            union[name] = union[name] | tensor if name in union else tensor
    return union
