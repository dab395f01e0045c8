"""Boolean masks as bytes: packed bits or the gaps between set positions, whichever is smaller.

A mask that prunes 1 % of a matrix costs about one byte for every set weight as gaps, against twelve bytes as bits.
"""

from __future__ import annotations

import numpy as np

# This byte means "255 further, and no weight is set here"; it makes gaps of any width possible.
SKIP = 255


def pack(mask: np.ndarray) -> tuple[str, np.ndarray]:
    """Encode a boolean array of any shape.

    Returns:
        The encoding's name and a uint8 array. `bits`: np.packbits of the flat mask. `gaps`: for every set position the
        number of unset ones before it (since the last set one), as that many SKIP bytes as go into it and one byte for
        the rest, which is below SKIP.
    """
    flat = np.ascontiguousarray(mask, dtype=bool).reshape(-1)
    skips, rest = np.divmod(np.diff(np.flatnonzero(flat), prepend=-1) - 1, SKIP)
    bits = np.packbits(flat)
    length = len(rest) + int(skips.sum())
    if length >= len(bits):
        return "bits", bits
    gaps = np.full(length, SKIP, dtype=np.uint8)
    gaps[np.cumsum(skips + 1) - 1] = rest
    return "gaps", gaps


def unpack(encoding: str, data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The boolean array of `shape` that `pack` encoded as `data`; ValueError where they do not fit together."""
    size = int(np.prod(shape))
    if encoding == "bits":
        if len(data) != -(-size // 8):
            raise ValueError(f"{len(data)} bytes of packed bits do not hold a mask of shape {tuple(shape)}")
        return np.unpackbits(data, count=size).astype(bool).reshape(shape)
    if encoding != "gaps":
        raise ValueError(f"unknown mask encoding {encoding!r} (known: bits, gaps)")
    is_set = data != SKIP
    after = np.cumsum(data.astype(np.int64) + is_set)  # positions passed so far, the set one included
    if len(data) and (after[-1] > size or not is_set[-1]):
        raise ValueError(f"gaps over {after[-1]} positions do not fit a mask of shape {tuple(shape)}")
    mask = np.zeros(size, dtype=bool)
    mask[after[is_set] - 1] = True
    return mask.reshape(shape)
