"""Metric rows, read from the store or computed, and the values they sum up to.

Pictures that are not kept (`harness.generate.passing`) are scored by `score_passing`, chunk by chunk: every metric's
rows of a chunk are stored before the next chunk is made. `score` then finds all rows, as for pictures in the store.

Rows are stored a chunk at a time, of sets that are kept too: on one process by `score_part`, before the next pictures
are made; on several each stores the rows of every so many chunks when all pictures are there. `score` finds them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from eval.repeats import pooled_rows, repeated_values
from eval.values import Value
from harness.files import StoreError
from harness.generate import Chunks, ImageSet, is_black
from harness.task import Task

from .setup import Setup

log = logging.getLogger(__name__)

CSV_FILE, WIDE_FILE, WIDE_NAMES = "rows.csv", "wide.npy", "wide.json"
# With more floating-point columns than this (features of a network) they go into one array.
MANY_COLUMNS = 32


class JudgeFailed(RuntimeError):
    """A judge could not look at the pictures: it does not fit the memory, the device or the libraries."""


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


@dataclass(frozen=True)
class Scored:
    """One metric's values in one repeat of a run.

    Attributes:
        source: the published list of the prompts, which ids then end in; or empty.
        unedited, edited: values of either side; `edited` is None where nothing was edited.
        rows: of the unedited and the edited pictures, for a metric that can take those of all repeats as one run.
        photos: the key of the reference pictures that the metric compared with, where it has some.
    """

    metric: Any
    source: str
    unedited: list[Value]
    edited: list[Value] | None
    rows: tuple[pd.DataFrame, pd.DataFrame | None] | None
    photos: str | None = None


def score(
    parts: Setup, before: Mapping[str, ImageSet | Chunks], after: Mapping[str, ImageSet | Chunks]
) -> list[Scored]:
    """All metrics of the unedited and the edited pictures of one repeat; nothing but in the main process."""
    found: list[Scored] = []
    photos = [
        metric.references(before[metric.set].prompts)
        if metric.set in before and getattr(metric, "photos", None) is not None
        else None
        for metric in parts.metrics
    ]
    _share_rows(parts, before, after, photos)
    if not parts.team.main:
        return found
    for metric, real in zip(parts.metrics, photos, strict=True):
        if metric.set not in parts.task.sets:
            log.debug("%s is not measured: the task has no %s prompts", metric.id, metric.set)
        if metric.set not in before:
            continue
        reference = before[metric.set]
        # The unedited pictures are not compared with themselves: they get no reference.
        plain, rows = stored_rows(parts, metric, reference, None), None
        more = {}
        if real is not None:
            more["photo_rows"] = stored_rows(parts, metric, real, None)
        unedited, edited = metric.summarise(plain, parts.task, **more), None
        if after is not before:
            rows = stored_rows(parts, metric, after[metric.set], reference)
            edited = compared(metric, parts.task, rows, plain, **more)
        kept = (plain, rows) if getattr(metric, "repeated", None) else None
        key = None if real is None else real.key
        found.append(Scored(metric, reference.prompts.source, unedited, edited, kept, key))
    return found


def _share_rows(
    parts: Setup,
    before: Mapping[str, ImageSet | Chunks],
    after: Mapping[str, ImageSet | Chunks],
    photos: Sequence[ImageSet | None],
) -> None:
    """On several processes: store this one's share of the rows, and wait for the others'."""
    if parts.team.count == 1:
        return
    work = []
    for metric, real in zip(parts.metrics, photos, strict=True):
        if metric.set in before:
            reference = before[metric.set]
            work += [(metric, *chunk) for chunk in _chunks(reference, None)]
            if real is not None:
                work += [(metric, *chunk) for chunk in _chunks(real, None)]
            if after is not before:
                work += [(metric, *chunk) for chunk in _chunks(after[metric.set], reference)]
    for metric, images, reference in parts.team.own(work):
        stored_rows(parts, metric, images, reference)
    parts.team.gather(None)


def compared(metric: Any, task: Task, rows: pd.DataFrame, plain: pd.DataFrame, **more: pd.DataFrame) -> list[Value]:
    """A metric's values of edited pictures, each with its paired difference to the unedited ones where it has one."""
    found = metric.summarise(rows, task, plain, **more)
    differences = metric.differences(rows, plain, task) if hasattr(metric, "differences") else {}
    return [replace(value, difference=differences.get((value.id, value.subject))) for value in found]


def summed_up(task: Task, repeats: Sequence[Sequence[Scored]]) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """The values of the unedited and the edited pictures, over all repeats of a run."""
    unedited: list[Value] = []
    edited: list[Value] = []
    for same in zip(*repeats, strict=True):
        plain = _over_repeats(task, same, "unedited")
        changed = plain if same[0].edited is None else _over_repeats(task, same, "edited")
        for side, found in ((unedited, plain), (edited, changed)):
            side += named(found, same[0].source)
    return tuple(unedited), tuple(edited)


