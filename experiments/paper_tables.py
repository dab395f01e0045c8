"""A published table beside what was measured: records and published cells in, rows of pairs out. Nothing is read here.

A pair agrees if the published number lies in the measured 95 % interval; there is no other tolerance. Only the metric
id that the experiment names is compared; other ids of its family stand in columns of their own. The unedited model's
row is a gate: where it does not agree, nothing below it can be expected to. What was measured on another model or for
other concepts is no reproduction and is handed back apart, with the reason.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import values
from .pools import POOLED
from .published import Cell, Finding, Paper, Source, flags
from .records import flat
from .settings import Expected, Record, deviations, hardware, of_the_edit, row_of, sorted_out

EDIT, COST, POOL = "edit:", "cost:", "pool:"
# Below this many pictures KID stands beside every FID, whose bias grows as n falls (docs/metrics.md).
FEW_PICTURES = 10_000
# Sources that are no metric: what a record says of its edit, what that cost, and what depends on all rows together.
NO_METRICS = (EDIT, COST, POOL)
# How a setting begins that tells repeated runs apart.
SEED = "seed "


@dataclass(frozen=True)
class Measured:
    """A measured number in our own unit.

    Attributes:
        n: pictures that it rests on; None where that has no meaning.
        std: standard deviation over `runs` runs with different seeds, or repeats of one; None for a single run.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    std: float | None = None
    runs: int = 1


@dataclass(frozen=True)
class Column:
    """A published metric of a subject, in one metric id of ours; `id` is empty where none was measured.

    Attributes:
        main: the id is the published metric's counterpart, so it is compared.
    """

    metric: str
    subject: str
    id: str
    main: bool
    scale: float
    decimals: int


@dataclass(frozen=True)
class Line:
    """One row: a published row with one measured row for it, or either alone.

    Attributes:
        row: published name; empty for a method that the paper does not have.
        method: ours; empty where nothing was run.
        settings: preset, and what differs from the experiment's own settings.
        published, measured: by column.
        unedited: this is the unedited model's row.
        mean: this is the mean of the rows above it, which differ in the seed only.
        runs: of the settings, those that other methods' rows have to share to be ranked together: what decides the
            pictures, and the seed.
    """

    row: str
    method: str = ""
    settings: str = ""
    published: Mapping[Column, Cell] = field(default_factory=dict)
    measured: Mapping[Column, Measured] = field(default_factory=dict)
    unedited: bool = False
    mean: bool = False
    runs: tuple[str, ...] = ()

    def agrees(self, column: Column) -> bool | None:
        """Whether the published number lies in the measured interval; None where that cannot be said."""
        cell, found = self.published.get(column), self.measured.get(column)
        if not column.main or cell is None or cell.value is None or found is None:
            return None
        if found.low is None or found.high is None:
            return None
        return column.scale * found.low <= cell.value <= column.scale * found.high


@dataclass(frozen=True)
class Comparison:
    """Everything that a table says.

    Attributes:
        name, title: of the experiment, and the published table in words.
        columns, lines: the table; the unedited model's rows come first.
        flags: published cell -> lines of inconsistencies.csv about it.
        lost: lines that name the table and none of its cells.
        apart: (reason, records) of what is no reproduction of this table.
        entries: the metric entries that are shown, for the legend.
        silent: how many records hold nothing of this table.
    """

    name: str
    paper: Paper
    columns: Sequence[Column]
    lines: Sequence[Line]
    flags: Mapping[Cell, Sequence[Finding]] = field(default_factory=dict)
    lost: Sequence[Finding] = ()
    apart: Sequence[tuple[str, Sequence[Record]]] = ()
    entries: Sequence[Mapping[str, Any]] = ()
    silent: int = 0

    def judged(self) -> list[tuple[Line, Column, bool]]:
        """Every number that can be compared, and whether it agrees."""
        pairs = [(line, column, line.agrees(column)) for line in self.lines for column in self.columns]
        return [(line, column, agrees) for line, column, agrees in pairs if agrees is not None]

    def gate(self) -> list[tuple[Line, Column, bool]]:
        """`judged` of the unedited model."""
        return [(line, column, agrees) for line, column, agrees in self.judged() if line.unedited]

    @property
    def state(self) -> str:
        """Of the gate: passed, failed, open (nothing of it was measured) or none."""
        if self.paper.gate is None:
            return "none"
        found = [agrees for _, _, agrees in self.gate()]
        if not found:
            return "open"
        return "passed" if all(found) else "failed"


