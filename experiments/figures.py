"""Published figures with what was measured: `python -m experiments.figures fia_fig6 [--out FILE] [--records DIR...]`.

Published points, read from the drawings, are hollow; measured ones are filled, with their 95 % intervals. Only the
metric id that the experiment names is drawn. Where an experiment has limits, of what is left of the concepts and of
general quality, the number of concepts that a method forgets within all of them is printed too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import catalogue, paper_tables, paper_text, published, render
from .published import Cell, Paper
from .records import flat
from .settings import TASK_KEYS, Expected, Record, deviations, row_of, sorted_out
from .tables import records_of

UNEDITED = "unedited"


@dataclass(frozen=True)
class Point:
    """A number in the published unit at a place of the horizontal axis; x None: a level line over all of it."""

    x: float | None
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """One line of a figure.

    Attributes:
        row: published name, which decides the colour; empty for a method that the paper does not have.
        label: for the legend: the method and its settings.
        points: in the order of x.
    """

    row: str
    label: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Figure:
    """What is drawn: by published metric, the published series and the measured ones; the notes stand below it."""

    name: str
    paper: Paper
    printed: Mapping[str, Sequence[Series]]
    measured: Mapping[str, Sequence[Series]] = field(default_factory=dict)
    notes: Sequence[str] = ()


def printed_series(paper: Paper, lines: Sequence[Mapping[str, str]]) -> dict[str, list[Series]]:
    """The series of a file of published points, by metric."""
    found: dict[str, dict[str, list[Point]]] = {metric: {} for metric in paper.metrics}
    for line in lines:
        if line["metric"] in found and line["value"]:
            place = line[paper.x["column"]] if "column" in paper.x else paper.x["at"]
            point = Point(None if place == "" else float(place), float(line["value"]))
            found[line["metric"]].setdefault(paper.row.format(**line), []).append(point)
    return {
        metric: [Series(row, f"{row} (published)", points) for row, points in rows.items()]
        for metric, rows in found.items()
    }


def measured_series(paper: Paper, records: Sequence[Record], expected: Expected) -> dict[str, list[Series]]:
    """The series of these records by metric: one a method and setting."""
    key = paper.x["setting"]
    found: dict[str, dict[tuple[str, str], list[Point]]] = {metric: {} for metric in paper.metrics}
    for record in records:
        place = flat(record["config"]).get(key)
        if place is None:
            continue
        # A task's size decides its concepts.
        words = deviations(record, expected.get(record["method"], expected[""]), (key, *TASK_KEYS))
        label = ", ".join([UNEDITED if record["method"] == "none" else record["method"], *words])
        for metric, source in paper.metrics.items():
            for entry in record["metrics"]:
                if entry["subject"] == "all" and entry["value"] is not None and source.measures(entry["id"]):
                    numbers = (entry["value"], entry["low"], entry["high"])
                    scaled = [None if number is None else source.scale * number for number in numbers]
                    line = found[metric].setdefault((row_of(paper, record), label), [])
                    line.append(Point(float(place), *scaled))
    return {
        metric: [Series(row, label, sorted(points, key=lambda p: p.x)) for (row, label), points in rows.items()]
        for metric, rows in found.items()
    }


def reach(points: Sequence[Point], limit: str) -> tuple[float, bool] | None:
    """How far a series keeps to a limit: the first crossing, on the straight line between two points.

    Args:
        points: with x, in the order of x.
        limit: such as `>= 24`.

    Returns:
        (x, whether it is a crossing); without a crossing x is the last point's. None: the first point is beyond it.
    """
    sign, level = _level(limit)
    before: Point | None = None
    for point in points:
        if sign * (point.y - level) < 0:
            if before is None:
                return None
            share = (level - before.y) / (point.y - before.y)
            return before.x + share * (point.x - before.x), True
        before = point
    return None if before is None else (before.x, False)


def within(figure: Figure) -> list[str]:
    """One line a series: how many concepts it can forget within all limits of the figure, which stand in the first."""
    limits = figure.paper.limits
    lines = [f"Limits: {', '.join(f'{metric} {limit}' for metric, limit in limits.items())}."] if limits else []
    for series in (figure.printed, figure.measured):
        labels = dict.fromkeys(one.label for metric in limits for one in series.get(metric, ()))
        for label in labels:
            if label.startswith(UNEDITED):
                continue
            found = {
                metric: one.points for metric in limits for one in series[metric] if one.label == label and one.points
            }
            if set(found) != set(limits) or any(len({p.x for p in points}) < 2 for points in found.values()):
                lines.append(f"{label}: not measured in all of {', '.join(limits)} at two sizes or more.")
                continue
            reached = {metric: reach(points, limits[metric]) for metric, points in found.items()}
            lines.append(f"{label}: {_reached(reached, found)}")
    return lines


def _reached(reached: Mapping[str, tuple[float, bool] | None], found: Mapping[str, Sequence[Point]]) -> str:
    beyond = [metric for metric, end in reached.items() if end is None]
    if beyond:
        return f"none of the sizes from {found[beyond[0]][0].x:g} on keeps to the limit of {', '.join(beyond)}."
    metric = min(reached, key=lambda name: (reached[name][0], not reached[name][1]))
    x, crossed = reached[metric]
    return f"{x:.1f} concepts, then beyond the limit of {metric}." if crossed else f"at least {x:g} concepts."


def figure_of(name: str, records: Sequence[Record]) -> Figure:
    """The figure of an experiment with the records of its task.

    Raises:
        ValueError: the experiment is a table, or compared with nothing.
    """
    experiment = catalogue.load(name)
    paper = experiment.paper
    if paper is None or not paper.x:
        raise ValueError(f"{name} is no figure; figures: {', '.join(names())}")
    own = [record for record in records if record["task"] == experiment.config["task"]["name"]]
    expected = catalogue.expected(name, [record["method"] for record in own])
    # Where the axis is a setting of the task, every place has concepts of its own.
    skipped = TASK_KEYS if paper.x["setting"].startswith("task.") else ()
    inside, apart = sorted_out(paper, own, expected, skipped)
    lines = published.lines(paper)
    measured = measured_series(paper, inside, expected)
    figure = Figure(name, paper, printed_series(paper, lines), measured)
    notes = [*_gate(figure, inside, expected), *within(figure)]
    if not any(measured.values()):
        notes.append(f"Nothing was measured yet{': only the published points are drawn' if lines else ''}.")
    notes += [f"Not drawn: {len(group)} record{'s' if len(group) > 1 else ''} {reason}." for reason, group in apart]
    notes += [line.words + "." for line in published.findings() if paper.name and paper.name in line.where]
    head = f"{'Published: ' if paper.file else ''}{paper.source}; {paper.protocol}"
    return Figure(name, paper, figure.printed, measured, [head, *notes])


def names() -> list[str]:
    """The experiments that are figures."""
    found = ((name, catalogue.load(name).paper) for name in catalogue.names())
    return [name for name, paper in found if paper is not None and paper.x]


def draw(figure: Figure, path: Path) -> Path:
    """Write the figure as a PNG: one panel a metric."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metrics = list(figure.paper.metrics)
    sheet, panels = pyplot.subplots(1, len(metrics), figsize=(5.5 * len(metrics), 4.6), dpi=150, squeeze=False)
    everything = [*figure.printed.values(), *figure.measured.values()]
    rows = list(dict.fromkeys(one.row or one.label for series in everything for one in series))
    colours = {row: pyplot.get_cmap("tab20")(place % 20) for place, row in enumerate(rows)}
    for metric, axes in zip(metrics, panels[0], strict=True):
        for one in figure.printed[metric]:
            _draw(axes, one, colours[one.row or one.label], filled=False)
        for one in figure.measured.get(metric, ()):
            _draw(axes, one, colours[one.row or one.label], filled=True)
        if metric in figure.paper.limits:
            axes.axhline(_level(figure.paper.limits[metric])[1], color="black", linestyle="--", linewidth=1)
        scale = figure.paper.metrics[metric].scale
        axes.set_ylabel((paper_text.TITLES.get(metric) or metric) + paper_text.UNITS.get(scale, ""))
        axes.set_xlabel(figure.paper.x["title"])
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=6)
    published_points = "hollow = published, filled = " if figure.paper.file else ""
    sheet.suptitle(f"{figure.name}: {published_points}measured with 95 % intervals", fontsize=9)
    return render.save_chart(sheet, path)


