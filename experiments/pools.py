"""Published numbers of a row that depend on which other rows there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .ranks import average_ranks
from .uq import uq


@dataclass(frozen=True)
class Pool:
    """A number that depends on the other rows.

    Attributes:
        metrics: published names of what it is made from.
        rule: one list a metric, one number a row -> one number a row.
        unedited: whether the unedited model is one of the rows.
    """

    metrics: tuple[str, ...]
    rule: Callable[..., list[float]]
    unedited: bool


def _ranks(clip_a: Sequence[float], fsr: Sequence[float], fid: Sequence[float], clip: Sequence[float]) -> list[float]:
    """FIA's average rank over table 4's four metrics."""
    names = {"clip_a": False, "fsr": True, "fid": False, "clip": True}
    rows = enumerate(zip(clip_a, fsr, fid, clip, strict=True))
    scores = {str(place): dict(zip(names, numbers, strict=True)) for place, numbers in rows}
    return list(average_ranks(scores, names).values())


POOLED = {
    "pool:uq": Pool(("avg_forget_acc", "clip_coco"), uq, unedited=True),
    "pool:rank": Pool(("clip_a", "fsr", "fid_coco", "clip_coco"), _ranks, unedited=False),
}
