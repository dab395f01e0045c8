"""The front of forgetting against keeping, from records: `python -m experiments.front DIR [--out NAME]`.

Made for sweeps such as `python run.py -m +experiment=tiny_sweep`: every record is one point (forget accuracy, lower is
better; preserve accuracy, higher is better). A point is on the front if no other one is at least as good in both and
better in one. The settings behind the chosen points come from the same records, so a choice on the tuning split has to
be reported on the test split before it is a claim.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.files import write_atomic

from . import values
from .tables import differing, find, flat, notes, read_records

# A method that keeps less than this share of the unedited model's preserve accuracy has broken the model.
KEEP_SHARE = 0.95


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
        return ", ".join(f"{key.rpartition('.')[2]} {_show(value)}" for key, value in self.settings.items())


LABELS = {"base": "unedited model", "world": "frozen world"}


def points(records: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The records that measured all three accuracies, as points.

    Raises:
        ValueError: the records are of several tasks, models or splits, or none was scored.
    """
    scored = [r for r in records if r["method"] != "none" and _family(r, "forget_accuracy") is not None]
    if not scored:
        raise ValueError("none of these records has a forget accuracy")
    for name in ("task", "model", "split", "world", "base"):
        # A world that was trained again keeps its folder and ids: its hash tells the two apart.
        found = sorted({r["fingerprints"]["base"] if name == "base" else r.get(name, "") for r in scored})
        if len(found) > 1:
            raise ValueError(f"a front needs records of one {LABELS.get(name, name)}, these are of {', '.join(found)}")
    keys = differing(scored)
    result = []
    for record in scored:
        forget, preserve, overall = (
            _family(record, name) for name in ("forget_accuracy", "preserve_accuracy", "overall_score")
        )
        if preserve is None or overall is None:
            raise ValueError(f"a record of {record['task']} has no preserve accuracy: its task keeps nothing")
        settings = flat(record["config"])
        result.append(Point({key: settings.get(key) for key in keys}, forget, preserve, overall, record))
    return result


def front(found: Sequence[Point]) -> list[Point]:
    """The points that no other dominates, from the least forget accuracy on; of equal points the first."""
    best: list[Point] = []
    for point in sorted(found, key=lambda p: (p.forget, -p.preserve)):
        if not best or point.preserve > best[-1].preserve:
            best.append(point)
    return best


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


def markdown(found: Sequence[Point]) -> str:
    """The front as a table, with the two chosen points named below it."""
    keys = list(found[0].settings)
    header = [*(key.rpartition(".")[2] for key in keys), "forget %", "preserve %", "overall %", "on the front"]
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header))]
    on_front = front(found)
    for point in sorted(found, key=lambda p: -p.overall):
        shown = [
            values.show(values.pick_family(point.record["metrics"], name))
            for name in ("forget_accuracy", "preserve_accuracy", "overall_score")
        ]
        cells = [*(_show(value) for value in point.settings.values()), *shown, "yes" if point in on_front else ""]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Best overall score: {_sentence(best_overall(found))}."]
    keeping = best_keeping(found)
    floor = f"{100 * KEEP_SHARE:.0f} % of the unedited model's preserve accuracy"
    if keeping is None:
        lines.append(f"No setting keeps {floor}.")
    else:
        lines.append(f"Least forget accuracy that keeps {floor}: {_sentence(keeping)}.")
    return "\n".join([*lines, "", *(f"{note}  " for note in notes([p.record for p in found]))]) + "\n"


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
    axes.annotate(best.words, (100 * best.forget, 100 * best.preserve), xytext=(6, -12), textcoords="offset points")
    axes.set_xlabel("forget accuracy % (lower is better)")
    axes.set_ylabel("preserve accuracy % (higher is better)")
    record = found[0].record
    axes.set_title(f"{record['method']} on {record['task']}, {record['split']} split\n{record['note']}", fontsize=9)
    figure.colorbar(scatter, label="overall score %")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    pyplot.close(figure)
    write_atomic(path, buffer.getvalue())
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; with --out also write NAME.md and NAME.png."""
    parser = argparse.ArgumentParser(prog="python -m experiments.front", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("places", nargs="+", metavar="DIR|FILE|PATTERN")
    parser.add_argument("--out", type=Path, help="write NAME.md and NAME.png")
    options = parser.parse_args(argv)
    try:
        found = points(read_records(find(options.places)))
        table = markdown(found)
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


def _show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