def compare(
    name: str,
    paper: Paper,
    cells: Sequence[Cell],
    gate: Mapping[tuple[str, str], Cell],
    records: Sequence[Record],
    expected: Expected,
) -> Comparison:
    """The published table beside the records that reproduce it.

    Args:
        cells: of the published table.
        gate: (metric, subject) -> the unedited model's published cell.
        records: of the experiment's task.
        expected: what the experiment would give each method.
    """
    inside, apart = sorted_out(paper, records, expected)
    found = gated(name, paper, cells, gate, inside, expected)
    lines = _pooled([*found.lines, *_lines(paper, cells, found.columns, inside, expected)], found.columns)
    lines = [line for row in _by_row(lines) for line in (*row, *_repeated(row))]
    shown = {column.id for column in found.columns}
    entries = [m for r in inside for m in [*r["metrics"], *r["unedited"]] if m["id"] in shown]
    silent = sum(not measured(paper, found.columns, [*r["metrics"], *r["unedited"]], r) for r in inside)
    return replace(found, lines=lines, apart=apart, entries=entries, silent=silent)


def gated(
    name: str,
    paper: Paper,
    cells: Sequence[Cell],
    gate: Mapping[tuple[str, str], Cell],
    records: Sequence[Record],
    expected: Expected,
    named: Sequence[str] = (),
) -> Comparison:
    """The unedited model's rows alone, from records that reproduce the table; arguments as for `compare`.

    Args:
        named: settings that tell no two rows apart, such as a figure's axis.
    """
    columns = _columns(paper, cells, records)
    return Comparison(name, paper, columns, _gate_lines(paper, gate, columns, records, expected, named))


def edit_columns(paper: Paper, cells: Iterable[Cell], records: Sequence[Record]) -> list[Column]:
    """The columns that a record fills without any picture: counts of its edit, and what that cost."""
    return [column for column in _columns(paper, cells, records) if column.id.startswith((EDIT, COST))]


def flagged(comparison: Comparison, cells: Sequence[Cell], lines: Sequence[Finding]) -> Comparison:
    """With the known inconsistencies of the published cells, the unedited model's among them."""
    if not comparison.paper.name:
        return comparison
    marked, lost = flags(comparison.paper.name, cells, lines)
    return replace(comparison, flags=marked, lost=lost)


def _columns(paper: Paper, cells: Iterable[Cell], records: Sequence[Record]) -> list[Column]:
    places = {(cell.metric, cell.subject): None for cell in cells}
    decimals: dict[str, int] = {}
    for cell in cells:
        digits = len(cell.text.partition(".")[2])
        decimals[cell.metric] = max(decimals.get(cell.metric, 0), digits)
    found = []
    for metric, subject in places:
        source = paper.metrics[metric]
        ids = [i for i in _ids(source, paper.subject(subject), records) if not source.measures(i)]
        main = [i for i in _ids(source, paper.subject(subject), records) if source.measures(i)] or [""]
        for i in (*main, *ids):
            found.append(Column(metric, subject, i, i in main, source.scale, decimals[metric]))
            kid = _kid_beside(i, records)
            if kid:
                unit = values.unit(kid)
                found.append(Column(values.family(kid), subject, kid, False, unit.scale, unit.decimals))
    return found


