"""Metric rows, read from the store or computed, and the values they sum up to.

Pictures that are not kept (`harness.generate.passing`) are scored by `score_passing`, chunk by chunk: every metric's
rows of a chunk are stored before the next chunk is made. `score` then finds all rows, as for pictures in the store.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from harness.generate import Chunks, ImageSet, is_black

from .setup import Setup

log = logging.getLogger(__name__)

CSV_FILE, WIDE_FILE, WIDE_NAMES = "rows.csv", "wide.npy", "wide.json"
# With more floating-point columns than this (features of a network) they go into one array.
MANY_COLUMNS = 32


class Pixels:
    """What is kept of pictures that are not: sha256 of the pixels, and whether a picture is of one single colour."""

    id, version, fingerprint = "pixels", 1, ""

    def rows(self, images: ImageSet, reference: ImageSet | None = None) -> pd.DataFrame:
        """Columns: sha256, black (0 or 1)."""
        return pd.DataFrame(
            {
                "sha256": [hashlib.sha256(picture.tobytes()).hexdigest() for picture in images.images],
                "black": [int(is_black(picture)) for picture in images.images],
            },
            index=pd.Index([row.id for row in images.prompts], name="id"),
        )


PIXELS = Pixels()


def score(
    parts: Setup, before: Mapping[str, ImageSet | Chunks], after: Mapping[str, ImageSet | Chunks]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The values of all metrics for the unedited and the edited pictures."""
    unedited: list[Any] = []
    edited: list[Any] = []
    for metric in parts.metrics:
        if metric.set not in parts.task.sets:
            log.debug("%s is not measured: the task has no %s prompts", metric.id, metric.set)
        if metric.set not in before:
            continue
        reference = before[metric.set]
        # The unedited pictures are not compared with themselves: they get no reference.
        reference_rows = stored_rows(parts, metric, reference, None)
        more = {}
        if getattr(metric, "photos", None) is not None:
            more["photo_rows"] = stored_rows(parts, metric, metric.references(reference.prompts), None)
        source = reference.prompts.source
        unedited += _named(metric.summarise(reference_rows, parts.task, **more), source)
        if after is not before:
            rows = stored_rows(parts, metric, after[metric.set], reference)
            edited += _named(metric.summarise(rows, parts.task, reference_rows, **more), source)
    return tuple(unedited), tuple(unedited if after is before else edited)


def _named(values: Sequence[Any], source: str) -> list[Any]:
    """The values with the published list of their prompts in the id: numbers of two lists never share a column."""
    return [replace(value, id=f"{value.id}/{source}") for value in values] if source else list(values)


def score_passing(
    parts: Setup, name: str, before: Chunks, after: Chunks, stage: Callable[[str], AbstractContextManager[Any]]
) -> None:
    """Store every metric's rows of pictures that are not kept; pictures are made only where rows are missing.

    Args:
        name: of the prompt set.
        before, after: the unedited and the edited pictures, the same object where nothing was edited. A metric that
            looks at `reference` has the unedited pictures of the chunk made, if they are not there.
        stage: meters what it is given the name of, as `harness.method.Cost.stage`.
    """
    with tqdm(total=len(before.prompts), desc=f"{name} pictures", unit="row") as bar:
        for number, plain in enumerate(before.parts):
            sides = [("unedited", plain, None)]
            if after is not before:
                sides.append(("edited", after.parts[number], plain))
            for words, images, reference in sides:
                missing = missing_rows(parts, name, images, reference)
                if missing:
                    with stage(f"pictures {words}"):
                        images.images.load()
                    with stage("scores"):
                        for metric in missing:
                            stored_rows(parts, metric, images, reference)
            for _, images, reference in sides:
                if not images.made:
                    images.reused = len(images.prompts)
                    images.black = int(stored_rows(parts, PIXELS, images, reference)["black"].sum())
                images.images.let_go()
            bar.update(len(plain.prompts))


def missing_rows(parts: Setup, name: str, images: ImageSet, reference: ImageSet | None) -> list[Any]:
    """What `score_passing` has to compute for a chunk of this set: metrics (and `PIXELS`) without stored rows."""
    metrics = [PIXELS, *(metric for metric in parts.metrics if metric.set == name)]
    return [metric for metric in metrics if not parts.store.has("rows", _key(metric, images, reference))]


def stored_rows(
    parts: Setup, metric: Any, images: ImageSet | Chunks, reference: ImageSet | Chunks | None
) -> pd.DataFrame:
    """One row a picture, index = row id; always as read back from the store, so that a repeated run is the same."""
    if isinstance(images, Chunks):
        pairs = zip(images.parts, repeat(None) if reference is None else reference.parts)
        return pd.concat([stored_rows(parts, metric, chunk, other) for chunk, other in pairs])

    def make(folder: Path) -> None:
        log.info("scoring %d %s pictures: %s", len(images.images), images.prompts.name, metric.id)
        write_rows(metric.rows(images, reference), folder)

    return read_rows(parts.store.folder("rows", _key(metric, images, reference), make))


def _key(metric: Any, images: ImageSet, reference: ImageSet | None) -> dict[str, Any]:
    # Row ids and labels belong to the rows; `images.key` covers the pixels only.
    return {
        "metric": metric.id,
        "version": metric.version,
        "judge": metric.fingerprint,
        "images": images.key,
        "reference": reference and reference.key,
        "prompts": images.prompts.key,
    }


def write_rows(rows: pd.DataFrame, folder: Path) -> None:
    """CSV, and one array beside it for many floating-point columns."""
    wide = [name for name in rows.columns if pd.api.types.is_float_dtype(rows[name])]
    if len(wide) <= MANY_COLUMNS:
        wide = []
    if wide:
        np.save(folder / WIDE_FILE, rows[wide].to_numpy(), allow_pickle=False)
        (folder / WIDE_NAMES).write_text(json.dumps([str(name) for name in wide]), encoding="utf-8")
    rows.drop(columns=wide).to_csv(folder / CSV_FILE, na_rep="nan", lineterminator="\n")


def read_rows(folder: Path) -> pd.DataFrame:
    """What `write_rows` wrote."""
    rows = pd.read_csv(
        folder / CSV_FILE, index_col=0, dtype={0: str}, keep_default_na=False, na_values=["nan"],
        float_precision="round_trip",
    )  # fmt: skip
    rows.index = rows.index.astype(str)
    if (folder / WIDE_FILE).exists():
        names = json.loads((folder / WIDE_NAMES).read_text(encoding="utf-8"))
        array = np.load(folder / WIDE_FILE, allow_pickle=False)
        rows = pd.concat([rows, pd.DataFrame(array, index=rows.index, columns=names)], axis=1)
    return rows
