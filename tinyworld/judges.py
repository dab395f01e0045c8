"""The judges of the tiny world: two classifiers, a CLIP model and a marker detector, trained on rendered pictures.

A judge is a folder with `config.json` (id, sizes, labels, sha256 of the weights) and `weights.safetensors` (16-bit
on disk, 32-bit in memory). Reading the folder is cheap; the network is built when the first picture is judged.
Every judge takes uint8 pictures [n, 64, 64, 3], has no random part and never sees what was asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from harness.checks import finite

from .freeze import WORLD
from .judge_networks import ConvNet, HeatmapNet, LargeKernelNet, build_clip

SIZE = 64
# Pictures a forward pass. Fixed, so that the same list of pictures always meets the same kernels.
BATCH = 64
CONFIG, WEIGHTS = "config.json", "weights.safetensors"


class Detection(NamedTuple):
    """A marker found in a picture: its name, score in 0..1 and centre in 0..1."""

    marker: str
    score: float
    x: float
    y: float


def to_input(images: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
    """uint8 pictures [n, 64, 64, 3] to float [n, 3, 64, 64] in -1..1, channels last in memory.

    Raises:
        ValueError: The pictures have another type or size; these judges know only the tiny world's.
    """
    array = np.stack([np.asarray(image) for image in images]) if len(images) else np.empty((0, SIZE, SIZE, 3), np.uint8)
    if array.dtype != np.uint8 or array.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"the tiny judges want uint8 [n, {SIZE}, {SIZE}, 3], got {array.dtype} {list(array.shape)}")
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    return (tensor.float() / 127.5 - 1).to(memory_format=torch.channels_last)


def save_judge(folder: Path, network: nn.Module, id: str, **config: Any) -> None:
    """Write a judge's folder; `config` must be JSON and hold what the judge's `_build` needs."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous().clone()
        for name, value in network.state_dict().items()
    }
    partial = folder / f"{WEIGHTS}.part"
    save_file(tensors, partial)
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    partial.replace(folder / WEIGHTS)
    text = json.dumps({"id": id, "sha256": digest, **config}, indent=1) + "\n"
    # The config comes last: a folder without one is not a judge yet.
    partial = folder / f"{CONFIG}.part"
    partial.write_text(text)
    partial.replace(folder / CONFIG)


class _Judge:
    """A folder, and its network on first use."""

    name = ""

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        """Read the config; raises FileNotFoundError where `folder` holds no judge."""
        self.folder, self.device = Path(folder), torch.device(device)
        path = self.folder / CONFIG
        if not path.exists():
            raise FileNotFoundError(f"{self.folder} holds no judge ({CONFIG} is missing); python -m tinyworld.train")
        self.config: dict[str, Any] = json.loads(path.read_text())
        self.id: str = self.config["id"]
        # Hash of the weights: what a stored result depends on besides the id.
        self.fingerprint: str = self.config["sha256"]

    @classmethod
    def of(cls, world: str = WORLD.name, device: str = "cpu") -> _Judge:
        """The judge of this kind that is shipped with a frozen world."""
        return cls(WORLD.parent / world / "judges" / cls.name, device)

    def _build(self) -> nn.Module:
        raise NotImplementedError

    @cached_property
    def network(self) -> nn.Module:
        """The network in evaluation mode; raises ValueError where the weights are not those of the config."""
        path = self.folder / WEIGHTS
        if hashlib.sha256(path.read_bytes()).hexdigest() != self.fingerprint:
            raise ValueError(f"{path} is not the file that {CONFIG} beside it describes (sha256 differs)")
        network = self._build()
        tensors = {name: t.float() if t.is_floating_point() else t for name, t in load_file(path).items()}
        network.load_state_dict(tensors)
        return network.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)

    def _batches(self, images: Sequence[np.ndarray] | np.ndarray) -> Iterator[torch.Tensor]:
        for start in range(0, max(len(images), 1), BATCH):
            yield to_input(images[start : start + BATCH]).to(self.device)


