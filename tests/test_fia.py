"""FIA: hand-computed cases, the specification's invariants, and an independent slow reference on a random model."""

from __future__ import annotations

import dataclasses
import gc
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import slow_fia
import torch

from experiments.consistency import explained
from fia import activity as layer_activity
from fia import statistics
from fia.activity import DTYPES, Moments, activity
from fia.fia import FIA
from fia.fusion import agnostic_threshold, fuse
from fia.masks import MaskSet, count
from fia.neurons import budget, passes, score, select, select_across_layers
from fia.saliency import LARGEST_GROUP, MEMORY_SHARE, Job, group_that_fits
from fia.statistics import Calibration, contrast_each_step, one_prompt_each
from harness import memory
from harness.edit import NoEffectError
from harness.masks import kth_largest, pack, top_entries, unpack
from harness.prompts import contrast_pairs
from harness.sampler import Sampler
from harness.task import Concept

SAMPLER = Sampler("pndm", 5, 7.5)
WORDS = ("road", "tree", "beach", "room")
CONCEPTS = [Concept(name, "object") for name in ("church", "tench", "gas pump")]
QUICK = {"sampler": SAMPLER, "steps": 3, "words": WORDS, "r1": 0.1, "r2": 0.05, "chunk": 4}
RELEASE = {"cosine": False, "row_normalise": True, "strict": True, "strength_normalise": True, "zero_score": True}


class Shelf(dict):
    """A stage that keeps what is made in memory; like the store, it keeps nothing where `make` fails."""

    def __call__(self, name, key, make):
        at = (name, repr(sorted(key.items())))
        if at not in self:
            self[at] = make()
        return self[at]


def edit(model, concepts=CONCEPTS, shelf=None, **settings):
    return FIA(**QUICK | settings).edit(model, concepts, 0, Shelf() if shelf is None else shelf)


def overlap(a, b) -> float:
    """Shared share of two masks' ones."""
    a, b = (torch.cat([t.flatten() for _, t in sorted(x.items())]) for x in (a, b))
    return float((a & b).sum() / (a | b).sum())


# Eq. 1 and 2


def equation_1(x, w) -> np.ndarray:
    """U / |W| of one prompt, entry by entry in float64: x [tokens, Cin], w [Cout, Cin]."""
    result = np.zeros(w.shape)
    for i in range(w.shape[0]):
        y = [math.fsum(w[i, j] * x[n, j] for j in range(w.shape[1])) for n in range(x.shape[0])]
        for j in range(w.shape[1]):
            norm_x, norm_y = math.hypot(*x[:, j]), math.hypot(*y)
            result[i, j] = norm_x * abs(math.fsum(x[:, j] * y)) / (norm_x * norm_y + 1e-8)
    return result


def u_over_w(*arguments, **settings) -> torch.Tensor:
    """What `activity` yields, for all prompts: float64."""
    fractions = activity(*arguments, **settings)
    return torch.cat([a.abs().double() / (1 if b is None else b.double()) for a, b in fractions])


@pytest.mark.parametrize("given", [False, True], ids=["inputs", "outputs"])
@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("shape", [(5, 4, 6), (40, 12, 3)], ids=["direct", "gram"])
def test_activity_is_equation_1(shape, halves, given, monkeypatch):
    tokens, rows, columns = shape
    two_prompts = 2 * columns * max(rows, halves * tokens)
    monkeypatch.setitem(layer_activity._ENTRIES, "cpu", two_prompts)  # two at once, then one
    generator = torch.Generator().manual_seed(1)
    x, w = torch.randn(halves, 3, tokens, columns, generator=generator), torch.randn(rows, columns, generator=generator)
    x[:, 0, :, 1] = 0  # a dead channel has no activity, not NaN
    x[:, 1, :, 2] *= 1e-7  # on one that is nearly dead eps can be seen
    by_prompt = x.double().transpose(0, 1).flatten(1, 2).numpy()
    expected = np.stack([equation_1(rows_of_x, w.double().numpy()) for rows_of_x in by_prompt])
    for dtype, tolerance in (("float32", 2e-6), ("float64", 1e-12), ("bfloat16", 2e-2)):
        y = (x @ w.T).to(DTYPES[dtype]) if dtype != "float64" else x.double() @ w.double().T
        got = u_over_w(x, w, y if given else None, cosine=True, row_normalise=False, dtype=dtype).numpy()
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * expected.max())
        if dtype != "bfloat16":
            np.testing.assert_allclose(got[1, :, 2], expected[1, :, 2], rtol=1e-3)
    for p, rows_of_x in enumerate(by_prompt):
        np.testing.assert_allclose(slow_fia.paper_activity(rows_of_x, w.double().numpy()), expected[p])
        got = u_over_w(x[:, p : p + 1], w, cosine=False, row_normalise=True).numpy()
        np.testing.assert_allclose(got, slow_fia.released_activity(rows_of_x, w.numpy())[:1], rtol=1e-5)


