"""The masks of single concepts as small artefacts, fused at will for any subset of concepts and any alpha.

They are kept packed (`harness.masks`), so that the store can hold them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.masks import unpack

from .fusion import Fused, agnostic_threshold, fuse


def count(packed: Mapping[str, Tensor]) -> int:
    """The number of selected weights of a packed mask."""
    return sum(int(layer.sum()) for layer in unpack(packed).values())


@dataclass(frozen=True)
class MaskSet:
    """Packed masks by concept; every one was made without knowledge of the others."""

    masks: Mapping[Hashable, Mapping[str, Tensor]]

    def fuse(
        self,
        concepts: Sequence[Hashable] | None = None,
        *,
        alpha: float,
        fusion: str = "agnostic",
        single_concept: str = "prune",
    ) -> tuple[int, dict[str, Fused]]:
        """Eq. 8 for some of the concepts (all by default): tau_ca, and the outcome of every layer by name.

        A concept that is named twice votes twice.
        """
        chosen = list(self.masks) if concepts is None else list(concepts)
        if not chosen:
            raise ValueError("fusion needs the mask of at least one concept")
        threshold = agnostic_threshold(alpha, len(chosen), fusion=fusion, single_concept=single_concept)
        votes: dict[str, Tensor] = {}
        for concept in chosen:
            for name, mask in unpack(self.masks[concept]).items():
                votes[name] = votes[name] + mask if name in votes else mask.to(torch.int16)
        return threshold, {name: fuse(vote, threshold) for name, vote in votes.items()}
