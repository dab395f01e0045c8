"""What an edit cost in all: ledgers of several runs, over artefacts that were made and found."""

from __future__ import annotations

import json
import logging
import threading
from types import SimpleNamespace

import pytest
import torch

from experiments.edits import Ledger, full_cost, has_edit, stored_edits
from harness.edit import Edit, NoEffectError
from harness.method import scratch
from harness.store import Store


class Stages:
    """A method of one stage a concept (10 UNet samples) and a last one over all of them (1 sample)."""

    version = 1

    def edit(self, model, concepts, seed, stage):
        def work(samples: int):
            model.calls += samples
            return {"x": torch.zeros(1)}

        for concept in concepts:
            stage("toy.one", {"concept": concept.name}, lambda: work(10))
        stage("toy.all", {"concepts": [concept.name for concept in concepts], "seed": seed}, lambda: work(1))
        mask = torch.zeros_like(next(iter(model.layers("ffn2").values())).weight, dtype=torch.bool)
        mask[:, [ord(concept.name) for concept in concepts]] = True
        return Edit.make("mask", {name(model): mask}, model)


def name(model) -> str:
    return f"{next(iter(model.layers('ffn2')))}.weight"


@pytest.fixture
def setup(random_sd_model, tmp_path):
    """The parts of a run that an edit needs, for the named concepts, with one store."""

    class Lazy(SimpleNamespace):
        def __call__(self):
            return random_sd_model

    def setup(
        *concepts: str, seed: int = 0, schedule: str = "joint", order: str | int = "given", allow_noop: bool = False
    ):
        return SimpleNamespace(
            model=Lazy(fingerprint=random_sd_model.fingerprint, size=32),
            method=Stages(),
            config={
                **{"method": {"name": "toy"}, "seed": seed, "allow_noop": allow_noop},
                **{"schedule": schedule, "order": order},
            },
            task=SimpleNamespace(concepts=[SimpleNamespace(name=concept, kind="object") for concept in concepts]),
            store=Store(tmp_path),
            device=torch.device("cpu"),
        )

    return setup


@pytest.fixture
def run(setup, random_sd_model):
    """The full cost of an edit for the named concepts, and the samples that this run needed."""

    def run(*concepts: str, seed: int = 0):
        parts = setup(*concepts, seed=seed)
        stored, before = has_edit(parts), random_sd_model.calls
        meta = stored_edits(parts)[1]
        assert meta["reused"] is stored
        return meta["cost"], random_sd_model.calls - before

    return run


def test_the_full_cost_is_that_of_an_empty_store(run):
    first, spent = run("a", "b")
    assert (first["unet_samples"], first["runs"], spent) == (21, 1, 21)
    again, spent = run("a", "b")
    assert again == first and spent == 0
    other, spent = run("a", "b", seed=1)
    assert (other["unet_samples"], other["runs"], spent) == (21, 2, 1)


def test_several_runs_add_up_and_none_counts_twice(run):
    run("a", "b")
    run("c")
    cost, spent = run("a", "b", "c")
    assert (cost["unet_samples"], cost["runs"], spent) == (31, 3, 1)
    # `c` was measured by a run of its own, `b` after `a`: an upper bound for `b` alone.
    assert run("c", seed=1)[0]["unet_samples"] == 11
    assert run("b")[0]["unet_samples"] == 21


def test_a_ledger_takes_the_largest_entry_of_every_run():
    ledger = Ledger(SimpleNamespace(calls=0), "cpu")
    entry = {"device": "GPU", "seconds": 2.0, "unet_samples": 4, "peak_memory_bytes": 10**12}
    ledger.found({"r1": entry, "r2": entry}, 0.0)
    ledger.found({"r1": {**entry, "seconds": 1.0, "unet_samples": 2}, "r2": {**entry, "seconds": 3.0}}, 0.0)
    ledger.found(ledger.entries(), 0.0)
    total = full_cost(ledger.entries())
    assert (total["unet_samples"], total["runs"], total["peak_memory_bytes"]) == (8, 3, 10**12)
    assert total["device"] == "GPU + cpu" and total["seconds"] >= 5.0


def test_waiting_for_a_found_artefact_is_not_spent():
    ledger = Ledger(SimpleNamespace(calls=0), "cpu")
    ledger.found({}, 1000.0)
    (own,) = ledger.entries().values()
    assert own["seconds"] < 0  # a thousand seconds that did not pass are taken off