def test_row_normalised_norms_sum_to_the_number_of_live_rows():
    x = torch.randn(1, 3, 7, 5)
    x[0, 1, 2] = 0
    squares = u_over_w(x, torch.randn(2, 5), cosine=False, row_normalise=True).square().sum(-1).float()
    torch.testing.assert_close(squares, torch.tensor([7.0, 6.0, 7.0]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_s_own_output_is_y_but_for_other_arithmetic(random_sd_folder, monkeypatch, dtype):
    """float32 sums take Y from the layer, widened and without the bias; float64 and bfloat16 compute it from X."""
    from harness.model import DiffusionModel

    model = DiffusionModel.load(random_sd_folder, name="random", suite="tiny", dtype=dtype)
    given, outputs = [], []
    own = statistics.activity
    monkeypatch.setattr(statistics, "activity", lambda x, w, y, **how: given.append((x, w, y)) or own(x, w, y, **how))
    layers = model.layers("ffn2")
    for layer in layers.values():
        torch.nn.init.normal_(layer.bias)
        layer.register_forward_hook(lambda layer, _args, output: outputs.append(output.float() - layer.bias.float()))
    for arithmetic in ("float32", "float64", "bfloat16"):
        given.clear()
        outputs.clear()
        how = Calibration(SAMPLER, steps=1, seed=1, size=(32, 32), halves="cond", dtype=arithmetic)
        contrast_each_step(model, layers, ["a road"], [["a tree"]], how, lambda *_: None)
        assert len(given) == 2 * len(layers)
        for (x, w, y), output in zip(given, outputs, strict=True):
            assert x.shape[0] == 1
            if arithmetic == "float32":
                assert torch.equal(y[0], output[-1:])
                close = {"rtol": 1e-4, "atol": 1e-5} if dtype == "float32" else {"rtol": 0.1, "atol": 0.1}
                torch.testing.assert_close(y, x.float() @ w.float().T, **close)
            else:
                assert y is None


def test_one_prompt_each_looks_at_the_batch_without_copying_it():
    batch = torch.arange(2 * 3 * 4 * 2).view(6, 4, 2)
    both = one_prompt_each(batch, 3, "both")
    assert both.data_ptr() == batch.data_ptr() and both.shape == (2, 3, 4, 2)
    assert torch.equal(one_prompt_each(batch, 3, "uncond")[0], batch[:3])
    assert torch.equal(one_prompt_each(batch, 3, "cond")[0], batch[3:])
    with pytest.raises(ValueError, match="6 samples for 2 prompts"):
        one_prompt_each(batch, 2, "both")


def test_one_prompt_each_takes_a_batch_of_the_half_that_counts_alone():
    batch = torch.rand(3, 4, 2)
    for halves in ("cond", "uncond"):
        seen = one_prompt_each(batch, 3, halves)
        assert seen.shape == (1, 3, 4, 2) and seen.data_ptr() == batch.data_ptr()
    with pytest.raises(ValueError, match="3 samples for 3 prompts"):
        one_prompt_each(batch, 3, "both")


def test_one_prompt_each_repeats_the_unconditional_row_that_all_prompts_share():
    one, cond = torch.rand(1, 4, 2), torch.rand(3, 4, 2)
    whole = torch.cat([one, one, one, cond])
    for halves in ("both", "cond", "uncond"):
        seen = one_prompt_each(torch.cat([one, cond]), 3, halves)
        assert torch.equal(seen, one_prompt_each(whole, 3, halves))
    batch = torch.cat([one, cond])
    assert one_prompt_each(batch, 3, "cond").data_ptr() == batch[1:].data_ptr(), "nothing is copied for that half"


def test_moments_do_not_depend_on_batches():
    values = 1e3 + torch.rand(11, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    float32 = values.float()
    two_moments = (float32.square().mean(0) - float32.mean(0).square()).clamp(min=0).sqrt()
    assert (two_moments - values.std(0, correction=0)).abs().max() > 0.1, "such a mean drowns the two-moment formula"
    for sizes in ((11,), (1,) * 11, (4, 4, 3), (8, 3)):
        moments, plain = Moments(spread=True), Moments()
        for part in values.float().split(sizes):
            moments.add(-2 * part, torch.full_like(part, 2))  # of |a| / b
            plain.add(2 * part, torch.full_like(part, 2))
        reference = values.float().double()
        torch.testing.assert_close(moments.mean.double(), reference.mean(0), rtol=1e-6, atol=0)
        torch.testing.assert_close(moments.std().double(), reference.std(0, correction=0), rtol=2e-3, atol=0)
        assert moments.count == 11
        assert torch.equal(plain.mean, moments.mean)  # so that equal prompts cancel in Eq. 2


# Eq. 3 to 6


def test_threshold_by_hand():
    s = torch.tensor([[0.0, 3.0, 1.0], [3.0, 0.0, 2.0], [0.0, 0.0, 5.0]])
    assert kth_largest(s.flatten(), 2) == 3
    two_of_nine = 0.25  # floor(0.25 * 9) = 2: tau is the second largest value, 3, which occurs twice
    assert passes(s, two_of_nine, strict=True).tolist() == [[False] * 3, [False] * 3, [False, False, True]]
    assert passes(s, two_of_nine, strict=False).sum() == 3  # the tie counts on both sides
    assert passes(s, 1.0, strict=True).sum() == passes(s, 1.0, strict=False).sum() == 5  # zeros never pass


def test_score_by_hand():
    strength, frequency = torch.tensor([[4.0, 0.0], [2.0, 1.0]]), torch.tensor([[0.5, 0.0], [1.0, 0.0]])
    assert score(strength, frequency, strength_normalise=False).tolist() == [[2.25, 0.0], [1.5, 0.5]]
    assert score(strength, frequency, strength_normalise=True).tolist() == [[0.75, 0.0], [0.75, 0.125]]
    assert torch.equal(score(strength, frequency, strength_normalise=False, use_frequency=False), strength)
    assert not score(0 * strength, 0 * frequency, strength_normalise=True).any()


def test_selection_by_hand():
    a = torch.tensor([[0.9, 0.8, 0.1], [0.0, 0.2, 0.2], [0.7, 0.0, 0.6]])
    third = 0.34  # one a row, three a layer
    row = [[1, 0, 0], [0, 1, 0], [1, 0, 0]]  # row 1: the tie goes to the lower index
    layer = [[1, 1, 0], [0, 0, 0], [1, 0, 0]]
    both = [[1, 0, 0], [0, 0, 0], [1, 0, 0]]
    for granularity, expected in (("channel", row), ("layer", layer), ("both", both)):
        assert select(a, third, granularity, zero_score=False).int().tolist() == expected
    assert select(torch.zeros(3, 3), third, "both", zero_score=False).sum() == 0
    assert select(torch.zeros(3, 3), third, "layer", zero_score=True).int().tolist() == [[1, 1, 1], [0] * 3, [0] * 3]
    assert select(a, third, "channel", zero_score=True).sum(1).tolist() == [1, 1, 1]
    # Temporal only: one pool for all layers, so a weak layer may get nothing.
    pooled = select_across_layers({"weak": a / 10, "strong": a}, 0.17, zero_score=False)
    assert (int(pooled["weak"].sum()), int(pooled["strong"].sum())) == (0, 3)


@pytest.mark.parametrize("k", [1, 3, 17, 40])
def test_top_entries_agree_with_a_stable_sort(k):
    scores = torch.randint(0, 6, (9, 40), generator=torch.Generator().manual_seed(k)).float()
    expected = torch.zeros_like(scores, dtype=torch.bool)
    expected.scatter_(1, scores.argsort(dim=1, descending=True, stable=True)[:, :k], True)
    assert torch.equal(top_entries(scores, k), expected)


@pytest.mark.parametrize(
    ("share", "n", "expected"),
    [(0.007, 1280, 8), (0.007, 2560, 17), (0.007, 5120, 35), (0.03, 5120, 153), (0.007, 320 * 1280, 2867)]
    + [(0.05, 1280 * 5120, 327680), (0.29, 100, 29), (0.001, 10, 1), (1.0, 7, 7)],
)
def test_budgets(share, n, expected):
    assert budget(share, n) == expected


# Eq. 8


def test_fusion_by_hand():
    votes = torch.tensor([[0, 1, 2], [3, 0, 2], [1, 1, 3]])
    fused = fuse(votes, agnostic_threshold(0.6, 3))  # ceil(1.8) = 2
    assert fused.prune.int().tolist() == [[0, 1, 0], [0, 0, 0], [1, 1, 0]]
    assert (fused.pruned, fused.agnostic, fused.untouched) == (3, 4, 2)
    assert torch.equal(fuse(votes, agnostic_threshold(0.6, 3, fusion="union")).prune, votes > 0)


@pytest.mark.parametrize(
    ("alpha", "concepts", "expected"),
    [(0.6, 2, 2), (0.8, 2, 2), (0.6, 3, 2), (0.8, 3, 3), (0.6, 5, 3), (0.8, 5, 4), (0.6, 10, 6), (0.8, 50, 40)]
    + [(0.07, 100, 7), (1.0, 4, 4), (0.01, 4, 1)],
)
def test_agnostic_threshold(alpha, concepts, expected):
    assert agnostic_threshold(alpha, concepts) == expected


def test_single_concept_thresholds():
    assert agnostic_threshold(0.6, 1) == 2
    assert agnostic_threshold(0.6, 1, single_concept="paper_noop") == 1
    assert not fuse(torch.tensor([[1, 0]]), 1).prune.any()


def test_mask_sets_fuse_any_subset():
    generator = torch.Generator().manual_seed(3)
    masks = {c: {"b": torch.rand(6, 50, generator=generator) < p, "a": torch.zeros(2, 9).bool()} for c, p in
             (("x", 0.5), ("y", 0.3), ("z", 0.01))}  # fmt: skip
    packed = {concept: pack(mask) for concept, mask in masks.items()}
    for concept, mask in masks.items():
        restored = unpack(packed[concept])
        assert list(restored) == ["a", "b"] and all(torch.equal(restored[n], mask[n]) for n in mask)
        assert count(packed[concept]) == int(mask["b"].sum())
        assert all(t.dtype in (torch.uint8, torch.int64) for t in packed[concept].values())
    chosen = MaskSet(packed)
    votes = sum(masks[c]["b"].int() for c in "xyz")
    previous = torch.zeros(6, 50).bool()
    for alpha in (0.3, 0.4, 0.7, 1.0):  # the pruned set grows with alpha
        threshold, layers = chosen.fuse(alpha=alpha)
        prune = layers["b"].prune
        assert torch.equal(prune, (votes > 0) & (votes < math.ceil(alpha * 3)))
        assert threshold == math.ceil(alpha * 3) and not (previous & ~prune).any()
        previous = prune
    _, union = chosen.fuse(alpha=1.0, fusion="union")
    assert not (previous & ~union["b"].prune).any() and union["b"].agnostic == 0
    _, forward = chosen.fuse(["x", "y"], alpha=0.6)
    _, backward = chosen.fuse(["y", "x"], alpha=0.6)
    assert torch.equal(forward["b"].prune, masks["x"]["b"] ^ masks["y"]["b"])  # tau_ca = 2 keeps what both chose
    assert torch.equal(forward["b"].prune, backward["b"].prune)
    threshold, twice = chosen.fuse(["x", "x", "y"], alpha=0.6)
    assert threshold == 2 and torch.equal(twice["b"].prune, masks["y"]["b"] & ~masks["x"]["b"])


# On a random model, against the slow reference


def slow_masks(model, preset: str, method: FIA) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """Scores and masks of CONCEPTS by the slow reference."""
    scores, masks = [], []
    for concept in CONCEPTS:
        prompts, base = contrast_pairs(concept, seed=method.seed, words=method.words)
        a = slow_fia.concept_scores(
            model, prompts, base, SAMPLER, method.steps, method.seed, method.r1, preset=preset, halves=method.halves
        )  # fmt: skip
        scores.append(a)
        masks.append({n: slow_fia.mask(a[n], method.r2, zero_score=method.zero_score) for n in a})
    return scores, masks


def at_an_edge(scores: np.ndarray, i: int, j: int, r2: float) -> bool:
    """Whether the entry lies within float tolerance of its row's or its layer's threshold."""
    row, layer = (np.sort(v)[::-1] for v in (scores[i], scores.ravel()))
    edges = np.array([row[budget(r2, row.size) - 1], layer[budget(r2, layer.size) - 1]])
    return np.abs(scores[i, j] - edges).min() < 1e-4 * scores.max()


@pytest.mark.parametrize(
    ("preset", "halves"), [("release", "both"), ("paper", "both"), ("paper", "cond"), ("paper", "uncond")]
)
def test_masks_are_those_of_the_slow_reference(random_sd_model, preset, halves):
    """The same masks, entry by entry. The two compute in float32 and float64, in different orders, so an entry may
    differ only where two scores around a threshold are closer than that; such near-ties are counted and bounded."""
    method = FIA(**QUICK | {"halves": halves} | (RELEASE if preset == "release" else {}))
    scores, expected = slow_masks(random_sd_model, preset, method)
    found = method.masks(random_sd_model, CONCEPTS, 0, Shelf())
    differing = total = 0
    for concept, a, mask in zip(CONCEPTS, scores, expected, strict=True):
        got = unpack(found.masks[concept])
        assert set(got) == set(mask) == set(random_sd_model.layers("ffn2"))
        for name in mask:
            differs = got[name].numpy() != mask[name]
            total += int(mask[name].sum())
            differing += int(differs.sum())
            for i, j in np.argwhere(differs):
                assert at_an_edge(a[name], i, j, method.r2)
    assert total > 300 and differing <= 0.001 * total
    made = method.edit(random_sd_model, CONCEPTS, 0, Shelf())
    for name in expected[0]:
        prune = slow_fia.pruned([mask[name] for mask in expected], method.alpha)
        assert (made.tensors[f"{name}.weight"].numpy() != prune).sum() <= differing


def test_released_saliency_is_rank_one_and_scores_lie_in_the_unit_interval(random_sd_model):
    method, shelf = FIA(**QUICK | RELEASE), Shelf()
    method.masks(random_sd_model, CONCEPTS, 0, shelf)
    kept = [tensors for (name, _), tensors in shelf.items() if name == "fia.saliency"]
    assert len(kept) == len(CONCEPTS)
    for tensors in kept:
        for name, layer in random_sd_model.layers("ffn2").items():
            strength, passed = tensors[f"strength/{name}"], tensors[f"count/{name}"].float()
            ratio = strength / layer.weight.abs()
            torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=1e-7)
            k = budget(method.r1, strength.numel())
            assert passed.sum() <= method.steps * (k - 1)
            a = score(strength, passed / method.steps, strength_normalise=True)
            assert 0 <= a.min() and 0.5 <= a.max() <= 1


def test_equal_prompts_have_no_saliency(random_sd_model):
    layers = random_sd_model.layers("ffn2")
    how = Calibration(SAMPLER, steps=2, seed=1, size=(32, 32), chunk=3)
    seen = []
    prompts = ["a road", "a tree"]
    contrast_each_step(random_sd_model, layers, prompts, [prompts], how, lambda i, n, d: seen.append((i, n, d)))
    assert len(seen) == 2 * len(layers) and not any(d.any() for _, _, d in seen)


def test_grouping_and_chunks_do_not_matter(random_sd_model):
    """Kernels round differently at other batch sizes, which moves scores by about 1e-6: a few near-ties may flip."""
    base = edit(random_sd_model, group=3, chunk=4).tensors
    for group, chunk in ((1, 4), (2, 1), (3, 3), (2, 16)):
        other = edit(random_sd_model, group=group, chunk=chunk).tensors
        assert overlap(base, other) >= 0.999
    backwards = edit(random_sd_model, CONCEPTS[::-1], group=2).tensors
    assert overlap(base, backwards) >= 0.999


@pytest.mark.parametrize("concept", CONCEPTS, ids=str)
def test_chunk_sizes_change_a_mask_at_its_thresholds_only(random_sd_model, concept):
    method, shelf = FIA(**QUICK | {"chunk": 16}), Shelf()
    a = unpack(method.masks(random_sd_model, [concept], 0, shelf).masks[concept])
    b = unpack(FIA(**QUICK | {"chunk": 1}).masks(random_sd_model, [concept], 0, Shelf()).masks[concept])
    (kept,) = (tensors for (kind, _), tensors in shelf.items() if kind == "fia.saliency")
    for name in a:
        scores = score(kept[f"strength/{name}"], kept[f"count/{name}"].float() / method.steps, strength_normalise=False)
        scores = scores.numpy()
        for i, j in np.argwhere(a[name].numpy() != b[name].numpy()):
            assert at_an_edge(scores, i, j, method.r2)


def test_why_a_weight_differs_between_two_runs():
    """By hand: one layer of one row, half of its four weights selected, scores 1/2 strength + 1/2 count / 3."""
    method, concept = FIA(**QUICK | {"r2": 0.5}), CONCEPTS[0]

    def reasons(different: list[int], strength: list[list[float]], count: list[list[int]]) -> dict[str, int]:
        saliency = [{"strength/a": torch.tensor([s]), "count/a": torch.tensor([c])} for s, c in zip(strength, count)]
        return explained(method, concept, "a", torch.tensor([different], dtype=torch.bool), saliency)

    same = [[3.0, 2.0, 2.0, 1.0]] * 2
    zero = dict.fromkeys(("at_eq_3", "at_eq_4_5", "displaced", "unexplained"), 0)
    assert reasons([0, 1, 1, 0], same, [[0] * 4] * 2) == zero | {"at_eq_4_5": 2}
    assert reasons([0, 0, 1, 0], same, [[0] * 4, [0, 0, 3, 0]]) == zero | {"at_eq_3": 1}
    # The last weight lost its place to the third, whose count rose.
    assert reasons([0, 0, 1, 1], [[3.0, 2.5, 1.0, 2.0]] * 2, [[0] * 4, [0, 0, 3, 0]]) == zero | {
        "at_eq_3": 1, "displaced": 1,
    }  # fmt: skip
    assert reasons([0, 0, 0, 1], same, [[0] * 4] * 2) == zero | {"unexplained": 1}


def test_lock_step_is_the_denoising_loop(random_sd_model):
    """Chunks that walk in step reach the latents that `denoise` reaches."""
    text, noise = random_sd_model.encode(["a road", "a tree"]), random_sd_model.latents([1, 2])
    walks = [random_sd_model.trajectory(text[i], noise[i : i + 1], SAMPLER, 7.5) for i in range(2)]
    for _ in range(4):
        latest = [next(walk) for walk in walks]
    for i in range(2):
        alone = random_sd_model.denoise(text[i], noise[i : i + 1], SAMPLER, 7.5, stop_after=3)
        assert torch.equal(latest[i], alone)


# Stages


def samples(walks: int, steps: int = QUICK["steps"]) -> int:
    """UNet samples of so many times the prompts, each time in one chunk, whose first call has one unconditional row."""
    assert len(WORDS) <= QUICK["chunk"]
    return walks * (2 * steps * len(WORDS) - (len(WORDS) - 1))


@pytest.mark.parametrize("halves", ["cond", "uncond"])
def test_the_last_call_runs_only_the_half_that_counts(random_sd_model, halves):
    edit(random_sd_model, halves=halves)
    walks = 1 + len(CONCEPTS)
    assert random_sd_model.calls == samples(walks) - walks * len(WORDS)


def test_selection_and_fusion_parameters_need_no_unet_call(random_sd_model):
    shelf = Shelf()
    first = edit(random_sd_model, shelf=shelf)
    calls = random_sd_model.calls
    assert calls == samples(1 + len(CONCEPTS))  # the base prompts run once
    changed = [
        edit(random_sd_model, shelf=shelf, **change)
        for change in (
            {"r2": 0.01}, {"alpha": 1.0}, {"granularity": "channel"}, {"granularity": "layer"}, {"fusion": "union"},
            {"selection": "temporal"}, {"selection": "spatial"}, {"strength_normalise": True},
            {"r2_per_concept": {"TENCH": 0.2}},
        )
    ]  # fmt: skip
    changed.append(edit(random_sd_model, CONCEPTS[1:2], shelf))
    assert random_sd_model.calls == calls
    fingerprints = {e.fingerprint for e in (first, *changed)}
    assert len(fingerprints) == len(changed) + 1  # and every one of them matters
    assert edit(random_sd_model, shelf=shelf).fingerprint == first.fingerprint
    edit(random_sd_model, [*CONCEPTS, Concept("chain saw", "object")], shelf)
    assert random_sd_model.calls == calls + samples(2)  # one new concept and the base
    edit(random_sd_model, shelf=shelf, chunk=2, group=1)
    edit(random_sd_model, shelf=shelf, r1=0.2)
    assert random_sd_model.calls == 2 * calls + samples(2)


def saliencies(shelf: Shelf) -> dict[str, dict[str, torch.Tensor]]:
    return {key: tensors for (kind, key), tensors in shelf.items() if kind == "fia.saliency"}


def test_one_pass_serves_a_declared_grid_of_r1(random_sd_model):
    """Any job of the sweep finds what the first one measured, bit for bit what it would have measured itself."""
    grid, own = [0.02, 0.1, 0.3], {"tench": 0.06}  # the table's exception holds for every member
    shelf, names = Shelf(), CONCEPTS[:2]
    settings = {"r1_per_concept": own, "alpha": 1.0}
    swept = [edit(random_sd_model, names, shelf, r1=r1, r1_grid=grid, **settings) for r1 in (0.1, 0.02, 0.3)]
    assert random_sd_model.calls == samples(3)  # two concepts and their base
    # Declared or not, and with another grid: nothing is left to measure.
    found = [edit(random_sd_model, names, shelf, r1=0.02, r1_grid=other, **settings) for other in (None, [0.3, 0.1])]
    assert random_sd_model.calls == samples(3)
    assert [e.fingerprint for e in found] == [swept[1].fingerprint] * 2
    assert len({e.fingerprint for e in swept}) == 3
    assert len(saliencies(shelf)) == len(grid) + 1
    for r1 in (0.1, 0.02, 0.3):
        alone = Shelf()
        edit(random_sd_model, names, alone, r1=r1, **settings)
        for key, tensors in saliencies(alone).items():
            assert all(torch.equal(tensor, shelf["fia.saliency", key][name]) for name, tensor in tensors.items())


def test_r1_need_not_be_in_its_grid_and_an_r1_that_was_stored_before_costs_one_more_pass(random_sd_model):
    shelf = Shelf()
    edit(random_sd_model, shelf=shelf, r1=0.02)
    one_pass = random_sd_model.calls
    edit(random_sd_model, shelf=shelf, r1=0.1, r1_grid=[0.02, 0.3])
    assert random_sd_model.calls == 2 * one_pass and len(saliencies(shelf)) == 3 * len(CONCEPTS)
    edit(random_sd_model, shelf=shelf, r1=0.3)
    assert random_sd_model.calls == 2 * one_pass


def test_processes_that_sweep_one_grid_run_one_pass(random_sd_folder, tmp_path):
    """Two jobs begin at the same moment: the one that comes second waits and then finds its own r1."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    from harness.model import DiffusionModel
    from harness.store import Store

    together = Barrier(2, timeout=60)
    models = {r1: DiffusionModel.load(random_sd_folder) for r1 in (0.2, 0.1)}  # loading is not safe in threads

    def job(r1: float) -> int:
        model, store = models[r1], Store(tmp_path / "store")
        together.wait()
        edit(
            model, CONCEPTS[:2], lambda name, key, make: store.tensors(name, {"key": key}, make), r1=r1,
            r1_grid=[0.05, 0.1, 0.2], alpha=1.0,
        )  # fmt: skip
        return model.calls

    with ThreadPoolExecutor(2) as pool:
        calls = list(pool.map(job, models))
    assert sorted(calls) == [0, samples(3)]


@pytest.mark.parametrize("group", [1, 2, 3, 5])
def test_the_cost_of_a_group_in_unet_samples(random_sd_model, group):
    """(C + ceil(C / G)) / 2C of the samples of single runs, which measure the base prompts once a concept."""
    concepts = [Concept(name, "object") for name in ("church", "tench", "gas pump", "parachute", "chain saw")]
    edit(random_sd_model, concepts, group=group, steps=1)
    assert random_sd_model.calls / samples(2 * len(concepts), steps=1) == (5 + math.ceil(5 / group)) / 10


def test_groups_do_not_change_a_bit(random_sd_model):
    prints = {edit(random_sd_model, group=group).fingerprint for group in (None, 1, 2, 3)}
    assert len(prints) == 1


def test_the_group_fits_the_memory(random_sd_model, monkeypatch):
    """As many concepts as half of the free memory holds beside the moments of one step."""
    method = FIA(**QUICK)
    jobs = [method.job_of(random_sd_model, concept, 0) for concept in CONCEPTS]
    weights = sum(layer.weight.numel() for layer in random_sd_model.layers("ffn2").values())
    for concepts, expected in ((0, 1), (1, 1), (2, 2), (7, 7), (99, LARGEST_GROUP)):
        free = (2 * 4 * weights + concepts * 5 * weights) / MEMORY_SHARE + 1
        monkeypatch.setattr("fia.saliency.free_bytes", lambda device, free=free: int(free))
        assert group_that_fits(random_sd_model, jobs) == expected
        in_a_grid = [method_job_with_grid(job) for job in jobs]
        assert group_that_fits(random_sd_model, in_a_grid) == max(1, min(LARGEST_GROUP, concepts * 5 // 7))


def method_job_with_grid(job: Job) -> Job:
    """The same job with three members: two more counts of a byte a weight."""
    return dataclasses.replace(job, grid=(0.05, 0.1, 0.2))


def test_free_memory_minds_the_limits_of_control_groups(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/old\n0::/a/b\n")
    assert memory._group_rooms(own, tmp_path) == []
    for folder, most, used in (("a", "9000", "2000"), ("a/b", "max", "1500")):
        (tmp_path / folder / "memory.max").write_text(most + "\n")
        (tmp_path / folder / "memory.current").write_text(used + "\n")
    assert memory._group_rooms(own, tmp_path) == [7000]
    assert memory._group_rooms(tmp_path / "none", tmp_path) == []
    monkeypatch.setattr(memory, "_group_rooms", lambda: [7000])
    assert memory.free_bytes("cpu") == 7000


def test_every_calibration_switch_changes_the_saliency(random_sd_model):
    prints = [
        edit(random_sd_model, **change).fingerprint
        for change in (
            {}, {"cosine": False}, {"row_normalise": True}, {"halves": "cond"}, {"halves": "uncond"}, {"steps": 2},
            {"steps": None}, {"num_pairs": 3}, {"seed": 5}, {"r1": 0.02}, {"words": ("cafe", "mall", "office")},
            {"sampler": Sampler("ddim", 5, 7.5)}, {"sampler": Sampler("pndm", 5, 1.0)}, {"size": (32, 16)},
            {"seed": None}, {"strict": True},
        )
    ]  # fmt: skip
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("kind", ["ffn1", "cross_k", "cross_v", "self_k", "self_v"])
def test_every_kind_of_layer(random_sd_model, kind):
    made = edit(random_sd_model, kind=kind)
    assert set(made.tensors) == {f"{name}.weight" for name in random_sd_model.layers(kind)}
    assert any(t.any() for t in made.tensors.values())


def test_device_memory_is_flat_in_steps_and_concepts(random_sd_model):
    """The bytes of all live tensors when the last concept's contrasts are handed over, at every step."""
    layers = random_sd_model.layers("ffn2")
    first = next(iter(layers))
    prompts = [[f"a thing{i} near the road", f"a thing{i} in a tree"] for i in range(4)]
    random_sd_model.encode(["", "a road", "a tree", *(p for pair in prompts for p in pair)])  # kept by the model

    def peak(steps: int, concepts: int) -> int:
        live = []

        def take(index: int, name: str, _: torch.Tensor) -> None:
            if (index, name) == (concepts - 1, first):
                tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor]
                sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
                live.append(sum(sizes.values()))

        how = Calibration(SAMPLER, steps=steps, seed=1, size=(32, 32), chunk=2)
        contrast_each_step(random_sd_model, layers, ["a road", "a tree"], prompts[:concepts], how, take)
        assert len(live) == steps
        return max(live)

    # Latents, text features and scheduler states grow a little; one more accumulator of the layers' size would show.
    accumulator = sum(layer.weight.numel() * 4 for layer in layers.values())
    short = peak(2, 1)
    assert short > 1.9 * accumulator  # what a mean has to exceed, and the mean of one concept
    assert peak(5, 1) - short < accumulator / 4
    assert peak(2, 4) - short < accumulator


def test_a_step_holds_nothing_of_the_step_before(random_sd_model, monkeypatch):
    """Live bytes when the moments of the base prompts are whole: two arrays of the layers' size at every step."""
    layers, own, live = random_sd_model.layers("ffn2"), statistics.ceiling, []

    def measured(moments):
        if len(live) % len(layers) == 0:
            gc.collect()
            tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor]
            live.append(sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()))
        else:
            live.append(0)
        return own(moments)

    monkeypatch.setattr(statistics, "ceiling", measured)
    how = Calibration(SAMPLER, steps=3, seed=1, size=(32, 32), chunk=2)
    contrast_each_step(random_sd_model, layers, ["a road"], [["a thing on a road"]], how, lambda *_: None)
    first, *later = live[:: len(layers)]
    accumulator = sum(layer.weight.numel() * 4 for layer in layers.values())
    assert len(later) == 2 and max(later) - first < accumulator / 4


