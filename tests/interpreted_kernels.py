"""FIA's kernels in Triton's interpreter (`TRITON_INTERPRET=1`): `test_kernels.py` runs this in a process of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fia import activity as layer_activity
from fia import kernels, statistics
from fia.activity import EPS, TOLERANCE, Moments
from fia.statistics import Calibration, contrast_each_step
from harness.sampler import Sampler


def equation_1(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """U / |W| of every prompt in float64: [halves, prompts, tokens, n] to [prompts, Cout, Cin]."""
    x, y = (t.double().transpose(0, 1).flatten(1, 2) for t in (x, y))
    norm_x, norm_y = x.norm(dim=1)[:, None, :], y.norm(dim=1)[:, :, None]
    return norm_x * (y.mT @ x).abs() / (norm_x * norm_y + EPS)


@pytest.mark.parametrize(
    ("dtype", "halves", "bias", "spread"),
    [
        (torch.float32, 1, True, True),
        (torch.float32, 2, False, True),
        (torch.float16, 1, False, False),
        (torch.float16, 2, True, True),
        (torch.bfloat16, 1, True, False),
        (torch.bfloat16, 2, True, True),
    ],
    ids=str,
)
def test_moments_of_equation_1(monkeypatch, dtype, halves, bias, spread):
    """Five prompts in two chunks, two at a time; sizes that no block divides; channels that are dead or nearly so."""
    tokens, columns, rows = 150, 200, 20
    torch.manual_seed(0)
    layer = nn.Linear(columns, rows, bias=bias).to(dtype)
    x = torch.randn(halves, 5, tokens, columns).to(dtype)
    x[:, 0, :, 1] = 0
    x[..., 2] = 0
    x[0, :, 5, 2] = 1e-7  # so little that eps can be seen
    monkeypatch.setattr(kernels, "_ENTRIES", 2 * halves * rows * columns)
    moments = Moments(spread)
    with torch.no_grad():
        output = layer(x)
        for few in (slice(0, 3), slice(3, 5)):
            moments.add_layer(x[:, few], output[:, few], layer.bias, kernels)
        expected = equation_1(x, output.double() - (layer.bias.double() if bias else 0))
    mean = expected.mean(0)
    assert moments.count == 5 and moments.mean.dtype == torch.float32
    assert float((moments.mean - mean).abs().max() / mean.max()) < 2e-6
    torch.testing.assert_close(moments.mean[:, 2].double(), mean[:, 2], rtol=1e-4, atol=0)
    if spread:
        std = expected.std(0, correction=0)
        assert float((moments.std() - std).abs().max() / std.max()) < 2e-6


@pytest.mark.parametrize(("dtype", "halves"), [("float32", "both"), ("bfloat16", "cond"), ("float32", "uncond")])
def test_a_whole_measurement_is_that_of_plain_operations(random_sd_folder, monkeypatch, dtype, halves):
    """Every step, layer and concept, with one unconditional row at the first call and one half at the last."""
    from harness.model import DiffusionModel

    model = DiffusionModel.load(random_sd_folder, name="random", suite="tiny", dtype=dtype)
    layers = model.layers("ffn2")
    how = Calibration(Sampler("pndm", 3, 7.5), steps=2, seed=1, size=(32, 32), halves=halves, chunk=2)
    monkeypatch.setattr(kernels, "_ROWS", 32)  # fewer and larger blocks: the interpreter is slow
    found = []
    for module in (None, kernels):
        contrasts: dict = {}
        monkeypatch.setattr(statistics, "fused", lambda weight, module=module: module)
        take = lambda index, name, contrast, kept=contrasts: kept.setdefault((index, name), []).append(contrast)  # noqa: E731
        contrast_each_step(model, layers, ["a road", "a tree", "a room"], [["a tench", "a dog"], ["a car"]], how, take)
        found.append(contrasts)
    plain, by_kernels = found
    assert plain.keys() == by_kernels.keys() and len(plain) == 2 * len(layers)
    for key, steps in plain.items():
        assert len(steps) == 2 and any(step.any() for step in steps)
        for one, other in zip(steps, by_kernels[key], strict=True):
            # A contrast is a small difference of activities, whose size decides the rounding.
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5 * float(one.max()) + 1e-6)


CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_trial_passes(dtype):
    assert layer_activity._difference(kernels, CPU, dtype) < TOLERANCE


@pytest.mark.parametrize("fault", ["norms", "total", "mean", "nan"])
def test_the_trial_notices_wrong_numbers(monkeypatch, fault):
    """Of the norms, of the sum or the spread at the second call of two, and numbers that are none."""
    own, add = kernels.sums_over_tokens, kernels.add

    def broken(x, output, bias, total, m2, before, eps):
        if fault == "total" and before and m2 is None:
            total.zero_()
        if fault == "mean" and before and m2 is not None:
            m2.zero_()
        add(x, output, bias, total, m2, before, eps)
        if fault == "nan" and m2 is not None:
            m2.fill_(torch.nan)

    monkeypatch.setattr(kernels, "add", broken)
    if fault == "norms":
        monkeypatch.setattr(kernels, "sums_over_tokens", lambda *given: tuple(1.001 * sums for sums in own(*given)))
    assert not layer_activity._difference(kernels, CPU, torch.float16) <= TOLERANCE
