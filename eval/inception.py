"""The Inception network that published FIDs are made of (weights of 2015-12-05), with the two usual ways to resize.

The way to resize moves a FID by tenths to a full point, so the two are extractors with ids of their own.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .weights import chosen_device, published_bytes, published_weights, stated_sha256

SIZE = 299  # pixels a side that the network sees
WIDTH = 2048

# The file that clean-fid downloads. The hash is the one that other programs pin for it.
TORCHSCRIPT_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
TORCHSCRIPT_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"


@dataclass
class Inception:
    """2,048 pool features as torch-fidelity and torchmetrics make them: TensorFlow 1's bilinear resize in the network.

    Attributes:
        device: Where it runs; `auto` is the first CUDA device, else the CPU.
        batch: Pictures a forward pass.
    """

    device: str = "auto"
    batch: int = 32
    fingerprint: str = field(default="", init=False)
    id: str = field(default="torch-fidelity/inception-2015-12-05", init=False)
    features_id: str = field(default="torch-fidelity-inception2048", init=False)

    @property
    def sha256(self) -> str:
        """First digits, as they were published, of the weight file's sha256; the file is checked by them."""
        from torch_fidelity import feature_extractor_inceptionv3 as module

        return stated_sha256(module.URL_INCEPTION_V3)

    @cached_property
    def _network(self) -> torch.nn.Module:
        from torch_fidelity import feature_extractor_inceptionv3 as module

        tensors = published_weights(module.URL_INCEPTION_V3, "torch-fidelity's Inception")
        # torch-fidelity unpickles whatever file it is given, so it gets one that we wrote from checked tensors.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "inception.pth"
            torch.save(tensors, path)
            network = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", [str(WIDTH)], feature_extractor_weights_path=os.fspath(path)
            )
        return network.eval().requires_grad_(False).to(chosen_device(self.device))

    @torch.inference_mode()
    def features(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Features [n, 2048] of uint8 pictures [h, w, 3]; photos may differ in size."""
        found = torch.empty(len(images), WIDTH)
        for start in range(0, len(images), self.batch):
            batch = [np.asarray(image) for image in images[start : start + self.batch]]
            for shape in dict.fromkeys(image.shape for image in batch):
                places = [i for i, image in enumerate(batch) if image.shape == shape]
                pixels = torch.from_numpy(np.stack([batch[i] for i in places])).to(chosen_device(self.device))
                found[[start + i for i in places]] = self._network(pixels.permute(0, 3, 1, 2))[0].float().cpu()
        return found


@dataclass
class CleanInception:
    """2,048 pool features as clean-fid makes them in its mode `clean` (Parmar et al. 2022): PIL resizes in float.

    Attributes:
        device: Where the network runs; `auto` is the first CUDA device, else the CPU.
        batch: Pictures a forward pass.
        sha256: Of the TorchScript file. Opening one runs code, so no other file is ever opened.
    """

    device: str = "auto"
    batch: int = 32
    sha256: str = TORCHSCRIPT_SHA256
    id: str = field(default="cleanfid-clean/inception-2015-12-05", init=False)
    features_id: str = field(default="cleanfid-clean-inception2048", init=False)

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", str(self.sha256)):
            raise ValueError(
                f"extractor.sha256={self.sha256!r}: opening a TorchScript file runs code, so it is opened only if its "
                f"whole sha256 (64 hex digits) is stated; {TORCHSCRIPT_SHA256} is the published file's"
            )

    @property
    def fingerprint(self) -> str:
        return self.sha256

    @cached_property
    def _layers(self) -> torch.nn.Module:
        data = published_bytes(TORCHSCRIPT_URL, "clean-fid's Inception", self.sha256)
        # `layers` is the network without the resize and scaling that the file also holds.
        return torch.jit.load(io.BytesIO(data), map_location=chosen_device(self.device)).eval().layers

    @torch.inference_mode()
    def features(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Features [n, 2048] of uint8 pictures [h, w, 3]; photos may differ in size and are squashed to a square."""
        parts = []
        for start in range(0, len(images), self.batch):
            resized = np.stack([clean_resize(np.asarray(image)) for image in images[start : start + self.batch]])
            pixels = torch.from_numpy(resized).to(chosen_device(self.device)).permute(0, 3, 1, 2)
            parts.append(self._layers((pixels - 128) / 128).reshape(-1, WIDTH).float().cpu())
        return torch.cat(parts)


def clean_resize(image: np.ndarray) -> np.ndarray:
    """clean-fid's `clean` resize of a uint8 picture [h, w, 3] to float32 [299, 299, 3] in 0..255.

    Every channel by itself as a PIL picture of floats, with PIL's bicubic filter, which widens when it shrinks
    (antialiasing); overshoots are cut off, nothing is rounded.
    """
    channels = [
        Image.fromarray(np.ascontiguousarray(image[:, :, i], dtype=np.float32)).resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC
        )
        for i in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=2).clip(0, 255)