def _draw(axes: Any, series: Series, colour: Any, filled: bool) -> None:
    level = [point for point in series.points if point.x is None]
    if level:
        axes.axhline(level[0].y, color=colour, linestyle=":", linewidth=1, label=series.label)
        return
    xs, ys = [point.x for point in series.points], [point.y for point in series.points]
    face = colour if filled else "none"
    axes.plot(xs, ys, color=colour, marker="o", markerfacecolor=face, linewidth=1, markersize=5, label=series.label,
              linestyle="-" if filled else ":")  # fmt: skip
    for point in series.points:
        if point.low is not None and point.high is not None:
            axes.vlines(point.x, point.low, point.high, color=colour, linewidth=1)


def _gate(figure: Figure, records: Sequence[Record], expected: Expected) -> list[str]:
    """What a table of the same experiment would say above everything else.

    Every place of the axis has an unedited model's row of its own: of the same pictures as far as they share classes.
    """
    paper = figure.paper
    gate = published.gate_cells(paper)
    # The drawing names no classes, so its columns are those of the published row.
    cells = [Cell("", *place, cell.text) for place, cell in gate.items()]
    named = (paper.x["setting"], *TASK_KEYS)
    return paper_text.above(paper_tables.gated(figure.name, paper, cells, gate, records, expected, named))


def _level(limit: str) -> tuple[int, float]:
    """`>= 24` -> (1, 24.0), `<= 50` -> (-1, 50.0)."""
    sign, _, level = limit.partition(" ")
    return {">=": 1, "<=": -1}[sign], float(level)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw one figure and print its notes; 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m experiments.figures", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", metavar="EXPERIMENT")
    parser.add_argument("--out", type=Path, help="a PNG (default: results/figures/EXPERIMENT.png)")
    parser.add_argument("--records", nargs="+", metavar="DIR", default=[], help="the records, if elsewhere")
    options = parser.parse_args(argv)
    try:
        figure = figure_of(options.name, records_of(options.name, options.records))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(figure.notes))
    print(draw(figure, options.out or Path("results") / "figures" / f"{options.name}.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
