"""The networks behind the judges: small, strided early, and built differently from each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def _conv(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)
    )


class ConvNet(nn.Module):
    """Plain 3 x 3 convolutions with batch norm, a feature layer on mean and maximum, and one linear head a label kind.

    Args:
        heads: Number of labels by head.
        channels: Widths at 32, 16, 8 and 4 pixels a side.
        width: Width of the feature layer.
    """

    def __init__(
        self, heads: Mapping[str, int], channels: Sequence[int] = (32, 64, 112, 144), width: int = 128
    ) -> None:
        super().__init__()
        a, b, c, d = channels
        self.body = nn.Sequential(
            _conv(3, a, 2), _conv(a, a), _conv(a, b, 2), _conv(b, b), _conv(b, c, 2), _conv(c, c), _conv(c, d, 2)
        )  # fmt: skip
        self.feature = nn.Linear(2 * d, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.heads = nn.ModuleDict({head: nn.Linear(width, count) for head, count in heads.items()})

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures [n, 3, 64, 64] to features [n, width]."""
        x = self.body(x)
        return F.relu(self.norm(self.feature(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.features(x)
        return {head: layer(features) for head, layer in self.heads.items()}


class _LargeKernelBlock(nn.Module):
    """Depthwise 7 x 7 around a shortcut, then a pointwise layer, as in ConvMixer (Trockman and Kolter 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spread = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width), nn.GELU(), nn.BatchNorm2d(width)
        )
        self.mix = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(x + self.spread(x))


class LargeKernelNet(nn.Module):
    """Overlapping patches of 4 pixels, then large-kernel blocks at 16 and 8 cells a side.

    Args:
        labels: Number of labels.
        widths: Widths at 16 and at 8 cells.
        blocks: Number of blocks at each.
    """

    def __init__(self, labels: int, widths: Sequence[int] = (64, 160), blocks: Sequence[int] = (2, 4)) -> None:
        super().__init__()
        a, b = widths
        self.body = nn.Sequential(
            nn.Conv2d(3, a, 6, 4, 1), nn.GELU(), nn.BatchNorm2d(a),
            *(_LargeKernelBlock(a) for _ in range(blocks[0])),
            nn.Conv2d(a, b, 2, 2), nn.GELU(), nn.BatchNorm2d(b),
            *(_LargeKernelBlock(b) for _ in range(blocks[1])),
        )  # fmt: skip
        self.head = nn.Linear(b, labels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures [n, 3, 64, 64] to logits [n, labels]."""
        return self.head(self.body(x).mean((2, 3)))


class HeatmapNet(nn.Module):
    """One heatmap of 16 x 16 cells a marker, and the centre's place inside its cell."""

    def __init__(self, markers: int, widths: Sequence[int] = (24, 48)) -> None:
        super().__init__()
        a, b = widths
        self.markers = markers
        self.body = nn.Sequential(_conv(3, a, 2), _conv(a, a), _conv(a, b, 2), _conv(b, b), _conv(b, b, dilation=2))
        self.head = nn.Conv2d(b, markers + 2, 1)
        # Nearly all cells are empty: start from that, as focal-loss detectors do.
        nn.init.constant_(self.head.bias, -2.2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures [n, 3, 64, 64] to heatmap logits [n, markers, 16, 16] and offsets (x, y) [n, 2, 16, 16]."""
        y = self.head(self.body(x))
        return y[:, : self.markers], y[:, self.markers :]


def build_clip(model: dict[str, Any]) -> nn.Module:
    """An open_clip model (random weights) from its `embed_dim`, `vision_cfg` and `text_cfg`."""
    from open_clip.model import CLIP

    return CLIP(**model)