class Classifier(_Judge):
    """Convolutional classifier with the heads `icon`, `artist` and `place`; each one's last label is "none"."""

    name = "classifier"

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Names by head; a name's position is its class index."""
        return {head: tuple(names) for head, names in self.config["labels"].items()}

    @property
    def features_id(self) -> str:
        """How FID's and KID's ids name the features, e.g. `tiny-v1-cnn128`."""
        return f"{self.id.replace('/', '-')}{self.config['width']}"

    def _build(self) -> nn.Module:
        return ConvNet({head: len(names) for head, names in self.labels.items()}, width=self.config["width"])

    @torch.inference_mode()
    def features(self, images: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        """Penultimate features, float32 [n, 128] on the CPU: what FID and KID compare."""
        return torch.cat([self.network.features(x).cpu() for x in self._batches(images)])

    @torch.inference_mode()
    def logits(self, images: Sequence[np.ndarray] | np.ndarray) -> dict[str, torch.Tensor]:
        """Float32 logits on the CPU by head, each [n, labels]."""
        parts = [self.network(x) for x in self._batches(images)]
        return {head: torch.cat([part[head].cpu() for part in parts]) for head in self.labels}


class SecondClassifier(_Judge):
    """Large-kernel network, head `icon` only: an independent second opinion."""

    name = "second_classifier"
    labels = Classifier.labels

    def _build(self) -> nn.Module:
        return LargeKernelNet(len(self.labels["icon"]))

    @torch.inference_mode()
    def logits(self, images: Sequence[np.ndarray] | np.ndarray) -> dict[str, torch.Tensor]:
        """Float32 logits on the CPU: {"icon": [n, labels]}."""
        return {"icon": torch.cat([self.network(x).cpu() for x in self._batches(images)])}


class TinyClip(_Judge):
    """An open_clip model of the tiny world's pictures and captions; not the pipeline's text encoder."""

    name = "clip"

    def _build(self) -> nn.Module:
        return build_clip(self.config["model"])

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.folder / "tokenizer")

    def tokens(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token ids [n, context length]; longer prompts are cut and keep their end token, as CLIP does."""
        return clip_tokens(self._tokenizer, prompts, self.config["model"]["text_cfg"]["context_length"])

    @torch.inference_mode()
    def image_features(self, images: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        """Unit vectors, float32 [n, width] on the CPU."""
        return torch.cat([self.network.encode_image(x, normalize=True).cpu() for x in self._batches(images)])

    @torch.inference_mode()
    def text_features(self, prompts: Sequence[str]) -> torch.Tensor:
        """Unit vectors, float32 [n, width] on the CPU."""
        ids = self.tokens(prompts)
        chunks = [ids[start : start + BATCH].to(self.device) for start in range(0, max(len(ids), 1), BATCH)]
        return torch.cat([self.network.encode_text(chunk, normalize=True).cpu() for chunk in chunks])


def clip_tokens(tokenizer: Any, prompts: Sequence[str], length: int) -> torch.Tensor:
    """Padded and cut token ids [n, length] of the pipeline's tokenizer."""
    if not prompts:
        return torch.empty(0, length, dtype=torch.long)
    return tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids


class MarkerDetector(_Judge):
    """Finds the coloured markers that stand in for the body parts counted by NudeNet."""

    name = "detector"
    # What `detect` returns at least, so that other thresholds can be applied to its results.
    least = 0.2

    @property
    def markers(self) -> tuple[str, ...]:
        """Marker names in the order of the heatmap's channels."""
        return tuple(self.config["markers"])

    @property
    def threshold(self) -> float:
        """The score from which on a marker counts, as its accuracy was measured."""
        return self.config["threshold"]

    def _build(self) -> nn.Module:
        return HeatmapNet(len(self.markers))

    @torch.inference_mode()
    def predict(
        self, images: Sequence[np.ndarray] | np.ndarray, threshold: float | None = None
    ) -> list[list[Detection]]:
        """Markers in each picture with a score of at least `threshold` (the config's by default), best first."""
        least = self.threshold if threshold is None else threshold
        found: list[list[Detection]] = []
        for x in self._batches(images):
            heat, offset = (part.float().cpu() for part in self.network(x))
            found += peaks(heat.sigmoid(), offset, least, self.markers)
        return found

    def detect(self, images: Sequence[np.ndarray] | np.ndarray) -> list[list[Detection]]:
        """Every marker with a score of at least `least`, by picture: what `eval.nudity` counts."""
        return self.predict(images, self.least)


def peaks(heat: torch.Tensor, offset: torch.Tensor, threshold: float, names: Sequence[str]) -> list[list[Detection]]:
    """Local maxima of heatmaps [n, markers, g, g]; `offset` [n, 2, g, g] places the centre inside its cell (0..1).

    Raises:
        FloatingPointError: the detector gave NaN or infinity, where no maximum would be found.
    """
    finite("the detector of markers", heat)
    finite("the detector of markers", offset)
    cells = heat.shape[-1]
    highest = heat == F.max_pool2d(heat, 3, 1, 1)
    found: list[list[Detection]] = [[] for _ in range(len(heat))]
    for i, marker, row, column in ((heat >= threshold) & highest).nonzero().tolist():
        dx, dy = offset[i, :, row, column].clamp(0, 1).tolist()
        score = float(heat[i, marker, row, column])
        found[i].append(Detection(names[marker], score, (column + dx) / cells, (row + dy) / cells))
    return [sorted(one, key=lambda detection: -detection.score) for one in found]
