"""Paired differences of shares: limits that are known, coverage by simulation, and rows that do not belong together."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from eval.classify import Agreement, Classify
from eval.compare import Cells, overall_difference, picture_share_difference, share_difference
from eval.stats import overall
from harness.task import Concept, Task


def tables(rng: np.random.Generator, one: list[float], other: list[float], alike: float, n: int = 20) -> list[Cells]:
    """Cells of each class: a share `alike` of the rows is decided by the same luck for both models."""
    found = []
    for p, q in zip(one, other):
        luck = rng.random((2, n))
        luck[1] = np.where(rng.random(n) < alike, luck[0], luck[1])
        first, second = luck[0] < p, luck[1] < q
        parts = (first & second, first & ~second, ~first & second, ~first & ~second)
        found.append(Cells(*(float(part.sum()) for part in parts)))
    return found


CASES = [
    ([0.05] * 5, [0.95] * 5, 0.5),  # a method that forgets, against the unedited model
    ([0.9] * 5, [0.93] * 5, 0.9),  # what is kept
    ([0.98] * 5, [0.98] * 5, 0.9),
    ([0.5] * 5, [0.5] * 5, 0.0),
    ([0.1, 0.9, 0.0, 0.3, 0.6], [0.2, 0.7, 0.1, 0.3, 0.5], 0.8),
]


@pytest.mark.parametrize(("one", "other", "alike"), CASES, ids=str)
@pytest.mark.parametrize("classes", [1, 5])
def test_share_difference_covers_the_truth(one: list[float], other: list[float], alike: float, classes: int) -> None:
    """At least 91 % of the intervals hold the truth, also where the models hardly ever differ (1.3 % is noise)."""
    rng = np.random.default_rng(0)
    one, other = one[:classes], other[:classes]
    truth, hits = np.mean(one) - np.mean(other), 0
    for _ in range(300):
        found = share_difference(tables(rng, one, other, alike))
        assert -1 <= found.low <= found.value <= found.high <= 1
        hits += found.low - 1e-12 <= truth <= found.high + 1e-12
    assert hits / 300 >= 0.91


@pytest.mark.parametrize("alike", [0.0, 0.9])
def test_overall_difference_covers_the_truth(alike: float) -> None:
    rng = np.random.default_rng(1)
    kept, gone = ([0.9] * 5, [0.8] * 5), ([0.1] * 5, [0.3] * 5)
    truth = overall(0.9, 0.1) - overall(0.8, 0.3)
    found = [overall_difference(tables(rng, *kept, alike), tables(rng, *gone, alike)) for _ in range(300)]
    assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.91


def test_many_rows_give_the_plain_paired_interval() -> None:
    """With thousands of rows the interval is McNemar's: 1.96 standard deviations from the rows that differ."""
    cell = Cells(2400.0, 500.0, 300.0, 800.0)
    _, first, second, _ = cell
    n = cell.n
    found = share_difference([cell])
    half = 1.96 * np.sqrt(first + second - (first - second) ** 2 / n) / n
    assert found == pytest.approx(
        ((first - second) / n, (first - second) / n - half, (first - second) / n + half), 0.02
    )
    # Classes are strata: the mean of two has half the variance.
    twice = share_difference([cell, cell])
    assert twice.high - twice.low == pytest.approx((found.high - found.low) / np.sqrt(2), rel=0.01)


def test_many_rows_give_the_bootstrap_of_the_overall_score() -> None:
    rng = np.random.default_rng(3)
    kept = tables(rng, [0.9, 0.8], [0.85, 0.8], 0.7, n=1000)
    gone = tables(rng, [0.2, 0.3], [0.3, 0.5], 0.7, n=1000)
    drawn = {side: [rng.multinomial(1000, np.array(c) / 1000, 2_000) / 1000 for c in cells]
             for side, cells in (("kept", kept), ("gone", gone))}  # fmt: skip
    scores = []
    for place in (1, 2):  # of the cell in which only this model is right
        share = {side: np.mean([x[:, 0] + x[:, place] for x in parts], axis=0) for side, parts in drawn.items()}
        scores.append([overall(p, f) for p, f in zip(share["kept"], share["gone"])])
    low, high = np.quantile(np.subtract(*scores), [0.025, 0.975])
    found = overall_difference(kept, gone)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_pairing_narrows_and_agreement_is_not_certainty() -> None:
    alike = share_difference([Cells(16.0, 1.0, 0.0, 3.0)] * 5)
    mixed = share_difference([Cells(13.0, 4.0, 3.0, 0.0)] * 5)
    assert alike.value == mixed.value == pytest.approx(0.05)
    assert alike.high - alike.low < 0.6 * (mixed.high - mixed.low)
    same = share_difference([Cells(20.0, 0.0, 0.0, 0.0)] * 5)
    assert same.value == 0 and same.low < 0 < same.high


