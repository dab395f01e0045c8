"""Intervals over repeated runs: known numbers, coverage by simulation, and why repeats are not resampled."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from eval.compare import Cells, share_difference
from eval.repeats import (
    CLASS_SHARE,
    MEAN,
    PROMPT_SHARE,
    TOTAL,
    Spread,
    over_repeats,
    pooled_rows,
    repeated_values,
)
from eval.stats import Interval, macro_mean, macro_share_interval, mean_interval, overall, overall_score
from eval.values import Value

# Spread of a picture's score: over prompts, from edit to edit, and from noise to noise.
SPREADS = {"prompts": (3.0, 0.3, 1.0), "edits": (0.3, 1.0, 1.0), "noise": (0.3, 0.0, 3.0)}


def scores(rng: np.random.Generator, spread: tuple[float, float, float], repeats: int, prompts: int = 15) -> np.ndarray:
    """[repeats, prompts] scores around 30; the prompts are the same in every repeat."""
    prompt, edit, noise = spread
    fixed = rng.normal(0, prompt, prompts) + rng.normal(0, edit, (repeats, 1))
    return 30 + fixed + rng.normal(0, noise, (repeats, prompts))


def repeated_mean(x: np.ndarray, groups: np.ndarray | None = None) -> Spread:
    """Of scores [repeats, n], row i of every repeat for the same prompt, as the pipeline does it."""
    groups = np.arange(x.shape[1]) if groups is None else groups
    return MEAN.spread(x.mean(1), mean_interval(x.ravel(), np.tile(groups, len(x))))


def pooled(counts: list) -> list[tuple[int, int]]:
    """(k, n) of each class over all repeats."""
    return [(sum(k for k, _ in one), sum(n for _, n in one)) for one in zip(*counts)]


def repeated_macro_mean(counts: list) -> Spread:
    return CLASS_SHARE.spread([macro_mean(one).value for one in counts], macro_mean(pooled(counts)))


def repeated_overall(preserve: list, forget: list) -> Spread:
    whole = overall_score(*(macro_mean(pooled(side)) for side in (preserve, forget)))
    scores = [overall(macro_mean(kept).value, macro_mean(gone).value) for kept, gone in zip(preserve, forget)]
    return CLASS_SHARE.spread(scores, whole)


def test_over_repeats_is_students_interval() -> None:
    values = [31.0, 30.0, 32.5]
    spread = over_repeats(values)
    low, high = student.interval(0.95, 2, np.mean(values), np.std(values, ddof=1) / np.sqrt(3))
    assert spread == pytest.approx((np.mean(values), low, high, np.std(values, ddof=1)))
    for wrong, words in (([1.0], "at least 2"), ([1.0, float("nan")], "repeat 1 has no finite value")):
        with pytest.raises(ValueError, match=words):
            over_repeats(wrong)


@pytest.mark.parametrize("repeats", [3, 5])
@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
def test_repeated_mean_covers_the_truth(spread: tuple[float, float, float], repeats: int) -> None:
    """At least 91 % of the intervals hold the mean over all prompts, edits and noises (1.3 % is noise)."""
    rng = np.random.default_rng(0)
    found = [repeated_mean(scores(rng, spread, repeats)) for _ in range(300)]
    assert np.mean([one.low <= 30 <= one.high for one in found]) >= 0.91


def test_a_plain_two_level_bootstrap_would_not_cover() -> None:
    """Three repeats drawn again, and their prompts: the intervals hold the truth far less often than they say."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        x = scores(rng, SPREADS["edits"], 3)
        repeat, prompt = rng.integers(0, 3, (400, 3, 1)), rng.integers(0, 15, (400, 1, 15))
        low, high = np.quantile(x[repeat, prompt].mean((1, 2)), [0.025, 0.975])
        hits += low <= 30 <= high
    assert hits / 300 < 0.85


def test_one_run_alone_says_too_little_about_edits() -> None:
    """The interval of a single run covers pictures, not edits: where edits differ it misses the truth."""
    rng = np.random.default_rng(0)
    found = [mean_interval(scores(rng, SPREADS["edits"], 1)[0]) for _ in range(300)]
    assert np.mean([one.low <= 30 <= one.high for one in found]) < 0.6


