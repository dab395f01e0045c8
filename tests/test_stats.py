"""Intervals: known numbers, coverage by simulation, and the cases where a naive interval would lie."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from scipy.stats import bootstrap as scipy_bootstrap

from eval.stats import Interval, macro_mean, mean_interval, overall, overall_score, paired_difference, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 20), (1, 20), (7, 50), (50, 50), (499, 500)])
def test_wilson_is_scipys(k: int, n: int) -> None:
    expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((k / n, expected.low, expected.high), abs=1e-12)


def test_wilson_holds_its_value_and_refuses_nonsense() -> None:
    for k in (0, 3, 20):
        share = wilson(k, 20)
        assert share.low <= share.value <= share.high
    assert wilson(20, 20).low < 1
    for k, n in ((1, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError, match=f"k = {k}, n = {n}"):
            wilson(k, n)


@pytest.mark.parametrize(
    ("preserve", "forget", "expected"),
    [(0.8, 0.2, 0.8), (1.0, 1.0, 0.0), (0.0, 1.0, 0.0), (0.9, 0.1, 0.9), (0.957, 0.001, 2 * 0.957 * 0.999 / 1.956)],
)
def test_overall_is_the_harmonic_mean(preserve: float, forget: float, expected: float) -> None:
    assert overall(preserve, forget) == pytest.approx(expected)


def test_overall_score_moves_with_both_parts() -> None:
    preserve, forget = Interval(0.9, 0.8, 0.95), Interval(0.2, 0.1, 0.35)
    score = overall_score(preserve, forget)
    assert score.value == pytest.approx(overall(0.9, 0.2))
    low = score.value - np.hypot(score.value - overall(0.8, 0.2), score.value - overall(0.9, 0.35))
    high = score.value + np.hypot(overall(0.95, 0.2) - score.value, overall(0.9, 0.1) - score.value)
    assert (score.low, score.high) == pytest.approx((low, high))


def test_macro_mean_counts_classes_not_pictures() -> None:
    mean = macro_mean([(100, 100), (0, 10)])
    assert mean.value == 0.5
    assert 0.3 < mean.low < 0.5 < mean.high < 0.7
    # One class, or equal classes with middling shares: plain Wilson, up to the smoothing.
    assert macro_mean([(25, 50)]) == pytest.approx(wilson(25, 50), abs=0.005)
    assert macro_mean([(25, 50)] * 4) == pytest.approx(wilson(100, 200), abs=0.005)
    with pytest.raises(ValueError, match="at least one class"):
        macro_mean([])


CASES = ([0.99] * 5, [0.9] * 5, [0.5] * 5, [0.02] * 5, [1, 1, 1, 0.9, 0.8], [0, 0.1, 0, 0.9, 0.05])


@pytest.mark.parametrize("truth", CASES, ids=str)
def test_macro_mean_covers_the_truth(truth: list[float]) -> None:
    """Classes of 20 pictures: at least 91 % of the intervals hold the truth, also near 0 and 1 (1.5 % is noise)."""
    rng = np.random.default_rng(0)
    means = [macro_mean([(int(k), 20) for k in rng.binomial(20, truth)]) for _ in range(300)]
    assert np.mean([mean.low <= np.mean(truth) <= mean.high for mean in means]) >= 0.91


def test_a_bootstrap_would_not_cover() -> None:
    """Why shares are not resampled: at a truth of 0.99 the bootstrap's intervals hold it far less often."""
    rng = np.random.default_rng(0)
    hits = 0
    for counts in rng.binomial(20, 0.99, (300, 5)):
        low, high = np.quantile(rng.binomial(20, counts / 20, (200, 5)).mean(1) / 20, [0.025, 0.975])
        hits += low <= 0.99 <= high
    assert hits / 300 < 0.8


@pytest.mark.parametrize(
    ("preserve", "forget"), [([0.99] * 5, [0.01] * 5), ([1, 1, 1, 0.9, 0.8], [0, 0.1, 0, 0.9, 0.05])], ids=str
)
def test_overall_score_covers_the_truth(preserve: list[float], forget: list[float]) -> None:
    rng = np.random.default_rng(1)
    truth, hits = overall(np.mean(preserve), np.mean(forget)), 0
    for _ in range(300):
        sides = [macro_mean([(int(k), 20) for k in rng.binomial(20, side)]) for side in (preserve, forget)]
        score = overall_score(*sides)
        hits += score.low <= truth <= score.high
    assert hits / 300 >= 0.91


def test_mean_interval_is_the_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).normal(31, 3, 200)
    ours = mean_interval(values, resamples=5_000)
    theirs = scipy_bootstrap((values,), np.mean, n_resamples=5_000, method="percentile", rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.04)
    assert ours == mean_interval(values, resamples=5_000)


def test_groups_are_drawn_as_a_whole() -> None:
    """Ten copies of each value tell nothing new: the interval is that of the values themselves."""
    values = np.random.default_rng(2).normal(size=30)
    once = mean_interval(values)
    copied = mean_interval(np.repeat(values, 10), np.repeat([f"prompt {i}" for i in range(30)], 10))
    naive = mean_interval(np.repeat(values, 10))
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.05)
    assert naive.high - naive.low < 0.5 * (once.high - once.low)


def test_one_group_has_no_interval_and_bad_values_are_named() -> None:
    assert mean_interval([1.0, 3.0], ["a", "a"]) == (2.0, None, None)
    with pytest.raises(ValueError, match="value 1 is nan"):
        mean_interval([1.0, float("nan")])
    with pytest.raises(ValueError, match="shape"):
        mean_interval([])
    with pytest.raises(ValueError, match="2 values but 3 group names"):
        mean_interval([1.0, 2.0], ["a", "b", "c"])


def test_pairing_removes_the_spread_over_captions() -> None:
    rng = np.random.default_rng(3)
    before = rng.normal(30, 3, 300)
    after = before - 0.5 + rng.normal(0, 0.3, 300)
    change = paired_difference(after, before)
    assert change.low < -0.5 < change.high
    assert change.high - change.low < 0.2 < mean_interval(after).high - mean_interval(after).low
    with pytest.raises(ValueError, match="equal lengths"):
        paired_difference([1.0], [1.0, 2.0])
