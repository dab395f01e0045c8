"""torchvision's ResNet-50, the classifier of the published Imagenette tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from .weights import chosen_device, published_weights, stated_sha256

WEIGHTS = ("IMAGENET1K_V2", "IMAGENET1K_V1")


@dataclass
class ResNet50:
    """A judge of one head, `object`: ImageNet's 1,000 classes by index.

    Attributes:
        weights: `IMAGENET1K_V2` (80.9 % top-1, resize 232; torchvision's default, what recent tables use) or
            `IMAGENET1K_V1` (76.1 %, resize 256; `pretrained=True` of older code). They disagree most on half-erased
            pictures, so the id names them.
        device: Where it runs; `auto` is the first CUDA device, else the CPU.
        batch: Pictures a forward pass.
    """

    weights: str = WEIGHTS[0]
    device: str = "auto"
    batch: int = 32
    fingerprint: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise ValueError(f"torchvision's ResNet-50 has the weights {' and '.join(WEIGHTS)}, not {self.weights!r}")

    @property
    def id(self) -> str:
        return f"torchvision-resnet50-{self.weights.lower()}"

    @cached_property
    def _entry(self) -> Any:
        from torchvision.models import ResNet50_Weights

        return ResNet50_Weights[self.weights]

    @property
    def sha256(self) -> str:
        """First digits, as they were published, of the weight file's sha256; the file is checked by them."""
        return stated_sha256(self._entry.url)

    @cached_property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """{"object": names by index}; a few ImageNet classes share a name."""
        return {"object": tuple(self._entry.meta["categories"])}

    @cached_property
    def _network(self) -> torch.nn.Module:
        from torchvision.models import resnet50

        network = resnet50()
        network.load_state_dict(published_weights(self._entry.url, f"ResNet-50 {self.weights}"))
        return network.eval().requires_grad_(False).to(chosen_device(self.device))

    @torch.inference_mode()
    def logits(self, images: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """{"object": logits [n, 1000]} of uint8 pictures [h, w, 3], with the weights' own resize and crop."""
        transform = self._entry.transforms()
        parts = []
        for start in range(0, len(images), self.batch):
            batch = [
                transform(torch.from_numpy(np.array(image)).permute(2, 0, 1))
                for image in images[start : start + self.batch]
            ]
            parts.append(self._network(torch.stack(batch).to(chosen_device(self.device))).float().cpu())
        return {"object": torch.cat(parts)}
