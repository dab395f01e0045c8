"""How metric values are named and written: families, units, intervals. Records hold fractions; tables say percent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Families of metric ids (the part before the first "/") in the order in which tables show them, with their headers.
TITLES = {
    "forget_accuracy": "forget",
    "preserve_accuracy": "preserve",
    "overall_score": "overall",
    "clip": "CLIP",
    "fid": "FID",
    "fid_vs_base": "FID vs unedited",
}
PERCENT = {
    "forget_accuracy",
    "preserve_accuracy",
    "overall_score",
    "class_accuracy",
    "style_accuracy",
    "fsr",
    "sparsity",
}
DECIMALS = {"clip": 2, "clip_difference": 2, "fid": 2, "fid_vs_base": 2, "kid": 4, "kid_vs_base": 4}


def family(metric_id: str) -> str:
    """`fid/tiny-v1/64` -> `fid`."""
    return metric_id.partition("/")[0]


def title(metric_id: str, ids: Iterable[str]) -> str:
    """A column header: short where only one id of the family is shown, else the full id, so no two share a column."""
    name = family(metric_id)
    alone = len({i for i in ids if family(i) == name}) <= 1
    short = TITLES.get(name, name)
    return f"{short if alone else metric_id}{' %' if name in PERCENT else ''}"


def headline_ids(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The ids of the aggregates of all records that tables show, in table order."""
    found = {m["id"] for record in records for m in record["metrics"] if m["subject"] == "all"}
    order = list(TITLES)
    return sorted((i for i in found if family(i) in TITLES), key=lambda i: (order.index(family(i)), i))


def pick(metrics: Sequence[Mapping[str, Any]], metric_id: str, subject: str = "all") -> Mapping[str, Any] | None:
    """The entry with this id and subject, or None where it was not measured."""
    return next((m for m in metrics if m["id"] == metric_id and m["subject"] == subject), None)


def pick_family(metrics: Sequence[Mapping[str, Any]], name: str, subject: str = "all") -> Mapping[str, Any] | None:
    """The entry of a family with this subject; None where there is none.

    Raises:
        ValueError: two ids of the family were measured, so the family alone does not say which is meant.
    """
    found = [m for m in metrics if family(m["id"]) == name and m["subject"] == subject]
    if len(found) > 1:
        raise ValueError(f"{name} was measured as {', '.join(m['id'] for m in found)}; name one of them")
    return found[0] if found else None


def show(metric: Mapping[str, Any] | None, interval: bool = True) -> str:
    """`12.0 [8.1, 16.7]` in the family's unit; empty for what was not measured, n/a for what could not be."""
    if metric is None:
        return ""
    name = family(metric["id"])
    if metric["value"] is None:
        return "n/a"
    scale, digits = (100, 1) if name in PERCENT else (1, DECIMALS.get(name, 3))
    text = f"{scale * metric['value']:.{digits}f}"
    if interval and metric["low"] is not None and metric["high"] is not None:
        text += f" [{scale * metric['low']:.{digits}f}, {scale * metric['high']:.{digits}f}]"
    return text
