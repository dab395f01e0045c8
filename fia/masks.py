"""The masks of single concepts as small artefacts, fused at will for any subset of concepts and any alpha.

A layer's mask is kept as packed bits or as gaps between its ones, whichever is smaller (`harness.packing`); everything
is a plain tensor, so that the store can hold it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness import packing

from .fusion import Fused, agnostic_threshold, fuse

_SHAPE = "shape/"


def pack(mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bool masks [Cout, Cin] by layer name, as tensors to store: `ENCODING/LAYER` uint8 and `shape/LAYER`."""
    packed = {}
    for name, layer in mask.items():
        encoding, data = packing.pack(layer.cpu().numpy())
        packed[f"{encoding}/{name}"] = torch.from_numpy(data)
        packed[_SHAPE + name] = torch.tensor(layer.shape)
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `pack`, on the CPU."""
    masks = {}
    for key, data in packed.items():
        encoding, name = key.split("/", 1)
        if encoding + "/" != _SHAPE:
            shape = tuple(packed[_SHAPE + name].tolist())
            masks[name] = torch.from_numpy(packing.unpack(encoding, data.numpy(), shape))
    return dict(sorted(masks.items()))


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
