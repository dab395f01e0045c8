"""Schedules: one concept after another, all at once, or single edits added up."""

from __future__ import annotations

import pytest
import torch

from harness.edit import Edit, NoEffectError
from harness.schedule import followed, merged, ordered, rebased, scheduled, without_effect
from harness.task import Concept

CONCEPTS = [Concept(name, "object") for name in ("tench", "church", "golf ball")]


class Scale:
    """A toy method: scales the first cross-attention value layer by a factor that the concept's name decides."""

    name, version = "scale", 1

    def __init__(self, *no_effect: str) -> None:
        self.seen, self.no_effect = [], no_effect

    def edit(self, model, concepts, seed, stage):
        names = [concept.name for concept in concepts]
        self.seen.append((names, model.fingerprint))
        if set(names) & set(self.no_effect):
            raise NoEffectError("nothing to scale")
        layer, module = next(iter(model.layers("cross_v").items()))
        factor = 1 + sum(map(len, names)) / 64
        info = {"method": "scale", "version": 1, "config": {}}
        return Edit.make("delta", {f"{layer}.weight": module.weight * factor}, model, info)


class Cut:
    """A toy method: prunes one column of the first FFN2 layer a concept, the column of its name's length."""

    name, version = "cut", 1

    def edit(self, model, concepts, seed, stage):
        layer, module = next(iter(model.layers("ffn2").items()))
        mask = torch.zeros_like(module.weight, dtype=torch.bool)
        for concept in concepts:
            mask[:, len(concept.name)] = True
        return Edit.make("mask", {f"{layer}.weight": mask}, model, {"method": "cut"})


def parameters(model):
    return {name: p.detach().clone() for name, p in model.unet.named_parameters()}


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def only(edit):
    (tensor,) = edit.tensors.values()
    return tensor


def test_joint_asks_the_method_once(random_sd_model):
    method = Scale()
    (edit,) = scheduled("joint", method, random_sd_model, CONCEPTS, 0, None)
    assert [names for names, _ in method.seen] == [["tench", "church", "golf ball"]]
    assert edit.base == random_sd_model.fingerprint


def test_sequential_edits_the_edited_model_and_leaves_it_as_it_was(random_sd_model):
    model, method = random_sd_model, Scale()
    before, fingerprint = parameters(model), model.fingerprint
    edits = scheduled("sequential", method, model, CONCEPTS, 0, None)
    assert [names for names, _ in method.seen] == [["tench"], ["church"], ["golf ball"]]
    assert len({seen for _, seen in method.seen}) == 3, "each state has a fingerprint of its own"
    assert model.fingerprint == fingerprint and model.edit is None and equal(before, parameters(model))
    (old,) = (before[name] for name in edits[0].tensors)
    for edit, factors in zip(edits, [(5,), (5, 6), (5, 6, 9)]):
        assert edit.base == fingerprint
        expected = old
        for length in factors:
            expected = expected * (1 + length / 64)
        assert torch.equal(only(edit), expected)
        with edit.applied(model):
            assert not equal(before, parameters(model))


def test_sequential_masks_stay_masks(random_sd_model):
    edits = scheduled("sequential", Cut(), random_sd_model, CONCEPTS, 0, None)
    assert [edit.kind for edit in edits] == ["mask"] * 3
    columns = [only(edit).any(0).nonzero().flatten().tolist() for edit in edits]
    assert columns == [[5], [5, 6], [5, 6, 9]]


def test_a_mask_and_a_delta_follow_each_other_as_a_delta(random_sd_model):
    model = random_sd_model
    first = Cut().edit(model, CONCEPTS[:1], 0, None)
    with rebased(model, first):
        second = Scale().edit(model, CONCEPTS[:1], 0, None)
        both = followed(model, first, second)
    assert both.kind == "delta" and both.tensors.keys() == first.tensors.keys() | second.tensors.keys()
    with both.applied(model):
        after = parameters(model)
    with rebased(model, first), second.applied(model):
        assert equal(after, parameters(model))