def test_prompts_and_repeats_both_widen_a_mean() -> None:
    rng = np.random.default_rng(1)
    x = scores(rng, SPREADS["prompts"], 3)
    found, outer, inner = repeated_mean(x), over_repeats(x.mean(1)), mean_interval(x.mean(0))
    assert found.value == pytest.approx(x.mean()) and found.sd == outer.sd
    assert found.high - found.low > max(outer.high - outer.low, inner.high - inner.low)
    # Copies of a prompt tell nothing new.
    copied = repeated_mean(np.repeat(x, 5, axis=1), np.repeat(np.arange(15), 5))
    assert copied.high - copied.low == pytest.approx(found.high - found.low, rel=0.05)
    assert repeated_mean(x, np.zeros(15)) == outer


def shares(rng: np.random.Generator, truth: list[float], edit: float, shape: tuple[int, ...]) -> np.ndarray:
    """Accuracy of each class in each repeat, [*shape, classes]: an edit moves all log-odds by the same amount."""
    odds = np.log(np.array(truth)) - np.log1p(-np.array(truth))
    return 1 / (1 + np.exp(-odds - rng.normal(0, edit, (*shape, 1))))


CASES = [([0.99] * 5, 0.0), ([0.9] * 5, 0.0), ([0.9] * 5, 0.5), ([0.5, 0.6, 0.4, 0.5, 0.7], 1.0), ([0.03] * 5, 0.5)]


@pytest.mark.parametrize("repeats", [3, 5])
@pytest.mark.parametrize(("truth", "edit"), CASES, ids=str)
def test_repeated_macro_mean_covers_the_truth(truth: list[float], edit: float, repeats: int) -> None:
    rng = np.random.default_rng(0)
    mean = shares(rng, truth, edit, (20_000,)).mean()
    hits = 0
    for right in rng.binomial(20, shares(rng, truth, edit, (300, repeats))):
        found = repeated_macro_mean([[(int(k), 20) for k in one] for one in right])
        assert 0 <= found.low <= found.value <= found.high <= 1
        hits += found.low <= mean <= found.high
    assert hits / 300 >= 0.91


@pytest.mark.parametrize("edit", [0.0, 0.7])
def test_repeated_overall_covers_the_truth(edit: float) -> None:
    rng = np.random.default_rng(2)
    kept, gone = [0.9, 0.95, 0.8, 0.85, 0.9], [0.1, 0.05, 0.3, 0.02, 0.1]

    def runs(*shape: int) -> tuple[np.ndarray, np.ndarray]:
        """Right pictures of 20 in each class, of what is kept and of what is gone."""
        return tuple(rng.binomial(20, shares(rng, side, edit, shape)) for side in (kept, gone))

    truth = np.mean([overall(p, f) for p, f in zip(*(side.mean(1) / 20 for side in runs(20_000)))])
    hits = 0
    for preserve, forget in zip(*runs(300, 3)):
        sides = [[[(int(k), 20) for k in one] for one in side] for side in (preserve, forget)]
        found = repeated_overall(*sides)
        hits += found.low <= truth <= found.high
    assert hits / 300 >= 0.91


def test_repeats_that_agree_keep_the_interval_of_all_their_pictures() -> None:
    perfect = [[(20, 20)] * 5] * 3
    found = repeated_macro_mean(perfect)
    assert found[:3] == pytest.approx(macro_mean([(60, 60)] * 5)) and found.sd == 0 and found.low < 1
    score = repeated_overall(perfect, [[(0, 20)] * 5] * 3)
    pooled = overall_score(macro_mean([(60, 60)] * 5), macro_mean([(0, 60)] * 5))
    assert (score.value, score.low, score.high) == pytest.approx((1, pooled.low, 1))