TASK = Task("test", "object", "test", (Concept("tench", "object"),), ("church", "golf ball"))
NAMES = ("tench", "church", "golf ball", "road")
METRIC = Classify(SimpleNamespace(id="judge", fingerprint="", labels={"object": NAMES}))


def judged(tench: str, church: str, ball: str) -> pd.DataFrame:
    """Rows of a judge: a 1 for every picture that it names rightly."""
    rows = [("tench", c) for c in tench] + [("church", c) for c in church] + [("golf ball", c) for c in ball]
    return pd.DataFrame(
        {
            "label": [label for label, _ in rows],
            "predicted": [NAMES.index(label) if c == "1" else NAMES.index("road") for label, c in rows],
            "draw": [f"{i} a {label}" for i, (label, _) in enumerate(rows)],
        },
        index=pd.Index([f"row {i}" for i in range(len(rows))], name="id"),
    )


def test_two_tables_of_rows_are_compared_row_by_row() -> None:
    ours, theirs = judged("0010", "1111", "1101"), judged("1110", "1011", "1111")
    found = METRIC.differences(ours, theirs.iloc[::-1], TASK)
    assert {key: round(one.value, 6) for key, one in found.items()} == {
        ("forget_accuracy/judge", "tench"): -0.5,
        ("forget_accuracy/judge", "all"): -0.5,
        ("preserve_accuracy/judge", "church"): 0.25,
        ("preserve_accuracy/judge", "golf ball"): -0.25,
        ("preserve_accuracy/judge", "all"): 0.0,
        ("overall_score/judge", "all"): round(overall(0.875, 0.25) - overall(0.875, 0.75), 6),
    }
    assert found["preserve_accuracy/judge", "church"] == share_difference([Cells(3.0, 1.0, 0.0, 0.0)])
    # They are differences of the metric's own values.
    sides = [{(v.id, v.subject): v.value for v in METRIC.summarise(rows, TASK)} for rows in (ours, theirs)]
    assert {key: one.value for key, one in found.items()} == pytest.approx(
        {k: sides[0][k] - sides[1][k] for k in found}
    )
    only = Task("test", "object", "test", (Concept("tench", "object"),))
    found = METRIC.differences(ours.iloc[:4], theirs.iloc[:4], only)
    assert list(found) == [("forget_accuracy/judge", name) for name in ("tench", "all")]


def test_agreement_of_judges_is_compared_too() -> None:
    judge = METRIC.judge
    metric = Agreement(judge, SimpleNamespace(id="second", fingerprint="", labels=judge.labels))
    one, other = (
        pd.DataFrame({"correct": correct, "draw": list("abcd")}, index=list("abcd"))
        for correct in ([1, 1, 0, 1], [1, 0, 0, 0])
    )
    found = metric.differences(one, other.iloc[::-1], TASK)
    assert found == {("judge_agreement/judge+second", "all"): share_difference([Cells(1, 2, 0, 1)])}


def test_a_picture_that_is_drawn_twice_counts_once() -> None:
    once = [judged("0011", "1", "1"), judged("1111", "1", "1")]
    twice = [rows.iloc[[0, 0, 1, 1, 2, 2, 3, 3, 4, 5]] for rows in once]
    for rows in twice:
        rows.index = [f"row {i}" for i in range(10)]
    lows = [[one.low for one in METRIC.differences(*rows, TASK).values()] for rows in (once, twice)]
    assert lows[1] == pytest.approx(lows[0])


def test_pictures_of_one_prompt_are_compared_together() -> None:
    hit, other = np.array([1, 1, 0, 1, 0, 0]), np.array([1, 0, 0, 0, 0, 0])
    assert picture_share_difference(hit, other, list("abcdef")) == share_difference([Cells(1, 2, 0, 3)])
    paired = picture_share_difference(hit, other, list("aabbcc"))
    assert paired.value == pytest.approx(1 / 3) and paired.low == 0 and paired.high == 0.5
    # Where no picture differs, agreement on three prompts is not certainty.
    same = picture_share_difference(hit, hit, list("aabbcc"))
    assert same == share_difference([Cells(1.5, 0, 0, 1.5)]) and same.low < 0 < same.high


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.assign(draw=rows["draw"] + "!"), "row 'row 0' has another draw in the two tables"),
        (lambda rows: rows.assign(label="church"), "row 'row 0' has another label"),
        (lambda rows: rows.iloc[1:], "3 rows are compared with 2"),
        (lambda rows: rows.rename({"row 1": "row 9"}), "the other model's images lack 1 rows, the first is 'row 1'"),
    ],
)
def test_rows_that_are_not_pairs_are_refused(change, words: str) -> None:
    rows = judged("1", "1", "0")
    with pytest.raises(ValueError, match=words):
        METRIC.differences(rows, change(rows), TASK)
