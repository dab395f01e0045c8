"""All methods of a search side by side: `python -m experiments.methods FOLDER [--out NAME]`.

FOLDER is where `experiments.search` left its records. On the test split, one table a task: every method at its own
values and at the settings that were chosen on the tuning split, with what the edit cost. Below them each method's front
of forgetting against keeping over the settings that it tried, on the tuning split.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness.files import write_atomic

from . import front, render, values
from .records import find, flat, read_records
from .search import DEFAULTS, KEEPING, SEARCHED, TEST, TUNING
from .tables import notes, require_one_n

# What says how much is kept, by the first of these that a task has.
KEPT = {"preserve_accuracy": "preserve accuracy %", "clip": "CLIP score of other prompts"}
FAMILIES = ("forget_accuracy", "preserve_accuracy", "overall_score", "clip", "fid", "kid")
COST = ["seconds to edit", "UNet samples", "peak memory GB"]
COST_NOTE = (
    "Cost: of one edit without loading the model, with nothing stored or, where earlier runs had made parts of it, a "
    "little more; UNet samples are forward passes (a guided call counts two), the way back in training is not counted; "
    "the peak is that of the whole process."
)
REPEATS_NOTE = "With repeats the cost is the first edit's."


def tested(folder: Path) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """(role, record) on the test split by task, in the order of the roles."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for role in (SEARCHED, DEFAULTS, KEEPING):
        for place in sorted((folder / TEST / role).glob("*/")):
            for record in read_records(sorted(place.glob("*.json"))):
                found.setdefault(place.name, []).append((role, record))
    return found


def tuned(folder: Path) -> dict[str, list[front.Point]]:
    """The settings that every method tried on the tuning split, by method."""
    places = sorted(place for place in (folder / TUNING).glob("*/") if any(place.glob("*.json")))
    return {place.name: front.points(read_records(find([str(place)]))) for place in places}


def settings(record: Mapping[str, Any], role: str, tried: Sequence[front.Point]) -> str:
    """What a row was run with: the keys that the search varied, by their last names."""
    if role == DEFAULTS or not tried:
        return role
    words = in_words(record, tried[0].settings)
    return f"{role}: {words}" if words else role


def in_words(record: Mapping[str, Any], keys: Iterable[str]) -> str:
    """The record's values of these keys of its configuration."""
    config, said = flat(record["config"]), {str(record["keep"]): "the kept classes", "[]": "none"}
    shown = {key.rpartition(".")[2]: front.show(config.get(key)) for key in keys}
    return ", ".join(f"{name} {said.get(value, value)}" for name, value in shown.items())


def scores(task: str, rows: Sequence[tuple[str, Mapping[str, Any]]], tuning: Mapping[str, list[front.Point]]) -> str:
    """One task's table, the best searched method first, with its notes."""
    records = [record for _, record in rows]
    unedited = [_all(record["unedited"]) for record in records]
    ids = [i for i in values.headline_ids(records) if values.family(i) in FAMILIES]
    for i in ids:
        require_one_n(i, records)
    header = ["method", "setting", *(values.title(i, ids) for i in ids), *COST]
    best = {record["method"]: _rank(record) for role, record in reversed(rows) if role != KEEPING}
    ordered = sorted(rows, key=lambda row: (-best.get(row[1]["method"], 0.0), row[1]["method"]))
    body = [
        [
            record["method"],
            settings(record, role, tuning.get(record["method"], [])),
            *(values.marked(values.pick(record["metrics"], i)) for i in ids),
            *_cost(record),
        ]
        for role, record in ordered
    ]
    # Methods with repeats have other noise, and so unedited pictures of their own.
    for metrics in {str(metrics): metrics for metrics in unedited}.values():
        repeats = max(metric.get("repeats", 1) for metric in metrics)
        words = "" if repeats == 1 else f"over {repeats} repeats"
        body.insert(0, ["unedited", words, *(values.show(values.pick(metrics, i)) for i in ids), "", "", ""])
    table = render.Table(f"## {task}, {records[0]['split']} split", header, body)
    lines = [*render.markdown(table), *(f"{note}  " for note in notes(records, FAMILIES)), f"{COST_NOTE}  "]
    if any(metric.get("repeats") for metrics in unedited for metric in metrics):
        lines.append(f"{REPEATS_NOTE}  ")
    return "\n".join(lines) + "\n"


