"""Text features are encoded once for all jobs of a sweep, and are the same bits when they are read."""

from __future__ import annotations

import pytest
import torch
from test_generate import prompt_set, prune, run

from harness import model as model_module
from harness import text
from harness.model import DiffusionModel
from harness.schedule import rebased
from harness.store import Store
from harness.text import TextFeatures


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every prompt that goes through the text encoders."""
    prompts: list[str] = []
    own = DiffusionModel._encode_one
    monkeypatch.setattr(
        DiffusionModel, "_encode_one", lambda model, prompt: prompts.append(prompt) or own(model, prompt)
    )
    return prompts


def test_a_sweep_encodes_its_prompts_once(random_sd_folder, tmp_path, encoded):
    """Other edits, other jobs and other noise find what the first job made; each job has its own model."""
    store = Store(tmp_path)
    jobs = [DiffusionModel.load(random_sd_folder) for _ in range(3)]
    run(jobs[0], prompt_set(), store)
    assert sorted(encoded) == ["", "a church", "a dog", "a gas pump"]
    run(jobs[1], prompt_set(), store, prune(jobs[1]))
    with rebased(jobs[2], prune(jobs[2], 0.5)):
        run(jobs[2], prompt_set(), store)  # as the base of a sequential schedule's next stage
    assert len(encoded) == 4


@pytest.mark.parametrize("model", ["random_sd_model", "random_sdxl_model"])
def test_what_is_read_is_what_was_encoded(model, request, tmp_path, encoded, monkeypatch):
    monkeypatch.setattr(text, "TOGETHER", 2)
    model = request.getfixturevalue(model)
    prompts = ["a dog", "a church", "a dog", "a gas pump"]
    expected = model.encode(prompts)
    empty = model.unconditional(1)
    for _ in range(2):
        model._features.clear()
        found = TextFeatures(model, prompts, Store(tmp_path)).encode(prompts)
        assert torch.equal(found.hidden, expected.hidden)
        assert torch.equal(model.unconditional(1).hidden, empty.hidden)
        assert (found.pooled is None) == (expected.pooled is None)
        if expected.pooled is not None:
            assert torch.equal(found.pooled, expected.pooled)
    assert len(encoded) == 2 * 4, "by `encode`, and once for the store"
    assert len(list((tmp_path / "text").glob("??/*"))) == 2


def test_a_set_larger_than_what_the_model_keeps(random_sd_model, tmp_path, encoded, monkeypatch):
    monkeypatch.setattr(text, "TOGETHER", 2)
    monkeypatch.setattr(model_module, "KEPT_PROMPTS", 3)
    prompts = [f"a dog {number}" for number in range(7)]
    texts = TextFeatures(random_sd_model, prompts, Store(tmp_path))
    rows = [texts.encode([prompt]) for prompt in prompts]
    assert len(random_sd_model._features) <= 3
    assert sorted(encoded) == ["", *prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        assert torch.equal(row.hidden, random_sd_model._encode_one(prompt)[0].hidden)


def test_another_model_s_features_are_not_used(random_sd_folder, tmp_path, encoded):
    store = Store(tmp_path)
    run(DiffusionModel.load(random_sd_folder), prompt_set(), store)
    run(DiffusionModel.load(random_sd_folder, dtype="bfloat16"), prompt_set(), store)
    assert len(encoded) == 2 * 4


def test_a_prompt_that_is_cut_is_warned_of_by_every_job(random_sd_folder, tmp_path, caplog):
    for _ in range(2):
        model = DiffusionModel.load(random_sd_folder)
        TextFeatures(model, ["y" * 30], Store(tmp_path)).encode(["y" * 30])
    words = f"prompts are cut after 20 tokens; first: {'y' * 30!r} loses 12"
    assert [record.getMessage() for record in caplog.records].count(words) == 2
