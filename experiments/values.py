"""How metric values are named and written: families, units, intervals. Records hold fractions; tables say percent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

# Families of metric ids (the part before the first "/"), by the table that shows them, in column order, with headers.
# A family that is not listed comes last in the first table, under its own name.
SCORES = {
    "forget_accuracy": "forget",
    "preserve_accuracy": "preserve",
    "overall_score": "overall",
    "judge_agreement": "judges agree",
    "clip_a": "CLIP_a",
    "clip_a_difference": "CLIP_a - unedited",
    "fsr": "FSR",
    "fsr_margin": "FSR with margin",
    "clip_a_kept": "CLIP_a kept",
    "clip_a_kept_difference": "CLIP_a kept - unedited",
    "nudenet_boxes": "NudeNet boxes",
    "nudenet_images": "pictures with nudity",
    "marker_boxes": "markers",
    "marker_images": "pictures with markers",
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


SHARES = (
    *("forget_accuracy", "preserve_accuracy", "overall_score", "judge_agreement", "class_accuracy", "style_accuracy"),
    *("fsr", "fsr_margin", "sparsity", "nudenet_images", "marker_images"),
)
COSINES = ("clip", "clip_difference", "clip_a", "clip_a_difference", "clip_a_kept", "clip_a_kept_difference")
UNITS = dict.fromkeys(SHARES, Unit(" %", 100, 1))
UNITS |= dict.fromkeys((*COSINES, "fid", "fid_vs_base"), Unit(decimals=2))
UNITS |= dict.fromkeys(("nudenet_boxes", "marker_boxes"), Unit(decimals=0))
# KID is customarily given times 1,000.
UNITS |= dict.fromkeys(("kid", "kid_vs_base"), Unit(" x1000", 1000, 1))
# Between sets of pictures; comparable at one n only.
DISTANCES = ("fid", "fid_vs_base", "kid", "kid_vs_base")
# Behind a value of an edited model that differs from the unedited one's.
MARK = "*"
PAIRED = (
    f"{MARK}: differs from the unedited model on the same prompts and noise (the 95 % interval of the paired "
    "difference lies on one side of zero)."
)
SPREAD = "±: standard deviation over repeats with other seeds of edit and noise; two repeats: no interval."
ARROWS = {True: "higher is better", False: "lower is better", None: "no direction"}


def family(metric_id: str) -> str:
    """`fid/tiny-v1/64` -> `fid`."""
    return metric_id.partition("/")[0]


def title(metric_id: str, ids: Iterable[str]) -> str:
    """A column header that no other of the ids has.

    The family alone where only one of its ids is shown, such as "FSR %", else with the parts in which they differ, "FSR
    (prompt) %"; of two ids one of which goes on where the other ends, the shorter has none.
    """
    name = family(metric_id)
    parts = {tuple(i.split("/")) for i in (metric_id, *ids) if family(i) == name}
    differing = [len(set(column)) > 1 for column in zip_longest(*parts)]
    mine = [part for part, differs in zip(metric_id.split("/"), differing, strict=False) if differs]
    head = TITLES.get(name, name)
    return f"{head} ({', '.join(mine)}){unit(metric_id).words}" if mine else f"{head}{unit(metric_id).words}"


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
    """`12.0 [8.1, 16.7]` in the family's unit; empty for what was not measured, n/a for what could not be.

    A mean over repeats has its standard deviation, `12.0 ± 2.1 [8.1, 16.7]`.
    """
    if metric is None:
        return ""
    if metric["value"] is None:
        return "n/a"
    _, scale, digits = unit(metric["id"])
    text = f"{scale * metric['value']:.{digits}f}"
    if metric.get("sd") is not None:
        text += f" ± {scale * metric['sd']:.{digits}f}"
    low, high = ends(metric)
    if interval and low is not None and high is not None:
        text += f" [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
    return text


def ends(metric: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The interval's ends where they are worth showing: Student's factor of two repeats, 12.7, says nothing."""
    return (None, None) if metric.get("repeats") == 2 else (metric["low"], metric["high"])


def marked(metric: Mapping[str, Any] | None, interval: bool = True) -> str:
    """As `show`, with MARK where the interval of the paired difference to the unedited model lies on one side of 0."""
    text, difference = show(metric, interval), (metric or {}).get("difference")
    if difference is None or difference["low"] is None or difference["low"] <= 0 <= difference["high"]:
        return text
    return f"{text} {MARK}"


def legend(metric_id: str, ids: Iterable[str], metrics: Iterable[Mapping[str, Any]]) -> str:
    """One line on a column: full id, n (of all repeats together) and direction.

    Args:
        ids: all ids that are shown, which decide the column's header.
        metrics: the entries in the column; their n may differ.
    """
    entries = [m for m in metrics if m["id"] == metric_id]
    counts = sorted({m["n"] for m in entries})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    reason = next((f"; n/a: {m['reason']}" for m in entries if m.get("reason")), "")
    return f"{title(metric_id, ids)}: {metric_id}, n = {n}, {ARROWS[entries[0]['higher_is_better']]}{reason}."


def remarks(ids: Iterable[str], metrics: Iterable[Mapping[str, Any]]) -> list[str]:
    """What a reader of these columns must know besides.

    Args:
        metrics: the entries that are shown.
    """
    entries = [m for m in metrics if m["id"] in set(ids)]
    lines = ["Brackets: 95 % intervals."]
    if any(m.get("repeats") for m in entries):
        lines.append(SPREAD)
    if any(m.get("difference") for m in entries):
        lines.append(f"{PAIRED} FID, KID and FSR are not compared in this way.")
    if any(family(i) in ("kid", "kid_vs_base") for i in ids):
        lines.append(
            "FID is too large by an amount that falls with n; KID is not, so it is the one to read where n is small, "
            "and it may be negative."
        )
    if any(family(i) == "fsr" for i in ids):
        lines.append(
            "FSR counts every fall of the similarity, however small: an edit that only changes the noise has about "
            "50 %. Read it with the margin and the difference."
        )
    return lines
