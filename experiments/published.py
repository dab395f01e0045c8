"""Published results: what a paper prints, cell by cell, and what is known not to add up in it.

The numbers are the CSV files of `results/paper`. The `paper` section of an experiment (conf/experiment/*.yaml) says
which of them the experiment is compared with: `Paper`.
"""

from __future__ import annotations

import csv
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from harness.names import unknown

FOLDER = Path(__file__).resolve().parents[1] / "results" / "paper"
# Subjects of a figure over everything, as the files write them; records say `all`.
AGGREGATES = ("all", "coco")
INCONSISTENCIES = "inconsistencies.csv"
# Published tables that are no experiment: what to look at instead.
ELSEWHERE = {
    "fia_table8": "lists hyper-parameters and has no runs: results/paper/fia_table08_hyperparameters.csv; our values "
    "of them are those of conf/method/fia.yaml and fia/parameters.py",
    "fia_table15": "is on attacks, which no experiment here runs: results/paper/fia_table15_robustness.csv",
}
# How a line of that file names a group of metrics that it has no column for.
METRIC_WORDS = {"parts": "nudenet_count", "cells": "forget_acc"}


@dataclass(frozen=True)
class Cell:
    """One published number.

    Attributes:
        row: of the published table, mostly a method.
        metric: as the file names it, such as `forget_acc`.
        subject: a class, artist or part; `all` or `coco` for a whole.
        text: the number as printed; empty where the paper prints a dash.
        std: the printed standard deviation; empty where there is none.
    """

    row: str
    metric: str
    subject: str
    text: str
    std: str = ""

    @property
    def value(self) -> float | None:
        """In the paper's unit (percent, counts); None for a dash."""
        return float(self.text) if self.text else None


@dataclass(frozen=True)
class Source:
    """Which of our values is a published metric.

    Attributes:
        id: metric id, or a pattern with `*`, that measures the same thing. Other ids of its family are shown beside it,
            and never compared with the published number. `edit:a.b` reads a number from what an edit says of itself,
            `cost:a.b` one from what a record says of its cost.
        scale: published = scale x ours (100 where the paper prints percent and records hold fractions).
        apart: this id is not comparable either, such as an FID of another n; it has a column of its own.
    """

    id: str
    scale: float = 1.0
    apart: bool = False

    def measures(self, metric_id: str) -> bool:
        """Whether an id is the published metric's counterpart."""
        return not self.apart and fnmatch.fnmatchcase(metric_id, self.id)


@dataclass(frozen=True)
class Gate:
    """The published row of the unedited model, which has to be met before other rows say anything.

    Attributes:
        row: its name.
        file: where it is printed; empty: in the table's own file.
        metrics: metric of this table -> metric of that file; empty: all, under their own names.
    """

    row: str
    file: str = ""
    metrics: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Paper:
    """The `paper` section of an experiment.

    Attributes:
        source: paper, version and table, in words; of a figure of our own, what it shows.
        file: in results/paper; empty for a figure of our own, beside which nothing is published.
        name: of the table in inconsistencies.csv, such as T1; empty where no line names it.
        model: config of the model that the paper used; empty where the paper does not say.
        protocol: what the paper says, and does not say, about pictures, sampling and judges.
        where: column -> value of the file's lines that count; none: all.
        methods: whose records count; none: every method's.
        row: how a row's name is made from the file's columns.
        rows: published row -> settings (dotted key: value or list of values) of the records that stand for it; none
            where no method of ours does.
        metrics: published metric -> which of ours it is.
        subjects: published class, artist or part -> ours, where the names differ.
        gate: the unedited model's row.
        no_gate: why there is none, as a clause; needed where the experiment runs the unedited model.
        x: of a figure's horizontal axis: `column` of the file, or `at` where all its numbers stand at one place; our
            `setting`; and its `title`.
        also: overrides of further single runs, which the sweep does not make.
        limits: of a figure, published metric -> the level that it should keep to, such as `>= 24`.
    """

    source: str
    protocol: str
    file: str = ""
    name: str = ""
    model: str = ""
    where: Mapping[str, str] = field(default_factory=dict)
    methods: Sequence[str] = ()
    row: str = "{method}"
    rows: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    metrics: Mapping[str, Source] = field(default_factory=dict)
    subjects: Mapping[str, str] = field(default_factory=dict)
    gate: Gate | None = None
    no_gate: str = ""
    x: Mapping[str, Any] = field(default_factory=dict)
    also: Sequence[str] = ()
    limits: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Paper:
        """From the YAML section.

        Raises:
            ValueError: it has an unknown key, or lacks one.
        """
        known = [item.name for item in fields(cls)]
        for key in section:
            if key not in known:
                raise unknown("key in a paper section", key, known)
        needed = ("source", "protocol", "metrics", *(() if section.get("x") else ("file",)))
        missing = [key for key in needed if not section.get(key)]
        if missing:
            raise ValueError(f"the paper section lacks {missing[0]}")
        metrics = {name: Source(**source) for name, source in section["metrics"].items()}
        gate = Gate(**section["gate"]) if section.get("gate") else None
        return cls(**{**section, "metrics": metrics, "gate": gate})

    def subject(self, published: str) -> str:
        """Our name of a published class, artist or part."""
        return "all" if published in AGGREGATES else self.subjects.get(published, published)


