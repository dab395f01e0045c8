"""Concept-sensitive neurons (Eq. 3-6): from the saliency of every step to the mask of one concept.

    Eq. 3   A_ij = 1/2 mean_t S_tij + 1/2 mean_t 1[S_tij > tau_t]      tau_t keeps the top r1 of the layer at step t
    Eq. 4   C    = in every row the r2 * Cin largest entries of A
    Eq. 5   G    = in the layer the r2 * Cout * Cin largest entries of A
    Eq. 6   mask = C and G

All functions are pure; ties go to the lower index, so that masks do not depend on the device's sorting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.masks import kth_largest, top_entries

GRANULARITIES = ("both", "channel", "layer")
SELECTIONS = ("both", "temporal", "spatial")


def budget(share: float, n: int) -> int:
    """Entries that `share` of `n` buys: rounded down, at least one, at most n.

    The small slack keeps products that should be whole (0.29 * 100) from losing one to binary rounding.
    """
    return min(n, max(1, math.floor(share * n + 1e-9)))


@dataclass
class Evidence:
    """What Eq. 3 needs from all steps of one layer and concept: running sums, 5 bytes a weight with one r1.

    Attributes:
        strength: sum over steps of S, float32 (or float64) [Cout, Cin].
        counts: by r1, the steps at which S passed the threshold, whole numbers [Cout, Cin].
    """

    strength: Tensor
    counts: dict[float, Tensor]
    steps: int = 0

    @classmethod
    def empty(cls, weight: Tensor, steps: int, r1s: Sequence[float], dtype: torch.dtype = torch.float32) -> Evidence:
        """Room for `steps` steps of a layer with this weight, on its device."""
        whole = torch.uint8 if steps <= 255 else torch.int16
        return cls(
            torch.zeros_like(weight, dtype=dtype), {r1: torch.zeros_like(weight, dtype=whole) for r1 in r1s}
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        return self.strength.nbytes + sum(count.nbytes for count in self.counts.values())

    def add(self, saliency: Tensor, strict: bool) -> None:
        """Take in S of one step."""
        self.strength += saliency
        for r1, count in self.counts.items():
            count += passes(saliency, r1, strict)
        self.steps += 1


def passes(saliency: Tensor, r1: float, strict: bool) -> Tensor:
    """`1[S > tau]` with tau the value that keeps the top r1 of the entries; zeros never pass.

    With tau the k-th largest value, Eq. 3 taken at its word ("keeps the top r1 fraction") counts the k-th entry and
    its ties too; `strict` compares with `>` as the released code does, and counts at most k - 1 entries.
    """
    k = budget(r1, saliency.numel())
    tau = kth_largest(saliency.flatten(), k)
    if strict:
        return saliency > tau
    # Zeros never pass: the least that does is the smallest number above zero.
    return saliency >= tau.clamp(min=torch.nextafter(torch.zeros_like(tau), torch.ones_like(tau)))


def score(strength: Tensor, frequency: Tensor, *, strength_normalise: bool, use_frequency: bool = True) -> Tensor:
    """Eq. 3 for one layer.

    Args:
        strength: mean of S over the steps [Cout, Cin].
        frequency: share of the steps at which S passed its threshold [Cout, Cin].
        strength_normalise: divide the strength by its largest value in the layer first (released code).
        use_frequency: without it the score is the strength alone (spatial-only selection).
    """
    if strength_normalise:
        strength = strength / strength.max().clamp(min=1e-12)
    return 0.5 * strength + 0.5 * frequency.to(strength.dtype) if use_frequency else strength


def select(scores: Tensor, r2: float, granularity: str, zero_score: bool) -> Tensor:
    """The mask of one layer and concept (Eq. 4-6), bool [Cout, Cin].

    Args:
        scores: A of Eq. 3 [Cout, Cin].
        r2: share of weights to select, per row and per layer.
        granularity: `channel` (Eq. 4 alone), `layer` (Eq. 5 alone) or `both` (their intersection, Eq. 6).
        zero_score: whether weights without any evidence may fill up the budget, as the released code lets them.
    """
    mask = torch.ones_like(scores, dtype=torch.bool) if zero_score else scores > 0
    if granularity in ("channel", "both"):
        mask &= top_entries(scores, budget(r2, scores.shape[1]))
    if granularity in ("layer", "both"):
        mask &= top_entries(scores.reshape(1, -1), budget(r2, scores.numel())).view_as(scores)
    return mask


def select_across_layers(scores: Mapping[str, Tensor], r2: float, zero_score: bool) -> dict[str, Tensor]:
    """Temporal-only selection: no row or layer gets a quota; the r2 best-scored weights of all layers together."""
    pool = torch.cat([layer.flatten() for layer in scores.values()])
    chosen = top_entries(pool[None], budget(r2, pool.numel()))[0]
    if not zero_score:
        chosen &= pool > 0
    parts = chosen.split([layer.numel() for layer in scores.values()])
    return {name: part.view_as(layer) for (name, layer), part in zip(scores.items(), parts, strict=True)}
