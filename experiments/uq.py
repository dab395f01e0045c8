"""UQ, the score by which ScaPre (arXiv 2601.06162) orders methods; it depends on which methods are compared."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def uq(accuracies: Sequence[float], clips: Sequence[float]) -> list[float]:
    """UQ of every row of a pool, in percent.

    With z-scores over the pool (population standard deviation), a = sigmoid(-z of the residual accuracy) and
    c = sigmoid(z of the CLIP score) are combined as 100 * 2ac / (a + c). ScaPre's table follows if the unedited model
    is part of the pool. A row that is added or dropped changes every other row's UQ, so print the pool with it.

    Args:
        accuracies: mean accuracy on the erased classes, one a row; lower is better.
        clips: mean CLIP score on captions, in the same order; higher is better.

    Raises:
        ValueError: lists of different lengths, fewer than two rows, or a pool in which all rows are equal.
    """
    if len(accuracies) != len(clips) or len(accuracies) < 2:
        raise ValueError(f"UQ needs two rows or more, got {len(accuracies)} accuracies and {len(clips)} CLIP scores")
    forgotten = [_sigmoid(-z) for z in _z_scores(accuracies, "accuracies")]
    kept = [_sigmoid(z) for z in _z_scores(clips, "CLIP scores")]
    return [200 * a * c / (a + c) for a, c in zip(forgotten, kept, strict=True)]


def _z_scores(numbers: Sequence[float], what: str) -> list[float]:
    mean, std = statistics.fmean(numbers), statistics.pstdev(numbers)
    if std == 0:
        raise ValueError(f"UQ is not defined for {len(numbers)} rows with equal {what}")
    return [(number - mean) / std for number in numbers]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
