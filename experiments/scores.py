"""Metric rows, read from the store or computed, and the values they sum up to."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.generate import ImageSet

from .setup import Setup

log = logging.getLogger(__name__)

CSV_FILE, WIDE_FILE, WIDE_NAMES = "rows.csv", "wide.npy", "wide.json"
# With more floating-point columns than this (features of a network) they go into one array.
MANY_COLUMNS = 32


def score(
    parts: Setup, before: Mapping[str, ImageSet], after: Mapping[str, ImageSet]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The values of all metrics for the unedited and the edited pictures."""
    unedited: list[Any] = []
    edited: list[Any] = []
    for metric in parts.metrics:
        if metric.set not in parts.task.sets:
            log.info("%s is not measured: the task has no %s prompts", metric.id, metric.set)
        if metric.set not in before:
            continue
        reference = before[metric.set]
        # The unedited pictures are not compared with themselves: they get no reference.
        reference_rows = stored_rows(parts, metric, reference, None)
        more = {}
        if getattr(metric, "photos", None) is not None:
            more["photo_rows"] = stored_rows(parts, metric, metric.references(reference.prompts), None)
        unedited += metric.summarise(reference_rows, parts.task, **more)
        if after is not before:
            rows = stored_rows(parts, metric, after[metric.set], reference)
            edited += metric.summarise(rows, parts.task, reference_rows, **more)
    return tuple(unedited), tuple(unedited if after is before else edited)


def stored_rows(parts: Setup, metric: Any, images: ImageSet, reference: ImageSet | None) -> pd.DataFrame:
    """One row a picture, index = row id; always as read back from the store, so that a repeated run is the same."""

    def make(folder: Path) -> None:
        log.info("scoring %d %s pictures: %s", len(images.images), images.prompts.name, metric.id)
        write_rows(metric.rows(images, reference), folder)

    # Row ids and labels belong to the rows; `images.key` covers the pixels only.
    key = {
        "metric": metric.id,
        "version": metric.version,
        "judge": metric.fingerprint,
        "images": images.key,
        "reference": reference and reference.key,
        "prompts": images.prompts.key,
    }
    return read_rows(parts.store.folder("rows", key, make))


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
