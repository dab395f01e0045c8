"""The Inception network that published FIDs are made of, as torch-fidelity and torchmetrics run it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from .weights import chosen_device, published_weights


@dataclass
class Inception:
    """2,048 pool features of torch-fidelity's Inception V3 (weights of 2015-12-05), resized inside the network.

    clean-fid resizes otherwise and differs by several tenths to a point; its numbers carry another id.

    Attributes:
        device: Where it runs; `auto` is the first CUDA device, else the CPU.
        batch: Pictures a forward pass.
    """

    device: str = "auto"
    batch: int = 32
    fingerprint: str = field(default="", init=False)
    id: str = field(default="torch-fidelity/inception-2015-12-05", init=False)
    features_id: str = field(default="torch-fidelity-inception2048", init=False)

    @cached_property
    def _network(self) -> torch.nn.Module:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

        tensors = published_weights(URL_INCEPTION_V3, "torch-fidelity's Inception")
        # torch-fidelity unpickles whatever file it is given, so it gets one that we wrote from checked tensors.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "inception.pth"
            torch.save(tensors, path)
            network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=os.fspath(path)
            )
        return network.eval().requires_grad_(False).to(chosen_device(self.device))

    @torch.inference_mode()
    def features(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Features [n, 2048] of uint8 pictures [h, w, 3] of one size."""
        parts = []
        for start in range(0, len(images), self.batch):
            batch = np.stack([np.asarray(image) for image in images[start : start + self.batch]])
            parts.append(
                self._network(torch.from_numpy(batch).permute(0, 3, 1, 2).to(chosen_device(self.device)))[0]
                .float()
                .cpu()
            )
        return torch.cat(parts)
