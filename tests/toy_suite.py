"""A suite whose judge needs no weights: it tells classes apart by colour. Pipeline tests run on it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

CLASSES = ("tench", "church", "parachute", "golf ball")
YAML = """
name: toy
world: null
captions: {_target_: toy_suite.captions, _partial_: true}
metrics:
  - {_target_: eval.classify.Classify, set: classes, judge: {_target_: toy_suite.ColourJudge}}
  - {_target_: eval.fid.Fid, set: quality, photos: null, photos_name: "", extractor: {_target_: toy_suite.Means}}
"""


def write(folder: Path) -> Path:
    """A config folder with the toy suite, for `hydra.searchpath`."""
    (folder / "suite").mkdir(parents=True)
    (folder / "suite" / "toy.yaml").write_text(YAML)
    return folder


def run_on(model: Path) -> list[str]:
    """A command line for a run of seconds on the model in a folder."""
    return [
        *("model=folder", f"model.path={model}", "suite=toy", "sampler=ddim20", "sampler.steps=2", "task=custom"),
        *("task.concepts=[tench,golf ball]", "task.keep=[church]", "task.n=1", "quality.n=2"),
    ]


def captions(n: int, split: str) -> list[tuple[str, int]]:
    """`n` captions of a scene with a number."""
    return [(f"{split} scene {i}", 100 + i) for i in range(n)]


def photos(n: int, split: str) -> list[np.ndarray]:
    """Of the captions: one grey each."""
    return [np.full((8, 8, 3), 10 * i + len(split), np.uint8) for i in range(n)]


class ColourJudge:
    """Scores of a class: the picture's mean colour along a direction drawn from the class's name."""

    id = "toy-colour"
    fingerprint = "colour-1"
    labels: Mapping[str, tuple[str, ...]] = {"object": CLASSES}

    def logits(self, images: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        colours = torch.tensor(np.stack([image.reshape(-1, 3).mean(0) for image in images]), dtype=torch.float32) / 255
        directions = torch.stack([_direction(name) for name in CLASSES])
        return {"object": colours @ directions.T}


class Palette:
    """Pictures as their mean colour, texts as a direction drawn from them."""

    id, fingerprint = "toy-palette", "palette-1"

    def image_features(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        colours = np.stack([image.reshape(-1, 3).mean(0) - 127.5 for image in images])
        return torch.nn.functional.normalize(torch.tensor(colours), dim=1)

    def text_features(self, prompts: Sequence[str]) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.stack([_direction(text) for text in prompts]), dim=1)


class Means:
    """Features of a picture: its mean colour by quadrant."""

    id = features_id = "toy-means"
    fingerprint = "means-1"

    def features(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        rows = []
        for image in images:
            half = image.shape[0] // 2
            quarters = (image[:half, :half], image[:half, half:], image[half:, :half], image[half:, half:])
            rows.append(np.concatenate([part.reshape(-1, 3).mean(0) for part in quarters]) / 255)
        return torch.tensor(np.stack(rows), dtype=torch.float32)


def _direction(name: str) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return torch.randn(3, generator=torch.Generator().manual_seed(seed))