def _kid_beside(fid: str, records: Sequence[Record]) -> str:
    """The id of the KID that has to be shown with an FID of few pictures; empty for other ids and larger n."""
    if values.family(fid) != "fid":
        return ""
    entries = [m for record in records for m in [*record["metrics"], *record["unedited"]]]
    few = any(m["id"] == fid and m["n"] // m.get("repeats", 1) < FEW_PICTURES for m in entries)
    kid = "kid" + fid.removeprefix("fid")
    return kid if few and any(m["id"] == kid for m in entries) else ""


def _ids(source: Source, subject: str, records: Sequence[Record]) -> list[str]:
    """Every measured id of the source's family with this subject, sorted."""
    if source.id.startswith(NO_METRICS):
        return [source.id] if records else []
    entries = [m for record in records for m in [*record["metrics"], *record["unedited"]]]
    name = values.family(source.id)
    return sorted({m["id"] for m in entries if values.family(m["id"]) == name and m["subject"] == subject})


def _gate_lines(
    paper: Paper,
    gate: Mapping[tuple[str, str], Cell],
    columns: Sequence[Column],
    records: Sequence[Record],
    expected: Expected,
    named: Sequence[str] = (),
) -> list[Line]:
    """The unedited model's rows, one for each different set of values that the records hold of it."""
    if paper.gate is None:
        return []
    published = {column: gate[key] for column in columns if (key := (column.metric, column.subject)) in gate}
    lines: dict[str, Line] = {}
    for record in records:
        own = measured(paper, columns, record["unedited"], {})
        if own:
            settings = [word for word in deviations(record, expected[""], named) if not of_the_edit(word)]
            key = json.dumps([(column.id, column.subject, found.value, found.n) for column, found in own.items()])
            words = ", ".join(settings)
            lines[key] = Line(paper.gate.row, "unedited", words, published, own, True, runs=tuple(settings))
    return _merged(lines.values()) or [Line(paper.gate.row, published=published, unedited=True)]


def _lines(
    paper: Paper,
    cells: Sequence[Cell],
    columns: Sequence[Column],
    records: Sequence[Record],
    expected: Expected,
) -> list[Line]:
    printed = {(cell.row, cell.metric, cell.subject): cell for cell in cells}
    rows = dict.fromkeys(cell.row for cell in cells)
    skipped = paper.gate.row if paper.gate and not paper.gate.file else None
    found: dict[str, list[Line]] = {row: [] for row in rows if row != skipped}
    for record in records:
        if record["method"] == "none" and paper.gate is not None:
            continue
        row = row_of(paper, record)
        named = tuple((paper.rows.get(row) or {}).keys())
        wanted = expected.get(record["method"], expected[""])
        settings = deviations(record, wanted, named)
        if record.get("preset"):
            settings.insert(0, f"preset {record['preset']}")
        if any(column.id.startswith(COST) for column in columns):
            settings += _made(record, wanted)
        own = measured(paper, columns, record["metrics"], record)
        if own:
            runs = tuple(word for word in settings if word.startswith(SEED) or not of_the_edit(word))
            line = Line(row, record["method"], ", ".join(settings), measured=own, runs=runs)
            found.setdefault(row, []).append(line)
    lines = []
    for row, members in found.items():
        published = {c: cell for c in columns if (cell := printed.get((row, c.metric, c.subject)))}
        members = _merged(sorted(members, key=lambda line: (line.method, line.settings)))
        lines += [replace(line, published=published) for line in members or [Line(row)]]
    return lines


def _made(record: Record, wanted: Mapping[str, Any]) -> list[str]:
    """What decides a cost and no score: settings of speed that are not the usual ones, the hardware, several runs."""
    made, speed = record["cost"]["edit_made"], record["config"].get("speed", {})
    words = [f"{name} {value}" for name, value in speed.items() if value != wanted.get(f"method.{name}")]
    where = hardware(record, made["device"]) or made["device"]
    return [*words, f"on {where}", *([f"in {made['runs']} runs"] if made["runs"] > 1 else [])]


def measured(
    paper: Paper, columns: Sequence[Column], metrics: Sequence[Mapping[str, Any]], record: Record
) -> dict[Column, Measured]:
    """What a record says by column; an empty `record` has no edit, as the unedited model."""
    found = {}
    for column in columns:
        if column.id.startswith((EDIT, COST)):
            value = _of_the_record(record, column.id)
            if value is not None:
                found[column] = Measured(value)
        elif column.id:
            entry = values.pick(metrics, column.id, paper.subject(column.subject))
            if entry is not None:
                found[column] = Measured(
                    entry["value"], *values.ends(entry), entry["n"], entry.get("sd"), entry.get("repeats", 1)
                )
    return found


def _of_the_record(record: Record, source: str) -> float | None:
    """`edit:counts.all.pruned+counts.all.agnostic`: a sum in that section of a record; None where it lacks a part."""
    section, _, paths = source.partition(":")
    own = flat(record.get(section, {}))
    parts = [own.get(path) for path in paths.split("+")]
    return None if any(part is None for part in parts) else sum(parts)


def _merged(lines: Iterable[Line]) -> list[Line]:
    """Lines of one row, method and settings, the seed among them, as one: their runs differ in what they measured.

    Lines that contradict each other in a number, as of two machines, stay apart.
    """
    found: list[Line] = []
    for line in lines:
        place = next((i for i, other in enumerate(found) if _one_run(other, line)), None)
        if place is None:
            found.append(line)
        else:
            found[place] = replace(found[place], measured={**found[place].measured, **line.measured})
    return found


def _one_run(one: Line, other: Line) -> bool:
    if (one.row, one.method, one.settings) != (other.row, other.method, other.settings):
        return False
    return all(one.measured[column] == found for column, found in other.measured.items() if column in one.measured)


def _by_row(lines: Iterable[Line]) -> list[list[Line]]:
    """The lines of every published row, which stand together."""
    return [list(row) for _, row in itertools.groupby(lines, key=lambda line: (line.unedited, line.row))]


def _repeated(lines: Sequence[Line]) -> list[Line]:
    """Below rows that differ in the seed only: their mean and standard deviation.

    It has no interval and is not compared: the spread of a few seeds says nothing about the choice of pictures. Where
    two rows of one seed contradict each other there is no mean.
    """
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        words = [word for word in line.settings.split(", ") if word and not word.startswith(SEED)]
        groups.setdefault((line.method, ", ".join(words)), []).append(line)
    means = []
    for (method, settings), group in groups.items():
        if len({line.settings for line in group}) == len(group) > 1:
            words = ", ".join([*([settings] if settings else []), f"mean of {len(group)} seeds"])
            mean = _mean([line.measured for line in group])
            means.append(Line(group[0].row, method, words, group[0].published, mean, mean=True))
    return means


def _mean(runs: Sequence[Mapping[Column, Measured]]) -> dict[Column, Measured]:
    found = {}
    for column in runs[0]:
        own = [run[column] for run in runs if column in run and run[column].value is not None]
        if len(own) == len(runs):
            numbers = [item.value for item in own]
            mean, std = statistics.fmean(numbers), statistics.stdev(numbers)
            found[column] = Measured(mean, n=own[0].n, std=std, runs=len(own))
    return found


def pools(lines: Sequence[Line]) -> list[list[int]]:
    """Places of the lines that are ranked together: one run a method, all of one seed and of the same pictures.

    The unedited model has no seed and stands in every pool of its pictures. A mean of seeds would count its runs twice.
    """
    found = []
    for runs in dict.fromkeys(line.runs for line in lines if not (line.unedited or line.mean)):
        pictures = tuple(word for word in runs if not word.startswith(SEED))
        own = [line.runs == (pictures if line.unedited else runs) and not line.mean for line in lines]
        found.append([place for place, chosen in enumerate(own) if chosen])
    return found


def _pooled(lines: Sequence[Line], columns: Sequence[Column]) -> list[Line]:
    """The lines with the numbers that depend on others; the unedited model's are those of its first pool."""
    lines = list(lines)
    for column in columns:
        if column.id not in POOLED:
            continue
        pool = POOLED[column.id]
        sources = [
            next((c for c in columns if c.metric == metric and c.main and c.id), None) for metric in pool.metrics
        ]
        if None in sources:
            continue
        for members in pools(lines):
            chosen = [
                i
                for i in members
                if (pool.unedited or not lines[i].unedited) and all(_known(lines[i], s) for s in sources)
            ]
            numbers = [[s.scale * lines[i].measured[s].value for i in chosen] for s in sources]
            if any(len(set(own)) < 2 for own in numbers):  # nothing to compare yet
                continue
            for i, value in zip(chosen, pool.rule(*numbers), strict=True):
                lines[i] = replace(lines[i], measured={column: Measured(value), **lines[i].measured})
    return lines


def _known(line: Line, column: Column) -> bool:
    return column in line.measured and line.measured[column].value is not None
