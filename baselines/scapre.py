"""ScaPre (arXiv 2601.06162) as its released `erase.py` does it: masked targets, damped rows.

For every cross-attention key and value projection W0, with X_k the features of concept k from its last subject token
on, Y_k those of the guide, V_k = Y_k W0^T, C the last subject tokens of all concepts, m_k a mask over the channels:

    M1 = lambda W0 + s sum_k diag(m_k) V_k^T X_k
    M2 = lambda I + C C^T + s sum_k X_k^T X_k
    W  = alpha M1 M2^-1 + (1 - alpha) W0        alpha, by channel, between alpha_min and 1

    python run.py method=scapre                   this file
    python run.py method=scapre_scale             the release's second program, erase_scale.py
    python run.py method=scapre_reconstruction    the paper's formulas, as far as they are known

The released programs are not the paper's formulas; docs/methods/scapre.md compares the three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.checks import flag, is_number, number, one_of, whole
from harness.edit import Edit
from harness.method import Stage
from harness.model import DiffusionModel
from harness.task import Concept

from .scapre_common import (
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
class ScaPre:
    """Options of `erase.py`; the defaults are those of its published object commands (conf/method/scapre.yaml)."""

    name: str = "scapre"
    guide: str = ""
    technique: str = "replace"
    erase_scale: float = 1.0
    ridge: float = 0.5
    p: float = 2.0
    alpha_min: float = 0.8
    svd: bool = False
    T_sigma: float = 1.0
    p_sigma: float = 1.0
    res_scale: float | None = None
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
        if not is_number(self.alpha_min) or not 0 <= self.alpha_min <= 1:
            raise ValueError(f"scapre: alpha_min is a number from 0 to 1, got {self.alpha_min!r}")
        if self.res_scale is not None:
            number("scapre: res_scale", self.res_scale)
        flag("scapre: svd", self.svd)
        whole("scapre: entropy_samples", self.entropy_samples)
        whole("scapre: entropy_bins", self.entropy_bins, least=2)

    def edit(self, model: DiffusionModel, concepts: Sequence[Concept], seed: int, stage: Stage) -> Edit:
        """New cross-attention projections for all concepts at once; `seed` is that of the noise."""
        texts = read_texts(model, concepts, self.guide)
        noise = Noise(seed, self.noise_sigma)
        m2 = self.erase_scale * texts.rows.T @ texts.rows + texts.last.T @ texts.last
        m2.diagonal().add_(self.ridge)
        factor = torch.linalg.cholesky(m2)
        residual = self.residual(texts.last.T) if self.svd else None

        def new(layer: str, w0: Tensor) -> Tensor:
            masks = soft_masks(informax(w0, texts, noise, layer, "mask"), self.p)
            m1 = self.ridge * w0 + self.erase_scale * masked_targets(w0, texts, masks, self.technique)
            if residual is not None:
                m1 -= w0 @ residual
            solved = torch.cholesky_solve(m1.T, factor).T
            e = channel_entropy(w0, texts, noise, layer, self.entropy_samples, self.entropy_bins)
            alpha = self.alpha_min + (1 - self.alpha_min) * e[:, None]
            return alpha * solved + (1 - alpha) * w0

        return rewrite(self, model, concepts, texts, new)

    def residual(self, c: Tensor) -> Tensor:
        """r C_r C_r^T [d, d]: what is left of C [d, m] where the gate over its spectrum closes."""
        u, sigma, _ = torch.linalg.svd(c, full_matrices=False)
        left = c - (u * spectral_gate(sigma, self.T_sigma, self.p_sigma)) @ (u.T @ c)
        return (self.erase_scale if self.res_scale is None else self.res_scale) * left @ left.T