def fronts(tuning: Mapping[str, list[front.Point]], rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Every method's front on the tuning split in one line, the largest area first.

    Args:
        rows: (role, record) of the search's first task, where the setting that keeps enough was tested.
    """
    kept = {record["method"]: record for role, record in rows if role == KEEPING}
    least = f"least forget % at {front.KEEP_SHARE:.0%} kept"
    header = ["method", "settings", "area under the front %", "best overall %", least, "forget % on test", "preserve %"]
    body = []
    for method, found in sorted(tuning.items(), key=lambda item: -front.area(item[1])):
        keeping = front.best_keeping(found)
        there = kept.get(method, {}).get("metrics", [])
        body.append(
            [
                method,
                str(len(found)),
                f"{100 * front.area(found):.1f}",
                f"{100 * front.best_overall(found).overall:.1f}",
                "none keeps it" if keeping is None else _kept(keeping),
                *(values.show(values.pick_family(there, name)) for name in ("forget_accuracy", "preserve_accuracy")),
            ]
        )
    some = next(iter(tuning.values()))
    record = some[0].record
    table = render.Table(
        f"## Fronts on {record['task']}, {record['split']} split, {record['config']['task']['n']} pictures a class",
        header,
        body,
    )
    lines = render.markdown(table)
    lines += [
        f"Kept: at least {front.FLOOR} ({100 * front.unedited_preserve(record):.1f} %).  ",
        "Settings were chosen on this split, so these values flatter; an area grows with the number of settings.",
    ]
    return "\n".join(lines) + "\n"


def plot(tuning: Mapping[str, list[front.Point]], path: Path) -> Path:
    """All fronts as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5.5), dpi=150)
    for method, style in _styles(tuning).items():
        found = tuning[method]
        line = front.front(found)
        axes.plot(
            [100 * p.forget for p in line], [100 * p.preserve for p in line], label=method, markersize=5,
            linewidth=1, drawstyle="steps-post", **style,
        )  # fmt: skip
        rest = [p for p in found if p not in line]
        axes.scatter([100 * p.forget for p in rest], [100 * p.preserve for p in rest], s=8, alpha=0.4, **style)
    record = next(iter(tuning.values()))[0].record
    floor = 100 * front.KEEP_SHARE * front.unedited_preserve(record)
    axes.axhline(floor, color="grey", linestyle=":", linewidth=1)
    axes.annotate(f"{front.KEEP_SHARE:.0%} of unedited", (0.99, floor), xycoords=("axes fraction", "data"), ha="right")
    axes.set_xlabel("forget accuracy % (lower is better)")
    axes.set_ylabel("preserve accuracy % (higher is better)")
    axes.set_title(f"{record['task']}, {record['split']} split\n{record['note']}", fontsize=9)
    axes.legend(fontsize=8, loc="lower right")
    return render.save_chart(figure, path)


def plot_tested(by_task: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]], path: Path) -> Path:
    """Every method at its searched setting on the test split as a PNG, one panel a task: what is left of the concepts
    against what is kept, by classes or, in a task that keeps none, by the CLIP score; bars are 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = _searched(by_task)
    figure, panels = pyplot.subplots(1, len(drawn), figsize=(7 * len(drawn), 5.5), dpi=150, squeeze=False)
    styles = _styles({record["method"] for found in drawn.values() for record in found})
    for axes, (task, found) in zip(panels[0], drawn.items(), strict=True):
        kept = next(name for name in KEPT if _has(found, name))
        axes.set_xlabel("forget accuracy % (lower is better)")
        axes.set_ylabel(f"{KEPT[kept]} (higher is better)")
        axes.set_title(f"{task}, {found[0]['split']} split\n{found[0]['note']}", fontsize=9)
        shown = {"unedited": ({"color": "black", "marker": "*"}, found[0]["unedited"])}
        shown |= {record["method"]: (styles[record["method"]], record["metrics"]) for record in found}
        for label, (style, metrics) in shown.items():
            ends = [values.pick_family(metrics, name) for name in ("forget_accuracy", kept)]
            (x, left, right), (y, down, up) = (_ends(metric) for metric in ends)
            axes.errorbar(x, y, [[y - down], [up - y]], [[x - left], [right - x]], label=label, elinewidth=0.8, **style)
        axes.legend(fontsize=8)
    return render.save_chart(figure, path)


def pictures(folder: Path) -> dict[str, Callable[[Path], Path]]:
    """What a search allows to draw, by the end of the file's name: the fronts, and `_test` for the test split."""
    tuning, by_task = tuned(folder), tested(folder)
    fronts = {"": partial(plot, tuning)} if tuning else {}
    return fronts | ({"_test": partial(plot_tested, by_task)} if _searched(by_task) else {})


