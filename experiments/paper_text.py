"""A comparison with a published table as Markdown, LaTeX, HTML or CSV."""

from __future__ import annotations

import csv
import html
import io
import string
from collections.abc import Mapping, Sequence

from . import render, values
from .paper_tables import COST, FEW_PICTURES, NO_METRICS, POOL, Column, Comparison, Line, Measured, pools
from .published import AGGREGATES, Cell
from .render import Table

# How published metrics are called above a column; a class, artist or part stands behind.
TITLES = {
    "forget_acc": "",
    "preserve_acc": "keep",
    "avg_forget_acc": "mean forget",
    "avg_preserve_acc": "mean keep",
    "overall_score": "overall",
    "clip_coco": "CLIP",
    "fid_coco": "FID",
    "kid": "KID",
    "nudenet_count": "",
    "nudenet_total": "total",
    "clip_a": "CLIP_a",
    "avg_clip_a": "mean CLIP_a",
    "fsr": "FSR",
    "avg_rank": "mean rank",
    "execution_time_s": "seconds",
    "peak_gpu_memory_mb": "peak memory MB",
    "uq": "UQ",
}
# By scale: what stands behind a title.
UNITS = {100: " %", 1000: " x1000"}
DASH = "-"
# How many of numbers that agree lie outside 95 % intervals of their own measurement.
CHANCE = 0.05
# Tables with more published columns are turned: their classes are rows.
WIDE = 20
VERDICTS = {True: " in", False: " out", None: ""}
READING = (
    "Each cell: published / measured [95 % interval]; - = not printed, or not run. in, out: the published number lies "
    "inside the measured interval, or outside of it; without a word the two are not compared. ±: standard deviation "
    "over seeds. (a), (b): see below."
)


def above(comparison: Comparison) -> list[str]:
    """What has to be read before the table: whether the unedited model is the published one, and what chance does."""
    judged = len(comparison.judged())
    if not judged:
        return [gate(comparison)]
    return [
        gate(comparison),
        f"By chance alone {CHANCE:.0%} of numbers that agree lie outside the interval, here about "
        f"{CHANCE * judged:.1f} of the {judged} compared; more do, because published numbers vary too.",
    ]


def gate(comparison: Comparison) -> str:
    """Whether the unedited model is the published one, in one line."""
    paper, state = comparison.paper, comparison.state
    if state == "none":
        reason = paper.no_gate or "the paper prints no unedited model that this table could be held against"
        return f"No gate: {reason}."
    if state == "open":
        return "Gate open: the unedited model was not measured, so nothing here is a reproduction yet."
    compared = comparison.gate()
    wrong = [(line, column) for line, column, agrees in compared if not agrees]
    if not wrong:
        count = f"all {len(compared)} numbers that can be compared" if len(compared) > 1 else "the one compared number"
        return f"Gate passed: {paper.gate.row}, unedited, agrees with the published row in {count}."
    shown = "; ".join(
        f"{column_title(column)}{f' ({line.settings})' if line.settings else ''}: {_pair(line, column, {})}"
        for line, column in wrong
    )
    return (
        f"GATE FAILED: {paper.gate.row}, unedited, differs from the published row beyond its interval in {len(wrong)} "
        f"of {len(compared)} numbers ({shown}). Model, prompts, sampling or judge are not the published ones, so no "
        "difference in the rows below can be laid to a method."
    )


def table(comparison: Comparison) -> Table:
    """The rows of pairs."""
    marks = {
        cell: "".join(f" ({letter})" for number, letter in _letters(comparison).items() if number in about)
        for cell, found in comparison.flags.items()
        for about in [{finding.number for finding in found}]
    }
    columns = comparison.columns
    header = ["published", "measured as", "settings", "n", *(column_title(column) for column in columns)]
    body = [
        [
            line.row or DASH,
            line.method or DASH,
            line.settings or (DASH if not line.method else "the experiment's"),
            _counts(line, columns),
            *(_pair(line, column, marks) for column in columns),
        ]
        for line in comparison.lines
    ]
    found = Table(READING, header, body)
    return found.turned() if len({(c.metric, c.subject) for c in columns}) > WIDE else found


def below(comparison: Comparison) -> list[str]:
    """Source and protocol, what every column is, remarks on published cells, what was left out."""
    paper = comparison.paper
    model = f" Published on {paper.model}." if paper.model else " The paper does not say on which model."
    lines = [f"Published: {paper.source}.{model} Protocol: {paper.protocol}"]
    if paper.gate and paper.gate.file:
        lines.append(f"This table prints no unedited model; the row {paper.gate.row} is that of {paper.gate.file}.")
    ids = list(dict.fromkeys(c.id for c in comparison.columns if c.id and not c.id.startswith(NO_METRICS)))
    lines += [values.legend(i, ids, comparison.entries) for i in ids if any(m["id"] == i for m in comparison.entries)]
    if any(column.id.startswith(COST) for column in comparison.columns):
        lines.append(
            "Cost: of making the edit, all runs that had a part in it together, without loading the model. Settings "
            "name the hardware; other hardware has other numbers, so none is judged."
        )
    beside = list(dict.fromkeys(c.id for c in comparison.columns if not c.main))
    if beside:
        lines.append(f"Not the published metric, so shown beside it and not compared: {', '.join(beside)}.")
    if any(values.family(i) == "kid" for i in beside):
        lines.append(
            f"KID stands beside an FID of fewer than {FEW_PICTURES:,} pictures, which is too large by an "
            "amount that grows as n falls; KID is not."
        )
    for column in comparison.columns:
        for members in pools(comparison.lines) if column.id.startswith(POOL) else ():
            ranked = [line for line in map(comparison.lines.__getitem__, members) if column in line.measured]
            if ranked:
                rows = ", ".join(line.method + (f" ({line.settings})" if line.settings else "") for line in ranked)
                lines.append(f"{column_title(column)} depends on the rows compared, here: {rows}.")
    known = {finding.number: finding for found in comparison.flags.values() for finding in found}
    lines += [f"({letter}) {known[number].words}." for number, letter in _letters(comparison).items()]
    lines += silent(comparison)
    for finding in comparison.lost:
        lines.append(f"inconsistencies.csv line {finding.number} names no cell of this table: {finding.words}.")
    return lines