def test_device_memory_is_flat_in_groups(random_sd_model, monkeypatch):
    """Live bytes at every contrast, with Eq. 3's sums: two groups of two concepts take what one takes."""
    concepts = [Concept(name, "object") for name in ("church", "tench", "gas pump", "parachute")]
    layers = random_sd_model.layers("ffn2")
    few = QUICK | {"words": ["road"], "steps": 1}
    method = FIA(**few)
    jobs = [method.job_of(random_sd_model, concept, 0) for concept in concepts]
    random_sd_model.encode(["", *(prompt for job in jobs for prompt in job.prompts + job.base)])  # kept by the model
    own, calls, live = statistics.contrast, [], []

    def measured(*arguments):
        calls.append(arguments[0].count)
        if len(calls) % (2 * len(layers)) == 0:  # the last layer of every second concept: gathering takes its time
            tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor]
            live.append(sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()))
        return own(*arguments)

    monkeypatch.setattr(statistics, "contrast", measured)

    def peak(count: int, group: int) -> int:
        live.clear()
        FIA(**few | {"group": group}).masks(random_sd_model, concepts[:count], 0, lambda kind, key, make: make())
        assert len(live) == count // 2
        return max(live)

    accumulator = sum(layer.weight.numel() for layer in layers.values())
    # Strength and count, five bytes a weight and concept of the group; finished masks stay, packed.
    assert peak(4, 2) - peak(2, 2) < 2 * accumulator
    assert peak(4, 4) - peak(4, 2) > 0.9 * 2 * 5 * accumulator


