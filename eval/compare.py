"""Two models on the same prompts and noise: is the difference of their shares more than luck?

Pictures of one row (prompt and seed) are right or wrong together far more often than by chance, so the difference of
two paired shares is known better than the two intervals beside each other suggest. The intervals are Newcombe's (1998,
method 10): the two shares' own intervals, put together by the method of variance estimates recovery with the
correlation of the pair (Zou and Donner 2008). Resampling the rows of a class would return an interval of width zero
where no row differs, and so would the plain McNemar variance.

Differences of measured numbers (CLIP score) are `stats.paired_difference`. Every metric that can be compared gives its
differences by `differences(rows, other, task)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from .stats import Interval, macro_mean, overall_score, paired_difference
from .values import ALL, Differences, paired

if TYPE_CHECKING:
    from harness.task import Task

    from .classify import Classify


class Cells(NamedTuple):
    """Rows of a class by which of two models is right on them; need not be whole (see `cells`)."""

    both: float
    first: float
    second: float
    neither: float

    @property
    def n(self) -> float:
        return self.both + self.first + self.second + self.neither


def share_difference(classes: Sequence[Cells]) -> Interval[float]:
    """Mean over classes of (share of the first model - share of the second), each class counting the same.

    Args:
        classes: One table a class.

    Raises:
        ValueError: There is no class, or one without rows.
    """
    return _difference(*_means(classes), _correlation(_covariance(classes)))


def overall_difference(preserve: Sequence[Cells], forget: Sequence[Cells]) -> Interval[float]:
    """Overall score of the first model minus that of the second.

    The correlation of the two scores follows from those of their parts to first order (delta method); the kept and the
    erased classes have no row in common.

    Args:
        preserve: One table a kept class.
        forget: One table a class to forget.

    Raises:
        ValueError: As `share_difference`.
    """
    models = list(zip(_means(preserve), _means(forget)))
    slopes = np.array([_slopes(kept.value, gone.value) for kept, gone in models])
    covariance = sum(np.outer(slope, slope) * _covariance(side) for slope, side in zip(slopes.T, (preserve, forget)))
    first, second = (overall_score(kept, gone) for kept, gone in models)
    return _difference(first, second, _correlation(covariance))


def accuracy_differences(metric: Classify, rows: pd.DataFrame, other: pd.DataFrame, task: Task) -> Differences:
    """Differences of forget and preserve accuracy, by class and in the mean, and of the overall score.

    Args:
        metric: Says by which rule a picture is right, and gives the ids.
        rows: Its rows of one model.
        other: Its rows of another model (a method, or the unedited one) for the same prompts and seeds.
        task: Says which classes are to be forgotten and kept.

    Raises:
        ValueError: The two tables have other rows, or rows that were drawn otherwise; a class has no row, or no side.
    """
    parts, others = metric.judged(rows, task), metric.judged(matched(rows, other, ("label", "draw")), task)
    tables = {name: cells(part, others[name]) for name, part in parts.items()}
    found: Differences = {}
    for family, names in (("forget_accuracy", task.forget), ("preserve_accuracy", task.keep)):
        subjects = {name: (name,) for name in names} | ({ALL: tuple(names)} if names else {})
        for subject, members in subjects.items():
            found[f"{family}/{metric.scorer}", subject] = share_difference([tables[name] for name in members])
    if task.forget and task.keep:
        sides = ([tables[name] for name in names] for names in (task.keep, task.forget))
        found[f"overall_score/{metric.scorer}", ALL] = overall_difference(*sides)
    return found


def picture_share_difference(hit: np.ndarray, other: np.ndarray, prompts: Sequence[str]) -> Interval:
    """Difference of two shares of pictures, `hit` and `other` [n] of 0 and 1, paired by picture.

    Pictures of one prompt depend on each other, so where prompts repeat they are drawn together. Where resampling finds
    no spread, mostly because all pictures agree, each prompt counts as one picture.
    """
    one, two = hit.astype(bool), other.astype(bool)
    parts = [float(part.sum()) for part in (one & two, one & ~two, ~one & two, ~one & ~two)]
    different = len(set(prompts))
    if different < len(one):
        found = paired_difference(one, two, prompts)
        if found.low is None or found.high is None or found.low < found.high:
            return found
    return share_difference([Cells(*(part * different / len(one) for part in parts))])


def matched(rows: pd.DataFrame, other: pd.DataFrame, same: Sequence[str]) -> pd.DataFrame:
    """The other model's rows in the order of `rows`.

    Args:
        same: Columns that are equal where a row of both tables asks for the same picture.

    Raises:
        ValueError: The two tables have other rows, or rows that were drawn otherwise.
    """
    if len(rows) != len(other):
        raise ValueError(f"{len(rows)} rows are compared with {len(other)}; both models need the same rows")
    found = paired(rows, other, "the other model's images")
    for column in same:
        odd = rows.index[(rows[column].astype(str) != found[column].astype(str)).to_numpy()]
        if len(odd):
            raise ValueError(f"row {odd[0]!r} has another {column} in the two tables: the rows are not paired")
    return found


def cells(rows: pd.DataFrame, other: pd.DataFrame) -> Cells:
    """The table of a class's rows as `Classify.judged` gives them, in the same order for both models.

    Rows of the same prompt and seed are one picture and count once in the sum, as in `classify.count`.
    """
    once = rows["draw"].nunique() / len(rows)
    first, second = rows["correct"].to_numpy(bool), other["correct"].to_numpy(bool)
    parts = (first & second, first & ~second, ~first & second, ~first & ~second)
    return Cells(*(once * float(part.sum()) for part in parts))


def _means(classes: Sequence[Cells]) -> tuple[Interval[float], Interval[float]]:
    """The two models' macro means."""
    return (
        macro_mean([(one.both + one.first, one.n) for one in classes]),
        macro_mean([(one.both + one.second, one.n) for one in classes]),
    )


def _covariance(classes: Sequence[Cells]) -> np.ndarray:
    """Covariance [2, 2] of the two models' macro means, with half a row added to every cell.

    So smoothed, models that agree on all of few rows do not count as the same model.
    """
    both, first, second, neither = np.array(classes, float).T + 0.5
    n = both + first + second + neither
    one, other = (both + first) / n, (both + second) / n
    shared = ((both * neither - first * second) / n**3).sum()
    return np.array([[(one * (1 - one) / n).sum(), shared], [shared, (other * (1 - other) / n).sum()]]) / len(n) ** 2


def _correlation(covariance: np.ndarray) -> float:
    size = np.sqrt(covariance[0, 0] * covariance[1, 1])
    return float(covariance[0, 1] / size) if size > 0 else 0.0


def _slopes(preserve: float, forget: float) -> tuple[float, float]:
    """Derivatives of `stats.overall` by P and F; of no use, and taken as 0, where nothing is kept or forgotten."""
    total = preserve + 1 - forget
    if total == 0:
        return 0.0, 0.0
    return 2 * ((1 - forget) / total) ** 2, -2 * (preserve / total) ** 2


def _difference(one: Interval[float], other: Interval[float], correlation: float) -> Interval[float]:
    """Zou and Donner 2008, equation for two correlated estimates."""

    def half(a: float, b: float) -> float:
        return float(np.sqrt(max(0.0, a * a + b * b - 2 * correlation * a * b)))

    value = one.value - other.value
    return Interval(
        value,
        value - half(one.value - one.low, other.high - other.value),
        value + half(one.high - one.value, other.value - other.low),
    )
