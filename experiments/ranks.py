"""Average rank over several metrics, as FIA's table 4 ranks methods that forget artists."""

from __future__ import annotations

import math
from collections.abc import Mapping


def average_ranks(scores: Mapping[str, Mapping[str, float]], higher_is_better: Mapping[str, bool]) -> dict[str, float]:
    """The mean over metrics of a method's rank among the others; 1 would be best in all.

    Competition ranking: a method's rank is one more than the number of methods that are better, so equal values share
    the better rank. The rank belongs to its pool: with a method more or less it is another number. The unedited model
    is no method and stays out.

    Args:
        scores: by method, the values by metric.
        higher_is_better: the metrics that count, with their directions; each weighs the same.

    Returns:
        The average rank by method, in the order of `scores`.

    Raises:
        ValueError: there is no metric, or a method lacks a value.
    """
    if not higher_is_better:
        raise ValueError("an average rank needs at least one metric")
    for method, values in scores.items():
        for metric in higher_is_better:
            if not math.isfinite(values.get(metric, math.nan)):
                raise ValueError(f"{method} has no value of {metric}; every method of the pool needs all metrics")

    def rank(method: str, metric: str) -> int:
        sign = 1 if higher_is_better[metric] else -1
        return 1 + sum(sign * other[metric] > sign * scores[method][metric] for other in scores.values())

    return {
        method: sum(rank(method, metric) for metric in higher_is_better) / len(higher_is_better) for method in scores
    }