# The edit


def test_the_edit_prunes_only_ffn2_and_comes_off_again(random_sd_model):
    before = {n: p.clone() for n, p in random_sd_model.unet.named_parameters()}
    made = edit(random_sd_model)
    assert all(torch.equal(p, before[n]) for n, p in random_sd_model.unet.named_parameters())
    with made.applied(random_sd_model):
        for name, p in random_sd_model.unet.named_parameters():
            mask = made.tensors.get(name, torch.zeros_like(p, dtype=torch.bool))
            assert torch.equal(p, before[name].masked_fill(mask, 0))
    assert all(torch.equal(p, before[n]) for n, p in random_sd_model.unet.named_parameters())
    assert not any(m._forward_pre_hooks for m in random_sd_model.unet.modules())


def test_info_counts_what_the_mask_holds(random_sd_model):
    made = edit(random_sd_model, r2_per_concept={"Gas Pump": 0.2})
    counts = made.info["counts"]["all"]
    assert made.info["tau_ca"] == 2
    assert counts["pruned"] == sum(int(t.sum()) for t in made.tensors.values()) > 0
    assert counts["weights"] == counts["pruned"] + counts["agnostic"] + counts["untouched"]
    assert counts["weights"] == sum(t.numel() for t in made.tensors.values())
    per_concept = made.info["per_concept"]
    assert per_concept["gas pump"]["r2"] == 0.2 and per_concept["church"]["r2"] == QUICK["r2"]
    for part in per_concept.values():
        assert 0 < part["selected"] <= part["requested"]
    union = edit(random_sd_model, fusion="union")
    agnostic = edit(random_sd_model, alpha=1.0)
    assert all(not (agnostic.tensors[n] & ~union.tensors[n]).any() for n in union.tensors)