def silent(comparison: Comparison) -> list[str]:
    """One line on the records that hold nothing of the table; no line where there are none."""
    if not comparison.silent:
        return []
    return [f"Left out: records that hold nothing of this table: {comparison.silent}."]


def markdown(comparison: Comparison) -> str:
    """Title, gate, table, notes."""
    head = [f"**{line}**" if line.startswith("GATE") else line for line in above(comparison)]
    parts = [f"# {comparison.name}", "", "  \n".join(head), "", *render.markdown(table(comparison))]
    return "\n".join([*parts, *(f"{note}  " for note in below(comparison))]).rstrip() + "\n"


def latex(comparison: Comparison) -> str:
    """A tabular; notes are comments, and so is a gate that passed: any other is the first row."""
    notes = [comparison.name, *above(comparison), *below(comparison)]
    banner = gate(comparison) if comparison.state in ("failed", "open") else ""
    return "\n".join([*(f"% {note}" for note in notes), *render.latex(table(comparison), banner)]) + "\n"


def as_html(comparison: Comparison) -> str:
    """A heading, the gate, the table and the notes, without a page around them."""
    head = [f"<p><strong>{html.escape(line)}</strong></p>" for line in above(comparison)]
    notes = [f"<p>{html.escape(line)}</p>" for line in below(comparison)]
    return "\n".join([f"<h1>{comparison.name}</h1>", *head, *render.as_html(table(comparison)), *notes]) + "\n"


def as_csv(comparison: Comparison) -> str:
    """One line a pair, in the published unit, with everything in columns of its own; `gate` is the table's state in
    every line."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["row", "method", "settings", "metric", "subject", "id", "published", "published_std", "measured", "low",
         "high", "n", "std", "runs", "agrees", "gate", "known_inconsistencies"]
    )  # fmt: skip
    for line in comparison.lines:
        for column in comparison.columns:
            cell, found = line.published.get(column), line.measured.get(column, Measured(None))
            if column not in line.measured and cell is None:
                continue
            numbers = [None if v is None else column.scale * v for v in (found.value, found.low, found.high)]
            std = None if found.std is None else column.scale * found.std
            agrees = {True: "in", False: "out", None: ""}[line.agrees(column)]
            known = " ".join(str(finding.number) for finding in comparison.flags.get(cell, ()))
            texts = [cell.text, cell.std] if cell and column.main else ["", ""]
            name = [line.row, line.method, line.settings, column.metric, column.subject, column.id]
            writer.writerow([*name, *texts, *numbers, found.n, std, found.runs, agrees, comparison.state, known])
    return buffer.getvalue()


FORMATS = {"md": markdown, "latex": latex, "csv": as_csv, "html": as_html}


def column_title(column: Column) -> str:
    """Class or metric, its unit, and the id where it is not the published metric's."""
    words = TITLES.get(column.metric, column.metric)
    subject = "" if column.subject in AGGREGATES else column.subject
    title = " ".join(word for word in (words, subject) if word) or column.metric
    return f"{title}{UNITS.get(column.scale, '')}{'' if column.main else f' ({column.id})'}"


def _pair(line: Line, column: Column, marks: Mapping[Cell, str]) -> str:
    found = number(line.measured.get(column), column)
    if not column.main:
        return found
    cell = line.published.get(column)
    printed = DASH
    if cell is not None and cell.text:
        printed = f"{cell.text}{f' ± {cell.std}' if cell.std else ''}{marks.get(cell, '')}"
    return f"{printed} / {found}{VERDICTS[line.agrees(column)]}"


def number(found: Measured | None, column: Column) -> str:
    """`12.0 ± 2.1 [8.1, 16.7]` in the column's unit."""
    if found is None:
        return DASH
    if found.value is None:
        return "n/a"

    def show(value: float) -> str:
        return f"{column.scale * value:.{column.decimals}f}"

    text = show(found.value)
    if found.std is not None:
        text += f" ± {show(found.std)}"
    if found.low is not None and found.high is not None:
        text += f" [{show(found.low)}, {show(found.high)}]"
    return text


def _counts(line: Line, columns: Sequence[Column]) -> str:
    """Every n of the row, in the columns' order."""
    counts = [line.measured[column].n for column in columns if column in line.measured]
    return "/".join(map(str, dict.fromkeys(n for n in counts if n is not None))) or DASH


def _letters(comparison: Comparison) -> dict[int, str]:
    """Line of inconsistencies.csv -> the letter that stands for it in this table: a to z, then aa, ab and so on."""
    numbers = sorted({finding.number for found in comparison.flags.values() for finding in found})
    alphabet = string.ascii_lowercase
    letters = [*alphabet, *(first + second for first in alphabet for second in alphabet)]
    return dict(zip(numbers, letters, strict=False))
