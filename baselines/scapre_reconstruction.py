"""ScaPre by the paper's formulas (arXiv 2601.06162), as far as they are known: a reconstruction, not a reproduction.

With A = lambda I + S + R, B = diag(alpha) (the Informax weights of the channels) and F the targets, the paper's weights
without its geometry term solve the Sylvester equation

    B W + W A = F

and are then moved along the Bures geodesic between W W^T and W0 W0^T. The paper's text was not available: what is
known, inferred and added here is listed in docs/methods/scapre.md. Every table must keep the word "reconstruction".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.checks import is_number, number, one_of
from harness.edit import Edit
from harness.method import Stage
from harness.model import DiffusionModel
from harness.task import Concept

from .scapre_common import EPS, Noise, Texts, check_guide, informax, read_texts, rewrite

NAME = "scapre_reconstruction"
TARGETS = ("zero", "guide")
ANCHORS = ("lambda", "ridge")


@dataclass
class ScaPreReconstruction:
    """Parameters: conf/method/scapre_reconstruction.yaml. None of their values is known from the paper."""

    name: str = NAME
    target: str = "zero"
    guide: str = ""
    ridge: float = 0.5
    anchor: str = "lambda"
    bures_step: float = 0.37
    noise_sigma: float = 0.01

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.name != NAME:
            raise ValueError(f"scapre: name stays {NAME}, so that every table says what it is, got {self.name!r}")
        check_guide(self.guide)
        one_of("scapre's target", self.target, TARGETS)
        one_of("scapre's anchor", self.anchor, ANCHORS)
        for name in ("ridge", "noise_sigma"):
            number(f"scapre: {name}", getattr(self, name), zero=False)
        if not is_number(self.bures_step) or not 0 <= self.bures_step <= 1:
            raise ValueError(f"scapre: bures_step is a number from 0 to 1, got {self.bures_step!r}")

    def edit(self, model: DiffusionModel, concepts: Sequence[Concept], seed: int, stage: Stage) -> Edit:
        """New cross-attention projections for all concepts at once; `seed` is that of the noise."""
        texts = read_texts(model, concepts, self.guide)
        noise = Noise(seed, self.noise_sigma)
        penalty = self.penalty(texts)
        values, q = torch.linalg.eigh(penalty)
        # V* C_E^T = W0 Y^T X: all that stands right of W0 is the same for every projection.
        pull = texts.guide[texts.partner].T @ texts.rows if self.target == "guide" else torch.zeros_like(penalty)

        def new(layer: str, w0: Tensor) -> Tensor:
            alpha = channel_weights(informax(w0, texts, noise, layer, "mask"))
            anchor = self.ridge + (alpha[:, None] if self.anchor == "ridge" else 0)
            f = w0 @ pull + anchor * w0
            w = sylvester(alpha, values, q, f)
            return bures_geodesic(w0, w, self.bures_step) if self.bures_step else w

        return rewrite(self, model, concepts, texts, new)

    def penalty(self, texts: Texts) -> Tensor:
        """A = lambda I + S + R [d, d] of the spectral trace regulariser, the same for every projection."""
        u, sigma, _ = torch.linalg.svd(texts.last.T, full_matrices=False)
        a = texts.rows.T @ texts.rows + (u * (torch.sigmoid(-sigma) * sigma)) @ u.T
        a.diagonal().add_(self.ridge)
        return a


def channel_weights(information: Tensor) -> Tensor:
    """alpha_i = MI_i / max_j MI_j with MI_i = max_k MI_i^(k): [o, m] -> [o] in [0, 1]."""
    strongest = information.amax(1)
    return strongest / strongest.max().clamp(min=EPS)


def sylvester(alpha: Tensor, values: Tensor, q: Tensor, f: Tensor) -> Tensor:
    """The W [o, d] with diag(alpha) W + W A = F, for A = Q diag(values) Q^T."""
    return (f @ q / (alpha[:, None] + values)) @ q.T


def bures_geodesic(w0: Tensor, w: Tensor, t: float) -> Tensor:
    """The weights at t in [0, 1] of the Bures geodesic from W W^T to W0 W0^T, turned closest to W.

    The geodesic is the straight line from W to W0 Q, Q the rotation that brings W0 closest to W (orthogonal
    Procrustes). That holds for any rank; where W W^T is invertible it is ((1-t) I + t T) W with T the optimal
    transport map.
    """
    # With W0^T = Q0 R0 and W^T = Q1 R1 the rotation needs no more than the smaller side's singular vectors.
    _, r0 = torch.linalg.qr(w0.T)
    q1, r1 = torch.linalg.qr(w.T)
    u, _, vh = torch.linalg.svd(r0 @ r1.T)
    return (1 - t) * w + t * (r0.T @ u @ vh @ q1.T)
