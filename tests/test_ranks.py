"""Average ranks against the published ones."""

from __future__ import annotations

import pytest

from experiments.ranks import average_ranks

BETTER = {"CLIP_a": False, "FSR": True, "FID": False, "CLIP": True}
# FIA (arXiv 2601.06163 v1), table 4: CLIP_a, FSR, FID, CLIP, average rank.
PUBLISHED = {
    "FMN": (30.27, 52.8, 21.4, 30.82, 4.75),
    "ESD": (33.62, 39.2, 17.1, 30.52, 6.50),
    "UCE": (31.89, 44.0, 19.7, 31.19, 5.50),
    "AC": (33.59, 45.2, 16.6, 31.28, 4.00),
    "CP": (27.90, 79.6, 18.4, 29.76, 4.50),
    "MACE": (30.98, 57.4, 15.9, 30.14, 3.75),
    "SPM": (31.10, 40.0, 17.4, 31.33, 4.50),
    "FIA": (27.45, 83.4, 16.7, 30.56, 2.50),
}
SCORES = {method: dict(zip(BETTER, row)) for method, row in PUBLISHED.items()}


def test_the_published_ranks_follow():
    assert average_ranks(SCORES, BETTER) == {method: row[-1] for method, row in PUBLISHED.items()}


def test_the_pool_decides_the_rank():
    fewer = {method: SCORES[method] for method in ("FIA", "MACE", "SPM")}
    assert average_ranks(fewer, BETTER) == {"FIA": 1.5, "MACE": 2.0, "SPM": 2.5}


def test_equal_values_share_the_better_rank():
    scores = {name: {"x": value} for name, value in zip("abcd", (3, 3, 1, 5))}
    assert average_ranks(scores, {"x": True}) == {"a": 2, "b": 2, "c": 4, "d": 1}
    assert average_ranks(scores, {"x": False}) == {"a": 2, "b": 2, "c": 1, "d": 4}


def test_a_missing_value_is_never_a_rank():
    with pytest.raises(ValueError, match="SPM has no value of FID"):
        average_ranks(SCORES | {"SPM": {**SCORES["SPM"], "FID": float("nan")}}, BETTER)
    with pytest.raises(ValueError, match="b has no value of x"):
        average_ranks({"a": {"x": 1.0}, "b": {}}, {"x": True})
    with pytest.raises(ValueError, match="at least one metric"):
        average_ranks(SCORES, {})
