"""The front of forgetting against keeping, from records: `python -m experiments.front DIR [--out NAME]`.

Made for sweeps such as `python run.py -m +experiment=tiny_sweep`: every record is one point (forget accuracy, lower is
better; preserve accuracy, higher is better). A point is on the front if no other one is at least as good in both and
better in one.

The best of many settings is too good on the very split that it was chosen on. So what was chosen on a split is named
as that, and where the records hold a sweep on the tuning split and one on the test split, the settings chosen on tuning
are reported by their values on test.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.files import write_atomic

from . import render, values
from .tables import NOT_SETTINGS, differing, find, flat, notes, read_records

# A method that keeps less than this share of the unedited model's preserve accuracy has broken the model.
KEEP_SHARE = 0.95
FLOOR = f"{100 * KEEP_SHARE:.0f} % of the unedited model's preserve accuracy"
FAMILIES = ("forget_accuracy", "preserve_accuracy", "overall_score")
LABELS = {"base": "unedited model", "world": "frozen world"}
# Settings of a run, beside the captions, in which a sweep on the tuning split may differ from one on the test split.
SPLIT_SETTINGS = {"task.split", "task.n", "task.prompts"}


@dataclass(frozen=True)
class Point:
    """One record: accuracies as fractions, and the settings in which the records differ."""

    settings: Mapping[str, Any]
    forget: float
    preserve: float
    overall: float
    record: Mapping[str, Any]

    @property
    def words(self) -> str:
        return ", ".join(f"{key.rpartition('.')[2]} {show(value)}" for key, value in self.settings.items())

    @property
    def choice(self) -> str:
        """What has to be equal for a record of one split to be the same setting as one of another."""
        config = {k: v for k, v in flat(self.record["config"]).items() if k.split(".")[0] not in NOT_SETTINGS}
        kept = {k: v for k, v in config.items() if not k.startswith("quality.") and k not in SPLIT_SETTINGS}
        return json.dumps(kept, sort_keys=True)


def points(records: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The records that measured all three accuracies, as points.

    Raises:
        ValueError: the records are of several methods, tasks, models or splits, or none was scored.
    """
    scored = _scored(records, ("method", "task", "model", "split", "world", "base"))
    keys = differing(scored)
    result = []
    for record in scored:
        forget, preserve, overall = (_family(record, name) for name in FAMILIES)
        if preserve is None or overall is None:
            raise ValueError(f"a record of {record['task']} has no preserve accuracy: its task keeps nothing")
        settings = flat(record["config"])
        result.append(Point({key: settings.get(key) for key in keys}, forget, preserve, overall, record))
    return result


def sweeps(records: Sequence[Mapping[str, Any]]) -> tuple[list[Point], list[Point]]:
    """The points that are reported, and those of the tuning split on which a setting may be chosen for them.

    The first are those of the test split; with records of one split only they are that split's, and the second are
    none.
    """
    scored = _scored(records, ("method", "task", "model", "world", "base"))
    test, tuning = ([r for r in scored if r["split"] == split] for split in ("test", "tuning"))
    return (points(test), points(tuning)) if test and tuning else (points(scored), [])


def _scored(records: Sequence[Mapping[str, Any]], same: Sequence[str]) -> list[Mapping[str, Any]]:
    """The records of an edit with a forget accuracy; ValueError where they differ in one of `same`, or are none."""
    scored = [r for r in records if r["method"] != "none" and _family(r, "forget_accuracy") is not None]
    if not scored:
        raise ValueError("none of these records has a forget accuracy")
    for name in same:
        # A world that was trained again keeps its folder and ids: its hash tells the two apart.
        found = sorted({r["fingerprints"]["base"] if name == "base" else r.get(name, "") for r in scored})
        if len(found) > 1:
            raise ValueError(f"a front needs records of one {LABELS.get(name, name)}, these are of {', '.join(found)}")
    return scored


def front(found: Sequence[Point]) -> list[Point]:
    """The points that no other dominates, from the least forget accuracy on; of equal points the first."""
    best: list[Point] = []
    for point in sorted(found, key=lambda p: (p.forget, -p.preserve)):
        if not best or point.preserve > best[-1].preserve:
            best.append(point)
    return best


def area(found: Sequence[Point]) -> float:
    """Area under the front, 0 to 1: the integral over f from 0 to 1 of the best preserve accuracy that a setting with a
    forget accuracy of at most f has, and 0 where no setting forgets that much.

    The line between two settings is a step, because nothing in between was measured. This is the hypervolume of the
    front (Zitzler and Thiele 1999) against the worst corner, forget 1 and preserve 0. It does not shrink when settings
    are added, so areas are compared between sweeps of about as many settings.
    """
    line = front(found)
    ends = [*(point.forget for point in line[1:]), 1.0]
    return sum(point.preserve * (end - point.forget) for point, end in zip(line, ends, strict=True))


def best_overall(found: Sequence[Point]) -> Point:
    """The point with the highest overall score."""
    return max(found, key=lambda point: point.overall)


def best_keeping(found: Sequence[Point], share: float = KEEP_SHARE) -> Point | None:
    """The least forget accuracy among points that keep `share` of the unedited preserve accuracy; None without any."""
    kept = [point for point in found if point.preserve >= share * unedited_preserve(point.record)]
    return min(kept, key=lambda point: (point.forget, -point.preserve), default=None)