def read(name: str, folder: Path = FOLDER) -> list[dict[str, str]]:
    """The rows of a file of published numbers.

    Raises:
        ValueError: there is no such file.
    """
    path = folder / name
    if not path.is_file():
        raise unknown("file of published numbers", name, (item.name for item in folder.glob("*.csv")))
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def lines(paper: Paper, folder: Path = FOLDER) -> list[dict[str, str]]:
    """The lines of the section's file that count; none without a file."""
    if not paper.file:
        return []
    return [line for line in read(paper.file, folder) if all(line[key] == value for key, value in paper.where.items())]


def cells(paper: Paper, folder: Path = FOLDER) -> list[Cell]:
    """The published cells of the metrics that the section names, in the file's order."""
    found = []
    for line in lines(paper, folder):
        row = paper.row.format(**line)
        if "metric" in line:
            found.append(Cell(row, line["metric"], line.get("class") or "all", line["value"], line.get("std") or ""))
        else:  # a wide file: every metric is a column
            found += [Cell(row, metric, line.get("class") or "all", line.get(metric) or "") for metric in paper.metrics]
    return [cell for cell in found if cell.metric in paper.metrics]


def gate_cells(paper: Paper, folder: Path = FOLDER) -> dict[tuple[str, str], Cell]:
    """(metric, subject) of this table -> the unedited model's published cell; empty without a gate."""
    if paper.gate is None:
        return {}
    own = paper.gate.metrics or {metric: metric for metric in paper.metrics}
    printed: dict[str, list[Cell]] = {}
    for line in read(paper.gate.file or paper.file, folder):
        if line["method"] == paper.gate.row:
            cell = Cell(line["method"], line["metric"], line["class"], line["value"], line.get("std") or "")
            printed.setdefault(cell.metric, []).append(cell)
    return {(mine, cell.subject): cell for mine, theirs in own.items() for cell in printed.get(theirs, ())}


@dataclass(frozen=True)
class Finding:
    """One line of inconsistencies.csv; `number` is its line in the file."""

    number: int
    where: str
    cell: str
    printed: str
    other: str
    rule: str

    @property
    def words(self) -> str:
        return f"{self.where}, {self.cell}: printed {self.printed}, against {self.other} ({self.rule})"


def findings(folder: Path = FOLDER) -> list[Finding]:
    """All lines of inconsistencies.csv."""
    return [
        Finding(number, line["where"], line["cell"], line["printed"], line["recomputed_or_other"], line["rule"])
        for number, line in enumerate(read(INCONSISTENCIES, folder), start=2)
    ]


def flags(
    name: str, found: Sequence[Cell], known: Iterable[Finding]
) -> tuple[dict[Cell, list[Finding]], list[Finding]]:
    """Which cells of the table `name` a known inconsistency is about.

    A line is about a cell if it names the table, the cell's row (or the row stands in the line's remark), its class or
    metric where the line names one, and if the cell's number is one of those that the line gives for this table.

    Returns:
        (cell -> lines, lines that name this table alone and none of its cells).
    """
    marked: dict[Cell, list[Finding]] = {}
    lost = []
    for line in known:
        for side in _sides(line):
            if name not in side.names:
                continue
            about = _about(side, line, found)
            for cell in about:
                marked.setdefault(cell, []).append(line)
            # `T10/T11` speaks of one of the two.
            if not about and side.names == (name,):
                lost.append(line)
    return marked, lost


@dataclass(frozen=True)
class _Side:
    """One side of `T12 (alpha=0.6) vs T1 (FIA)`: tables, the row in brackets, the number that this side prints."""

    names: tuple[str, ...]
    row: str
    text: str


def _sides(line: Finding) -> list[_Side]:
    sides = []
    for part, text in zip(line.where.split(" vs "), (line.printed, line.other), strict=False):
        names, _, row = part.removesuffix(")").partition(" (")
        names = names.removeprefix("FIA ")
        sides.append(_Side(tuple(names.split("/")), row, text))
    return sides


def _about(side: _Side, line: Finding, found: Sequence[Cell]) -> list[Cell]:
    rows = dict.fromkeys(cell.row for cell in found)
    text = side.text
    # Longest first: `SD v1.5` before a row that were called `SD`.
    row = side.row or next((r for r in sorted(rows, key=len, reverse=True) if _starts(line.cell, r)), "")
    if side.text in rows:  # the other side is a row, and its number stands in the remark
        row, text = side.text, line.printed
    about = [cell for cell in found if cell.text and row in ("", cell.row)]
    words = f"{line.cell} {line.printed}".casefold()
    subjects = {cell.subject for cell in about if cell.subject != "all" and _within(cell.subject.casefold(), words)}
    metrics = {cell.metric for cell in about if _within(cell.metric, words)}
    metrics |= {metric for word, metric in METRIC_WORDS.items() if _within(word, words)}
    numbers = set(re.findall(r"\d+(?:\.\d+)?", text))  # as printed: 32 is not 32.00
    if not row and not numbers:
        return []
    return [
        cell
        for cell in about
        if (not subjects or cell.subject in subjects)
        and (not metrics or cell.metric in metrics)
        and (not numbers or cell.text in numbers)
    ]


def _starts(text: str, row: str) -> bool:
    return text == row or text.startswith(f"{row} ")


def _within(word: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None
