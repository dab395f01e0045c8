"""Text features of a prompt set as artefacts of the store: the first job of a sweep encodes, all others read.

They belong to the model as it was loaded: edits change the UNet and leave text encoders alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from .model import Conditioning, DiffusionModel

# Raised by hand when the same model and prompts would give other features.
VERSION = 1
# Prompts of one artefact: 30 MB for SD 1.5 in float16, 81 MB for SDXL. Fewer than the model keeps.
TOGETHER = 256


class TensorStore(Protocol):
    """The part of `harness.store.Store` that is used here."""

    def tensors(
        self, kind: str, parts: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]: ...


class TextFeatures:
    """What a model's text encoders make of a set's prompts, and of the empty prompt.

    Args:
        prompts: of the whole set, in order; which of them are stored together follows from it.
    """

    def __init__(self, model: DiffusionModel, prompts: Sequence[str], store: TensorStore) -> None:
        self._model, self._store = model, store
        texts = list(dict.fromkeys(["", *prompts]))
        parts = [texts[start : start + TOGETHER] for start in range(0, len(texts), TOGETHER)]
        self._part_of = {text: part for part in parts for text in part}

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """`DiffusionModel.encode` for some of the set's prompts, the same bits."""
        for prompt in ("", *prompts):
            if not self._model.knows(prompt):
                part = self._part_of[prompt]
                key = {"version": VERSION, "model": self._model.loaded_as, "prompts": part}
                features = self._store.tensors("text", key, partial(self._model.text_tensors, part))
                self._model.learn(part, features)
        return self._model.encode(prompts)
