"""Intervals over repeated runs: known numbers, coverage by simulation, and why repeats are not resampled."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from eval.repeats import over_repeats, repeated_macro_mean, repeated_mean, repeated_overall
from eval.stats import macro_mean, mean_interval, overall, overall_score

# Spread of a picture's score: over prompts, from edit to edit, and from noise to noise.
SPREADS = {"prompts": (3.0, 0.3, 1.0), "edits": (0.3, 1.0, 1.0), "noise": (0.3, 0.0, 3.0)}


def scores(rng: np.random.Generator, spread: tuple[float, float, float], repeats: int, prompts: int = 15) -> np.ndarray:
    """[repeats, prompts] scores around 30; the prompts are the same in every repeat."""
    prompt, edit, noise = spread
    fixed = rng.normal(0, prompt, prompts) + rng.normal(0, edit, (repeats, 1))
    return 30 + fixed + rng.normal(0, noise, (repeats, prompts))


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
    assert repeated_mean(x, ["one prompt"] * 15) == outer
    with pytest.raises(ValueError, match=r"the same rows, got \[2, 3\]"):
        repeated_mean([[1.0, 2.0], [1.0, 2.0, 3.0]])


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


def test_repeats_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the same classes, got \[1, 2\]"):
        repeated_macro_mean([[(1, 2)], [(1, 2), (1, 2)]])
    with pytest.raises(ValueError, match="2 repeats of the kept classes but 1"):
        repeated_overall([[(1, 2)], [(1, 2)]], [[(1, 2)]])
    with pytest.raises(ValueError, match="at least 2"):
        repeated_macro_mean([[(1, 2)]])
