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
* methods are compared by the difference of each repeat, paired by seed (`Rule.difference`).

The prompts enter by the interval of all repeats' pictures taken as one run, which a metric that has rules gives by its
own `summarise`: there, a bootstrap draws each prompt with its pictures of all repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from .stats import LEVEL, Interval, quantile, wilson
from .values import Differences, Value


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
    half = float(stdtrit(len(array) - 1, (1 + level) / 2)) * sd / float(np.sqrt(len(array)))
    return Spread(mean, mean - half, mean + half, sd)


@dataclass(frozen=True)
class Rule:
    """How a family of values follows from repeats where the rows of all repeats are at hand.

    Attributes:
        prompts: whether prompts are a level of their own. If so, Student's interval over the repeats and that of all
            pictures are added in quadrature; noise is in both, which makes the result somewhat wide where noise is most
            of the spread. If not (a class has one prompt, and every repeat draws its pictures anew), the repeats' own
            spread holds all there is, and the interval is the wider one on each side: repeats that agree by luck, or
            because all pictures are right, would have none.
        share: the value lies between 0 and 1. Student's interval is then replaced by Wilson's at the sample size for
            which the plain interval would be Student's (Korn and Graubard 1998), because shares near 0 or 1 are skewed.
        total: the value is a sum over pictures, which grows with their number.
    """

    prompts: bool = True
    share: bool = False
    total: bool = False

    def spread(self, values: Sequence[float], pooled: Interval) -> Spread:
        """The mean of the repeats' values.

        Args:
            values: One a repeat.
            pooled: The value of all repeats' pictures taken as one run.
        """
        outer = over_repeats(values)
        least, most = (0.0, 1.0 if self.share else np.inf) if self.share or self.total else (-np.inf, np.inf)
        return self._joined(_skewed(outer) if self.share else outer, pooled, len(values), least, most)

    def difference(self, values: Sequence[float], pooled: Interval) -> Interval:
        """The mean of the repeats' paired differences between two models; arguments as in `spread`."""
        most = 1.0 if self.share else np.inf
        return Interval(*self._joined(over_repeats(values), pooled, len(values), -most, most)[:3])

    def _joined(self, outer: Spread, pooled: Interval, repeats: int, least: float, most: float) -> Spread:
        """`outer`, widened by the interval of all pictures, between the bounds of what is possible."""
        low, high = outer.low, outer.high
        if pooled.low is not None:
            scale = repeats if self.total else 1
            join = np.hypot if self.prompts else max
            low = outer.value - float(join(outer.value - low, (pooled.value - pooled.low) / scale))
            high = outer.value + float(join(high - outer.value, (pooled.high - pooled.value) / scale))
        return outer._replace(low=max(least, low), high=min(most, high))


MEAN = Rule()
# Of pictures whose prompts vary, such as FSR.
PROMPT_SHARE = Rule(share=True)
# Accuracies of classes, and what follows from them.
CLASS_SHARE = Rule(prompts=False, share=True)
TOTAL = Rule(total=True)


def repeated_values(rules: Mapping[str, Rule], runs: Sequence[Sequence[Value]], pooled: Sequence[Value]) -> list[Value]:
    """The values of one metric over repeats, with `sd` and `repeats`; n is that of all repeats together.

    Args:
        rules: By family of ids. A family without one is a single number a repeat, such as FID: `over_repeats`.
        runs: Each repeat's values.
        pooled: The values of all repeats' pictures taken as one run; only those of `rules` count.

    Raises:
        ValueError: A repeat lacks a value that the first one has.
    """
    together = {(value.id, value.subject): value for value in pooled}
    by_run = [{(value.id, value.subject): value for value in run} for run in runs]
    return [_repeated(rules, [_of(run, first, r) for r, run in enumerate(by_run)], together) for first in runs[0]]


def repeated_differences(rules: Mapping[str, Rule], runs: Sequence[Differences], pooled: Differences) -> Differences:
    """Paired differences between two models over repeats; arguments as in `repeated_values`."""
    found = {}
    for key, whole in pooled.items():
        values, rule = [run[key].value for run in runs], rules.get(_family(key[0]))
        found[key] = Interval(*over_repeats(values)[:3]) if rule is None else rule.difference(values, whole)
    return found


def pooled_rows(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all repeats as those of one run; the repeat's number becomes part of the row ids."""
    return pd.concat([table.set_axis([f"{r}/{id}" for id in table.index]) for r, table in enumerate(tables)])


def _of(run: Mapping[tuple[str, str], Value], value: Value, repeat: int) -> Value:
    found = run.get((value.id, value.subject))
    if found is None:
        raise ValueError(f"repeat {repeat} has no value of {value.id} for {value.subject}, the first one has")
    return found


def _repeated(rules: Mapping[str, Rule], same: Sequence[Value], together: Mapping[tuple[str, str], Value]) -> Value:
    """One value over repeats, from the repeats' values of one id and subject."""
    first, numbers = same[0], [value.value for value in same]
    rule, difference = rules.get(_family(first.id)), None
    if rule is None:
        found = over_repeats(numbers)
    else:
        whole = together[first.id, first.subject]
        found = rule.spread(numbers, Interval(whole.value, whole.low, whole.high))
        if whole.difference is not None:
            changes = [value.difference.value for value in same if value.difference is not None]
            difference = rule.difference(changes, whole.difference)
    return replace(
        first, value=found.value, n=sum(value.n for value in same), low=found.low, high=found.high, sd=found.sd,
        repeats=len(same), difference=difference,
    )  # fmt: skip


def _family(id: str) -> str:
    return id.partition("/")[0]


def _skewed(plain: Spread) -> Spread:
    """A share with Wilson's interval in place of Student's; see `Rule.share`."""
    half = plain.high - plain.value
    if half == 0:
        return plain
    size = plain.value * (1 - plain.value) * (quantile() / half) ** 2
    _, low, high = wilson(plain.value * size, size)
    return plain._replace(low=low, high=high)
