"""How metric values are named and written: families, units, intervals. Records hold fractions; tables say percent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

# Families of metric ids (the part before the first "/"), by the table that shows them, in column order, with headers.
# A family that is not listed comes last in the first table, under its own name.
SCORES = {
    "forget_accuracy": "forget",
    "preserve_accuracy": "preserve",
    "overall_score": "overall",
    "judge_agreement": "judges agree",
}
QUALITY = {
    "clip": "CLIP",
    "clip_difference": "CLIP - unedited",
    "fid": "FID",
    "fid_vs_base": "FID vs unedited",
    "kid": "KID",
    "kid_vs_base": "KID vs unedited",
}
TITLES = SCORES | QUALITY


class Unit(NamedTuple):
    """How a family is written: after the header, as a multiple of what the record holds, with decimals."""

    words: str = ""
    scale: int = 1
    decimals: int = 3


SHARES = (*SCORES, "class_accuracy", "style_accuracy", "fsr", "sparsity")
UNITS = dict.fromkeys(SHARES, Unit(" %", 100, 1))
UNITS |= dict.fromkeys(("clip", "clip_difference", "fid", "fid_vs_base"), Unit(decimals=2))
# KID is customarily given times 1,000.
UNITS |= dict.fromkeys(("kid", "kid_vs_base"), Unit(" x1000", 1000, 1))
ARROWS = {True: "higher is better", False: "lower is better", None: "no direction"}


def family(metric_id: str) -> str:
    """`fid/tiny-v1/64` -> `fid`."""
    return metric_id.partition("/")[0]


def title(metric_id: str, ids: Iterable[str]) -> str:
    """A column header: short where only one id of the family is shown, else the full id, so no two share a column."""
    name = family(metric_id)
    alone = len({i for i in ids if family(i) == name}) <= 1
    return f"{TITLES.get(name, name) if alone else metric_id}{unit(metric_id).words}"


def unit(metric_id: str) -> Unit:
    """How the values of a metric are written."""
    return UNITS.get(family(metric_id), Unit())


def headline_ids(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The ids of the aggregates of all records, in table order."""
    found = {m["id"] for record in records for m in record["metrics"] if m["subject"] == "all"}
    order = {name: place for place, name in enumerate(TITLES)}
    return sorted(found, key=lambda i: (order.get(family(i), len(order)), i))


def groups(ids: Iterable[str]) -> dict[str, list[str]]:
    """The ids by table, `scores` (of the task's classes) and `quality` (of captions); no table without an id."""
    found: dict[str, list[str]] = {"scores": [], "quality": []}
    for i in ids:
        found["quality" if family(i) in QUALITY else "scores"].append(i)
    return {name: members for name, members in found.items() if members}


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
    if metric["value"] is None:
        return "n/a"
    _, scale, digits = unit(metric["id"])
    text = f"{scale * metric['value']:.{digits}f}"
    if interval and metric["low"] is not None and metric["high"] is not None:
        text += f" [{scale * metric['low']:.{digits}f}, {scale * metric['high']:.{digits}f}]"
    return text


def legend(metric_id: str, ids: Iterable[str], metrics: Iterable[Mapping[str, Any]]) -> str:
    """One line on a column: full id, n and direction.

    Args:
        ids: all ids that are shown, which decide the column's header.
        metrics: the entries in the column; their n may differ.
    """
    entries = [m for m in metrics if m["id"] == metric_id]
    counts = sorted({m["n"] for m in entries})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    reason = next((f"; n/a: {m['reason']}" for m in entries if m.get("reason")), "")
    return f"{title(metric_id, ids)}: {metric_id}, n = {n}, {ARROWS[entries[0]['higher_is_better']]}{reason}."


def remarks(ids: Iterable[str]) -> list[str]:
    """What a reader of these columns must know besides."""
    lines = ["Brackets: 95 % intervals."]
    if any(family(i) in ("kid", "kid_vs_base") for i in ids):
        lines.append(
            "FID is too large by an amount that falls with n; KID is not, so it is the one to read where n is small, "
            "and it may be negative."
        )
    return lines
