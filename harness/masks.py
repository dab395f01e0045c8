"""What methods that prune weights share: the largest entries of every row, and masks as tensors to store."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from . import packing

_SHAPE = "shape/"


def kth_largest(values: Tensor, k: int) -> Tensor:
    """The k-th largest value along the last dimension, without sorting it: [..., n] to [..., 1] (or a scalar)."""
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64) and values.dim() == 1:
        return torch.tensor(_selected(values.detach().numpy(), k), dtype=values.dtype)
    # Not kthvalue: on CUDA it gives a whole row to one block, which takes longer than sorting it.
    return values.topk(k, sorted=False).values.amin(-1, keepdim=values.dim() > 1)


def _selected(values: np.ndarray, k: int) -> np.generic:
    """The same on a processor: a quarter of topk's time without zeros, an eighth with 60 % of them, a half with 90 %.

    numpy's selection is slow where most values are equal, such as zeros. So it gets only what lies above a value that
    every sixteenth entry suggests, and nothing where that value itself is the one.
    """
    sample = np.sort(values[::16])
    rank = k // 16 + k // 64 + 4
    if rank <= len(sample):
        pivot = sample[-rank]
        above = values[values > pivot]
        if len(above) < k <= len(above) + np.count_nonzero(values == pivot):
            return pivot
        if len(above) >= k:
            values = above
    return np.partition(values, len(values) - k)[len(values) - k]


def top_entries(scores: Tensor, k: int) -> Tensor:
    """True at the k largest entries of every row of `scores` [rows, n]: exactly k a row, ties to the lower index.

    So masks neither depend on the device's sorting, nor does a smaller k choose what a larger one leaves out.
    """
    n = scores.shape[-1]
    if not 0 < k < n:
        return torch.full_like(scores, k > 0, dtype=torch.bool)
    tau = kth_largest(scores, k)
    above, ties = scores > tau, scores == tau
    return above | (ties & (ties.cumsum(-1) <= k - above.sum(-1, keepdim=True)))


def pack(mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bool masks by layer name, as tensors to store: `ENCODING/LAYER` (see `packing`) and `shape/LAYER`."""
    packed = {}
    for name, layer in mask.items():
        encoding, data = packing.pack(layer.cpu().numpy())
        packed[f"{encoding}/{name}"] = torch.from_numpy(data)
        packed[_SHAPE + name] = torch.tensor(layer.shape)
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `pack`, on the CPU, by layer name in sorted order."""
    masks = {}
    for key, data in packed.items():
        encoding, name = key.split("/", 1)
        if encoding + "/" != _SHAPE:
            shape = tuple(packed[_SHAPE + name].tolist())
            masks[name] = torch.from_numpy(packing.unpack(encoding, data.numpy(), shape))
    return dict(sorted(masks.items()))
