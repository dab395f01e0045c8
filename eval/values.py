"""What a metric is and what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd
import torch

from .stats import Interval

if TYPE_CHECKING:
    from harness.generate import ImageSet
    from harness.task import Task

ALL = "all"
# Between two models on the same rows, by id and subject of the values.
Differences = dict[tuple[str, str], Interval]


@dataclass(frozen=True)
class Value:
    """One number of a record.

    Attributes:
        id: Family, implementation, weights and reference set, e.g. `clip/tiny-v1/open-clip-rn/x100`. Two numbers with
            different ids are never shown in one column.
        subject: The class, artist or part that it is about; `all` for the aggregate.
        value: Shares are fractions of one.
        n: Pictures behind the value.
        low: Lower end of the 95 % interval; None where there is none.
        high: Upper end.
        higher_is_better: None where neither direction is good in itself.
        sd: Of repeated runs, the standard deviation of the repeats' values (`eval.repeats`).
        repeats: How many those were; None for a single run.
        difference: To the unedited model on the same prompts and noise, paired row by row, where the metric can say.
    """

    id: str
    subject: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    higher_is_better: bool | None = None
    sd: float | None = None
    repeats: int | None = None
    difference: Interval | None = None


class Metric(Protocol):
    """Scores the images of one prompt set.

    `fingerprint` says what a stored row depends on besides the id (the hash of the judge's weights), "" if nothing.
    Where that is empty because the id names one published file, `sha256` may say for the record which file that is.
    `version` is raised by hand when the same pictures would give other rows: a stored row of another version is not
    used.

    A metric that compares with other pictures than the unedited model's also has `photos` and `references`, and takes
    their rows as `photo_rows` of `summarise`: see `eval.fid.Fid`. A metric that needs something of the user's has
    `check(task)`, which is called before anything is computed and raises ValueError where that is missing.

    A metric whose values can be compared between two models row by row has `differences(rows, other, task)`, which
    returns the paired differences (`rows` minus `other`) of values that `summarise` gives, by (id, subject). A metric
    that can take the rows of repeated runs as those of one run names in `repeated` the rule of each of its families
    (`eval.repeats.Rule`); without it, the repeats' values are taken as single numbers.
    """

    id: str
    set: str
    version: int

    @property
    def fingerprint(self) -> str: ...

    def rows(self, images: ImageSet, reference: ImageSet | None) -> pd.DataFrame:
        """One row per image, indexed by the prompt row's id, columns of numbers and strings."""

    def summarise(self, rows: pd.DataFrame, task: Task, reference_rows: pd.DataFrame | None = None) -> list[Value]:
        """Values from rows alone; `reference_rows` are this metric's rows of the unedited model's images."""


class Judge(Protocol):
    """A classifier with one or more heads."""

    id: str
    fingerprint: str

    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        """Names by head; a name's position is its class index."""

    def logits(self, images: Sequence[np.ndarray]) -> Mapping[str, torch.Tensor]:
        """Logits [n, labels] by head of uint8 pictures [h, w, 3]."""


class Encoder(Protocol):
    """Pictures and texts in one space."""

    id: str
    fingerprint: str

    def image_features(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Unit vectors [n, width]."""

    def text_features(self, prompts: Sequence[str]) -> torch.Tensor:
        """Unit vectors [n, width]."""


class Extractor(Protocol):
    """Pictures to the features whose distribution FID and KID compare; `features_id` names network, layer and width."""

    features_id: str
    fingerprint: str

    def features(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Features [n, width]."""


def check_scores(judge: str, scores: np.ndarray | torch.Tensor | Sequence[float]) -> None:
    """Raises FloatingPointError where a judge gave NaN or infinity: thresholds and maxima pass over them in silence."""
    if not torch.as_tensor(scores).isfinite().all():
        raise FloatingPointError(
            f"{judge}: its output is NaN or infinite; the judge overflows or is broken, try it in float32"
        )


def check_images(images: ImageSet) -> None:
    """Raises ValueError where a prompt row has no image or an image no row."""
    if len(images.images) != len(images.prompts.rows):
        raise ValueError(
            f"prompt set {images.prompts.name!r} has {len(images.prompts.rows)} rows but {len(images.images)} images"
        )


def by_class(rows: pd.DataFrame, task: Task, set: str) -> dict[str, pd.DataFrame]:
    """The rows (column `label`) of every class that the task forgets or keeps, by the task's name for it.

    Raises:
        ValueError: A class of the task has no picture, or a picture's class belongs to no side of the task.
    """
    parts = {label.casefold(): part for label, part in rows.groupby("label", sort=False)}
    names = (*task.forget, *task.keep)
    strange = [part["label"].iloc[0] for label, part in parts.items() if label not in {n.casefold() for n in names}]
    if strange:
        raise ValueError(f"task {task.name!r} neither forgets nor keeps {', '.join(map(repr, strange))}")
    for name in names:
        if name.casefold() not in parts:
            raise ValueError(f"task {task.name!r} has no picture of {name!r} in the set {set!r}")
    return {name: parts[name.casefold()] for name in names}


def paired(
    rows: pd.DataFrame, reference_rows: pd.DataFrame, whose: str = "the unedited model's images"
) -> pd.DataFrame:
    """The reference's rows in the order of `rows`; raises ValueError where one is missing."""
    missing = rows.index.difference(reference_rows.index)
    if len(missing):
        raise ValueError(f"{whose} lack {len(missing)} rows, the first is {missing[0]!r}")
    return reference_rows.loc[rows.index]
