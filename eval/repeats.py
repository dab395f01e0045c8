"""Values over repeated runs: the same prompts, with another seed of the edit and other noise in every repeat.

Two things vary. From repeat to repeat, edit and noise are drawn anew; inside a repeat, the prompts are a sample of all
prompts, the same one every time. An interval here covers both: it is about the method on such prompts, not about one
edit.

The repeats enter by Student's t over their values. Drawing them again, as a plain two-level bootstrap does, gives too
narrow an interval where they are few: three repeats have ten different resamples, whose spread is too small by a factor
of sqrt(2/3), and no quantile of theirs makes up for a spread that is known from three values only
(tests/test_repeats.py). The price is honest width: at 2 repeats t is 12.7, at 3 it is 4.3, at 5 it is 2.8. So

* 2 repeats show whether runs differ wildly, no more;
* 3 to 5 give a usable interval, which says nothing about rare failures: an edit that fails once in ten runs is missed
  by three repeats in 73 % of cases;
* methods are compared by the difference of each repeat, paired by seed (`over_repeats` of the differences).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from .stats import LEVEL, Interval, macro_mean, mean_interval, overall, overall_score, wilson

Counts = Sequence[tuple[float, float]]  # (k, n) of each class: k of n pictures are right


class Spread(NamedTuple):
    """A value over repeats: mean, the ends of its interval, and the standard deviation from repeat to repeat."""

    value: float
    low: float
    high: float
    sd: float


def over_repeats(values: Sequence[float], level: float = LEVEL) -> Spread:
    """Mean of one value a repeat with Student's interval, for any metric; prompts count as given.

    Raises:
        ValueError: There are fewer than two values, or one is not finite.
    """
    array = np.asarray(values, float)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"a spread over repeats needs at least 2 of them, got {array.size}")
    if not np.isfinite(array).all():
        raise ValueError(f"repeat {int(np.flatnonzero(~np.isfinite(array))[0])} has no finite value")
    mean, sd = float(array.mean()), float(array.std(ddof=1))
    half = float(student.ppf((1 + level) / 2, len(array) - 1)) * sd / float(np.sqrt(len(array)))
    return Spread(mean, mean - half, mean + half, sd)


def repeated_mean(values: Sequence[Sequence[float]] | np.ndarray, groups: Sequence | None = None) -> Spread:
    """Mean of measured numbers, such as CLIP scores or their paired differences, over repeats and prompts.

    Student's t over the repeats' means, and a bootstrap over prompts, each prompt with its pictures of all repeats (the
    prompts are the same in all of them); the two half-widths are added in quadrature. Noise is in both, which makes the
    interval somewhat wide where noise is most of the spread.

    Args:
        values: [repeats, n], row i of every repeat for the same prompt.
        groups: Prompt of each row, [n]; None: each row its own.

    Raises:
        ValueError: The repeats are fewer than two or of different lengths, or a value is not finite.
    """
    lengths = {len(one) for one in values}
    if len(lengths) > 1:
        raise ValueError(f"repeats have the same rows, got {sorted(lengths)} of them")
    outer = over_repeats([float(np.mean(one)) for one in values])
    inner = mean_interval(np.mean(np.asarray(values, float), axis=0), groups)
    if inner.low is None:
        return outer
    below, above = np.hypot(*_below(outer, inner)), np.hypot(*_above(outer, inner))
    return Spread(outer.value, outer.value - float(below), outer.value + float(above), outer.sd)


def repeated_macro_mean(counts: Sequence[Counts]) -> Spread:
    """Macro mean of shares over repeats, such as forget accuracy.

    Every repeat draws its pictures anew and a class has one prompt, so the repeats' own spread holds all there is. The
    interval is Wilson's at the sample size for which the plain interval would be Student's over the repeats' macro
    means (Korn and Graubard 1998), because means near 0 or 1 are skewed. It is never narrower than that of one run with
    all the pictures (`macro_mean`): repeats that agree by luck, or because all pictures are right, would have none.

    Args:
        counts: (k, n) of each class, for each repeat; the classes in the same order.

    Raises:
        ValueError: There are fewer than two repeats, or their classes differ in number.
    """
    pooled = macro_mean(_pooled(counts))
    return _shares([macro_mean(one).value for one in counts], pooled)


def repeated_overall(preserve: Sequence[Counts], forget: Sequence[Counts]) -> Spread:
    """Mean of the repeats' overall scores, by the same rule: each repeat is one edit with one overall score.

    Args:
        preserve: (k, n) of each kept class, for each repeat.
        forget: The same for the classes to forget, in the same order of repeats.

    Raises:
        ValueError: As `repeated_macro_mean`, or the two sides have different numbers of repeats.
    """
    if len(preserve) != len(forget):
        raise ValueError(f"{len(preserve)} repeats of the kept classes but {len(forget)} of those to forget")
    pooled = overall_score(macro_mean(_pooled(preserve)), macro_mean(_pooled(forget)))
    scores = [overall(macro_mean(kept).value, macro_mean(gone).value) for kept, gone in zip(preserve, forget)]
    return _shares(scores, pooled)


def _pooled(counts: Sequence[Counts]) -> list[tuple[float, float]]:
    """(k, n) of each class over all repeats."""
    sizes = {len(one) for one in counts}
    if len(sizes) > 1:
        raise ValueError(f"repeats have the same classes, got {sorted(sizes)} of them")
    return [(sum(k for k, _ in one), sum(n for _, n in one)) for one in zip(*counts)]


def _shares(values: Sequence[float], pooled: Interval) -> Spread:
    """Spread of values between 0 and 1 that is on no side narrower than `pooled`."""
    plain = over_repeats(values)
    mean, half = plain.value, plain.high - plain.value
    outer = plain
    if half > 0:
        size = mean * (1 - mean) * (float(norm.ppf((1 + LEVEL) / 2)) / half) ** 2
        _, low, high = wilson(mean * size, size)
        outer = plain._replace(low=low, high=high)
    below, above = max(_below(outer, pooled)), max(_above(outer, pooled))
    return plain._replace(low=max(0.0, mean - below), high=min(1.0, mean + above))


def _below(one: Spread, other: Interval) -> tuple[float, float]:
    return one.value - one.low, other.value - other.low


def _above(one: Spread, other: Interval) -> tuple[float, float]:
    return one.high - one.value, other.high - other.value