def test_merged_adds_changes_and_unites_masks(random_sd_model):
    model, method = random_sd_model, Scale()
    (edit,) = scheduled("merged", method, model, CONCEPTS, 0, None)
    assert len({seen for _, seen in method.seen}) == 1, "every concept meets the untouched model"
    (old,) = (dict(model.unet.named_parameters())[name].detach() for name in edit.tensors)
    torch.testing.assert_close(only(edit), old * (1 + 20 / 64), rtol=1e-6, atol=0)
    (edit,) = scheduled("merged", Cut(), model, CONCEPTS, 0, None)
    assert edit.kind == "mask" and only(edit).any(0).nonzero().flatten().tolist() == [5, 6, 9]
    mixed = merged(model, [Cut().edit(model, CONCEPTS[:1], 0, None), Scale().edit(model, CONCEPTS[:1], 0, None)])
    assert mixed.kind == "delta" and len(mixed.tensors) == 2


def test_single_edits_without_effect_name_their_concept(random_sd_model):
    for schedule in ("sequential", "merged"):
        with pytest.raises(NoEffectError, match="church: nothing to scale"):
            scheduled(schedule, Scale("church"), random_sd_model, CONCEPTS, 0, None)


@pytest.mark.parametrize("missing", ["tench", "church", "golf ball"])
def test_a_concept_without_effect_may_be_left_out(random_sd_model, missing, caplog):
    model, others = random_sd_model, [concept for concept in CONCEPTS if concept.name != missing]
    for schedule in ("sequential", "merged"):
        method = Scale(missing)
        edits = scheduled(schedule, method, model, CONCEPTS, 0, None, allow_noop=True)
        plain = scheduled(schedule, Scale(), model, others, 0, None)
        assert torch.equal(only(edits[-1]), only(plain[-1])), "the others are edited as without it"
        assert edits[-1].base == model.fingerprint and model.edit is None
        assert without_effect(edits[-1]) == [f"{missing}: nothing to scale"]
        info = edits[-1].info
        assert [concept["name"] for concept in info["concepts"]] == [concept.name for concept in CONCEPTS]
        assert (info["method"], info["version"], info["config"]) == ("scale", 1, {})
        assert len(edits) == (3 if schedule == "sequential" else 1)
        assert f"{missing}: nothing to scale; the schedule goes on without it" in caplog.text
    number = [concept.name for concept in CONCEPTS].index(missing)
    kinds = [edit.kind for edit in scheduled("sequential", Scale(missing), model, CONCEPTS, 0, None, allow_noop=True)]
    assert kinds == ["none" if number == 0 else "delta", "delta", "delta"]


@pytest.mark.parametrize("schedule", ["sequential", "merged"])
def test_where_all_are_left_out_nothing_is_edited(random_sd_model, schedule):
    names = [concept.name for concept in CONCEPTS]
    edits = scheduled(schedule, Scale(*names), random_sd_model, CONCEPTS, 0, None, allow_noop=True)
    assert {edit.kind for edit in edits} == {"none"}
    assert without_effect(edits[-1]) == [f"{name}: nothing to scale" for name in names]


def test_the_model_is_restored_where_a_later_stage_fails(random_sd_model):
    model = random_sd_model
    before, fingerprint = parameters(model), model.fingerprint
    with pytest.raises(NoEffectError):
        scheduled("sequential", Scale("golf ball"), model, CONCEPTS, 0, None)
    assert model.fingerprint == fingerprint and model.edit is None and equal(before, parameters(model))


def test_order_is_given_or_seeded():
    assert ordered(CONCEPTS, "given") == tuple(CONCEPTS)
    shuffled = ordered(CONCEPTS, 4)
    assert shuffled == ordered(CONCEPTS, 4) and set(shuffled) == set(CONCEPTS)
    assert len({ordered(CONCEPTS, seed) for seed in range(20)}) > 3
    for bad in (-1, True, "random", 1.5):
        with pytest.raises(ValueError, match="order is"):
            ordered(CONCEPTS, bad)


def test_an_unknown_schedule_is_refused(random_sd_model):
    with pytest.raises(ValueError, match="sequentail"):
        scheduled("sequentail", Scale(), random_sd_model, CONCEPTS, 0, None)
