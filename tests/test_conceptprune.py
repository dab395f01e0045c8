"""ConceptPrune: hand-computed cases, the specification's invariants, and a slow float64 reference on a random model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.conceptprune import ConceptPrune, add_rows, budget, prompt_pairs, skilled
from harness.edit import NoEffectError
from harness.hooks import reading_inputs
from harness.masks import pack, top_entries, unpack
from harness.sampler import Sampler
from harness.screen import ScreenedPromptError
from harness.task import Concept

SAMPLER = Sampler("pndm", 5, 7.5)
NAMES = ("tench", "church", "gas pump", "cup", "owl", "harp", "kite", "drum", "boat", "fox")
CONCEPTS = [Concept(name, "object") for name in NAMES]
QUICK = {"sampler": SAMPLER, "tau": 3, "k": 0.05, "words": ("sea", "inn"), "chunk": 4}
CONF = Path(__file__).resolve().parents[1] / "conf"


class Shelf(dict):
    """A stage that keeps what is made in memory."""

    def __call__(self, name, key, make):
        at = (name, repr(sorted(key.items())))
        if at not in self:
            self[at] = make()
        return self[at]


def edit(model, concepts=CONCEPTS[:2], shelf=None, **settings):
    return ConceptPrune(**QUICK | settings).edit(model, concepts, 0, Shelf() if shelf is None else shelf)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def random_case(seed: int = 0, steps: int = 4, rows: int = 7, columns: int = 60, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=dtype)
    target, reference = (torch.rand(steps, columns, generator=generator, dtype=dtype) + 0.5 for _ in range(2))
    return weight, target, reference


# Column norms


def test_squared_norms_sum_to_the_number_of_live_rows():
    x = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(1))
    x[2, 3] = 0  # a row without activity stays without
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 2e-2)):
        a = torch.zeros(8, dtype=dtype)
        add_rows(a, x)
        unit = x.double() / x.double().norm(dim=-1, keepdim=True).clamp(min=1e-300)
        torch.testing.assert_close(a.double(), unit.flatten(0, 1).norm(dim=0), rtol=tolerance, atol=0)
        assert a.double().square().sum() == pytest.approx(6 * 5 - 1, rel=2 * tolerance)


def test_prompts_are_added_one_after_the_other():
    """So chunks of prompts do not matter, not even to float16."""
    x = torch.randn(2 * 5, 6, 9)
    for dtype in (torch.float16, torch.float32):
        at_once, singly = torch.zeros(9, dtype=dtype), torch.zeros(9, dtype=dtype)
        add_rows(at_once, x)
        for i in range(5):
            add_rows(singly, x[[i, 5 + i]])
        assert torch.equal(at_once, singly)


def test_float16_rounds_and_overflows_as_released():
    x = torch.ones(2, 1, 1)  # two rows in one column: its norm is sqrt(2)
    a = torch.tensor([255.0], dtype=torch.float16)  # 255^2 + 2 = 65027; float16 knows 65024, 255's rounded square
    add_rows(a, x)
    assert a.item() == 255
    a = torch.tensor([256.0], dtype=torch.float16)
    add_rows(a, x)
    assert a.isinf().all()
    a = torch.tensor([256.0])
    add_rows(a, x)
    assert a.item() == pytest.approx((256**2 + 2) ** 0.5)


# Masks


def test_mask_by_hand():
    weight = torch.tensor([[1.0, -2.0, 3.0, 0.5], [0.0, 1.0, -1.0, 4.0]])
    target, reference = torch.tensor([[1.0, 2.0, 1.0, 2.0]]), torch.tensor([[0.5, 1.0, 2.0, 2.0]])
    # Scores: [1 4 3 1], [0 2 1 8]; only columns 0 and 1 score higher than in the reference.
    assert skilled(weight, target, reference, 0.5).int().tolist() == [[0, 1, 0, 0], [0, 1, 0, 0]]
    assert skilled(weight, target, reference, 1.0).int().tolist() == [[1, 1, 0, 0], [0, 1, 0, 0]]
    assert not skilled(weight, target, reference, 0.2).any()  # floor(0.2 * 4) = 0
    tied = torch.ones(1, 4)
    assert skilled(tied, tied, tied / 2, 0.5).int().tolist() == [[1, 1, 0, 0]]  # ties go to the lower column


def slow_counts(weight: np.ndarray, target: np.ndarray, reference: np.ndarray, most: int) -> np.ndarray:
    """At how many steps each weight is among the `most` of its row and scores higher with the concept."""
    count = np.zeros(weight.shape, int)
    for with_concept, without in zip(target, reference, strict=True):
        score, other = np.abs(weight) * with_concept, np.abs(weight) * without
        for i in range(len(score)):
            for j in sorted(range(weight.shape[1]), key=lambda j: -score[i, j])[:most]:
                count[i, j] += score[i, j] > other[i, j]
    return count


def test_mask_is_that_of_a_slow_reference():
    for seed in range(3):
        weight, target, reference = random_case(seed)
        count = slow_counts(weight.numpy(), target.numpy(), reference.numpy(), 6)
        assert count.max() > 1 and (count == 1).any()
        for ratio, least in ((0.0, 1), (0.25, 2), (0.5, 3), (0.74, 3), (0.75, 4)):
            found = skilled(weight, target, reference, 0.1, ratio)
            assert np.array_equal(found.numpy(), count >= least)


def test_rows_hold_their_budget():
    weight, target, _ = random_case()
    for k in (0.05, 0.1, 0.29, 1.0):
        mask = skilled(weight, target[:1], torch.zeros(1, 60, dtype=torch.float64), k)
        assert mask.sum(1).tolist() == [budget(k, 60)] * 7
    assert [budget(0.01, n) for n in (1280, 2560, 5120)] == [12, 25, 51]
    assert [budget(0.02, n) for n in (1280, 2560, 5120)] == [25, 51, 102]
    assert budget(0.29, 100) == 29 and budget(0.01, 99) == 0


def test_columns_that_the_reference_uses_as_much_are_never_chosen():
    weight, target, reference = random_case(dtype=torch.float32)
    assert not skilled(weight, target, target, 1.0).any()
    for t in range(4):
        mask = skilled(weight, target[t : t + 1], reference[t : t + 1], 0.3)
        assert mask.any() and not mask[:, target[t] <= reference[t]].any()


def test_masks_grow_with_tau_and_k_and_do_not_see_the_scale_of_weights():
    weight, target, reference = random_case(3, steps=6)
    previous = torch.zeros_like(weight, dtype=torch.bool)
    for tau in range(1, 7):
        mask = skilled(weight, target[:tau], reference[:tau], 0.1)
        assert not (previous & ~mask).any()
        previous = mask
    few_values = weight.round()  # many ties
    previous = torch.zeros_like(weight, dtype=torch.bool)
    for k in (0.02, 0.05, 0.1, 0.3, 1.0):
        mask = skilled(few_values, target.round(), reference.round() / 2, k)
        assert mask.sum() > previous.sum() and not (previous & ~mask).any()
        previous = mask
    for scale in (3.7, 1e-3):
        assert torch.equal(
            skilled(scale * weight, target, reference, 0.1), skilled(weight, target, reference, 0.1)
        )  # fmt: skip
    single = [a.float() for a in (weight, target, reference)]
    assert torch.equal(skilled(single[0] / 1024, *single[1:], 0.1), skilled(*single, 0.1))


def test_float16_scores():
    weight, target, reference = (a.half() for a in random_case(5))
    mask = skilled(weight.float(), target, reference, 0.1)  # float32 weights are rounded first
    exact = skilled(weight.double(), target.double(), reference.double(), 0.1)
    assert mask.any() and (mask ^ exact).sum() <= 0.1 * exact.sum()


@pytest.mark.parametrize("k", [0, 1, 17, 39, 40, 41])
def test_top_entries_agree_with_a_stable_sort(k):
    scores = torch.randint(0, 6, (9, 40), generator=torch.Generator().manual_seed(k)).float()
    expected = torch.zeros_like(scores, dtype=torch.bool)
    expected.scatter_(1, scores.argsort(dim=1, descending=True, stable=True)[:, :k], True)
    assert torch.equal(top_entries(scores, k), expected)


def test_masks_are_stored_and_read():
    generator = torch.Generator().manual_seed(3)
    mask = {"b.ff": torch.rand(6, 50, generator=generator) < 0.5, "a": torch.zeros(2, 9).bool()}
    mask["c"] = torch.rand(30, 40, generator=generator) < 0.01
    assert same(unpack(pack(mask)), mask) and list(unpack(pack(mask))) == ["a", "b.ff", "c"]


# On a random model


def test_norms_are_those_of_a_slow_reference(random_sd_model):
    """All prompts run in another batch, every input kept, everything computed at once in float64."""
    model, prompts = random_sd_model, ["a tench in a sea", "a tench in a inn", "a cat"]
    method = ConceptPrune(**QUICK | {"chunk": 2})
    found = method.norms(model, method._run_key(model, prompts, 0), Shelf())
    layers = model.layers("ffn2")
    seen = {name: [] for name in layers}
    with reading_inputs(layers, lambda name, x: seen[name].append(x.double())):
        noise = model.latents([0] * 3, model.size, model.size)
        model.denoise(model.encode(prompts), noise, SAMPLER, 7.5, stop_after=3)
    assert found.keys() == layers.keys()
    for name, steps in seen.items():
        assert len(steps) == 3
        for t, x in enumerate(steps):
            rows = x.flatten(0, 1)
            unit = rows / rows.norm(dim=1, keepdim=True)
            torch.testing.assert_close(found[name][t].double(), unit.norm(dim=0), rtol=1e-3, atol=1e-5)
            assert float(found[name][t].double().square().sum()) == pytest.approx(len(rows), rel=1e-5)


def test_the_edit_prunes_what_the_prompts_with_the_concept_use_more(random_sd_model):
    """From the two lists of prompts to the edit; the other way round another mask would come out."""
    model, method, shelf = random_sd_model, ConceptPrune(**QUICK), Shelf()
    made = method.edit(model, CONCEPTS[:1], 0, shelf)
    lists = (["a tench in a sea", "a tench in a inn"], ["a sea", "a inn"])
    target, reference = (method.norms(model, method._run_key(model, prompts, 0), shelf) for prompts in lists)
    assert made.tensors.keys() == {f"{name}.weight" for name in target}
    for name, layer in model.layers("ffn2").items():
        weight = layer.weight.detach().numpy()
        sides, most = (target[name].numpy(), reference[name].numpy()), int(0.05 * weight.shape[1])
        mask = made.tensors[f"{name}.weight"].numpy()
        assert np.array_equal(mask, slow_counts(weight, *sides, most) > 0)
        assert mask.any() and not np.array_equal(mask, slow_counts(weight, *sides[::-1], most) > 0)


def test_the_same_prompts_prune_nothing(random_sd_model, monkeypatch):
    monkeypatch.setattr("baselines.conceptprune.prompt_pairs", lambda *_: (["a sea"], ["a sea"]))
    with pytest.raises(NoEffectError, match="no weight counts more"):
        edit(random_sd_model)


@pytest.mark.parametrize("count", [1, 2, 10])
def test_the_edit_is_the_union_of_single_masks(random_sd_model, count):
    shelf, concepts = Shelf(), CONCEPTS[:count]
    made = edit(random_sd_model, concepts, shelf)
    calls = random_sd_model.calls
    # Two guided prompts, three steps, one unconditional row at the first; the reference prompts run once for all.
    assert calls == (3 + 4 + 4) * (1 + count)
    singles = [edit(random_sd_model, [concept], shelf).tensors for concept in concepts]
    assert random_sd_model.calls == calls
    assert made.kind == "mask" and made.tensors.keys() == {f"{n}.weight" for n in random_sd_model.layers("ffn2")}
    for name, mask in made.tensors.items():
        assert torch.equal(mask, torch.stack([single[name] for single in singles]).any(0))
        for single in singles:
            rows = single[name].sum(1)
            assert 0 < rows.max() <= 3 * budget(0.05, mask.shape[1])
    assert same(edit(random_sd_model, concepts[::-1], shelf).tensors, made.tensors)
    assert made.info["counts"]["pruned"] == sum(int(mask.sum()) for mask in made.tensors.values())
    assert made.info["selected"].keys() == {concept.name for concept in concepts}


def test_the_same_seed_gives_the_same_edit_and_stages_are_found_again(random_sd_model):
    shelf = Shelf()
    first = edit(random_sd_model, shelf=shelf)
    calls = random_sd_model.calls
    changes = [{"k": 0.1}, {"select_ratio": 0.5}]
    prints = [edit(random_sd_model, shelf=shelf, **change).fingerprint for change in changes]
    assert random_sd_model.calls == calls
    assert edit(random_sd_model, shelf=shelf, chunk=1).fingerprint == first.fingerprint
    assert random_sd_model.calls == calls
    assert edit(random_sd_model).fingerprint == first.fingerprint
    assert random_sd_model.calls == 2 * calls
    changes += [
        {"tau": 2}, {"seed": 1}, {"words": ("sea", "bay")}, {"size": (32, 16)}, {"statistics": "float16"},
        {"sampler": Sampler("ddim", 5, 7.5)}, {"sampler": Sampler("pndm", 5, 1.0)},
    ]  # fmt: skip
    prints += [edit(random_sd_model, **change).fingerprint for change in changes[2:]]
    assert len({first.fingerprint, *prints}) == 1 + len(changes), list(zip(changes, prints))


def test_the_runs_seed_counts_where_the_method_names_none(random_sd_model):
    def made(method_seed, run_seed):
        return ConceptPrune(**QUICK, seed=method_seed).edit(random_sd_model, CONCEPTS[:1], run_seed, Shelf())

    assert made(4, 0).fingerprint == made(4, 1).fingerprint == made(None, 4).fingerprint
    assert made(None, 5).fingerprint != made(None, 4).fingerprint


@pytest.mark.parametrize("kind", ["ffn1", "cross_k", "self_v"])
def test_other_kinds_of_layers(random_sd_model, kind):
    made = edit(random_sd_model, kind=kind)
    assert made.tensors.keys() == {f"{name}.weight" for name in random_sd_model.layers(kind)}


def test_only_the_feed_forward_layers_change_and_nothing_stays_behind(random_sd_model):
    before = {n: p.clone() for n, p in random_sd_model.unet.named_parameters()}
    made = edit(random_sd_model)
    assert all(torch.equal(p, before[n]) for n, p in random_sd_model.unet.named_parameters())
    with made.applied(random_sd_model):
        for name, p in random_sd_model.unet.named_parameters():
            assert torch.equal(p, before[name]) == (name not in made.tensors)
            assert name not in made.tensors or name.endswith(".ff.net.2.weight")
    with torch.no_grad():
        next(iter(random_sd_model.layers("ffn1").values())).weight[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match=r"ff\.net\.2 hold NaN"):
        edit(random_sd_model)
    assert not any(m._forward_pre_hooks for m in random_sd_model.unet.modules())


def test_a_share_below_one_weight_is_said_before_anything_runs(random_sd_model):
    with pytest.raises(NoEffectError, match=r"k=0\.001 of a row of 256 weights is less than one"):
        edit(random_sd_model, k=0.001)
    assert random_sd_model.calls == 0


def test_sdxl_and_styles(random_sdxl_model):
    made = edit(random_sdxl_model, [CONCEPTS[0], Concept("Monet", "style")])
    assert made.tensors.keys() == {f"{name}.weight" for name in random_sdxl_model.layers("ffn2")}
    assert made.info["selected"].keys() == {"tench", "Monet"} and all(made.info["selected"].values())


# Prompts and parameters


def test_prompts_are_the_released_ones():
    target, reference = prompt_pairs(Concept("golf ball", "object"))
    assert (target[0], reference[0], len(target)) == ("a golf ball in a road", "a road", 12)
    target, reference = prompt_pairs(Concept("Monet", "style"))
    assert (target[1], reference[1], len(target)) == ("a dog in the style of Monet", "a photo of a dog", 20)
    target, reference = prompt_pairs(Concept("naked", "explicit"))
    assert (target[0], reference[0], len(target)) == ("a photo of a naked man", "a photo of a man", 13)
    target, reference = prompt_pairs(Concept("church", "object"))
    assert len(target) == 8 and ("a church near the beach", "a beach") in zip(target, reference)
    target, reference = prompt_pairs(Concept("garbage truck", "object"))
    assert len(set(target)) == len(set(reference)) == 13
    assert ("a garbage truck near a blue automobile", "a blue automobile") in zip(target, reference)
    assert ("a garbage truck near a big truck", "a truck") in zip(target, reference)
    assert prompt_pairs(Concept("church", "object"), own=False)[0][0] == "a church in a road"
    assert prompt_pairs(Concept("church", "object"), ["sea"]) == (["a church in a sea"], ["a sea"])
    with pytest.raises(ScreenedPromptError):
        prompt_pairs(Concept("naked", "explicit"), ["schoolgirl"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 2}, "conceptprune: k is a fraction.*got 2; 2 % is written 0.02"),
        ({"k": 0}, "k is a fraction"),
        ({"tau": 0}, "tau is a whole number >= 1, got 0"),
        ({"tau": 7}, "tau=7 counts UNet calls, but pndm with 5 steps makes 6"),
        ({"select_ratio": 1.0}, r"select_ratio is a fraction in \[0, 1\)"),
        ({"kind": "ffn3"}, "did you mean ffn"),
        ({"statistics": "fp16"}, "unknown value of conceptprune's statistics"),
        ({"words": "road"}, "words is a list of texts"),
        ({"words": []}, "at least one word"),
        ({"own_prompts": "no"}, "own_prompts is true or false"),
        ({"seed": -1}, "seed is a whole number >= 0 or null"),
        ({"size": [32]}, r"size is null, a number of pixels or \[width, height\]"),
        ({"chunk": 0}, "chunk is a whole number"),
    ],
)
def test_bad_parameters(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        ConceptPrune(**QUICK | settings)
    assert "\n" not in str(caught.value)


def test_configurations():
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    with initialize_config_dir(str(CONF), version_base=None):
        tiny = compose("config", ["method=conceptprune"]).method
        objects, styles, explicit = (
            instantiate(
                compose("config", ["method=conceptprune", "model=sd15", "task=custom", f"task.kind={kind}"]).method
            )
            for kind in ("object", "style", "explicit")
        )
    assert (tiny.preset, tiny.k, tiny.tau) == ("tiny", 0.2, 6)
    resolved = OmegaConf.to_container(tiny, resolve=True)
    del resolved["preset"]
    assert instantiate(resolved).sampler.name == "dpm++"
    assert objects == ConceptPrune() and styles == ConceptPrune(k=0.01) and explicit == ConceptPrune(k=0.01, tau=9)