@pytest.mark.parametrize("spread", [0.0, 0.15], ids=["edits alike", "edits differ"])
def test_shares_over_prompts_cover_the_truth(spread: float) -> None:
    """Success rates of 30 prompts with two pictures each; chances differ from prompt to prompt and edit to edit."""
    rng = np.random.default_rng(3)
    prompts, hits = np.repeat(np.arange(30), 2), 0
    for _ in range(200):
        chances = rng.beta(4, 1, 30) + rng.normal(0, spread, (3, 1))
        right = rng.random((3, 60)) < np.repeat(np.clip(chances, 0, 1), 2, axis=1)
        found = PROMPT_SHARE.spread(right.mean(1), macro_share_interval([(right.ravel(), np.tile(prompts, 3))]))
        assert 0 <= found.low <= found.value <= found.high <= 1
        truth = np.mean(np.clip(rng.beta(4, 1, 4_000) + rng.normal(0, spread, 4_000), 0, 1))
        hits += found.low <= truth <= found.high
    assert hits / 200 >= 0.91


@pytest.mark.parametrize("edit", [0.0, 0.7])
def test_differences_of_shares_cover_the_truth(edit: float) -> None:
    """An edited model against the unedited one, on the same noise; only the edited one varies from edit to edit."""
    rng = np.random.default_rng(4)
    odds, before, hits = np.log([0.4 / 0.6, 0.3 / 0.7]), np.array([0.95, 0.9]), 0
    truth = (1 / (1 + np.exp(-odds - rng.normal(0, edit, (20_000, 1))))).mean() - before.mean()
    for _ in range(200):
        after = 1 / (1 + np.exp(-odds - rng.normal(0, edit, (3, 1))))
        luck = rng.random((3, 2, 20))
        first, second = luck < after[..., None], luck < before[:, None]
        parts = (first & second, first & ~second, ~first & second, ~first & ~second)
        cells = np.stack([part.sum(-1) for part in parts], -1)
        runs = [share_difference([Cells(*one) for one in classes]).value for classes in cells]
        found = CLASS_SHARE.difference(runs, share_difference([Cells(*one) for one in cells.sum(0)]))
        assert -1 <= found.low <= found.value <= found.high <= 1
        hits += found.low <= truth <= found.high
    assert hits / 200 >= 0.91


def test_a_total_is_that_of_one_run() -> None:
    """All repeats' pictures have three times as many boxes, and so have the ends of their interval."""
    outer, found = over_repeats([10, 12, 14]), TOTAL.spread([10, 12, 14], Interval(36, 24, 60))
    below, above = np.hypot(outer.value - outer.low, 4), np.hypot(outer.high - outer.value, 8)
    assert found == pytest.approx((12, 12 - below, 12 + above, 2))
    assert TOTAL.spread([0, 0, 1], Interval(1, 0, 3)).low == 0
    assert TOTAL.difference([-4, 0, -2], Interval(-6, None, None)).low < -4


def value(number: float, n: int = 10, id: str = "clip/x", difference: Interval | None = None) -> Value:
    return Value(id, "all", number, n, number - 1, number + 1, True, difference=difference)


def test_the_values_of_a_metric_over_repeats() -> None:
    away = [Interval(-1.0, -2.0, 0.0), Interval(-3.0, -4.0, -2.0)]
    runs = [
        [value(30, difference=away[0]), value(5, id="fid/y")],
        [value(32, difference=away[1]), value(6, id="fid/y")],
    ]
    whole = [value(31, n=20, difference=Interval(-2.0, -2.5, -1.5))]
    mean, single = repeated_values({"clip": MEAN}, runs, whole)
    wanted = MEAN.spread([30, 32], Interval(31, 30, 32))
    assert (mean.value, mean.low, mean.high, mean.sd, mean.repeats, mean.n) == (*wanted, 2, 20)
    assert mean.difference == MEAN.difference([-1, -3], whole[0].difference)
    # A single number a repeat: the prompts' interval is not used.
    assert (single.value, single.low, single.high, single.sd) == over_repeats([5, 6]) and single.difference is None
    with pytest.raises(ValueError, match="repeat 1 has no value of fid/y for all"):
        repeated_values({}, [runs[0], runs[1][:1]], [])


def test_rows_of_repeats_keep_apart() -> None:
    table = pd.DataFrame({"score": [1.0, 2.0]}, index=["a", "b"])
    assert [*pooled_rows([table, table + 1]).index] == ["0/a", "0/b", "1/a", "1/b"]