class Training(Stages):
    """A method that spends 100 samples on a training with a checkpoint, and may then be killed."""

    def __init__(self) -> None:
        self.killed, self.trained, self.meanwhile = False, 0, lambda: None

    def edit(self, model, concepts, seed, stage):
        key = {"concept": concepts[0].name}

        def train():
            place = scratch(stage, "toy.training", key)
            checkpoint = place.folder / "checkpoint"
            resumed = checkpoint.exists()
            if resumed:
                place.found(json.loads(checkpoint.read_text()))
            model.calls += 100
            self.trained += 1
            place.folder.mkdir(parents=True, exist_ok=True)
            checkpoint.write_text(json.dumps(place.spent()))
            self.meanwhile()
            if self.killed:
                raise KeyboardInterrupt
            return {"resumed": torch.tensor([resumed])}

        resumed = stage("toy.training", key, train)["resumed"]
        edit = super().edit(model, concepts, seed, stage)
        edit.info["resumed"] = bool(resumed)
        return edit


def test_unfinished_work_outlives_a_kill_and_its_cost_counts(setup, tmp_path):
    parts = setup("a")
    parts.method = Training()
    parts.method.killed = True
    with pytest.raises(KeyboardInterrupt):
        stored_edits(parts)
    assert [path.name for path in tmp_path.rglob("checkpoint")] == ["checkpoint"]
    parts.method.killed = False
    (edit,), meta = stored_edits(parts)
    assert edit.info["resumed"] and not list(tmp_path.rglob("checkpoint"))
    # 100 before the kill; 100 after it, and 11 for the rest of the edit.
    assert (meta["cost"]["unet_samples"], meta["cost"]["runs"]) == (211, 2)


def test_a_place_for_unfinished_work_is_given_under_its_lock_only(setup):
    class Careless(Stages):
        def edit(self, model, concepts, seed, stage):
            return scratch(stage, "toy.training", {})

    parts = setup("a")
    parts.method = Careless()
    with pytest.raises(RuntimeError, match="inside the `make`"):
        stored_edits(parts)


def test_of_two_runs_that_want_one_training_one_trains(setup):
    """Their edits differ, so only the training's own lock keeps them apart."""
    started, waiting = threading.Event(), threading.Event()

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("waiting for another process that makes toy.training"):
                waiting.set()

    def meanwhile() -> None:
        started.set()
        assert waiting.wait(60), "the other run does not wait"

    method, runs, made = Training(), [setup("a"), setup("a", seed=1)], {}
    method.meanwhile = meanwhile
    for parts in runs:
        parts.method = method
    logger, watch = logging.getLogger("harness.store"), Watch()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(watch)
    try:
        threads = [
            threading.Thread(target=lambda at=at, parts=parts: made.update({at: stored_edits(parts)[0][-1]}))
            for at, parts in enumerate(runs)
        ]
        threads[0].start()
        assert started.wait(60)
        threads[1].start()
        for thread in threads:
            thread.join(60)
    finally:
        logger.removeHandler(watch)
        logger.setLevel(level)
    assert method.trained == 1 and set(made) == {0, 1}


class Picky(Stages):
    """A method that can do nothing about `b`."""

    def edit(self, model, concepts, seed, stage):
        if "b" in [concept.name for concept in concepts]:
            raise NoEffectError("nothing to do")
        return super().edit(model, concepts, seed, stage)


@pytest.mark.parametrize("schedule", ["sequential", "merged"])
def test_one_concept_without_effect_does_not_undo_the_others(setup, schedule):
    def stored(*concepts: str, allow_noop: bool):
        parts = setup(*concepts, schedule=schedule, allow_noop=allow_noop)
        parts.method = Picky()
        return stored_edits(parts)

    edits, meta = stored("a", "b", "c", allow_noop=True)
    (mask,) = edits[-1].tensors.values()
    assert mask.any(0).nonzero().flatten().tolist() == [ord("a"), ord("c")]
    assert meta["no_effect"] == "" and meta["shares"]["unet"] > 0
    with pytest.raises(NoEffectError, match=r"^b: nothing to do; choose other settings"):  # also now that it is stored
        stored("a", "b", "c", allow_noop=False)
    edits, meta = stored("b", allow_noop=True)
    assert edits[-1].kind == "none" and meta["no_effect"] == "b: nothing to do"
    with pytest.raises(NoEffectError, match=r"^b: nothing to do; choose other settings"):
        stored("b", allow_noop=False)


def test_what_a_method_reads_decides_the_edit(setup):
    parts = setup("a")
    parts.method.content = "sha256 of a file"
    stored_edits(parts)
    assert has_edit(parts)
    parts.method.content = "sha256 of the changed file"
    assert not has_edit(parts)


def test_a_sequential_schedule_keeps_an_edit_a_stage(setup, random_sd_model):
    parts = setup("a", "b", "c", schedule="sequential")
    edits, meta = stored_edits(parts)
    assert len(edits) == 3 and not meta["reused"]
    assert {edit.base for edit in edits} == {random_sd_model.fingerprint}
    again, meta = stored_edits(parts)
    assert [edit.fingerprint for edit in again] == [edit.fingerprint for edit in edits] and meta["reused"]
    assert not has_edit(setup("a", "b", "c", schedule="sequential", order=1))
    assert not has_edit(setup("a", "b", "c"))