def unedited_preserve(record: Mapping[str, Any]) -> float:
    """Preserve accuracy of the unedited model on the record's prompts."""
    metric = values.pick_family(record["unedited"], "preserve_accuracy")
    if metric is None or metric["value"] is None:
        raise ValueError(f"a record of {record['method']} lacks the unedited model's preserve accuracy")
    return metric["value"]


def markdown(found: Sequence[Point], tuning: Sequence[Point] = ()) -> str:
    """The front as a table, with its area and the chosen settings below it.

    Args:
        found: points of the split that is reported.
        tuning: points of the tuning split where `found` are of the test split.
    """
    keys = list(found[0].settings)
    header = [*(key.rpartition(".")[2] for key in keys), "forget %", "preserve %", "overall %", "on the front"]
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header))]
    on_front = front(found)
    for point in sorted(found, key=lambda p: -p.overall):
        shown = [values.show(values.pick_family(point.record["metrics"], name)) for name in FAMILIES]
        cells = [*(show(value) for value in point.settings.values()), *shown, "yes" if point in on_front else ""]
        lines.append("| " + " | ".join(cells) + " |")
    split = found[0].record["split"]
    lines += ["", f"Area under the front of these {len(found)} settings, {split} split: {100 * area(found):.1f} %.", ""]
    lines += [f"* {line}" for line in [*_from_tuning(found, tuning), *_from_itself(found)]]
    return "\n".join([*lines, "", *(f"{note}  " for note in notes([p.record for p in found], FAMILIES))]) + "\n"


def choices(found: Sequence[Point]) -> dict[str, Point | None]:
    """The settings that a user would take, by the words for the rule; None where no setting fulfils it."""
    return {
        "Best overall score": best_overall(found),
        f"Least forget accuracy that keeps {FLOOR}": best_keeping(found),
    }


def _from_itself(found: Sequence[Point]) -> list[str]:
    """The settings chosen on the split that is shown, and what that means."""
    split = found[0].record["split"]
    after = "report it on the test split" if split == "tuning" else "so these values flatter it"
    return [
        f"No setting keeps {FLOOR}."
        if point is None
        else f"{rule}: {_sentence(point)} (chosen on this split, {after})."
        for rule, point in choices(found).items()
    ]


def _from_tuning(found: Sequence[Point], tuning: Sequence[Point]) -> list[str]:
    """The settings chosen on the tuning split, by their values on the split that is shown."""
    lines = []
    for rule, point in choices(tuning).items() if tuning else ():
        if point is None:
            lines.append(f"{rule}, chosen on the tuning split: none does.")
            continue
        same = [other for other in found if other.choice == point.choice]
        there = "; ".join(map(_sentence, same)) or f"{point.words or 'the only setting'} was not run on this split"
        lines.append(f"{rule}, chosen on the tuning split: {there} (on tuning: {_sentence(point)}).")
    return lines


def plot(found: Sequence[Point], path: Path) -> Path:
    """All points and the front as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5), dpi=150)
    scatter = axes.scatter(
        [100 * p.forget for p in found], [100 * p.preserve for p in found], c=[100 * p.overall for p in found], s=28
    )
    line = front(found)
    axes.plot([100 * p.forget for p in line], [100 * p.preserve for p in line], color="black", linewidth=1, zorder=0)
    floor = 100 * KEEP_SHARE * unedited_preserve(found[0].record)
    axes.axhline(floor, color="grey", linestyle=":", linewidth=1)
    axes.annotate(
        f"{100 * KEEP_SHARE:.0f} % of unedited", (0.99, floor), xycoords=("axes fraction", "data"), ha="right"
    )
    best = best_overall(found)
    axes.annotate(
        f"{best.words} (best on this split)",
        (100 * best.forget, 100 * best.preserve),
        xytext=(6, -12),
        textcoords="offset points",
    )
    axes.set_xlabel("forget accuracy % (lower is better)")
    axes.set_ylabel("preserve accuracy % (higher is better)")
    record = found[0].record
    axes.set_title(f"{record['method']} on {record['task']}, {record['split']} split\n{record['note']}", fontsize=9)
    figure.colorbar(scatter, label="overall score %")
    return render.save_chart(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; with --out also write NAME.md and NAME.png."""
    parser = argparse.ArgumentParser(prog="python -m experiments.front", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("places", nargs="+", metavar="DIR|FILE|PATTERN")
    parser.add_argument("--out", type=Path, help="write NAME.md and NAME.png")
    options = parser.parse_args(argv)
    try:
        found, tuning = sweeps(read_records(find(options.places)))
        table = markdown(found, tuning)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(table)
    if options.out is not None:
        write_atomic(options.out.with_suffix(".md"), table.encode())
        plot(found, options.out.with_suffix(".png"))
    return 0


def _family(record: Mapping[str, Any], name: str) -> float | None:
    metric = values.pick_family(record["metrics"], name)
    return None if metric is None else metric["value"]


def _sentence(point: Point) -> str:
    return (
        f"overall {100 * point.overall:.1f} %, forget {100 * point.forget:.1f} %, "
        f"preserve {100 * point.preserve:.1f} % at {point.words or 'the only setting'}"
    )


def show(value: Any) -> str:
    """A setting's value in a table."""
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
