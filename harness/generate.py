"""Pictures of a prompt set, from a model with or without an edit: batched, stored one by one, resumable.

Every picture has its own seed and is stored under everything that decides it (model, edit, sampler, prompt, seed,
guidance, size), so a run that was stopped goes on where it stopped and all methods share the unedited pictures.
Batches have one shape: the last one is padded, and a picture at batch size 1 and at 16 differs by the kernels' last
bits only (tests/test_generate.py holds the tolerance).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from .edit import Edit
from .model import DiffusionModel, LazyModel
from .sampler import Sampler
from .store import content_key
from .task import PromptSet, Row

log = logging.getLogger(__name__)

# Raised by hand when the same parts would give other pixels.
VERSION = 1
KEPT_BYTES = 2**30


class BlackImageError(RuntimeError):
    """The unedited model gave a picture of one single colour, or NaN: the model or its dtype is broken."""


class ImageStore(Protocol):
    """The part of `harness.store.Store` that is used here; `parts` is a JSON-able dict that names one picture."""

    def has_image(self, parts: dict[str, Any]) -> bool: ...
    def read_image(self, parts: dict[str, Any]) -> np.ndarray | None: ...
    def write_image(self, parts: dict[str, Any], array: np.ndarray, text: dict[str, str] | None = None) -> Any: ...


class StoredImages(Sequence[np.ndarray]):
    """Pictures uint8 [height, width, 3] in row order; what exceeds KEPT_BYTES is read from the store when asked for."""

    def __init__(self, store: ImageStore, parts: Sequence[dict[str, Any]]) -> None:
        self._store, self._parts = store, list(parts)
        self._kept: dict[int, np.ndarray] = {}
        self._room = KEPT_BYTES

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if index in self._kept:
            return self._kept[index]
        picture = self._store.read_image(self._parts[index])
        if picture is None:
            raise RuntimeError(
                f"the stored picture of seed {self._parts[index]['seed']} was removed or damaged meanwhile"
            )
        return picture

    def keep(self, index: int, picture: np.ndarray) -> None:
        """Keep a picture in memory while there is room."""
        if index not in self._kept and picture.nbytes <= self._room:
            self._kept[index] = picture
            self._room -= picture.nbytes


@dataclass
class ImageSet:
    """Pictures of a prompt set.

    Attributes:
        prompts: the rows.
        images: uint8 [height, width, 3], one a row, in row order.
        key: hex sha256 over everything that decides the pictures, and their order.
        made: pictures computed by this call; `reused` were stored, or repeat another row.
        black: pictures of one single colour, which an edit can cause; pictures with NaN are stored black.
    """

    prompts: PromptSet
    images: Sequence[np.ndarray]
    key: str
    made: int = 0
    reused: int = 0
    black: int = 0


def generate(
    model: DiffusionModel | LazyModel,
    edit: Edit | None,
    prompts: PromptSet,
    sampler: Sampler,
    store: ImageStore,
    *,
    batch_size: int,
    progress: bool = True,
) -> ImageSet:
    """Make the pictures that are not stored yet, and return all of them.

    Args:
        model: a loaded model, or anything callable without arguments that returns one and has its `fingerprint` and
            `size` (a LazyModel): it is called only when a picture is missing.
        edit: applied around the generation only; None and kind "none" mean the unedited model.
        prompts: rows without guidance take the sampler's, rows without width or height the model's.
        batch_size: pictures a UNet batch; guided sampling runs twice as many samples.
        progress: show a progress bar.

    Raises:
        BlackImageError: the unedited model gave a flat or NaN picture; of an edited one they are counted.
        WrongBaseError: the edit was made for another model.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    edited = edit is not None and edit.kind != "none"
    parts = [image_parts(model, edit, row, sampler) for row in prompts.rows]
    keys = [content_key(part) for part in parts]
    images = StoredImages(store, parts)
    missing: dict[str, int] = {}
    blacks: dict[int, bool] = {}
    for i, part in enumerate(parts):
        # Reading is the check: a damaged file counts as missing.
        picture = store.read_image(part) if store.has_image(part) else None
        if picture is None:
            missing.setdefault(keys[i], i)
        else:
            blacks[i] = _is_black(picture)
            images.keep(i, picture)
    if missing:
        loaded = model if isinstance(model, DiffusionModel) else model()
        if loaded.edit is not None:
            raise RuntimeError("an edit is applied to the model; generate applies it itself")
        todo = [(i, prompts.rows[i], parts[i]) for i in missing.values()]
        with (
            edit.applied(loaded) if edited else contextlib.nullcontext(),
            tqdm(total=len(todo), desc=f"{prompts.name} pictures", unit="img", disable=not progress) as bar,
        ):
            for batch in _batches(todo, batch_size):
                pictures = _make(loaded, batch, sampler, batch_size, edited, bar)
                for (i, row, part), picture in zip(batch, pictures, strict=True):
                    if _is_black(picture) and not edited:
                        raise _black(loaded, row)
                    store.write_image(part, picture, _notes(part))
                    blacks[i] = _is_black(picture)
                    images.keep(i, picture)
                bar.update(len(batch))
    for i, key in enumerate(keys):
        if i not in blacks:  # the same picture as an earlier row's
            blacks[i] = blacks[missing[key]]
        if blacks[i] and not edited:
            raise _black(model, prompts.rows[i])
    black = sum(blacks.values())
    if black:
        log.warning("%d of %d pictures of the edited model are of one single colour", black, len(parts))
    return ImageSet(prompts, images, content_key(keys), len(missing), len(parts) - len(missing), black)


