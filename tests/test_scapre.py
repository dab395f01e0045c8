"""ScaPre: the specification's invariants, and a slow reference that goes concept by concept and channel by channel."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from baselines.scapre import ScaPre
from baselines.scapre_common import (
    Noise,
    entropy_factors,
    informax,
    masked_targets,
    mutual_information,
    read_texts,
    soft_masks,
    spectral_gate,
)
from baselines.scapre_reconstruction import ScaPreReconstruction, bures_geodesic, channel_weights, sylvester
from baselines.scapre_scale import ScaPreScale, bures_prox, egbr, solve_rows
from harness.task import Concept

NAMES = "church, tench, gas pump, golf ball, parachute, chain saw, French horn, lion, dog, cassette".split(", ")
CONCEPTS = [Concept(name, "object") for name in NAMES]
SEED = 5
# Noise at which channels fall on both sides of the threshold, so that masks and entropies are not all alike.
LOUD = {"noise_sigma": 0.5}
METHODS = {
    "erase": ScaPre(**LOUD),
    "erase svd": ScaPre(svd=True, T_sigma=0.5, p_sigma=2, alpha_min=0.1, p=3, erase_scale=2, guide="art", **LOUD),
    "erase tensor": ScaPre(technique="tensor", svd=True, res_scale=0.3, alpha_min=1, **LOUD),
    "scale": ScaPreScale(**LOUD),
    "scale all": ScaPreScale(enable_ased=True, enable_egbr=True, bures_iters=3, technique="tensor", **LOUD),
    "scale unmasked": ScaPreScale(use_mi_softmask=False, enable_ased=True, p_sigma=2, entropy_bins=7, **LOUD),
    "reconstruction": ScaPreReconstruction(**LOUD),
    "reconstruction guide": ScaPreReconstruction(target="guide", guide="art", anchor="ridge", bures_step=0.8, **LOUD),
}


def edit(model, method, concepts=CONCEPTS[:2], seed=SEED):
    return method.edit(model, concepts, seed, None)


def projections(model) -> dict[str, torch.Tensor]:
    layers = {**model.layers("cross_k"), **model.layers("cross_v")}
    return {f"{name}.weight": layer.weight.detach().clone() for name, layer in layers.items()}


def precise(model):
    """The model with UNet weights of float64: edits are not rounded then."""
    model.unet.double()
    return model


def random(*shape, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The slow reference, in numpy: one concept, one channel, one row at a time


def slow_texts(model, concepts, guide):
    """(X_k, Y_k) of every concept, C [d, m] and the neutral feature; by name."""
    features = model.token_features([*(c.name for c in concepts), guide, ""])
    e, ends = features.hidden.double().numpy(), features.last.tolist()
    pairs = []
    for k in range(len(concepts)):
        far = max(ends[k], ends[-2])
        stop = e.shape[1] - far
        pairs.append((e[k, ends[k] : ends[k] + stop], e[-2, ends[-2] : ends[-2] + stop]))
    return pairs, np.stack([x[0] for x, _ in pairs], axis=1), e[-1, 1]


def draws(noise, feature, count, layer, use, name):
    return noise(torch.as_tensor(feature)[None], count, layer, use, [name])[0].numpy()


def slow_information(row, positive, negative) -> float:
    threshold = sorted([row @ x for x in positive] + [row @ x for x in negative])[len(positive) - 1]
    counts = {(z, y): 1e-8 for z in (0, 1) for y in (0, 1)}
    for y, samples in ((1, positive), (0, negative)):
        for x in samples:
            counts[int(row @ x > threshold), y] += 1
    p = {key: n / (2 * len(positive)) for key, n in counts.items()}
    total = 0.0
    for z, y in p:
        total += p[z, y] * math.log(p[z, y] / ((p[z, 0] + p[z, 1]) * (p[0, y] + p[1, y])))
    return total


def slow_informax(w0, c, neutral, noise, layer, use, names) -> np.ndarray:
    result = np.zeros((len(w0), len(names)))
    for k, name in enumerate(names):
        positive = draws(noise, c[:, k], 5, layer, f"{use} concept", name)
        negative = draws(noise, neutral, 5, layer, f"{use} neutral", name)
        for i, row in enumerate(w0):
            result[i, k] = slow_information(row, positive, negative)
    return result


def slow_masks(information, p) -> np.ndarray:
    standard = (information - information.mean(0)) / (information.std(0, ddof=1) + 1e-8)
    return (1 / (1 + np.exp(-standard / 0.7))) ** p


def slow_entropy(w0, c, noise, layer, names, samples, bins) -> np.ndarray:
    inputs = np.concatenate([draws(noise, c[:, k], samples, layer, "entropy", n) for k, n in enumerate(names)])
    result = []
    for row in w0:
        a = inputs @ row
        counts, _ = np.histogram((a - a.min()) / (a.max() - a.min() + 1e-8), bins=bins, range=(0, 1))
        p = counts / counts.sum()
        result.append(1 + sum(x * math.log(x + 1e-8) for x in p) / math.log(bins))
    return np.clip(result, 0, 1)


def slow_targets(w0, pairs, masks, technique) -> np.ndarray:
    total = np.zeros_like(w0)
    for k, (x, y) in enumerate(pairs):
        v = y @ w0.T
        if technique == "tensor":
            u = x @ w0.T / np.linalg.norm(x @ w0.T)
            v = v - (u * v).sum() * u
        for i in range(len(w0)):
            total[i] += masks[i, k] * v[:, i] @ x
    return total


def slow_gate(sigma, temperature, power) -> np.ndarray:
    median = sorted(sigma)[(len(sigma) - 1) // 2]
    return (1 / (1 + np.exp(-(sigma - median) / (temperature + 1e-8)))) ** power


def slow_erase(self, layer, w0, pairs, c, neutral, names):
    noise, s, eye = Noise(SEED, self.noise_sigma), self.erase_scale, np.eye(w0.shape[1])
    masks = slow_masks(slow_informax(w0, c, neutral, noise, layer, "mask", names), self.p)
    m1 = self.ridge * w0 + s * slow_targets(w0, pairs, masks, self.technique)
    m2 = self.ridge * eye + c @ c.T + s * sum(x.T @ x for x, _ in pairs)
    if self.svd:
        u, sigma, _ = np.linalg.svd(c, full_matrices=False)
        left = (eye - u @ np.diag(slow_gate(sigma, self.T_sigma, self.p_sigma)) @ u.T) @ c
        m1 -= (s if self.res_scale is None else self.res_scale) * w0 @ left @ left.T
    e = slow_entropy(w0, c, noise, layer, names, self.entropy_samples, self.entropy_bins)
    alpha = self.alpha_min + (1 - self.alpha_min) * e
    rows = [np.linalg.solve(m2, row) for row in m1]
    return np.stack([a * row + (1 - a) * old for a, row, old in zip(alpha, rows, w0)])


def slow_scale(self, layer, w0, pairs, c, neutral, names):
    noise, s, eye = Noise(SEED, self.noise_sigma), self.erase_scale, np.eye(w0.shape[1])
    entropy = 1 - slow_entropy(w0, c, noise, layer, names, self.entropy_samples, self.entropy_bins)
    mu = entropy.mean()
    r = 0 * eye
    if self.enable_ased:
        u, sigma, _ = np.linalg.svd(c, full_matrices=False)
        r = u @ np.diag(mu * (1 - slow_gate(sigma, self.T_sigma, self.p_sigma))) @ u.T
    masks, strongest = np.ones((len(w0), len(names))), np.ones(len(w0))
    if self.use_mi_softmask:
        strongest = slow_masks(slow_informax(w0, c, neutral, noise, layer, "strength", names), self.p).max(1)
        masks = slow_masks(slow_informax(w0, c, neutral, noise, layer, "mask", names), self.p)
    projector = c @ np.linalg.inv(c.T @ c + 1e-8 * np.eye(len(names))) @ c.T
    v, lp = s * slow_targets(w0, pairs, masks, self.technique), self.ridge + mu
    result = []
    for i, old in enumerate(w0):
        m = lp * eye + r + c @ c.T + s * sum(x.T @ x for x, _ in pairs) + s * strongest[i] * projector
        erased = np.linalg.solve(m, lp * old + v[i])
        a, r0 = np.linalg.norm(erased), np.linalg.norm(old)
        u = erased / a
        for _ in range(self.bures_iters):
            kappa = max(u @ old / r0, 0)
            length = (lp * a + mu * r0 * kappa) / (lp + mu)
            u = lp * erased + mu * kappa * old
            u = u / np.linalg.norm(u)
        if self.enable_egbr:
            share = 1 - math.exp(-entropy[i] / entropy.max())
            beta = share * max(u @ old / r0, 0)
            length = math.sqrt(math.exp((1 - share) * math.log(r0**2) + share * math.log(length**2)))
            u = (1 - beta) * old / r0 + beta * u
            u = u / np.linalg.norm(u)
        result.append(length * u)
    return np.stack(result)


def slow_reconstruction(self, layer, w0, pairs, c, neutral, names):
    information = slow_informax(w0, c, neutral, Noise(SEED, self.noise_sigma), layer, "mask", names).max(1)
    alpha = information / information.max()
    u, sigma, _ = np.linalg.svd(c, full_matrices=False)
    r = u @ np.diag((1 - 1 / (1 + np.exp(-sigma))) * sigma) @ u.T
    a = self.ridge * np.eye(w0.shape[1]) + sum(x.T @ x for x, _ in pairs) + r
    f = np.stack([(self.ridge + (alpha[i] if self.anchor == "ridge" else 0)) * row for i, row in enumerate(w0)])
    if self.target == "guide":
        f += sum((y @ w0.T).T @ x for x, y in pairs)
    w = np.stack([np.linalg.solve(a + alpha[i] * np.eye(len(a)), f[i]) for i in range(len(w0))])
    rotation, _ = scipy.linalg.orthogonal_procrustes(w0, w)
    return (1 - self.bures_step) * w + self.bures_step * w0 @ rotation


SLOW = {ScaPre: slow_erase, ScaPreScale: slow_scale, ScaPreReconstruction: slow_reconstruction}


def compare(model, method, concepts):
    old = projections(precise(model))
    made = edit(model, method, concepts)
    assert made.kind == "delta" and made.tensors.keys() == old.keys()
    texts = slow_texts(model, concepts, method.guide)
    names = [concept.name for concept in concepts]
    for name, w0 in old.items():
        expected = SLOW[type(method)](method, name.removesuffix(".weight"), w0.numpy(), *texts, names)
        got = made.tensors[name].numpy()
        assert np.linalg.norm(got - expected) < 1e-7 * np.linalg.norm(expected), name
        assert np.linalg.norm(got - w0.numpy()) > 0.01 * np.linalg.norm(w0.numpy()), name


@pytest.mark.parametrize("name", METHODS)
def test_sd_is_the_slow_reference(random_sd_model, name):
    compare(random_sd_model, METHODS[name], CONCEPTS[:2])


@pytest.mark.parametrize("count", [1, 10])
@pytest.mark.parametrize("name", ["erase svd", "scale all", "reconstruction guide"])
def test_one_and_many_concepts(random_sd_model, name, count):
    compare(random_sd_model, METHODS[name], CONCEPTS[:count])


@pytest.mark.parametrize("name", ["erase svd", "scale all", "reconstruction guide"])
def test_sdxl_is_the_slow_reference(random_sdxl_model, name):
    compare(random_sdxl_model, METHODS[name], CONCEPTS[:2])


# Channel statistics


def test_mutual_information_by_hand():
    """a of five noisy concepts above the threshold, 5 - a of the neutral ones."""
    rows = [[10.0] * a + [0.0] * (5 - a) for a in range(6)]
    ramp = torch.arange(10).view(2, 5) / 100  # no ties
    positive = torch.tensor(rows)[:, None] + ramp[0]
    negative = torch.tensor(rows).flip(0)[:, None] + ramp[1]
    got = mutual_information(positive.double(), negative.double())[:, 0]
    strong, middle, weak = math.log(2), 0.1927, 0.0201
    expected = torch.tensor([strong, middle, weak, weak, middle, strong], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    both = torch.cat([positive, negative], -1)
    assert ((both > both.median(-1, keepdim=True).values).sum(-1) == 5).all()


def test_half_of_all_inputs_are_active_in_every_channel_of_a_model(random_sd_model):
    """With any other number than five of ten the mutual information would take other values."""
    texts, noise = read_texts(random_sd_model, CONCEPTS[:4], ""), Noise(SEED, 0.5)
    possible = torch.tensor([0.0201, 0.1927, 0.6931]).double()
    seen = set()
    for name, w0 in projections(random_sd_model).items():
        w0 = w0.double()
        inputs = [
            noise(features, 5, name, use, texts.names)
            for features, use in ((texts.last, "mask concept"), (texts.neutral.expand_as(texts.last), "mask neutral"))
        ]
        responses = torch.einsum("od,mnd->omn", w0, torch.cat(inputs, dim=1))
        threshold = responses.sort().values[..., 4:5]
        assert ((responses > threshold).sum(-1) == 5).all()
        distance, value = (informax(w0, texts, noise, name, "mask")[..., None] - possible).abs().min(-1)
        assert distance.max() < 1e-4
        seen.update(value.flatten().tolist())
    assert seen == {0, 1, 2}


def test_masks():
    information = torch.tensor([0.0201, 0.1927, 0.6931]).double()[torch.randint(0, 3, (50, 4))]
    masks = soft_masks(information, 2)
    assert ((masks > 0) & (masks < 1)).all()
    assert torch.equal(soft_masks(information, 0), torch.ones(50, 4).double())
    assert (soft_masks(information, 3) < masks).all()
    # Where every channel tells the concept apart, the mask is flat.
    torch.testing.assert_close(
        soft_masks(torch.full((50, 1), math.log(2)).double(), 3), torch.full((50, 1), 0.125).double()
    )


def test_entropy_by_hand():
    even = torch.arange(20).double() / 19
    clusters = torch.tensor([0.0] * 10 + [1.0] * 10).double()
    e = entropy_factors(torch.stack([even, clusters, torch.ones(20).double()]), 20)
    torch.testing.assert_close(e, torch.tensor([0, 1 - math.log(2) / math.log(20), 1]).double(), rtol=0, atol=1e-6)
    random_e = entropy_factors(random(200, 30), 5)
    assert ((random_e >= 0) & (random_e <= 1)).all()


def test_the_gate_opens_above_the_median():
    gate = spectral_gate(torch.tensor([9.0, 4.0, 3.0, 1.0]), 1.0, 1.0)
    assert gate[2] == 0.5 and (gate.diff() < 0).all()  # of four values the third is the lower median
    assert (spectral_gate(torch.tensor([9.0, 4.0]), 1.0, 0.0) == 1).all()


def test_noise_of_a_concept_depends_on_nothing_else(random_sd_model):
    both, alone = (read_texts(random_sd_model, CONCEPTS[:n], "") for n in (2, 1))
    w0, noise = next(iter(projections(random_sd_model).values())).double(), Noise(3, 0.5)
    one = informax(w0, alone, noise, "layer", "mask")
    assert torch.equal(informax(w0, both, noise, "layer", "mask")[:, :1], one)
    for other in (Noise(4, 0.5), Noise(3, 0.6)):
        assert not torch.equal(informax(w0, alone, other, "layer", "mask"), one)
    assert not torch.equal(informax(w0, alone, noise, "other", "mask"), one)
    assert not torch.equal(informax(w0, alone, noise, "layer", "strength"), one)


# Algebra, in float64


def test_rows_are_paired_as_specified(random_sd_model):
    """Last subject token against the guide's, then end tokens and padding; the empty guide's "subject" is its start."""
    for guide in ("", "art", "a very long guide"):
        texts = read_texts(random_sd_model, CONCEPTS[:2], guide)
        pairs, c, neutral = slow_texts(random_sd_model, CONCEPTS[:2], guide)
        np.testing.assert_array_equal(texts.rows, np.concatenate([x for x, _ in pairs]))
        np.testing.assert_array_equal(texts.guide[texts.partner], np.concatenate([y for _, y in pairs]))
        np.testing.assert_array_equal(texts.last.T, c)
        np.testing.assert_array_equal(texts.neutral, neutral)
        assert texts.owner.bincount().tolist() == [len(x) for x, _ in pairs]


def test_normal_equations(random_sd_model):
    """W_new M2 = M1; with alpha_min = 1 the edit is W_new."""
    old = projections(precise(random_sd_model))
    method = ScaPre(alpha_min=1, erase_scale=2)
    texts = read_texts(random_sd_model, CONCEPTS, "")
    x, c = texts.rows, texts.last.T
    m2 = 0.5 * torch.eye(len(c)).double() + c @ c.T + 2 * x.T @ x
    for name, w in edit(random_sd_model, method, CONCEPTS).tensors.items():
        layer = name.removesuffix(".weight")
        masks = soft_masks(informax(old[name], texts, Noise(SEED, 0.01), layer, "mask"), 2)
        m1 = 0.5 * old[name] + 2 * masked_targets(old[name], texts, masks, "replace")
        assert (w @ m2 - m1).norm() < 1e-9 * m1.norm()


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_every_channel_has_its_own_system(rank):
    x, basis = random(30, 12), random(12, rank, seed=1)
    basis[:, -1] = basis[:, 0]  # linearly dependent, as concepts named twice are
    g = x.T @ x + 0.5 * torch.eye(12).double()
    weight, right = random(7, seed=2).abs() * 10, random(7, 12, seed=3)
    weight[0] = 0
    w = solve_rows(g, basis, weight, right)
    for i in range(7):
        torch.testing.assert_close((g + weight[i] * basis @ basis.T) @ w[i], right[i], rtol=1e-9, atol=1e-9)


def test_sylvester_equation():
    x, alpha, f = random(5, 12), torch.rand(7, dtype=torch.float64), random(7, 12, seed=2)
    a = x.T @ x + 0.5 * torch.eye(12).double()
    w = sylvester(alpha, *torch.linalg.eigh(a), f)
    torch.testing.assert_close(torch.diag(alpha) @ w + w @ a, f, rtol=1e-10, atol=1e-10)


def test_channel_weights():
    information = torch.tensor([[0.02, 0.19], [0.69, 0.02], [0.02, 0.02]])
    torch.testing.assert_close(channel_weights(information), torch.tensor([0.19, 0.69, 0.02]) / 0.69)


LONG = [Concept("a rare parachute", "object"), Concept("golden retriever", "object")]


def unrelated(model) -> torch.Tensor:
    """Inputs [n, d] orthogonal to all features of two long names, which leave few positions for padding."""
    return torch.as_tensor(scipy.linalg.null_space(read_texts(model, LONG, "").rows.numpy()).T)


@pytest.mark.parametrize(
    "method",
    [
        ScaPre(),
        ScaPre(svd=True, technique="tensor", alpha_min=1),
        ScaPreScale(),
        ScaPreScale(enable_ased=True, erase_scale=30),
        ScaPreReconstruction(anchor="ridge", bures_step=0),
        ScaPreReconstruction(anchor="ridge", bures_step=0, target="guide"),
    ],
)
def test_unrelated_inputs_keep_their_outputs(random_sd_model, monkeypatch, method):
    monkeypatch.setattr("baselines.scapre_scale.bures_prox", lambda w0, w, *_: w)  # it changes whole rows
    old, x = projections(precise(random_sd_model)), unrelated(random_sd_model)
    assert len(x) > 10
    for name, w in edit(random_sd_model, method, LONG).tensors.items():
        torch.testing.assert_close(w @ x.T, old[name] @ x.T, rtol=1e-8, atol=1e-9)
        assert (w - old[name]).norm() > 0.01 * old[name].norm()


def test_the_reconstructions_anchor_shrinks_whole_channels(random_sd_model):
    """With `lambda` unrelated outputs are lambda / (lambda + alpha_i) of what they were."""
    old, x = projections(precise(random_sd_model)), unrelated(random_sd_model)
    texts = read_texts(random_sd_model, LONG, "")
    for name, w in edit(random_sd_model, ScaPreReconstruction(bures_step=0, **LOUD), LONG).tensors.items():
        information = informax(old[name], texts, Noise(SEED, 0.5), name.removesuffix(".weight"), "mask")
        share = 0.5 / (0.5 + channel_weights(information))
        assert 0.3 < share.min() < share.max()
        torch.testing.assert_close(w @ x.T, share[:, None] * (old[name] @ x.T), rtol=1e-8, atol=1e-9)


def test_a_scale_of_zero_is_no_edit_without_effect(random_sd_model):
    old = projections(precise(random_sd_model))
    c = read_texts(random_sd_model, CONCEPTS[:2], "").last.T
    shrink = 0.5 * torch.linalg.inv(0.5 * torch.eye(len(c)).double() + c @ c.T)
    for name, w in edit(random_sd_model, ScaPre(erase_scale=0, alpha_min=1)).tensors.items():
        torch.testing.assert_close(w, old[name] @ shrink, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(w, old[name], rtol=1e-2)


def test_a_scale_of_zero_shrinks_what_points_along_the_concepts(random_sd_model, monkeypatch):
    """`erase_scale.py`: (lambda + mu) W0 ((lambda + mu) I + C C^T)^-1 before the proximal step."""
    old, method = projections(precise(random_sd_model)), ScaPreScale(erase_scale=0, use_mi_softmask=False)
    last = read_texts(random_sd_model, CONCEPTS[:2], "").last
    _, sigma, along = torch.linalg.svd(last, full_matrices=False)
    others = torch.as_tensor(scipy.linalg.null_space(last.numpy()).T)
    for name, w in edit(random_sd_model, method).tensors.items():
        assert ((w @ along.T).norm(dim=0) < 0.9 * (old[name] @ along.T).norm(dim=0)).all(), name
    pulls = []
    monkeypatch.setattr("baselines.scapre_scale.bures_prox", lambda w0, w, mu, *_: (pulls.append(0.5 + mu), w)[1])
    made = edit(random_sd_model, method).tensors
    for (name, w), pull in zip(made.items(), pulls, strict=True):
        shrunk = pull / (pull + sigma.square())
        assert (shrunk < 0.5).all()
        torch.testing.assert_close(w @ along.T, old[name] @ along.T * shrunk, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(w @ others.T, old[name] @ others.T, rtol=1e-8, atol=1e-9)


# The proximal step and the geodesic


def test_proximal_step_by_hand():
    w0, w = random(6, 8), random(6, 8, seed=1)
    w[0] = -3 * w0[0]
    w[1] -= (w[1] @ w0[1]) / (w0[1] @ w0[1]) * w0[1]
    torch.testing.assert_close(bures_prox(w0, w, 0.0, 0.5, 3), w)
    torch.testing.assert_close(bures_prox(w0, w0, 0.7, 1.2, 3), w0)
    moved = bures_prox(w0, w, 0.7, 1.2, 4)
    torch.testing.assert_close(moved[:2], 1.2 / 1.9 * w[:2])  # opposed, orthogonal: no pull, only shorter
    assert (moved.norm(dim=1) <= torch.maximum(w.norm(dim=1), w0.norm(dim=1)) + 1e-12).all()
    torch.testing.assert_close(bures_prox(w0, 2 * w0, 0.7, 1.2, 1), (1.2 * 2 + 0.7) / 1.9 * w0)


def test_proximal_step_converges_to_its_two_equations():
    w0 = random(6, 8)
    w = w0 + random(6, 8, seed=1)
    u = torch.nn.functional.normalize(bures_prox(w0, w, 0.7, 1.2, 500))
    u0, r0 = torch.nn.functional.normalize(w0), w0.norm(dim=1, keepdim=True)
    kappa = (u * u0).sum(1, keepdim=True).clamp(min=0)
    torch.testing.assert_close(u, torch.nn.functional.normalize(1.2 * w + 0.7 * r0 * kappa * u0))
    length = (1.2 * w.norm(dim=1, keepdim=True) + 0.7 * r0 * kappa) / 1.9
    torch.testing.assert_close(bures_prox(w0, w, 0.7, 1.2, 500), length * u)


def test_egbr_returns_channels_without_entropy():
    w0, w = random(3, 8), random(3, 8, seed=1)
    w[1] = 4 * w0[1]
    got = egbr(w0, w, torch.tensor([0.0, 1.0, 0.5]).double())
    torch.testing.assert_close(got[0], w0[0])
    torch.testing.assert_close(got[1], 4 ** (1 - math.exp(-1)) * w0[1])
    torch.testing.assert_close(egbr(w0, w0, torch.rand(3).double()), w0)


def root(s: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(s)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def bures(w: torch.Tensor, v: torch.Tensor) -> float:
    """The Bures distance between W W^T and V V^T."""
    a, b = w @ w.T, v @ v.T
    squared = a.trace() + b.trace() - 2 * root(root(a) @ b @ root(a)).trace()
    return float(squared.clamp(min=0).sqrt())


@pytest.mark.parametrize("shape", [(4, 9), (9, 9), (12, 5)], ids=["wide", "square", "tall"])
def test_bures_geodesic(shape):
    w0, w = random(*shape), random(*shape, seed=1)
    whole = bures(w, w0)
    end = bures_geodesic(w0, w, 1.0)
    torch.testing.assert_close(end @ end.T, w0 @ w0.T)
    torch.testing.assert_close(bures_geodesic(w0, w, 0.0), w)
    assert abs(float((end - w).norm()) - whole) < 1e-6
    for t in (0.2, 0.7):
        middle = bures_geodesic(w0, w, t)
        assert abs(bures(w, middle) - t * whole) < 1e-5 and abs(bures(middle, w0) - (1 - t) * whole) < 1e-5
    # No other rotation of the same Gram matrix is closer to W.
    for seed in range(5):
        turn, _ = torch.linalg.qr(random(shape[1], shape[1], seed=seed))
        assert (w0 @ turn - w).norm() > (end - w).norm()


def test_bures_geodesic_is_the_optimal_transport_map():
    w0, w = random(4, 9), random(4, 9, seed=1)
    s, s0 = w @ w.T, w0 @ w0.T
    inverse = torch.linalg.inv(root(s))
    t = inverse @ root(root(s) @ s0 @ root(s)) @ inverse
    torch.testing.assert_close(bures_geodesic(w0, w, 0.3), (0.7 * torch.eye(4).double() + 0.3 * t) @ w)


# The edit


@pytest.mark.parametrize("name", ["erase svd", "scale all", "reconstruction"])
@pytest.mark.parametrize("fixture", ["random_sd_model", "random_sdxl_model"])
def test_the_edit_changes_only_keys_and_values_and_comes_off_again(request, fixture, name):
    model = request.getfixturevalue(fixture)
    before = {n: p.clone() for n, p in model.unet.named_parameters()}
    made = edit(model, METHODS[name])
    assert made.tensors.keys() == projections(model).keys()
    assert all(torch.equal(p, before[n]) for n, p in model.unet.named_parameters())
    with made.applied(model):
        for n, p in model.unet.named_parameters():
            assert torch.equal(p, before[n]) is (n not in made.tensors), n
    assert all(torch.equal(p, before[n]) for n, p in model.unet.named_parameters())
    assert model.calls == 0
    assert set(made.info["relative_change"]) == {n.removesuffix(".weight") for n in made.tensors}
    assert all(0 < change < 10 for change in made.info["relative_change"].values())


@pytest.mark.parametrize("name", ["erase svd", "scale all", "reconstruction guide"])
def test_seed_and_order(random_sd_model, name):
    first = edit(random_sd_model, METHODS[name], CONCEPTS)
    assert edit(random_sd_model, METHODS[name], CONCEPTS).fingerprint == first.fingerprint
    assert edit(random_sd_model, METHODS[name], CONCEPTS[::-1]).fingerprint == first.fingerprint
    assert edit(random_sd_model, METHODS[name], CONCEPTS, seed=6).fingerprint != first.fingerprint


def test_an_edited_model_can_be_edited_again(random_sd_model):
    """`schedule=sequential`: the second edit starts from the first one's weights."""
    first = edit(random_sd_model, METHODS["erase"], CONCEPTS[:1])
    fresh = edit(random_sd_model, METHODS["erase"], CONCEPTS[1:2])
    with first.applied(random_sd_model):
        second = edit(random_sd_model, METHODS["erase"], CONCEPTS[1:2])
    assert all(not torch.equal(second.tensors[n], fresh.tensors[n]) for n in fresh.tensors)


