"""CLIP score: 100 x the cosine between a picture and its caption (Hessel et al. 2021 without the clipping and 2.5).

With a few hundred captions the spread over captions is far larger than the differences between methods, so each run
also gives the paired difference to the unedited model: same captions, same noise.
"""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch

from harness.weights import file_sha256

from .compare import matched
from .repeats import MEAN, Rule
from .stats import mean_interval, paired_difference
from .values import ALL, Differences, Encoder, Value, check_images, paired
from .weights import chosen_device

if TYPE_CHECKING:
    from harness.generate import ImageSet
    from harness.task import Task
    from harness.text import TensorStore

SCALE = 100


@dataclass
class Clip:
    """CLIP score of the pictures of a caption set.

    Attributes:
        encoder: Pictures and captions to unit vectors.
        set: The prompt set that is scored.
    """

    encoder: Encoder
    set: str = "quality"
    version: ClassVar[int] = 1
    repeated: ClassVar[Mapping[str, Rule]] = {"clip": MEAN, "clip_difference": MEAN}

    @property
    def id(self) -> str:
        return f"clip/{self.encoder.id}/x{SCALE}"

    @property
    def fingerprint(self) -> str:
        return self.encoder.fingerprint

    def rows(self, images: ImageSet, reference: ImageSet | None = None) -> pd.DataFrame:
        """Columns: prompt, score."""
        check_images(images)
        prompts = [row.prompt for row in images.prompts.rows]
        return pd.DataFrame(
            {"prompt": prompts, **similarities(self.encoder, images.images, {"score": prompts})},
            index=pd.Index([row.id for row in images.prompts.rows], name="id"),
        )

    def summarise(self, rows: pd.DataFrame, task: Task, reference_rows: pd.DataFrame | None = None) -> list[Value]:
        """The mean, and the paired difference to the unedited model where other rows than these are given for it."""
        mean = mean_interval(rows["score"], rows["prompt"])
        values = [Value(self.id, ALL, mean.value, len(rows), mean.low, mean.high, True)]
        if reference_rows is not None and reference_rows is not rows:
            before = paired(rows, reference_rows)
            change = paired_difference(rows["score"], before["score"], rows["prompt"])
            id = self.id.replace("clip/", "clip_difference/", 1)
            values.append(Value(id, ALL, change.value, len(rows), change.low, change.high, True))
        return values

    def differences(self, rows: pd.DataFrame, other: pd.DataFrame, task: Task) -> Differences:
        """Of the mean, to another model's rows of the same captions and noise."""
        there = matched(rows, other, ("prompt",))
        return {(self.id, ALL): paired_difference(rows["score"], there["score"], rows["prompt"])}


def similarities(
    encoder: Encoder, images: Sequence[np.ndarray], texts: Mapping[str, Sequence[str]]
) -> dict[str, list[float]]:
    """100 x cosine of every picture with its text, for each of several texts a picture.

    Args:
        encoder: Embeds every picture and every different text once.
        images: [n] pictures.
        texts: By name, [n] texts.
    """
    unique = list(dict.fromkeys(text for column in texts.values() for text in column))
    place = {text: i for i, text in enumerate(unique)}
    vectors = encoder.text_features(unique).double()
    pictures = encoder.image_features(images).double()
    return {
        name: (SCALE * (vectors[[place[text] for text in column]] * pictures).sum(1)).tolist()
        for name, column in texts.items()
    }


@dataclass
class StoredTexts:
    """An encoder whose vectors of texts are artefacts of a store: all jobs of a sweep score the same captions."""

    encoder: Encoder
    store: TensorStore

    @property
    def id(self) -> str:
        return self.encoder.id

    @property
    def fingerprint(self) -> str:
        return self.encoder.fingerprint

    def image_features(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        return self.encoder.image_features(images)

    def text_features(self, prompts: Sequence[str]) -> torch.Tensor:
        """The encoder's, computed where the store has them not."""
        key = {"version": 1, "judge": self.fingerprint, "encoder": self.id, "texts": list(prompts)}
        return self.store.tensors("caption", key, lambda: {"vectors": self.encoder.text_features(prompts)})["vectors"]


@dataclass
class OpenClip:
    """A published CLIP model through open_clip, with that model's own picture preprocessing.

    Attributes:
        model: open_clip's model name. OpenAI's weights need a `-quickgelu` model.
        pretrained: open_clip's tag of the weights.
        device: Where it runs; `auto` is the first CUDA device, else the CPU.
        batch: Pictures a forward pass.
    """

    model: str = "ViT-B-32-quickgelu"
    pretrained: str = "openai"
    device: str = "auto"
    batch: int = 32

    def __post_init__(self) -> None:
        import open_clip

        # A misspelt tag is found before anything is computed.
        known = open_clip.list_pretrained()
        if (self.model, self.pretrained) not in known:
            tags = sorted(tag for model, tag in known if model == self.model)
            have = f"its tags are {', '.join(tags)}" if tags else "see open_clip.list_pretrained()"
            raise ValueError(f"open_clip has no weights {self.pretrained!r} for the model {self.model!r}; {have}")

    @property
    def id(self) -> str:
        return f"{self.pretrained}-{self.model.removesuffix('-quickgelu').lower()}"

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of the weight file, which is fetched where it is missing: tags have neither revision nor hash."""
        from open_clip import factory

        with self._fetched():
            published = factory.get_pretrained_cfg(self.model, self.pretrained)
            return file_sha256(Path(factory.download_pretrained(published)))

    @contextmanager
    def _fetched(self) -> Iterator[None]:
        try:
            yield
        except (OSError, urllib.error.URLError, RuntimeError) as error:
            raise ValueError(
                f"the CLIP weights {self.model}/{self.pretrained} are not in the local cache and cannot be downloaded "
                f"({type(error).__name__}: {str(error).splitlines()[0]}); fetch them once on a machine with a network"
            ) from error

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any]:
        import open_clip

        with self._fetched():
            network, _, transform = open_clip.create_model_and_transforms(self.model, self.pretrained)
        return (
            network.eval().requires_grad_(False).to(chosen_device(self.device)),
            transform,
            open_clip.get_tokenizer(self.model),
        )

    @torch.inference_mode()
    def image_features(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Unit vectors [n, width] of uint8 pictures [h, w, 3]."""
        from PIL import Image

        network, transform, _ = self._parts
        parts = []
        for start in range(0, len(images), self.batch):
            pictures = [transform(Image.fromarray(image)) for image in images[start : start + self.batch]]
            parts.append(
                network.encode_image(torch.stack(pictures).to(chosen_device(self.device)), normalize=True).float().cpu()
            )
        return torch.cat(parts)

    @torch.inference_mode()
    def text_features(self, prompts: Sequence[str]) -> torch.Tensor:
        """Unit vectors [n, width]; captions longer than the context are cut and keep their end token."""
        network, _, tokenizer = self._parts
        parts = []
        for start in range(0, len(prompts), self.batch):
            ids = tokenizer(list(prompts[start : start + self.batch])).to(chosen_device(self.device))
            parts.append(network.encode_text(ids, normalize=True).float().cpu())
        return torch.cat(parts)
