"""Fusing the masks of several concepts (Eq. 7-8).

    Eq. 8   s_ij = sum_c mask^(c)_ij        keep if s_ij >= tau_ca (or s_ij = 0), prune if 0 < s_ij < tau_ca
            tau_ca = ceil(alpha * C)

A weight that many concepts choose serves them all: it is concept-agnostic and stays. With C = 1 and any alpha in
(0, 1], tau_ca = 1, and Eq. 8 at its word prunes nothing at all; `single_concept` says what to do then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

FUSIONS = ("agnostic", "union")
SINGLE_CONCEPT = ("prune", "paper_noop")


def agnostic_threshold(alpha: float, concepts: int, *, fusion: str = "agnostic", single_concept: str = "prune") -> int:
    """`tau_ca`: a weight chosen by this many concepts is kept.

    `union` (the paper's "naive" row) keeps none, which is tau_ca = C + 1 and out of reach of alpha <= 1; a single
    concept is treated the same unless `paper_noop` asks for Eq. 8 at its word.
    """
    if fusion == "union" or (concepts == 1 and single_concept == "prune"):
        return concepts + 1
    return math.ceil(alpha * concepts - 1e-9)


@dataclass(frozen=True)
class Fused:
    """One layer after Eq. 8: `prune` bool [Cout, Cin], and how many weights fell into each class."""

    prune: Tensor
    pruned: int
    agnostic: int
    untouched: int


def fuse(votes: Tensor, threshold: int) -> Fused:
    """Eq. 8 for one layer.

    Args:
        votes: s, the number of concepts whose mask holds the weight [Cout, Cin].
        threshold: tau_ca.
    """
    prune = (votes > 0) & (votes < threshold)
    pruned, untouched = int(prune.sum()), int((votes == 0).sum())
    return Fused(prune, pruned, votes.numel() - pruned - untouched, untouched)
