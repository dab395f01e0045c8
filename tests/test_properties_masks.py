"""Properties of masks, selection (Eq. 3-6), fusion (Eq. 7-8) and edits, for inputs that nobody thought of.

The modules under test are small: matrices of a few rows, and a network of two layers in place of a UNet.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fia.fusion import agnostic_threshold
from fia.masks import MaskSet, count
from fia.neurons import budget, kth_largest, passes, score, select, select_across_layers
from harness.edit import Edit, NoEffectError
from harness.masks import pack, top_entries, unpack
from harness.model import _seed32
from harness.schedule import merged

LAYERS = ("down.0", "mid", "up.1.net.2")
SHARES = st.floats(0.01, 1)


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Up to 5 x 8 whole numbers as float32, few different ones so that ties abound."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    row = st.lists(st.integers(0, 4), min_size=columns, max_size=columns)
    return torch.tensor(draw(st.lists(row, min_size=rows, max_size=rows)), dtype=torch.float32)


@st.composite
def mask_sets(draw: st.DrawFn, most: int = 4) -> list[dict[str, Tensor]]:
    """The masks of one or more concepts over the same layers."""
    shapes = {name: (draw(st.integers(1, 3)), draw(st.integers(1, 9))) for name in LAYERS}
    concepts = draw(st.integers(1, most))
    # A layer's mask as the bits of one number.
    return [
        {name: _bits(draw(st.integers(0, 2 ** math.prod(shape) - 1)), shape) for name, shape in shapes.items()}
        for _ in range(concepts)
    ]


def _bits(number: int, shape: tuple[int, int]) -> Tensor:
    return torch.tensor([bool(number >> place & 1) for place in range(math.prod(shape))]).view(shape)


def _fused(masks: list[dict[str, Tensor]], alpha: float, **how: str) -> dict[str, Tensor]:
    """What is pruned, by layer."""
    _, layers = MaskSet({str(i): pack(mask) for i, mask in enumerate(masks)}).fuse(alpha=alpha, **how)
    return {name: layer.prune for name, layer in layers.items()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _within(small: Tensor, large: Tensor) -> bool:
    return not bool((small & ~large).any())


# Masks


@given(mask_sets())
def test_a_packed_mask_comes_back(masks: list[dict[str, Tensor]]):
    for mask in masks:
        assert _same(unpack(pack(mask)), dict(sorted(mask.items())))
        assert count(pack(mask)) == sum(int(layer.sum()) for layer in mask.values())


# Selection


@given(matrices(), st.integers(-1, 10))
def test_every_row_gives_its_k_largest_entries_and_of_equal_ones_the_first(scores: Tensor, k: int):
    chosen = top_entries(scores, k)
    for row, found in zip(scores, chosen):
        order = sorted(range(len(row)), key=lambda place: (-float(row[place]), place))
        assert set(found.nonzero().flatten().tolist()) == set(order[: max(k, 0)])


@given(matrices(), SHARES, SHARES, st.sampled_from(["both", "channel", "layer"]), st.booleans())
def test_a_smaller_r2_chooses_part_of_what_a_larger_one_does(
    scores: Tensor, one: float, other: float, granularity: str, zero_score: bool
):
    small, large = (select(scores, r2, granularity, zero_score) for r2 in sorted((one, other)))
    assert _within(small, large)


@given(matrices(), SHARES, st.booleans())
def test_a_mask_holds_its_budget_and_the_three_granularities_agree(scores: Tensor, r2: float, zero_score: bool):
    both, channel, layer = (select(scores, r2, how, zero_score) for how in ("both", "channel", "layer"))
    assert torch.equal(both, channel & layer)
    rows, columns = scores.shape
    if zero_score:
        assert (channel.sum(1) == budget(r2, columns)).all() and int(layer.sum()) == budget(r2, rows * columns)
    else:
        without = (select(scores, r2, how, True) & (scores > 0) for how in ("channel", "layer"))
        assert all(map(torch.equal, without, (channel, layer)))


@given(matrices(), SHARES, st.sampled_from(["both", "channel", "layer"]), st.integers(1, 9), st.integers(0, 9))
def test_only_the_order_of_scores_matters(scores: Tensor, r2: float, granularity: str, factor: int, shift: int):
    """Whole numbers, so that the transformed scores are exact and keep their ties."""
    for other in (factor * scores + shift, scores**3, -1 / (1 + scores).double()):
        assert torch.equal(select(scores, r2, granularity, True), select(other, r2, granularity, True))


@given(st.lists(matrices(), min_size=1, max_size=3), SHARES)
def test_selection_across_layers_is_that_of_one_long_layer(layers: list[Tensor], r2: float):
    scores = {str(i): layer for i, layer in enumerate(layers)}
    long = select(torch.cat([layer.flatten() for layer in layers])[None], r2, "layer", True)[0]
    chosen = select_across_layers(scores, r2, True)
    assert torch.equal(torch.cat([chosen[name].flatten() for name in scores]), long)
    assert all(_within(mask, chosen[name]) for name, mask in select_across_layers(scores, r2, False).items())


@given(matrices(), SHARES)
def test_the_threshold_keeps_the_share_and_its_ties(saliency: Tensor, r1: float):
    k, values = budget(r1, saliency.numel()), saliency.flatten()
    tau = kth_largest(values, k)
    assert tau == values.sort(descending=True).values[k - 1]
    kept, strict = passes(saliency, r1, strict=False), passes(saliency, r1, strict=True)
    assert _within(strict, kept) and int(strict.sum()) < k
    assert int(kept.sum()) >= min(k, int((saliency > 0).sum())) and not (kept & (saliency == 0)).any()


@pytest.mark.parametrize("equal", [0, 0.5, 0.9, 0.97, 1])
@pytest.mark.parametrize("largest", [False, True])
def test_the_threshold_of_a_layer_with_many_equal_values(equal: float, largest: bool):
    """Layers are too large for drawn examples: selection looks at a part of them first, which may mislead it."""
    values = torch.rand(5003, generator=torch.Generator().manual_seed(0))
    values[torch.rand(5003, generator=torch.Generator().manual_seed(1)) < equal] = 1 if largest else 0
    values[::16] *= -1  # what it looks at first is unlike the rest
    ordered = values.sort(descending=True).values
    for k in (1, 2, 60, 250, 2500, 5002, 5003):
        assert kth_largest(values, k) == ordered[k - 1]
        assert kth_largest(values[1:], k - 1 or 1) == values[1:].sort(descending=True).values[max(k - 2, 0)]


@given(SHARES, SHARES, st.integers(1, 10**6))
@example(0.29, 0.3, 100)
def test_a_budget_grows_with_its_share_and_stays_within_bounds(one: float, other: float, n: int):
    small, large = (budget(share, n) for share in sorted((one, other)))
    assert 1 <= small <= large <= n and abs(large - max(one, other) * n) <= max(1, 1e-9 * n)
    assert budget(1.0, n) == n and all(budget(k / n, n) == k for k in (1, max(1, n // 3), n))


@given(matrices(), st.integers(1, 9))
def test_strength_scaled_to_its_largest_value_knows_no_unit(strength: Tensor, factor: int):
    frequency = torch.zeros_like(strength)
    once, again = (score(value, frequency, strength_normalise=True) for value in (strength, 2.0**factor * strength))
    assert torch.equal(once, again) and 0 <= float(once.min()) and float(once.max()) <= 0.5


# Fusion


@given(mask_sets(), SHARES, SHARES)
def test_a_larger_alpha_prunes_all_that_a_smaller_one_does(masks: list[dict[str, Tensor]], one: float, other: float):
    small, large = (_fused(masks, alpha) for alpha in sorted((one, other)))
    assert all(_within(small[name], large[name]) for name in LAYERS)


@given(mask_sets(), SHARES, st.randoms(use_true_random=False))
def test_the_order_of_concepts_does_not_matter(masks: list[dict[str, Tensor]], alpha: float, draw: Any):
    mixed = list(masks)
    draw.shuffle(mixed)
    for fusion in ("agnostic", "union"):
        assert _same(_fused(masks, alpha, fusion=fusion), _fused(mixed, alpha, fusion=fusion))


@given(mask_sets(), SHARES)
def test_the_union_is_what_is_pruned_and_what_is_kept_as_agnostic(masks: list[dict[str, Tensor]], alpha: float):
    threshold, layers = MaskSet(dict(enumerate(map(pack, masks)))).fuse(alpha=alpha, single_concept="paper_noop")
    union = _fused(masks, alpha, fusion="union")
    for name, layer in layers.items():
        votes = sum(mask[name].int() for mask in masks)
        assert torch.equal(union[name], votes > 0)
        assert _within(layer.prune, union[name])
        assert int(union[name].sum()) == layer.pruned + layer.agnostic == int((votes > 0).sum())
        assert torch.equal(union[name] & ~layer.prune, votes >= threshold)
        assert layer.pruned + layer.agnostic + layer.untouched == votes.numel()


@given(mask_sets(most=1), SHARES)
def test_one_concept_is_pruned_as_it_is_or_not_at_all(masks: list[dict[str, Tensor]], alpha: float):
    assert _same(_fused(masks, alpha), dict(sorted(masks[0].items())))
    assert not any(layer.any() for layer in _fused(masks, alpha, single_concept="paper_noop").values())


@given(mask_sets(most=3), SHARES, st.integers(2, 3))
def test_every_concept_named_as_often_changes_nothing(masks: list[dict[str, Tensor]], alpha: float, times: int):
    """ceil(alpha C) votes of C are asked for: with every vote repeated, the same weights reach it, or fewer."""
    many, once = _fused(masks * times, alpha), _fused(masks, alpha)
    assert all(_within(many[name], once[name]) for name in LAYERS)
    exact = math.ceil(alpha * len(masks) - 1e-9) * times == math.ceil(alpha * len(masks) * times - 1e-9)
    assert not exact or len(masks) == 1 or _same(many, once)


@given(SHARES, st.integers(1, 200))
@example(0.6, 5)
@example(0.7, 10)
@example(0.28, 25)
def test_the_threshold_is_the_ceiling_of_alpha_times_c(alpha: float, concepts: int):
    found = agnostic_threshold(alpha, concepts, single_concept="paper_noop")
    assert 1 <= found <= concepts and alpha * concepts - 1e-6 <= found < alpha * concepts + 1
    assert agnostic_threshold(alpha, concepts, fusion="union") == concepts + 1


# Edits


def _model() -> Any:
    torch.manual_seed(0)
    unet = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    return SimpleNamespace(unet=unet, fingerprint="0" * 64, name="toy", edit=None)


def _weights(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.unet.named_parameters()}


BITS = st.tuples(st.integers(0, 2**12 - 1), st.integers(0, 2**6 - 1))


def _mask_edit(model: Any, bits: tuple[int, int]) -> Edit:
    return Edit.make("mask", {"0.weight": _bits(bits[0], (3, 4)), "1.weight": _bits(bits[1], (2, 3))}, model)


@given(BITS, st.sampled_from([None, RuntimeError("stop"), KeyboardInterrupt()]))
def test_a_mask_sets_its_weights_to_zero_and_comes_off_bit_for_bit(bits: tuple[int, int], error: BaseException | None):
    model = _model()
    before, edit = _weights(model), _mask_edit(model, bits)
    try:
        with edit.applied(model):
            for name, now in _weights(model).items():
                expected = before[name].masked_fill(edit.tensors[name], 0) if name in edit.tensors else before[name]
                assert torch.equal(now, expected)
            if error is not None:
                raise error
    except (RuntimeError, KeyboardInterrupt) as raised:
        assert raised is error
    assert _same(_weights(model), before) and model.edit is None
    if not any(bits):
        with pytest.raises(NoEffectError):
            edit.require_effect(model)


@given(st.lists(BITS, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_masks_of_single_concepts_merge_to_their_union_in_any_order(bits: list[tuple[int, int]], draw: Any):
    model = _model()
    edits = [_mask_edit(model, one) for one in bits]
    union = merged(model, edits)
    both = [0, 0]
    for one in bits:
        both = [both[0] | one[0], both[1] | one[1]]
    assert _same(union.tensors, _mask_edit(model, (both[0], both[1])).tensors)
    draw.shuffle(edits)
    assert merged(model, edits).fingerprint == union.fingerprint


@settings(max_examples=20)
@given(bits=BITS, other=BITS)
def test_an_edit_comes_back_from_its_file_and_another_one_has_another_fingerprint(
    tmp_path_factory: pytest.TempPathFactory, bits: tuple[int, int], other: tuple[int, int]
):
    model = _model()
    edit = _mask_edit(model, bits)
    back = Edit.load(edit.save(tmp_path_factory.getbasetemp() / "edit.safetensors"))
    assert _same(back.tensors, edit.tensors) and back.info == edit.info and back.fingerprint == edit.fingerprint
    assert (_mask_edit(model, other).fingerprint == edit.fingerprint) == (bits == other)


# Noise


@given(st.integers(0, 2**64 - 1))
@example(2**32 - 1)
@example(2**32)
def test_a_seed_of_any_width_is_one_of_32_bits(seed: int):
    assert 0 <= _seed32(seed) < 2**32 and _seed32(seed) == _seed32(seed)
    assert _seed32(seed) == seed or seed >= 2**32
