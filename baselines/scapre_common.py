"""What the three formulations of ScaPre share: text features, channel statistics, and the loop over the projections.

W0 [o, d] is the weight of one cross-attention key or value projection; its o rows are the channels. All arithmetic is
in float64. Source: the released programs `erase.py` and `erase_scale.py`; see docs/methods/scapre.md.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from harness.checks import finite, to_forget
from harness.edit import Edit
from harness.model import DiffusionModel
from harness.screen import require_unscreened
from harness.task import Concept

log = logging.getLogger(__name__)

EPS = 1e-8  # every guard of the released programs
SAMPLES = 5  # noisy copies of a concept, and of the empty prompt, that the mutual information is counted on
TEMPERATURE = 0.7  # of the soft mask
TECHNIQUES = ("replace", "tensor")


@dataclass(frozen=True)
class Texts:
    """Features of the m concepts and of the guide that they are sent to.

    Attributes:
        names: the concepts, sorted.
        last: [m, d], the feature of each concept's last subject token (C transposed).
        rows: [N, d], for every concept its features from the last subject token on, padding included (X_k, stacked).
        owner: [N], the concept of each row.
        guide: [positions, d], the features of the guide.
        partner: [N], the position of the guide that each row is sent to (Y_k = guide[partner]).
        neutral: [d], the first end token of the empty prompt: what stands for "no concept".
    """

    names: tuple[str, ...]
    last: Tensor
    rows: Tensor
    owner: Tensor
    guide: Tensor
    partner: Tensor
    neutral: Tensor


def check_guide(guide: object) -> None:
    """Refuse a guide that is no text, such as null or a list."""
    if not isinstance(guide, str):
        raise ValueError(f'scapre: guide is a text ("" is the empty prompt), got {guide!r}')


def read_texts(model: DiffusionModel, concepts: Sequence[Concept], guide: str) -> Texts:
    """Encode the concepts' names and the guide.

    Concepts are sorted, so that their order does not decide the last bits of the sums.

    Raises:
        ValueError: see `to_forget`.
        ScreenedPromptError: the guide is refused by the prompt screen.
        FloatingPointError: the features hold NaN or infinity.
    """
    names = tuple(sorted(concept.name for concept in to_forget("scapre", model, concepts)))
    require_unscreened(guide, any(concept.kind == "explicit" for concept in concepts), "scapre: guide")
    features = model.token_features([*names, guide, ""])
    # Metal knows no float64.
    device = torch.device("cpu") if model.device.type == "mps" else model.device
    hidden = finite("scapre: text features", features.hidden).to(device, torch.float64)
    *subjects, start, _ = features.last.tolist()
    rows, owner, partner = [], [], []
    for k, subject in enumerate(subjects):
        count = hidden.shape[1] - max(subject, start)
        rows.append(hidden[k, subject : subject + count])
        owner += [k] * count
        partner += range(start, start + count)
    return Texts(
        names=names,
        last=torch.stack([part[0] for part in rows]),
        rows=torch.cat(rows),
        owner=torch.tensor(owner, device=device),
        guide=hidden[-2],
        partner=torch.tensor(partner, device=device),
        neutral=hidden[-1, 1],
    )


@dataclass(frozen=True)
class Noise:
    """Noisy copies of features. The released programs set no seed; here every use has a generator of its own.

    A draw depends on the seed, the layer, what it is for and the concept: never on other layers or concepts.
    """

    seed: int
    sigma: float

    def __call__(self, features: Tensor, count: int, layer: str, use: str, names: Sequence[str]) -> Tensor:
        """`count` copies of every feature plus sigma times normal noise: [m, d] -> [m, count, d]."""
        drawn = torch.stack([self._normal(f"{self.seed}|{layer}|{use}|{n}", count, features.shape[1]) for n in names])
        return features[:, None] + self.sigma * drawn.to(features)

    @staticmethod
    def _normal(key: str, *shape: int) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mutual_information(positive: Tensor, negative: Tensor) -> Tensor:
    """Mutual information, in nats, between "the channel is active" and "the input is the concept".

    Active means above the channel's lower median over all inputs.

    Args:
        positive, negative: [o, m, n] activations of noisy copies of the concept and of the neutral feature.

    Returns:
        [o, m]; with n = 5 and no ties 0.693, 0.193 or 0.020.
    """
    n = positive.shape[-1]
    threshold = torch.cat([positive, negative], dim=-1).median(dim=-1, keepdim=True).values
    active = torch.stack([(positive > threshold).sum(-1), (negative > threshold).sum(-1)], dim=-1).to(positive)
    joint = (torch.stack([active, n - active], dim=-1) + EPS) / (2 * n)  # [o, m, input, active or not]
    independent = joint.sum(-1, keepdim=True) * joint.sum(-2, keepdim=True)
    return (joint * (joint / independent).log()).sum((-1, -2))


def informax(w0: Tensor, texts: Texts, noise: Noise, layer: str, use: str) -> Tensor:
    """Mutual information of every channel with every concept [o, m], on fresh noise for each `use`."""
    neutral = texts.neutral.expand_as(texts.last)
    positive = noise(texts.last, SAMPLES, layer, f"{use} concept", texts.names)
    negative = noise(neutral, SAMPLES, layer, f"{use} neutral", texts.names)
    return mutual_information(_responses(w0, positive), _responses(w0, negative))


def soft_masks(information: Tensor, p: float) -> Tensor:
    """m_k in (0, 1): standardised over the channels, squashed, to the power p. [o, m] -> [o, m]."""
    deviation = information - information.mean(0)
    return torch.sigmoid(deviation / (information.std(0) + EPS) / TEMPERATURE) ** p


def entropy_factors(activations: Tensor, bins: int) -> Tensor:
    """e_i in [0, 1] of every channel: 1 - H / ln(bins), H the entropy of the histogram of its activations.

    Args:
        activations: [o, n]; each channel is scaled to its own range.
    """
    low, high = activations.amin(1, keepdim=True), activations.amax(1, keepdim=True)
    place = ((activations - low) / (high - low + EPS) * bins).long().clamp(max=bins - 1)
    counts = torch.zeros(len(activations), bins).to(activations)
    share = counts.scatter_add_(1, place, torch.ones_like(activations)) / activations.shape[1]
    entropy = -(share * (share + EPS).log()).sum(1)
    return (1 - entropy / math.log(bins)).clamp(0, 1)  # the guard reaches a little beyond


def channel_entropy(w0: Tensor, texts: Texts, noise: Noise, layer: str, samples: int, bins: int) -> Tensor:
    """e_i [o] on `samples` noisy copies of every concept."""
    copies = noise(texts.last, samples, layer, "entropy", texts.names)
    return entropy_factors(_responses(w0, copies).flatten(1), bins)


def spectral_gate(sigma: Tensor, temperature: float, power: float) -> Tensor:
    """Smooth gate in (0, 1) that opens for singular values above their lower median."""
    return torch.sigmoid((sigma - sigma.median()) / (temperature + EPS)) ** power


def masked_targets(w0: Tensor, texts: Texts, masks: Tensor | None, technique: str) -> Tensor:
    """sum_k diag(m_k) V_k^T X_k [o, d], V_k [N_k, o] being what the rows X_k shall give.

    `replace`: V_k = Y_k W0^T. `tensor`: V_k without its part along X_k W0^T, both taken as one long vector.

    Args:
        masks: [o, m]; None is one everywhere.
    """
    targets = (texts.guide @ w0.T)[texts.partner]
    if technique == "tensor":
        own = texts.rows @ w0.T
        sums = torch.zeros(2, len(texts.names)).to(w0)
        sums.index_add_(1, texts.owner, torch.stack([(own * targets).sum(1), own.square().sum(1)]))
        targets = targets - (sums[0] / sums[1])[texts.owner, None] * own
    if masks is not None:
        targets = targets * masks.T[texts.owner]
    return targets.T @ texts.rows


@torch.no_grad()
def rewrite(
    method: Any, model: DiffusionModel, concepts: Sequence[Concept], texts: Texts, new: Callable[[str, Tensor], Tensor]
) -> Edit:
    """The edit that replaces every cross-attention key and value projection W0 by `new(layer, W0)`.

    Raises:
        FloatingPointError: an old weight is NaN or infinite, or a new one in the model's dtype.
    """
    layers = {**model.layers("cross_k"), **model.layers("cross_v")}
    tensors, changes = {}, {}
    for name, layer in sorted(layers.items()):
        w0 = finite(f"scapre: {name}", layer.weight.detach()).to(texts.rows)
        w = new(name, w0)
        tensors[f"{name}.weight"] = finite(f"scapre: the new {name}", w.to(layer.weight.dtype))
        changes[name] = float((w - w0).norm() / w0.norm().clamp(min=EPS))
    mean = sum(changes.values()) / len(changes)
    log.info("%s: %d concepts, %d matrices, mean relative change %.4f", method.name, len(concepts), len(layers), mean)
    info = {
        "method": method.name,
        "version": method.version,
        "config": asdict(method),
        "concepts": [asdict(concept) for concept in concepts],
        "relative_change": changes,
    }
    return Edit.make("delta", tensors, model, info)


def _responses(w0: Tensor, inputs: Tensor) -> Tensor:
    """W0 x of every input: [o, d] and [m, n, d] -> [o, m, n]."""
    return (w0 @ inputs.flatten(0, 1).T).unflatten(1, inputs.shape[:2])