def test_single_concept(random_sd_model, caplog):
    with caplog.at_level("INFO", "fia.fia"):
        alone = edit(random_sd_model, CONCEPTS[:1])
    assert "0 kept as concept-agnostic (the rule does not apply)" in caplog.text
    assert alone.info["counts"]["all"]["pruned"] == alone.info["per_concept"]["church"]["selected"] > 0
    calls = random_sd_model.calls
    with pytest.raises(NoEffectError, match=r"tau_ca = ceil\(0\.6 \* 1\) = 1"):
        edit(random_sd_model, CONCEPTS[:1], single_concept="paper_noop")
    with pytest.raises(NoEffectError, match=r"tau_ca = ceil\(0\.2 \* 3\) = 1"):
        edit(random_sd_model, alpha=0.2)
    assert random_sd_model.calls == calls  # known before anything is run


def test_nothing_to_prune_says_why(random_sd_model):
    with torch.no_grad():
        for layer in random_sd_model.layers("ffn2").values():
            layer.weight.zero_()
    with pytest.raises(NoEffectError, match="no weight has any saliency"):
        edit(random_sd_model)


def test_broken_activations_are_not_scored(random_sd_model):
    with torch.no_grad():
        next(iter(random_sd_model.layers("ffn1").values())).weight[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match=r"ff\.net\.2 holds NaN"):
        edit(random_sd_model)