def _searched(
    by_task: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]],
) -> dict[str, list[Mapping[str, Any]]]:
    """The records at the searched settings by task, of the tasks that have both values that are drawn."""
    found = {task: [record for role, record in rows if role == SEARCHED] for task, rows in by_task.items()}
    return {
        task: records
        for task, records in found.items()
        if records and _has(records, "forget_accuracy") and any(_has(records, name) for name in KEPT)
    }


def _has(records: Sequence[Mapping[str, Any]], family: str) -> bool:
    """Whether all of them have a value of the family; a task that keeps no classes has an empty one."""
    metrics = (values.pick_family(record["metrics"], family) for record in records)
    return all(metric is not None and metric["value"] is not None for metric in metrics)


def _ends(metric: Mapping[str, Any]) -> tuple[float, float, float]:
    """Value and ends of the interval as they are shown; without an interval the value three times."""
    scale = values.unit(metric["id"]).scale
    low, high = (metric["value"] if end is None else end for end in values.ends(metric))
    return scale * metric["value"], scale * low, scale * high


def _styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for every method."""
    from matplotlib import pyplot

    colours, markers = pyplot.get_cmap("tab20").colors, "os^vD<>pXP*h8"
    return {
        method: {"color": colours[2 * number % 20 + number // 10], "marker": markers[number % len(markers)]}
        for number, method in enumerate(sorted(methods))
    }


def markdown(folder: Path) -> str:
    """All tables of a search.

    Raises:
        ValueError: the folder holds no records of a search, or of more than one unedited model.
    """
    by_task, tuning = tested(folder), tuned(folder)
    if not by_task and not tuning:
        raise ValueError(
            f"{folder} has no records of a search: run python -m experiments.search FILE, or name its folder"
        )
    records = [record for rows in by_task.values() for _, record in rows]
    records += [point.record for found in tuning.values() for point in found]
    if len({record["fingerprints"]["base"] for record in records}) > 1:
        raise ValueError(f"{folder} has records of different unedited models; settings of one say nothing of another")
    parts = [scores(task, rows, tuning) for task, rows in by_task.items()]
    if tuning:
        task = next(iter(tuning.values()))[0].record["task"]
        parts.append(fronts(tuning, by_task.get(task, [])))
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; with --out also write NAME.md and NAME.png."""
    parser = argparse.ArgumentParser(prog="python -m experiments.methods", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="write NAME.md, NAME.png (the fronts) and NAME_test.png")
    options = parser.parse_args(argv)
    try:
        text = markdown(options.folder)
        print(text, end="")
        if options.out is not None:
            write_atomic(options.out.with_suffix(".md"), text.encode())
            for end, draw in pictures(options.folder).items():
                draw(options.out.with_name(f"{options.out.stem}{end}.png"))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _kept(point: front.Point) -> str:
    return f"{100 * point.forget:.1f} ({in_words(point.record, point.settings) or 'its own'})"


def _all(metrics: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [metric for metric in metrics if metric["subject"] == "all"]


def _rank(record: Mapping[str, Any]) -> float:
    """The overall score, or how much was forgotten where the task keeps nothing."""
    overall = values.pick_family(record["metrics"], "overall_score")
    if overall is not None and overall["value"] is not None:
        return overall["value"]
    forget = values.pick_family(record["metrics"], "forget_accuracy")
    return 0.0 if forget is None or forget["value"] is None else 1 - forget["value"]


def _cost(record: Mapping[str, Any]) -> Iterator[str]:
    made = record["cost"].get("edit_made")
    if made is None:
        return iter(["", "", ""])
    return iter([f"{made['seconds']:.1f}", f"{made['unet_samples']:,}", f"{made['peak_memory_bytes'] / 2**30:.1f}"])


if __name__ == "__main__":
    sys.exit(main())
