"""What comes back when concepts are forgotten one after another: `python -m experiments.stages DIR|FILE ... [--out F]`.

From records of `schedule=sequential`, for each concept: its forget accuracy right after its own stage and after the
last one. A concept that was gone and is there again has come back (resurgence). One line a method, then every method's
concepts stage by stage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.files import write_atomic

from . import render, values
from .records import find, read_records
from .tables import notes

FORGET, PRESERVE = "forget_accuracy", "preserve_accuracy"


def staged(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records that were scored after every stage; ValueError in one line without any."""
    found = [record for record in records if record["stages"]]
    if not found:
        raise ValueError("none of these records has stages: run with schedule=sequential and two concepts or more")
    return found


def by_concept(record: Mapping[str, Any]) -> dict[str, list[float]]:
    """Forget accuracy of every concept before the first stage and after each, in the order of the stages."""
    order = record["stages"][-1]["concepts"]
    sides = [record["unedited"], *(stage["metrics"] for stage in record["stages"])]
    return {name: [values.pick_family(side, FORGET, name)["value"] for side in sides] for name in order}


def summary(record: Mapping[str, Any]) -> list[str]:
    """One line of the first table: means over concepts, and the largest rise after a concept's own stage."""
    found = by_concept(record)
    own = [line[number] for number, line in enumerate(found.values(), start=1)]
    last = [line[-1] for line in found.values()]
    rises = {name: line[-1] - line[number] for number, (name, line) in enumerate(found.items(), start=1)}
    worst = max(rises, key=rises.__getitem__)
    kept = values.pick_family(record["stages"][-1]["metrics"], PRESERVE)
    rise = f"{100 * rises[worst]:+.1f} ({worst})" if rises[worst] > 0 else "none"
    means = (f"{100 * sum(some) / len(some):.1f}" for some in (own, last))
    return [record["method"], *means, rise, values.show(kept)]


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """The tables as Markdown, with what the columns are."""
    found = staged(records)
    header = ["method", "after its own stage %", "after the last stage %", "largest rise", "preserve % in the end"]
    order = found[0]["stages"][-1]["concepts"]
    first = render.Table("Forget accuracy, mean over concepts.", header, [summary(record) for record in found])
    lines = render.markdown(first)
    for record in found:
        stages = [f"after {stage['concepts'][-1]} %" for stage in record["stages"]]
        body = [
            # In brackets: not yet to be forgotten.
            [name, *(f"{100 * v:.0f}" if at >= number or not at else f"({100 * v:.0f})" for at, v in enumerate(line))]
            for number, (name, line) in enumerate(by_concept(record).items(), start=1)
        ]
        lines += render.markdown(render.Table(f"{record['method']}:", ["concept", "unedited %", *stages], body))
    per_class = values.pick_family(found[0]["unedited"], FORGET, order[0])["n"]
    lines += [f"In brackets: its turn had not come. {per_class} pictures a concept.  "]
    return "\n".join([*lines, *(f"{note}  " for note in notes(found, [FORGET, PRESERVE]))]) + "\n"


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
