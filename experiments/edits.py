"""Edits, read from the store or made, and what they cost: in this run, and in all.

Stages of an edit and whole edits are found again by later runs, so a run that finds them spends little. Every stored
artefact therefore keeps a *ledger*: what each run had spent on its edit when the artefact was made. A run takes over
the ledgers of what it finds, and the sum over all runs in its own is the full cost of its edit.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.edit import Edit, NoEffectError, pruned_shares
from harness.method import Meter, Scratch, device_name
from harness.model import DiffusionModel
from harness.schedule import ordered, scheduled, without_effect

from .setup import Setup

EDIT_FILE, META_FILE = "edit_{}.safetensors", "meta.json"
# Raised by hand when something else is kept beside an artefact; older ones are then made again.
LAYOUT = 4


class Ledger:
    """What was spent on an edit, by the run that spent it: {run: {device, seconds, unet_samples, ...}}.

    It works like a vector clock. Of each run the largest entry is kept, so nothing counts twice, and everything that
    a run had spent before it made an artefact goes with that artefact. The sum is exact for what an earlier run made
    for the same concepts, and an upper bound where that run had measured further ones before.
    """

    def __init__(self, model: Any, device: str | torch.device) -> None:
        """Open the ledger of a run that begins now."""
        self._meter, self._run = Meter(model, device), secrets.token_hex(8)
        self._found: dict[str, dict[str, Any]] = {}
        self._not_ours = 0.0

    def entries(self) -> dict[str, dict[str, Any]]:
        """All runs, this one as it stands now."""
        own = asdict(self._meter.read())
        own["seconds"] -= self._not_ours
        return {**self._found, self._run: {"device": device_name(self._meter.device), **own}}

    def found(self, entries: Mapping[str, dict[str, Any]], seconds: float) -> None:
        """Take over an artefact's ledger; this run spent `seconds` on waiting for it and reading it, not on making."""
        self._not_ours += seconds
        for run, spent in entries.items():
            if run != self._run and spent["seconds"] > self._found.get(run, {"seconds": -1})["seconds"]:
                self._found[run] = spent


def full_cost(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of a ledger: {device, seconds, unet_samples, peak_memory_bytes, runs}; several devices are all named."""
    spent = list(entries.values())
    return {
        "device": " + ".join(sorted({entry["device"] for entry in spent})),
        "seconds": sum(entry["seconds"] for entry in spent),
        "unet_samples": sum(entry["unet_samples"] for entry in spent),
        "peak_memory_bytes": max(entry["peak_memory_bytes"] for entry in spent),
        "runs": len(spent),
    }


def stored_edits(parts: Setup) -> tuple[list[Edit], dict[str, Any]]:
    """The edits of the run's schedule, read from the store or made, and what is known about their making.

    Returns:
        One edit a stage of the schedule, every one relative to the untouched model, the last the result; and {shares,
        cost, no_effect, reused}: pruned shares of the result, the full cost (`full_cost`), the reason where it changes
        nothing, and whether it was in the store.

    Raises:
        NoEffectError: the edit, or that of a single concept of a schedule, changes nothing and `allow_noop` is false.
    """
    made = []

    def make(folder: Path) -> None:
        made.append(True)
        meta: dict[str, Any] = {"no_effect": ""}
        model = parts.model()
        stage = _Stage(parts, model)
        try:
            concepts = ordered(parts.task.concepts, parts.config["order"])
            schedule, seed = parts.config["schedule"], parts.config["seed"]
            allow_noop = parts.config["allow_noop"]
            edits = scheduled(schedule, parts.method, model, concepts, seed, stage, allow_noop=allow_noop)
            meta["ledger"] = stage.ledger.entries()
            for edit in edits:
                if edit.kind != "none":
                    edit.require_effect(model)
            if edits[-1].kind == "none":
                meta["no_effect"] = "; ".join(without_effect(edits[-1]))
        except NoEffectError as error:
            if not parts.config["allow_noop"]:
                raise _refused(str(error)) from error
            edits, meta["no_effect"] = [Edit.make("none", {}, model)], str(error)
            meta.setdefault("ledger", stage.ledger.entries())
        for number, edit in enumerate(edits, start=1):
            edit.save(folder / EDIT_FILE.format(number))
        meta |= {"shares": pruned_shares(edits[-1], model), "edits": len(edits)}
        (folder / META_FILE).write_text(json.dumps(meta, indent=1), encoding="utf-8")

    if not has_edit(parts):
        parts.model()  # one that cannot be loaded is found out before anything is written
    folder = parts.store.folder("edit", _edit_parts(parts), make)
    meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
    edits = [Edit.load(folder / EDIT_FILE.format(number)) for number in range(1, meta.pop("edits") + 1)]
    # Stored by a run that allowed it; this one may not.
    reason = meta["no_effect"] or "; ".join(without_effect(edits[-1]))
    if reason and not parts.config["allow_noop"]:
        raise _refused(reason)
    cost = full_cost(meta.pop("ledger"))
    return edits, {**meta, "cost": cost, "reused": not made}


def _refused(reason: str) -> NoEffectError:
    return NoEffectError(f"{reason}; choose other settings, such as a larger share, or say allow_noop=true")


def has_edit(parts: Setup) -> bool:
    """Whether `stored_edits` would find the edits."""
    return parts.store.has("edit", _edit_parts(parts))


def _edit_parts(parts: Setup) -> dict[str, Any]:
    """Everything that decides the edit, as the store's key."""
    return {
        "layout": LAYOUT,
        "model": parts.model.fingerprint,
        "method": parts.config["method"],
        "version": parts.method.version,
        "concepts": [[concept.name, concept.kind] for concept in parts.task.concepts],
        "seed": parts.config["seed"],
        "schedule": parts.config["schedule"],
        "order": parts.config["order"],
        # Files that a method reads decide the edit by what is in them.
        "content": getattr(parts.method, "content", None),
        # A method's calibration draws at the model's size unless its config names another.
        "size": parts.model.size,
    }


class _Stage:
    """The method's read-or-make: the store, under the model's fingerprint, with the ledger beside every artefact.

    The fingerprint is the model's at that moment: a sequential schedule edits a model that is edited already.
    """

    def __init__(self, parts: Setup, model: DiffusionModel) -> None:
        self._store, self._model, self.ledger = parts.store, model, Ledger(model, parts.device)
        self._making: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, name: str, key: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        made = []

        def make_here() -> dict[str, Tensor]:
            made.append(True)
            self._making.append((name, key))
            try:
                return make()
            finally:
                self._making.pop()

        where, start = self._where(key), time.perf_counter()
        tensors = self._store.tensors(name, where, make_here, note=self.ledger.entries)
        if not made:
            self.ledger.found(self._store.note(name, where), time.perf_counter() - start)
        return tensors

    def scratch(self, name: str, key: dict[str, Any]) -> Scratch:
        """See `harness.method.scratch`: the artefact's lock guards the folder, and the store removes it in the end."""
        if (name, key) not in self._making:
            raise RuntimeError(f"scratch({name!r}, key) is for use inside the `make` of stage({name!r}, key, make)")
        folder = self._store.scratch(name, self._where(key))
        return Scratch(folder, self.ledger.entries, lambda spent: self.ledger.found(spent, 0.0))

    def _where(self, key: dict[str, Any]) -> dict[str, Any]:
        return {"layout": LAYOUT, "model": self._model.fingerprint, "key": key}
