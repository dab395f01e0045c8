"""Intervals for everything that is printed. All are two-sided at 95 % unless `level` says otherwise.

Shares, their macro means and the overall score use Wilson's interval or what follows from it. Resampling is left to
means of measured numbers: with 20 pictures a class and a judge that is right on all of them, a bootstrap of shares
returns an interval of width zero, which says more than anybody knows. `macro_share_interval` is for shares of pictures
that depend on each other, and minds that case.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from scipy.special import ndtri  # scipy.stats would take a second or two to import

LEVEL = 0.95
RESAMPLES = 2_000
# Fixed, so that the same rows always print the same interval.
SEED = 20_260_101


Numbers = Sequence[float] | np.ndarray  # one a picture, [n]
Groups = Sequence | np.ndarray  # what pictures share, [n]
End = TypeVar("End", bound=float | None, covariant=True)


class Interval(NamedTuple, Generic[End]):
    """A value with the ends of its interval; None where the data cannot give one. `Interval[float]` always has them."""

    value: float
    low: End
    high: End


@functools.cache
def quantile(level: float = LEVEL) -> float:
    """Standard deviations of a normal distribution on either side of its mean that hold this share of it: 1.96."""
    return float(ndtri((1 + level) / 2))


def wilson(k: float, n: float, level: float = LEVEL) -> Interval[float]:
    """Share k / n with Wilson's score interval (Wilson 1927); k and n need not be whole.

    Raises:
        ValueError: n is not positive or k is not within 0..n.
    """
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"a share needs 0 <= k <= n and n > 0, got k = {k}, n = {n}")
    z = quantile(level)
    share = k / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Rounding may put the ends of 0 / n and n / n a hair inside; the value itself always belongs to its interval.
    return Interval(share, float(min(max(0.0, centre - half), share)), float(max(min(1.0, centre + half), share)))


def macro_mean(counts: Sequence[tuple[float, float]]) -> Interval[float]:
    """Mean over classes of shares, each class counting the same however many pictures it has.

    The interval is Wilson's at the effective sample size, as in survey statistics (Korn and Graubard 1998; Dean and
    Pagano 2015): the number of pictures of one mixed class that would know the mean as well as the classes do. The
    variance that decides it uses (k + 1) / (n + 2), so a class with no failure does not count as certain.

    Args:
        counts: (k, n) of each class: k of n pictures are right.

    Raises:
        ValueError: There is no class, or its counts are impossible.
    """
    if not counts:
        raise ValueError("a macro mean needs at least one class")
    share = float(np.mean([wilson(k, n).value for k, n in counts]))
    k, n = np.array(counts, float).T
    smooth = (k + 1) / (n + 2)
    variance = float((smooth * (1 - smooth) / n).sum()) / len(counts) ** 2
    size = float(smooth.mean() * (1 - smooth.mean())) / variance
    _, low, high = wilson(share * size, size)
    return Interval(share, low, high)


def overall(preserve: float, forget: float) -> float:
    """Harmonic mean of preserve accuracy P and 1 - forget accuracy F: H = 2 P (1 - F) / (P + 1 - F).

    Shares are fractions of one. Where nothing is kept and nothing is forgotten (P = 0, F = 1) the limit 0 is taken.
    """
    forgotten = 1 - forget
    total = preserve + forgotten
    return 2 * preserve * forgotten / total if total > 0 else 0.0


def overall_score(preserve: Interval[float], forget: Interval[float]) -> Interval[float]:
    """`overall` of two macro means with its interval.

    Each end is found by moving one mean at a time to its own end and adding the changes in quadrature: the method of
    variance estimates recovery (Zou and Donner 2008), first order for a function that is not a sum. tests/test_stats.py
    holds its coverage.
    """
    value = overall(preserve.value, forget.value)
    worse = (overall(preserve.low, forget.value), overall(preserve.value, forget.high))
    better = (overall(preserve.high, forget.value), overall(preserve.value, forget.low))
    return Interval(
        value,
        value - float(np.hypot(value - worse[0], value - worse[1])),
        value + float(np.hypot(better[0] - value, better[1] - value)),
    )


def _group_numbers(n: int, groups: Groups | None) -> np.ndarray:
    """Group index of each of n values; without groups each value is its own."""
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise ValueError(f"{n} values but {len(groups)} group names")
    return np.unique(np.asarray(groups), return_inverse=True)[1]


def resampled(groups: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """How often each group is drawn in each resample, int [resamples, groups]."""
    count = int(groups.max()) + 1
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)


def mean_interval(
    values: Numbers,
    groups: Groups | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval[float | None]:
    """Mean with a percentile bootstrap interval over whole groups; None for the ends where there is one group.

    Args:
        values: One number a picture, [n].
        groups: What the pictures share, [n]: pictures of one prompt rise and fall together, so they are drawn together.
        level: Share of resampled means inside the interval.
        resamples: Number of resamples.
        seed: Decides the resamples.

    Raises:
        ValueError: There is no value, or a value is not finite.
    """
    return macro_mean_interval([(values, groups)], level=level, resamples=resamples, seed=seed)


def macro_mean_interval(
    classes: Sequence[tuple[Numbers, Groups | None]],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval[float | None]:
    """Mean over classes of their means, each class counting the same, with a percentile bootstrap interval.

    Groups are drawn inside each class: which classes there are is given, only their pictures are a sample.

    Args:
        classes: Values and groups of each class, as `mean_interval` has them.
        level, resamples, seed: As in `mean_interval`.

    Raises:
        ValueError: There is no class, a class has no value, or a value is not finite.
    """
    if not classes:
        raise ValueError("a macro mean needs at least one class")
    means, drawn = zip(*(_means(*one, resamples, seed + place) for place, one in enumerate(classes)), strict=True)
    mean = float(np.mean(means))
    if any(one is None for one in drawn):
        return Interval(mean, None, None)
    low, high = np.quantile(np.mean(drawn, axis=0), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def _means(values: Numbers, groups: Groups | None, resamples: int, seed: int) -> tuple[float, np.ndarray | None]:
    """The mean, and that of each resample [resamples]; None where one group alone tells nothing about the spread."""
    array = np.asarray(values, float)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"a mean needs a list of numbers, got shape {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"value {int(np.flatnonzero(~np.isfinite(array))[0])} is {array[~np.isfinite(array)][0]}")
    number = _group_numbers(len(array), groups)
    mean = float(array.mean())
    if number.max() == 0:
        return mean, None
    sums, sizes = np.bincount(number, array), np.bincount(number)
    drawn = resampled(number, resamples, seed)
    return mean, (drawn @ sums) / (drawn @ sizes)


def macro_share_interval(classes: Sequence[tuple[Numbers, Groups]]) -> Interval[float | None]:
    """`macro_mean_interval` of shares: the values are 0 and 1.

    Where resampling finds no spread at all, mostly because all pictures agree, the interval is that of `macro_mean`
    with one picture a group: an interval of width zero would say more than anybody knows.
    """
    interval = macro_mean_interval(classes)
    if interval.low is None or interval.high is None or interval.low < interval.high:
        return interval
    return macro_mean([(float(np.mean(values)) * len(set(groups)), len(set(groups))) for values, groups in classes])


def paired_difference(
    values: Numbers, reference: Numbers, groups: Groups | None = None, **options: Any
) -> Interval[float | None]:
    """Mean of `values - reference` over pictures of the same prompt and noise, with its interval."""
    one, other = np.asarray(values, float), np.asarray(reference, float)
    if one.shape != other.shape:
        raise ValueError(f"a paired difference needs equal lengths, got {list(one.shape)} and {list(other.shape)}")
    return mean_interval(one - other, groups, **options)
