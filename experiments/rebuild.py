"""Everything that records allow, as files: `python -m experiments.rebuild results/tables` (`make tables`).

Records are those of an experiment's own runs and those under results/records. What is written, without a list of names:

    EXPERIMENT.md          its table; not of a published one that ran on another model only, such as the tiny world
    EXPERIMENT.md, .png    of a sweep over one method's own values the front; of one over methods and tasks all of them
                           in one table; of a figure its notes and the drawing
    FOLDER.md, .png        of a folder with a search the comparison of its methods, and FOLDER_test.png; of any other
                           folder the plain tables
    FOLDER_stages.md       what came back, of a folder with records of schedule=sequential
    records.md             the single records
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from harness.files import write_atomic

from . import catalogue, figures, front, methods, overview, stages, tables
from .records import read_records
from .search import TEST, TUNING

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Page:
    """A Markdown file, and what draws the pictures beside it: by the end of their names, a function of their path."""

    text: str
    pictures: Mapping[str, Callable[[Path], Path]] = field(default_factory=dict)


def pages() -> dict[str, Page]:
    """Every file by its name."""
    found = {}
    for name in catalogue.names():
        page = of_experiment(name, tables.records_of(name))
        if page is not None:
            found[name] = page
    kept = Path(tables.KEPT)
    for folder in sorted(path for path in kept.glob("*/") if path.is_dir()):
        if any((folder / split).is_dir() for split in (TUNING, TEST)):
            found[folder.name] = of_search(folder)
            continue
        records = read_records(sorted(folder.rglob("*.json")))
        if records and folder.name not in catalogue.names():
            found[folder.name] = Page(tables.of_records(records, "md"))
        if any(record["stages"] for record in records):
            found[f"{folder.name}_stages"] = Page(of_stages(records))
    single = read_records(sorted(kept.glob("*.json")))
    if single:
        found["records"] = Page(tables.of_records(single, "md"))
    return found


def of_experiment(name: str, records: Sequence[Record]) -> Page | None:
    """An experiment's table, front or figure; None where there is nothing to say about what it is about."""
    experiment = catalogue.load(name)
    paper = experiment.paper
    if paper is None:
        if not records:
            return None
        if experiment.sweep and all(key.startswith("method.") for key in experiment.sweep):
            found, tuning = front.sweeps(records)
            return Page(front.markdown(found, tuning), {"": partial(front.plot, found)})
        text = tables.of_experiment(name, records, "md")
        if {"task", "method"} <= set(experiment.sweep):
            ordered = sorted(
                records, key=lambda one: [_place(experiment.sweep, one, key) for key in ("task", "method")]
            )
            if above := overview.markdown(ordered):
                return Page(f"{above}\n{text}", {"": partial(overview.draw, ordered)})
        return Page(text)
    own = [record for record in records if record["task"] == experiment.config["task"]["name"]]
    if not any(paper.model in ("", record["model"]) for record in own):
        return None
    text = tables.of_experiment(name, records, "md")
    if not paper.x:
        return Page(text)
    figure = figures.figure_of(name, own)
    notes = "\n".join([text, *(f"{note}  " for note in figure.notes)]) + "\n"
    return Page(notes, {"": partial(figures.draw, figure)})


def _place(sweep: Mapping[str, Sequence[str]], record: Record, key: str) -> int:
    """Where the record's value of a swept key stands in the sweep; what was run besides comes last."""
    return sweep[key].index(record[key]) if record[key] in sweep[key] else len(sweep[key])


def of_search(folder: Path) -> Page:
    """The methods of a search side by side, and their fronts where it was tuned."""
    return Page(methods.markdown(folder), methods.pictures(folder))


def of_stages(records: Iterable[Record]) -> str:
    """One table a task and model of what came back."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record["stages"]:
            groups.setdefault((record["task"], record["model"]), []).append(record)
    return "\n".join(
        tables.HEADINGS["md"].format(f"{task}, model {model}") + stages.markdown(group)
        for (task, model), group in groups.items()
    )


def write(folder: Path) -> list[Path]:
    """All files of `pages`, in this folder. Files that are there besides stay as they are."""
    written = []
    for name, page in pages().items():
        path = folder / f"{name}.md"
        write_atomic(path, page.text.encode())
        written.append(path)
        written += [draw(folder / f"{name}{end}.png") for end, draw in page.pictures.items()]
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files and say which; 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m experiments.rebuild", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(argv)
    try:
        written = write(options.folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(map(str, written)) or f"no records yet, in {tables.KEPT} or of any experiment: nothing to write")
    return 0


if __name__ == "__main__":
    sys.exit(main())
