"""What comes back when concepts are forgotten one after another: `python -m experiments.stages DIR|FILE ... [--out F]`.

From records of `schedule=sequential`, for each concept: what is left of it right after its own stage and after the last
one. A concept that was gone and is there again has come back (resurgence). One line a method, then every method's
concepts stage by stage. Explicit content is not scored by concept: it has one line for all of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.values import ALL
from harness.files import write_atomic

from . import render, values
from .records import find, read_records
from .tables import notes

# What is left of the concepts, by the first of these families that a record has, all better when low; and the family
# that says what is left of the rest.
SCORES = {"forget_accuracy": "preserve_accuracy", "clip_a": "clip_a_kept", "nudenet_images": "", "marker_images": ""}


def staged(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records that were scored after every stage; ValueError in one line without any."""
    found = [record for record in records if record["stages"]]
    if not found:
        raise ValueError("none of these records has stages: run with schedule=sequential and two concepts or more")
    return found


def measure(records: Sequence[Mapping[str, Any]]) -> str:
    """The metric id that says what is left of the concepts; ValueError where none or several do."""
    found = {}
    for record in records:
        ids = [metric["id"] for metric in record["unedited"]]
        mine = (i for name in SCORES for i in ids if values.family(i) == name)
        found[next(mine, "")] = record
    if len(found) > 1 or "" in found:
        scored = ", ".join(f"{record['task']}: {i or 'nothing'}" for i, record in found.items())
        raise ValueError(f"one table needs one score of what is left of the concepts, these records have {scored}")
    return next(iter(found))


def by_concept(record: Mapping[str, Any]) -> dict[str, list[float]]:
    """What is left of every concept before the first stage and after each, in the order of the stages."""
    score, sides = measure([record]), [record["unedited"], *(stage["metrics"] for stage in record["stages"])]
    return {name: [values.pick(side, score, name)["value"] for side in sides] for name in _turns(record, score)}


def _turns(record: Mapping[str, Any], score: str) -> dict[str, int]:
    """The stage of every concept, from 1; of scores for all concepts together the last one."""
    names = record["stages"][-1]["concepts"]
    if values.pick(record["unedited"], score, names[0]) is None:
        return {ALL: len(record["stages"])}
    return {name: number for number, name in enumerate(names, start=1)}


def _summary(record: Mapping[str, Any], score: str) -> list[str]:
    """One line of the first table: means over concepts, and the largest rise after a concept's own stage."""
    found, turns, unit = by_concept(record), _turns(record, score), values.unit(score)
    own = [line[turns[name]] for name, line in found.items()]
    last = [line[-1] for line in found.values()]
    rises = {name: line[-1] - line[turns[name]] for name, line in found.items()}
    worst = max(rises, key=rises.__getitem__)
    rise = f"{unit.scale * rises[worst]:+.{unit.decimals}f} ({worst})" if rises[worst] > 0 else "none"
    means = (f"{unit.scale * sum(some) / len(some):.{unit.decimals}f}" for some in (own, last))
    kept = values.pick(record["stages"][-1]["metrics"], _of_the_rest(score))
    return [record["method"], *means, rise, values.show(kept)]


def _of_the_rest(score: str) -> str:
    family = values.family(score)
    return SCORES[family] + score.removeprefix(family)


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """The tables as Markdown, with what the columns are."""
    found = staged(records)
    score = measure(found)
    unit, title = values.unit(score), values.title(score, [score])
    header = ["method", "after its own stage", "after the last stage", "largest rise", "of the rest in the end"]
    caption = f"What is left of the concepts, mean over concepts: {title}."
    lines = render.markdown(render.Table(caption, header, [_summary(record, score) for record in found]))
    for record in found:
        stages = [f"after {stage['concepts'][-1]}" for stage in record["stages"]]
        turns, body = _turns(record, score), []
        for name, line in by_concept(record).items():
            # Shares of some ten pictures have no decimals.
            shown = [f"{unit.scale * value:.{0 if unit.words else unit.decimals}f}" for value in line]
            # In brackets: not yet to be forgotten.
            body.append([name, *(v if at >= turns[name] or not at else f"({v})" for at, v in enumerate(shown))])
        lines += render.markdown(render.Table(f"{record['method']}, {title}:", ["concept", "unedited", *stages], body))
    first = next(iter(_turns(found[0], score)))
    pictures = values.pick(found[0]["unedited"], score, first)["n"]
    lines += [f"In brackets: its turn had not come. {pictures} pictures {'in all' if first == ALL else 'a concept'}.  "]
    families = [values.family(i) for i in (score, _of_the_rest(score))]
    return "\n".join([*lines, *(f"{note}  " for note in notes(found, families))]) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; with --out also write them; 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m experiments.stages", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("places", nargs="+", metavar="DIR|FILE|PATTERN")
    parser.add_argument("--out", type=Path, help="write the tables to this file")
    options = parser.parse_args(argv)
    try:
        text = markdown(read_records(find(options.places)))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(text, end="")
    if options.out is not None:
        write_atomic(options.out, text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
