"""Damaged versions of rendered pictures: a judge must know an object in a bad picture, and know that a heap is none."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

# Probability of each damage, drawn for every picture and damage on its own.
SHARE = 0.2


def damage(x: torch.Tensor, rng: np.random.Generator, only: Collection[str] | None = None) -> torch.Tensor:
    """A damaged copy of pictures [n, 3, h, w] in -1..1; about a quarter of them stay as they are.

    Args:
        x: The pictures.
        rng: Decides everything.
        only: Names of the damages to apply; None applies all of `DAMAGES`.
    """
    x = x.clone()
    for name, harm in DAMAGES.items():
        if only is not None and name not in only:
            continue
        picked = torch.from_numpy(np.flatnonzero(rng.random(len(x)) < SHARE))
        if len(picked):
            x[picked] = harm(x[picked], rng)
    return x.clamp(-1, 1).contiguous(memory_format=torch.channels_last)


def heaps(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Pictures [n, 3, h, w] in which no object is left, though its colours and textures are, and where it stood.

    An object is its shape and parts: a heap of golf-ball texture is not a golf ball. A third each has its tiles of 16
    pixels in another order, its tiles of 8 pixels, or is `melted`.
    """
    x, kinds = x.clone(), rng.integers(0, 3, len(x))
    for kind, harm in enumerate((partial(shuffled_tiles, tile=16), partial(shuffled_tiles, tile=8), melted)):
        picked = torch.from_numpy(np.flatnonzero(kinds == kind))
        if len(picked):
            x[picked] = harm(x[picked], rng)
    return x.contiguous(memory_format=torch.channels_last)


def shuffled_tiles(x: torch.Tensor, rng: np.random.Generator, tile: int = 16) -> torch.Tensor:
    """Pictures [n, 3, h, w] with their tiles in another order."""
    n, channels, height, width = x.shape
    rows, columns = height // tile, width // tile
    tiles = x.reshape(n, channels, rows, tile, columns, tile).permute(0, 2, 4, 1, 3, 5)
    tiles = tiles.reshape(n, rows * columns, channels, tile, tile)
    order = torch.from_numpy(rng.permuted(np.tile(np.arange(rows * columns), (n, 1)), axis=1))
    mixed = torch.stack([tile[index] for tile, index in zip(tiles, order)])
    mixed = mixed.reshape(n, rows, columns, channels, tile, tile).permute(0, 3, 1, 4, 2, 5)
    return mixed.reshape(n, channels, height, width).contiguous(memory_format=torch.channels_last)


def melted(x: torch.Tensor, rng: np.random.Generator, cells: int = 10, reach: float = 0.3) -> torch.Tensor:
    """Pictures [n, 3, h, w] drawn out of place: every point comes from up to `reach` half-widths away, another
    direction a tenth of the picture further on."""
    moves = torch.from_numpy(rng.uniform(-reach, reach, (len(x), 2, cells, cells)).astype(np.float32))
    moves = F.interpolate(moves, size=x.shape[-2:], mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    still = F.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, still + moves, mode="bilinear", padding_mode="reflection", align_corners=False)


def _numbers(rng: np.random.Generator, n: int, low: float, high: float) -> torch.Tensor:
    return torch.from_numpy(rng.uniform(low, high, (n, 1, 1, 1)).astype(np.float32))


def _noise(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    noise = torch.from_numpy(rng.standard_normal(tuple(x.shape), dtype=np.float32))
    return x + _numbers(rng, len(x), 0.03, 0.2) * noise


def _blur(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    size = int(rng.integers(x.shape[-1] // 3, x.shape[-1]))
    small = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=False)


def _light(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * _numbers(rng, len(x), 0.6, 1.35) + mean + _numbers(rng, len(x), -0.25, 0.25)


def _cut_out(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    size = int(rng.integers(6, 17))
    fill = rng.uniform(-1, 1, (len(x), 3, 1, 1)).astype(np.float32)
    for i, (row, column) in enumerate(rng.integers(0, x.shape[-1] - size + 1, (len(x), 2)).tolist()):
        x[i, :, row : row + size, column : column + size] = torch.from_numpy(fill[i])
    return x


def _shift(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    reach = 4
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    down, right = rng.integers(0, 2 * reach + 1, 2).tolist()
    return padded[..., down : down + x.shape[-2], right : right + x.shape[-1]]


def _cosines(size: int = 8) -> torch.Tensor:
    """Orthonormal matrix of the discrete cosine transform."""
    k = torch.arange(size)[:, None]
    matrix = torch.cos(math.pi / size * (torch.arange(size)[None] + 0.5) * k) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def _blocks(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Rounded cosine coefficients of 8 x 8 blocks, coarser for high frequencies, as in JPEG."""
    n, channels, height, width = x.shape
    matrix = _cosines()
    blocks = x.reshape(n, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    frequency = torch.arange(8)[:, None] + torch.arange(8)[None]
    step = _numbers(rng, n, 0.05, 0.25)[..., None, None] * (1 + frequency / 2)
    rounded = ((matrix @ blocks @ matrix.T) / step).round() * step
    return (matrix.T @ rounded @ matrix).transpose(3, 4).reshape(x.shape)


DAMAGES = {"shift": _shift, "light": _light, "blur": _blur, "cut_out": _cut_out, "blocks": _blocks, "noise": _noise}