def _over_repeats(task: Task, same: Sequence[Scored], side: str) -> list[Value]:
    """One metric's values of one side; `same` is that metric in every repeat."""
    runs = [getattr(one, side) for one in same]
    if len(runs) == 1:
        return runs[0]
    metric, pooled = same[0].metric, []
    if same[0].rows is not None:
        plain = pooled_rows([one.rows[0] for one in same])
        if side == "edited":
            pooled = compared(metric, task, pooled_rows([one.rows[1] for one in same]), plain)
        else:
            pooled = metric.summarise(plain, task)
    return repeated_values(getattr(metric, "repeated", {}), runs, pooled)


def named(values: Sequence[Value], source: str) -> list[Value]:
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
    rows, team = sum(len(chunk.prompts) for chunk in parts.team.own(before.parts)), parts.team
    with tqdm(total=rows, desc=f"{name} pictures", unit="row", disable=not team.main) as bar:
        for number, plain in team.own(list(enumerate(before.parts))):
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
    for chunks in {id(chunks): chunks for chunks in (before, after)}.values():
        counted = team.gather([(part.made, part.reused, part.black) for part in team.own(chunks.parts)])
        for other, counts in enumerate(counted):
            for part, own in zip(chunks.parts[other :: team.count], counts, strict=True):
                part.made, part.reused, part.black = own


def score_part(
    parts: Setup,
    name: str,
    images: ImageSet,
    reference: ImageSet | None,
    stage: Callable[[str], AbstractContextManager[Any]],
) -> None:
    """Store every metric's rows of a part of a set whose pictures have just been made, where they are not stored."""
    missing = _unscored(parts, [metric for metric in parts.metrics if metric.set == name], images, reference)
    if missing:
        with stage("scores"):
            for metric in missing:
                stored_rows(parts, metric, images, reference)


def missing_rows(parts: Setup, name: str, images: ImageSet, reference: ImageSet | None) -> list[Any]:
    """What `score_passing` has to compute for a chunk of this set: metrics (and `PIXELS`) without stored rows."""
    metrics = [PIXELS, *(metric for metric in parts.metrics if metric.set == name)]
    return _unscored(parts, metrics, images, reference)


def _unscored(parts: Setup, metrics: Sequence[Any], images: ImageSet, reference: ImageSet | None) -> list[Any]:
    """Of these metrics, those without stored rows."""
    return [metric for metric in metrics if not parts.store.has("rows", _key(metric, images, reference))]


def stored_rows(
    parts: Setup, metric: Any, images: ImageSet | Chunks, reference: ImageSet | Chunks | None
) -> pd.DataFrame:
    """One row a picture, index = row id; always as read back from the store, so that a repeated run is the same."""
    chunks = _chunks(images, reference)
    if len(chunks) > 1:
        return pd.concat([stored_rows(parts, metric, *chunk) for chunk in chunks])
    images, reference = chunks[0]

    def make(folder: Path) -> None:
        log.info("scoring %d %s pictures: %s", len(images.images), images.prompts.name, metric.id)
        try:
            rows = metric.rows(images, reference)
        except StoreError:  # of pictures that pass by
            raise
        except RuntimeError as error:
            words = next(iter(str(error).splitlines()), type(error).__name__)
            raise JudgeFailed(
                f"{metric.id}: {words}; once the judge runs, the same command goes on from here"
            ) from error
        write_rows(_checked(metric, rows, images), folder)

    return read_rows(parts.store.folder("rows", _key(metric, images, reference), make))


def _checked(metric: Any, rows: pd.DataFrame, images: ImageSet) -> pd.DataFrame:
    """The rows, one a picture and none with NaN: a value over fewer pictures than were asked for is never shown.

    Raises:
        ValueError: rows are missing, or in another order than the pictures.
        FloatingPointError: a judge gave NaN or infinity.
    """
    asked = [row.id for row in images.prompts]
    if list(rows.index) != asked:
        raise ValueError(
            f"{metric.id}: {len(rows)} rows for {len(asked)} {images.prompts.name} pictures; a metric gives one row a "
            "picture, in the pictures' order and indexed by their ids"
        )
    for name in rows.columns:
        if pd.api.types.is_float_dtype(rows[name]) and not np.isfinite(rows[name].to_numpy()).all():
            first = rows.index[~np.isfinite(rows[name].to_numpy())][0]
            raise FloatingPointError(
                f"{metric.id}: {name} of the picture {first} is NaN or infinite; the judge overflows or is broken, try "
                "it in float32"
            )
    return rows


def _chunks(images: ImageSet | Chunks, reference: ImageSet | Chunks | None) -> list[tuple[ImageSet, ImageSet | None]]:
    """What is scored and stored together."""
    own, others = (
        None if given is None else given.parts if isinstance(given, Chunks) else given.scored()
        for given in (images, reference)
    )
    return list(zip(own, [None] * len(own) if others is None else others, strict=True))


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
