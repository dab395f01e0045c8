"""Every method on every task in one table: `python -m experiments.overview DIR|FILE|PATTERN ... [--out NAME]`.

Two columns a task: what is left of its concepts, and what is left of the rest, by classes to keep where the task has
some and by the CLIP score of other captions where not. Values without intervals: the tables of single tasks have them.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.values import ALL
from harness.files import write_atomic

from . import render, values
from .records import find, read_records
from .stages import SCORES
from .tables import models

Record = Mapping[str, Any]
# What is left of the rest, by the first of these families that has a value.
REST = ("preserve_accuracy", "clip")


@dataclass(frozen=True)
class Column:
    """One value of one task: its metric id, and the unedited model's entry."""

    task: str
    id: str
    unedited: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        return self.task, self.id


def columns(records: Sequence[Record]) -> list[Column]:
    """Two a task, in the order of the records; a task without scores has none.

    Raises:
        ValueError: the records are of two splits, or the unedited model's values differ within a task.
    """
    splits = sorted({record["split"] for record in records})
    if len(splits) > 1:
        raise ValueError(f"records of the splits {' and '.join(splits)}; one table needs one")
    found: dict[tuple[str, str], Column] = {}
    for record in records:
        for families in (SCORES, REST):
            unedited = _first(record["unedited"], families)
            if unedited is None:
                continue
            own = Column(record["task"], unedited["id"], unedited)
            if found.setdefault(own.key, own) != own:
                raise ValueError(f"{own.task}: records of other unedited pictures; one table needs the same")
    return list(found.values())


def _first(metrics: Sequence[Mapping[str, Any]], families: Iterable[str]) -> Mapping[str, Any] | None:
    """The aggregate with a value of the first family that has one; of several judges the suite's first."""
    known = [metric for metric in metrics if metric["subject"] == ALL and metric["value"] is not None]
    return next((metric for name in families for metric in known if values.family(metric["id"]) == name), None)


def titles(shown: Sequence[Column]) -> list[str]:
    """What stands above the columns, without the task."""
    ids = [column.id for column in shown]
    return [values.title(i, ids) for i in ids]


def cells(records: Sequence[Record]) -> dict[str, dict[tuple[str, str], Mapping[str, Any]]]:
    """The entries by method and by the columns' keys.

    Raises:
        ValueError: a method has two records of one task, or values of two presets; see also `columns`.
    """
    shown = columns(records)
    presets: dict[str, str] = {}
    found: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {}
    for record in records:
        if presets.setdefault(record["method"], record["preset"]) != record["preset"]:
            raise ValueError(f"{record['method']}: records of different presets; one row needs one")
        line = found.setdefault(record["method"], {})
        for column in shown:
            metric = values.pick(record["metrics"], column.id) if column.task == record["task"] else None
            if metric is not None and line.setdefault(column.key, metric) is not metric:
                raise ValueError(f"{column.task}: two records of {record['method']}; one table needs one")
    return found


def markdown(records: Sequence[Record]) -> str:
    """The table with its notes; empty where nothing was scored."""
    lines, shown = cells(records), columns(records)
    if not shown:
        return ""
    header = ["method", *(f"{column.task}: {title}" for column, title in zip(shown, titles(shown), strict=True))]
    body = [["unedited", *(values.show(column.unedited, interval=False) for column in shown)]]
    body += [[name, *(values.marked(line.get(c.key), interval=False) for c in shown)] for name, line in lines.items()]
    words = f"What is left of the concepts and of the rest, {records[0]['split']} split, without intervals."
    ids = list(dict.fromkeys(column.id for column in shown))
    entries = [metric for line in lines.values() for metric in line.values()]
    notes = [*models(records), *(values.legend(i, ids, entries) for i in ids), values.PAIRED]
    if any(metric.get("repeats") for metric in entries):
        notes.append(values.SPREAD)
    return "\n".join([*render.markdown(render.Table(words, header, body)), *(f"{note}  " for note in notes)]) + "\n"


def goodness(column: Column, metric: Mapping[str, Any] | None) -> float:
    """Of a cell, from 0 to 1: the share of the unedited model's value that is left of the rest, or that is gone of the
    concepts; NaN where there is nothing to say."""
    if metric is None or metric["value"] is None or not column.unedited["value"]:
        return float("nan")
    left = min(1.0, max(0.0, metric["value"] / column.unedited["value"]))
    return left if metric["higher_is_better"] else 1.0 - left


def draw(records: Sequence[Record], path: Path) -> Path:
    """The table as a PNG, cells coloured by `goodness`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = columns(records)
    lines = {"unedited": {column.key: column.unedited for column in shown}, **cells(records)}
    shares = [[goodness(column, line.get(column.key)) for column in shown] for line in lines.values()]
    figure, axes = pyplot.subplots(figsize=(2.2 + 0.8 * len(shown), 1.6 + 0.34 * len(lines)), dpi=130)
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for y, line in enumerate(lines.values()):
        for x, column in enumerate(shown):
            colour = "white" if shares[y][x] <= 0.55 else "black"  # a cell that says nothing is white itself
            text = values.show(line.get(column.key), interval=False)
            axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=8)
    axes.set_yticks(range(len(lines)), list(lines), fontsize=8)
    axes.set_xticks(range(len(shown)), [textwrap.fill(title, 10) for title in titles(shown)], fontsize=7)
    for x, column in enumerate(shown):
        if x == 0 or shown[x - 1].task != column.task:
            axes.axvline(x - 0.5, color="white", linewidth=3)
            axes.text(x - 0.4, -0.7, column.task, fontsize=8, rotation=12)
    axes.set_xlabel(records[0]["note"], fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, pad=0.01, aspect=30).set_label("gone, or left of the rest", fontsize=8)
    return render.save_chart(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; with --out also write NAME.md and NAME.png; 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m experiments.overview", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("places", nargs="+", metavar="DIR|FILE|PATTERN")
    parser.add_argument("--out", type=Path, help="write NAME.md and NAME.png")
    options = parser.parse_args(argv)
    try:
        records = read_records(find(options.places))
        text = markdown(records)
        if not text:
            raise ValueError("none of these records has scores")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(text, end="")
    if options.out is not None:
        write_atomic(options.out.with_suffix(".md"), text.encode())
        draw(records, options.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