def image_parts(model: DiffusionModel | LazyModel, edit: Edit | None, row: Row, sampler: Sampler) -> dict[str, Any]:
    """Everything that decides one picture, as the store's key parts."""
    return {
        "version": VERSION,
        "model": model.fingerprint,
        "edit": edit.fingerprint if edit is not None and edit.kind != "none" else "none",
        "sampler": {"name": sampler.name, "steps": sampler.steps},
        "prompt": row.prompt,
        "seed": row.seed,
        "guidance": float(sampler.guidance if row.guidance is None else row.guidance),
        "width": row.width or model.size,
        "height": row.height or model.size,
    }


Item = tuple[int, Row, dict[str, Any]]


def _batches(todo: Sequence[Item], batch_size: int) -> Iterator[list[Item]]:
    """Items of one size, and of one way of guidance: a guidance of 1 leaves out the unconditional half."""
    groups: dict[tuple[int, int, bool], list[Item]] = {}
    for item in todo:
        part = item[2]
        groups.setdefault((part["width"], part["height"], part["guidance"] == 1), []).append(item)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _make(
    model: DiffusionModel, batch: Sequence[Item], sampler: Sampler, batch_size: int, edited: bool, bar: tqdm
) -> list[np.ndarray]:
    """Pictures of one batch, computed with `batch_size` rows: the last row fills the empty places."""
    parts = [part for _, _, part in batch]
    padded = parts + [parts[-1]] * (batch_size - len(parts))
    width, height = parts[0]["width"], parts[0]["height"]
    calls = sampler.calls()
    latents = model.denoise(
        model.encode([part["prompt"] for part in padded]),
        model.latents([part["seed"] for part in padded], width, height),
        sampler,
        [part["guidance"] for part in padded],
        size=(width, height),
        on_call=lambda i, _: bar.set_postfix_str(f"step {i + 1}/{calls}"),
    )
    try:
        pictures = model.decode(latents, nan_to_black=edited)
    except FloatingPointError as error:
        raise BlackImageError(str(error)) from error
    return list(pictures[: len(parts)].numpy())


def _is_black(picture: np.ndarray) -> bool:
    """True where all pixels are of one colour."""
    return bool((picture == picture[0, 0]).all())


def _black(model: DiffusionModel | LazyModel, row: Row) -> BlackImageError:
    return BlackImageError(
        f"the unedited model {model.name or model.fingerprint[:12]} gives a picture of one colour for row {row.id} "
        f"({row.prompt!r}, seed {row.seed}); its weights or its dtype are broken, try dtype=float32"
    )


def _notes(part: dict[str, Any]) -> dict[str, str]:
    names = ("prompt", "seed", "guidance", "model", "edit")
    sampler = f"{part['sampler']['name']} {part['sampler']['steps']} steps"
    return {**{name: str(part[name]) for name in names}, "sampler": sampler}