def test_broken_weights_are_not_handed_on(random_sd_model):
    with torch.no_grad():
        next(iter(random_sd_model.layers("cross_k").values())).weight[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match=r"scapre: .*attn2\.to_k: NaN or infinity"):
        edit(random_sd_model, METHODS["erase"])


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (ScaPre, {"technique": "replce"}, "did you mean replace"),
        (ScaPre, {"erase_scale": -1}, "erase_scale is a number >= 0, got -1"),
        (ScaPre, {"ridge": 0}, "ridge is a number > 0, got 0"),
        (ScaPre, {"alpha_min": 1.5}, "alpha_min is a number from 0 to 1, got 1.5"),
        (ScaPre, {"alpha_min": True}, "alpha_min is a number from 0 to 1"),
        (ScaPre, {"res_scale": "1"}, "res_scale is a number"),
        (ScaPre, {"svd": "yes"}, "svd is true or false"),
        (ScaPre, {"entropy_bins": 1}, "entropy_bins is a whole number >= 2"),
        (ScaPre, {"noise_sigma": 0.0}, "noise_sigma is a number > 0"),
        (ScaPre, {"T_sigma": float("nan")}, "T_sigma is a number > 0"),
        (ScaPre, {"guide": None}, "guide is a text"),
        (ScaPreScale, {"bures_iters": 0}, "bures_iters is a whole number >= 1"),
        (ScaPreScale, {"entropy_samples": 2.5}, "entropy_samples is a whole number"),
        (ScaPreScale, {"enable_ased": 1}, "enable_ased is true or false"),
        (ScaPreScale, {"p": -2}, "p is a number >= 0"),
        (ScaPreReconstruction, {"name": "scapre"}, "scapre: name stays scapre_reconstruction, .* got 'scapre'"),
        (ScaPreReconstruction, {"target": "nothing"}, "scapre's target"),
        (ScaPreReconstruction, {"anchor": "lamda"}, "did you mean lambda"),
        (ScaPreReconstruction, {"bures_step": 2}, "bures_step is a number from 0 to 1, got 2"),
    ],
)
def test_bad_parameters(make, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(**settings)
    assert "\n" not in str(caught.value)


def test_configurations():
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    conf = str(Path(__file__).resolve().parents[1] / "conf" / "method")
    with initialize_config_dir(conf, version_base=None):
        for method in (ScaPre(), ScaPreScale(), ScaPreReconstruction()):
            assert instantiate(compose(method.name)) == method
        style, explicit = (compose("scapre", [f"+task.kind={kind}"]) for kind in ("style", "explicit"))
        many = compose("scapre_scale", ["+task.kind=style"])
    style, explicit, many = (OmegaConf.to_container(config, resolve=True) for config in (style, explicit, many))
    assert (style["guide"], style["alpha_min"], style["svd"]) == ("art", 0.5, False)
    assert (explicit["guide"], explicit["alpha_min"], explicit["svd"]) == ("", 1.0, True)
    assert (many["erase_scale"], many["p"], many["enable_ased"], many["entropy_samples"]) == (2.0, 8.0, True, 30)


@pytest.mark.parametrize("form", ["md", "csv", "latex", "html"])
def test_every_table_says_that_it_is_a_reconstruction(form):
    from experiments import catalogue, tables

    experiment = catalogue.load("scapre_imagenette", "method=scapre_reconstruction")
    name, id = experiment.config["method"]["name"], experiment.paper.metrics["avg_forget_acc"].id
    shown = {"id": id, "subject": "all", "value": 0.2, "low": 0.1, "high": 0.3, "n": 130, "higher_is_better": False}
    record = {
        "method": name, "task": "imagenette", "model": "sd15", "split": "test", "preset": "", "edit": {},
        "metrics": [shown], "unedited": [], "config": experiment.config, "world": "", "note": "",
        "fingerprints": {"base": "01" * 32},
    }  # fmt: skip
    for table in (tables.of_records([record], form), tables.of_experiment("scapre_imagenette", [record], form)):
        assert "reconstruction" in table
