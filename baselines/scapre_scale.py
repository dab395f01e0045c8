"""ScaPre (arXiv 2601.06162) as its released `erase_scale.py` does it: one system a channel, then a proximal step.

For every channel i of a cross-attention key or value projection, with the symbols of `scapre.py`, mu the mean entropy
of the projection's channels, Pi_C the projector on the span of C, m_i = max_k m_ki:

    M_i = (lambda + mu) I + R + C C^T + s sum_k X_k^T X_k + s m_i Pi_C
    w_i = M_i^-1 ( (lambda + mu) w0_i + s sum_k m_ki V_k^T X_k )

The proximal step then draws w_i back towards w0_i, in length and direction. See docs/methods/scapre.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.checks import flag, number, one_of, whole
from harness.edit import Edit
from harness.method import Stage
from harness.model import DiffusionModel
from harness.task import Concept

from .scapre_common import (
    EPS,
    TECHNIQUES,
    Noise,
    channel_entropy,
    check_guide,
    informax,
    masked_targets,
    read_texts,
    rewrite,
    soft_masks,
    spectral_gate,
)


@dataclass
class ScaPreScale:
    """Options of `erase_scale.py`; the defaults are those of its Diversi50 command (conf/method/scapre_scale.yaml)."""

    name: str = "scapre_scale"
    guide: str = ""
    technique: str = "replace"
    erase_scale: float = 3.0
    ridge: float = 0.5
    use_mi_softmask: bool = True
    p: float = 5.0
    enable_ased: bool = False
    T_sigma: float = 1.0
    p_sigma: float = 1.0
    bures_iters: int = 1
    enable_egbr: bool = False
    entropy_samples: int = 20
    entropy_bins: int = 20
    noise_sigma: float = 0.01

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_guide(self.guide)
        one_of("scapre's technique", self.technique, TECHNIQUES)
        for name in ("erase_scale", "p", "p_sigma"):
            number(f"scapre: {name}", getattr(self, name))
        for name in ("ridge", "T_sigma", "noise_sigma"):
            number(f"scapre: {name}", getattr(self, name), zero=False)
        for name in ("use_mi_softmask", "enable_ased", "enable_egbr"):
            flag(f"scapre: {name}", getattr(self, name))
        for name in ("bures_iters", "entropy_samples"):
            whole(f"scapre: {name}", getattr(self, name))
        whole("scapre: entropy_bins", self.entropy_bins, least=2)

    def edit(self, model: DiffusionModel, concepts: Sequence[Concept], seed: int, stage: Stage) -> Edit:
        """New cross-attention projections for all concepts at once; `seed` is that of the noise."""
        texts = read_texts(model, concepts, self.guide)
        noise = Noise(seed, self.noise_sigma)
        s, c = self.erase_scale, texts.last.T
        gram = s * texts.rows.T @ texts.rows + c @ c.T
        u, sigma, _ = torch.linalg.svd(c, full_matrices=False)
        basis = u * (sigma / (sigma.square() + EPS).sqrt())  # Pi_C = C (C^T C + eps I)^-1 C^T = basis basis^T
        ased = (u * (1 - spectral_gate(sigma, self.T_sigma, self.p_sigma))) @ u.T

        def new(layer: str, w0: Tensor) -> Tensor:
            e = channel_entropy(w0, texts, noise, layer, self.entropy_samples, self.entropy_bins)
            mu = float((1 - e).mean())
            shared = gram + mu * ased if self.enable_ased else gram.clone()
            shared.diagonal().add_(self.ridge + mu)
            strength, masks = w0.new_ones(len(w0)), None
            if self.use_mi_softmask:
                # As released: the strongest mask and the masks of the targets are drawn anew.
                strength = soft_masks(informax(w0, texts, noise, layer, "strength"), self.p).amax(1)
                masks = soft_masks(informax(w0, texts, noise, layer, "mask"), self.p)
            right = (self.ridge + mu) * w0 + s * masked_targets(w0, texts, masks, self.technique)
            erased = solve_rows(shared, basis, s * strength, right)
            w = bures_prox(w0, erased, mu, self.ridge + mu, self.bures_iters)
            return egbr(w0, w, 1 - e) if self.enable_egbr else w

        return rewrite(self, model, concepts, texts, new)


def solve_rows(g: Tensor, basis: Tensor, weight: Tensor, right: Tensor) -> Tensor:
    """w_i = (G + weight_i B B^T)^-1 b_i for every row at once, by Woodbury's identity and one eigendecomposition.

    Args:
        g: [d, d], positive definite.
        basis: B [d, r].
        weight: [o], at least 0.
        right: [o, d], the rows b_i.

    Returns:
        [o, d].
    """
    factor = torch.linalg.cholesky(g)
    solved = torch.cholesky_solve(basis, factor)
    values, vectors = torch.linalg.eigh(basis.T @ solved)
    z = solved @ vectors
    damping = weight[:, None] / (1 + weight[:, None] * values)
    return torch.cholesky_solve(right.T, factor).T - (right @ z * damping) @ z.T


def bures_prox(w0: Tensor, w: Tensor, mu: float, weight: float, iterations: int) -> Tensor:
    """The released "Bures proximal step": each row moves towards w0_i, its length and direction in turn. [o, d].

    Args:
        mu: pull towards w0.
        weight: pull towards w.
    """
    length, unit = _polar(w)
    length0, unit0 = _polar(w0)
    u = unit
    for _ in range(iterations):
        cosine = (u * unit0).sum(1, keepdim=True).clamp(min=0)
        r = (weight * length + mu * length0 * cosine) / (weight + mu)
        _, u = _polar(weight * length * unit + mu * length0 * cosine * unit0)
    return r * u


def egbr(w0: Tensor, w: Tensor, entropy: Tensor) -> Tensor:
    """The release's optional last step: rows of low entropy [o] return further to w0, in direction and length."""
    share = 1 - torch.exp(-entropy / entropy.max().clamp(min=1e-6))[:, None]
    length, unit = _polar(w)
    length0, unit0 = _polar(w0)
    beta = share * (unit * unit0).sum(1, keepdim=True).clamp(min=0)
    return length0 ** (1 - share) * length**share * _polar((1 - beta) * unit0 + beta * unit)[1]


def _polar(w: Tensor) -> tuple[Tensor, Tensor]:
    """Length [o, 1] and direction [o, d] of every row."""
    length = w.norm(dim=1, keepdim=True).clamp(min=EPS)
    return length, w / length