def test_sdxl(random_sdxl_model):
    made = edit(random_sdxl_model)
    assert len(made.tensors) == len(random_sdxl_model.layers("ffn2")) > 3
    assert made.info["counts"]["all"]["pruned"] > 0
    styles = [Concept("Van Gogh", "style"), Concept("Monet", "style")]
    assert edit(random_sdxl_model, styles, words=("cat", "clock")).info["tau_ca"] == 2


# Parameters


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r2": 3}, "r2 is a fraction.*got 3; 3 % is written 0.03"),
        ({"r1": 5.0}, "5 % is written 0.05"),
        ({"alpha": 60}, "60 % is written 0.6"),
        ({"r2": 0}, "r2 is a fraction"),
        ({"r2": -0.1}, "r2 is a fraction"),
        ({"alpha": "0.6"}, "alpha is a fraction"),
        ({"r1": float("nan")}, "r1 is a fraction"),
        ({"r2_per_concept": {"tench": 3}}, r"r2_per_concept\[tench\].*3 % is written 0.03"),
        ({"r2_per_concept": "papers"}, "null, paper or a map"),
        ({"kind": "ffn3"}, "'ffn3'; did you mean ffn"),
        ({"granularity": "chanel"}, "did you mean channel"),
        ({"halves": "con"}, "did you mean cond"),
        ({"selection": "time"}, "fia's selection"),
        ({"selection": "temporal", "granularity": "layer"}, "leave granularity=both"),
        ({"fusion": "naive"}, "fia's fusion"),
        ({"single_concept": "paper_no"}, "did you mean paper_noop"),
        ({"saliency_dtype": "fp32"}, "fia's saliency_dtype"),
        ({"steps": 0}, "steps is a whole number"),
        ({"steps": 7}, "pndm with 5 steps makes 6"),
        ({"num_pairs": 2.5}, "num_pairs is a whole number >= 1 or null"),
        ({"chunk": None}, "chunk is a whole number"),
        ({"group": 0}, "group is a whole number >= 1 or null"),
        ({"r1_grid": 0.1}, r"r1_grid is null or a list of fractions such as \[0.02,0.05\], got 0.1"),
        ({"r1_grid": [0.1, 5]}, "r1_grid is a fraction.*5 % is written 0.05"),
        ({"cosine": "no"}, "cosine is true or false"),
        ({"size": [32]}, r"size is null, a number of pixels or \[width, height\]"),
    ],
)
def test_bad_parameters(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        FIA(**QUICK | settings)
    assert "\n" not in str(caught.value)


def test_bad_names_and_words(random_sd_model):
    with pytest.raises(ValueError, match=r"'tensch'.*did you mean 'tench'"):
        edit(random_sd_model, r2_per_concept={"tensch": 0.1})
    with pytest.raises(ValueError, match="at least one concept"):
        edit(random_sd_model, [])
    with pytest.raises(ValueError, match="1 to 4 pairs"):
        edit(random_sd_model, num_pairs=5)


@pytest.mark.parametrize(("task", "expected"), [("imagenette", 0.03), (None, 0.03), ("custom", 0.007)])
def test_the_papers_table_is_for_the_papers_tasks(task, expected):
    method = FIA(r2_per_concept="paper", r1_per_concept="paper", task_name=task)
    assert method.r2_of(Concept("Golf Ball", "object")) == expected
    assert method.r2_of(Concept("church", "object")) == 0.007
    assert method.r1_of(Concept("Sexual", "style")) == (0.06 if expected == 0.03 else 0.05)


@pytest.mark.parametrize("name", ["fia", "fia_release"])
@pytest.mark.parametrize(("task", "pairs"), [("imagenette_5v5", 15), ("artists", 15), ("i2p", 13)])
def test_the_tiny_presets_have_prompts_for_every_kind(name, task, pairs):
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    with initialize_config_dir(str(Path(__file__).resolve().parents[1] / "conf"), version_base="1.3"):
        cfg = compose("config", ["model=tiny", f"method={name}", f"task={task}"])
    settings = OmegaConf.to_container(cfg, resolve=True)["method"]
    assert settings.pop("preset") == "tiny"
    concepts = instantiate(cfg.task, _partial_=True)().concepts
    for concept in concepts:
        job = instantiate(settings).job_of(SimpleNamespace(size=64), concept, seed=0)
        whole_list = 13 if concept.kind == "explicit" else 30
        assert len(job.prompts) == len(job.base) == (pairs if name == "fia" else whole_list)


def test_configurations():
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    conf = str(Path(__file__).resolve().parents[1] / "conf" / "method")
    with initialize_config_dir(conf, version_base=None):
        paper, release, none = (instantiate(compose(name)) for name in ("fia", "fia_release", "none"))
        changed = instantiate(compose("fia", ["r2_per_concept={golf ball: 0.2}", "words=[road,tree]"]))
    assert paper == FIA(r1_per_concept="paper", r2_per_concept="paper")
    assert release == FIA(name="fia_release", r1_per_concept="paper", r2_per_concept="paper", **RELEASE)
    assert none.name == "none"
    assert changed.r2_of(Concept("Golf ball", "object")) == 0.2
    assert changed.r2_of(Concept("parachute", "object")) == 0.007


def test_the_unedited_model(random_sd_model):
    from baselines.none import Unedited

    made = Unedited().edit(random_sd_model, CONCEPTS, 0, Shelf())
    assert made.kind == "none" and made.tensors == {} and random_sd_model.calls == 0
