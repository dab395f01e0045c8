"""Tables made from records only.

    python -m experiments.tables results/records             every record of a folder
    python -m experiments.tables fia_table1                  an experiment, the published table beside it

One row a record: method, preset and settings where the records differ in them, n, and the values with their 95 %
intervals; scores of the task's classes in one table, general quality in another. Shares are percent. Two metric ids
never share a column, and every table says which model it is about. Records without scores (`edit_only=true`) are
counted, not shown.
How a published table is compared: paper_tables.py. All tables of kept records, into files: rebuild.py.
"""

from __future__ import annotations

import argparse
import csv
import html
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import catalogue, paper_tables, paper_text, published, render, values
from .published import Paper
from .records import find, flat, read_records
from .render import Table
from .settings import hardware, meant

# Where records that document a claim are kept, beside the folder of an experiment's own runs.
KEPT = "results/records"
# Keys of a configuration that say where and how a run was done, not what was computed.
NOT_SETTINGS = {
    "store", "records", "device", "dry_run", "edit_only", "export", "replay", "debug", "logger", "allow_noop",
    "batch_size", "compile", "speed",
}  # fmt: skip
# What a method's or group's name already says.
NAMES = ("_target_", "name", "words")


def differing(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted keys of the settings in which the records differ.

    A method's own parameters count only among records of that method: other methods lack them, which the method's name
    says already.
    """
    settings = [{k: v for k, v in flat(r["config"]).items() if k.split(".")[0] not in NOT_SETTINGS} for r in records]
    found = []
    for key in dict.fromkeys(key for one in settings for key in one):
        if key.rpartition(".")[2] in NAMES and not key.startswith(("model.", "task.")):
            continue
        if key.startswith("method."):
            groups: dict[str, set[str]] = {}
            for record, one in zip(records, settings, strict=True):
                groups.setdefault(record["method"], set()).add(meant(one, key))
            if any(len(group) > 1 for group in groups.values()):
                found.append(key)
        elif len({meant(one, key) for one in settings}) > 1:
            found.append(key)
    return found


CAPTIONS = {
    "scores": "Concepts to forget and to keep; n: pictures a class.",
    "quality": "General quality; n: captions.",
}


def tables(records: Sequence[Mapping[str, Any]], sd: bool = False) -> list[Table]:
    """The tables of these records: scores, and general quality where it was measured.

    A record is left out of a table that has nothing of it. The unedited model's row comes first where the records share
    one.

    Args:
        sd: means over repeats with their standard deviation only, as papers print them; without intervals.

    Raises:
        ValueError: one column would hold FIDs of different n.
    """
    shown = values.headline_ids(records)
    for i in shown:
        require_one_n(i, records)
    scored = [record for record in records if record["metrics"]]
    keys, presets = differing(scored), _presets(scored)
    found = []
    for name, ids in values.groups(shown).items():
        settings = [*presets, *(_short(key, keys) for key in keys)]
        header = ["method", *settings, "n", *(values.title(i, shown) for i in ids)]
        measured = [r for r in records if any(values.pick(r["metrics"], i) for i in ids)]
        lines = [(r["method"], _settings(r, presets, keys), r, _picked(r["metrics"], ids)) for r in measured]
        unedited = [_picked(r.get("unedited", []), ids) for r in measured]
        shared = all(metrics == unedited[0] for metrics in unedited) and unedited[0]
        if shared and not any(r["method"] == "none" for r in measured):
            lines.insert(0, ("unedited", [""] * len(settings), measured[0], unedited[0]))
        body = [
            [who, *said, _n(record, name, metrics), *(_value(values.pick(metrics, i), sd) for i in ids)]
            for who, said, record, metrics in lines
        ]
        found.append(Table(CAPTIONS[name], header, body))
    return found


def notes(records: Sequence[Mapping[str, Any]], families: Iterable[str] | None = None) -> list[str]:
    """What stands below the tables: which models, what each column is, which way is better, what was left out.

    Args:
        families: of the metrics that are shown; None: all.
    """
    ids = [i for i in values.headline_ids(records) if families is None or values.family(i) in families]
    entries = [m for r in records for m in r["metrics"] if m["subject"] == "all"]
    lines = [*models(records), *(values.legend(i, ids, entries) for i in ids)]
    return [*lines, *(values.remarks(ids, entries) if ids else []), *left_out(records)]


def models(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line on every model that the records are about."""
    return [f"Model {model}." for model in dict.fromkeys(f"{r['model']}: {_words(r)}{_world(r)}" for r in records)]


def left_out(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line on the records without scores, which no table shows; no line where there are none."""
    count = sum(not record["metrics"] for record in records)
    if not count:
        return []
    return [f"Left out: {count} record{'s' if count > 1 else ''} without scores (edit_only=true)."]


def _world(record: Mapping[str, Any]) -> str:
    return f"; world {record['world']}" if record.get("world") else ""


def markdown(records: Sequence[Mapping[str, Any]], sd: bool = False) -> str:
    """The tables as Markdown with their notes; `sd` as in `tables`."""
    lines = [line for table in tables(records, sd) for line in render.markdown(table)]
    return "\n".join([*lines, *(f"{note}  " for note in notes(records))]).rstrip() + "\n"


def as_csv(records: Sequence[Mapping[str, Any]], sd: bool = False) -> str:
    """All columns in one CSV: full metric ids as headers; value, low, high and n in columns of their own, as in the
    records, and with `sd` the standard deviation over repeats. The column n is the pictures a class that were asked
    for."""
    ids = values.headline_ids(records)
    scored = [record for record in records if record["metrics"]]
    keys = differing(scored)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    parts = {"": "value", ":low": "low", ":high": "high", ":n": "n"} | ({":sd": "sd"} if sd else {})
    presets = _presets(scored)
    writer.writerow(["method", "model", "task", *presets, *keys, "n", *(f"{i}{part}" for i in ids for part in parts)])
    for record in scored:
        cells = [record["method"], record["model"], record["task"], *_settings(record, presets, keys)]
        cells.append(_a_class(record))
        for i in ids:
            metric = values.pick(record["metrics"], i) or {}
            cells += [metric.get(name) for name in parts.values()]
        writer.writerow(cells)
    return buffer.getvalue()


def latex(records: Sequence[Mapping[str, Any]], sd: bool = False) -> str:
    """Each table as a LaTeX tabular; captions and notes are comments. `sd` as in `tables`."""
    lines = [line for table in tables(records, sd) for line in render.latex(table)]
    return "\n".join([*(f"% {note}" for note in notes(records)), *lines]) + "\n"


def as_html(records: Sequence[Mapping[str, Any]], sd: bool = False) -> str:
    """The tables with their notes, without a page around them; `sd` as in `tables`."""
    lines = [line for table in tables(records, sd) for line in render.as_html(table)]
    return "\n".join([*lines, *(f"<p>{html.escape(note)}</p>" for note in notes(records))]) + "\n"


FORMATS = {"md": markdown, "csv": as_csv, "latex": latex, "html": as_html}
HEADINGS = {"md": "### {}\n\n", "csv": "", "latex": "% {}\n", "html": "<h2>{}</h2>\n"}


def of_records(records: Sequence[Mapping[str, Any]], form: str, sd: bool = False) -> str:
    """One table for all records of which `about` is the same. `sd` as in `tables`."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(about(record), []).append(record)
    return "\n".join(
        HEADINGS[form].format(f"{task}, model {model}{'' if split == 'test' else f', {split} split'}")
        + FORMATS[form](group, sd)
        for (task, model, split, _), group in groups.items()
    )


def about(record: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Task, model, split and the unedited model's hash (a world that was trained again is another model): rows that
    differ in one of them have nothing to compare."""
    return record["task"], record["model"], record["split"], record["fingerprints"]["base"]


def compared(name: str, records: Sequence[Mapping[str, Any]]) -> paper_tables.Comparison:
    """The published table of an experiment beside those of the records that are of its task."""
    experiment = catalogue.load(name)
    own = [record for record in records if record["task"] == experiment.config["task"]["name"]]
    cells = published.cells(experiment.paper)
    comparison = paper_tables.compare(
        name,
        experiment.paper,
        cells,
        published.gate_cells(experiment.paper),
        own,
        catalogue.expected(name, [record["method"] for record in own]),
    )
    # Records of other tasks count only where there are no others: a stand-in was run, such as the tiny world's for a
    # task on classes that it does not have.
    if records and not own:
        reason = f"made for another task than {experiment.config['task']['name']}"
        comparison = replace(comparison, apart=[(reason, records)])
    return paper_tables.flagged(comparison, cells, published.findings())


def of_experiment(name: str, records: Sequence[Mapping[str, Any]], form: str, sd: bool = False) -> str:
    """The published table beside the measured one; below it, in tables of their own, records that do not reproduce it.

    An experiment that is compared with no paper, or with a drawing, gives the plain tables of its records.

    Raises:
        ValueError: such an experiment has no records yet; or `sd` is asked for beside published numbers.
    """
    experiment = catalogue.load(name)
    paper = experiment.paper
    if paper is None or paper.x:
        if not records:
            raise ValueError(f"{name} has no records yet in {experiment.records}: run it, or say --records DIR")
        own = [] if paper is None else [r for r in records if r["task"] == experiment.config["task"]["name"]]
        return of_records(own or records, form, sd)
    if sd:
        raise ValueError(f"{name}: --sd is for tables of records; beside published numbers intervals are needed")
    comparison = compared(name, records)
    parts = [paper_text.FORMATS[form](comparison)]
    if form != "csv":  # which has no place for a second table
        for (_, group), line in zip(comparison.apart, _not_compared(comparison), strict=True):
            parts.append(HEADINGS[form].format(line) + _apart(paper, group, form))
    return "\n".join(parts)


def beside_csv(name: str, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the CSV of an experiment has no place for: the gate in words, what is not compared, what was left out."""
    paper = catalogue.load(name).paper
    if paper is None or paper.x:
        return left_out(records)
    comparison = compared(name, records)
    return [*paper_text.above(comparison), *_not_compared(comparison), *paper_text.silent(comparison)]


def _not_compared(comparison: paper_tables.Comparison) -> list[str]:
    counts = ((f"{len(group)} record{'s' if len(group) > 1 else ''}", reason) for reason, group in comparison.apart)
    return [f"Not compared: {count} {reason}" for count, reason in counts]


def _apart(paper: Paper, records: Sequence[Mapping[str, Any]], form: str) -> str:
    """Tables of records that reproduce nothing: what the published table shows of edits, then the usual ones."""
    parts = []
    edits = of_the_edits(paper, records)
    if edits is not None:
        notes_below = {"md": "{}  ", "latex": "% {}", "html": "<p>{}</p>"}[form]
        parts.append("\n".join([*render.FORMATS[form](edits), *map(notes_below.format, models(records))]) + "\n")
        records = [record for record in records if record["metrics"]]
    if records:
        parts.append(of_records(records, form))
    return "\n".join(parts)


def of_the_edits(paper: Paper, records: Sequence[Mapping[str, Any]]) -> Table | None:
    """What these records say of their edits and of what those cost, in the columns of a published table but without its
    numbers; None where the table has no such column, or the records nothing of it."""
    columns = paper_tables.edit_columns(paper, published.cells(paper), records)
    lines = [(record, paper_tables.measured(paper, columns, [], record)) for record in records]
    if not any(found for _, found in lines):
        return None
    keys = differing(records)
    # Seconds mean nothing without the hardware that took them.
    timed = any(column.id.startswith(paper_tables.COST) for column in columns)
    header = ["method", *(_short(key, keys) for key in keys), *(["on"] if timed else [])]
    body = []
    for record, found in lines:
        settings = flat(record["config"])
        device = record["cost"]["edit_made"]["device"] if timed else ""
        where = [hardware(record, device) or device] if timed else []
        numbers = [paper_text.number(found.get(column), column) for column in columns]
        body.append([record["method"], *(_cell(settings.get(key)) for key in keys), *where, *numbers])
    return Table("Measured only.", [*header, *map(paper_text.column_title, columns)], body)


def kept_places(name: str) -> list[str]:
    """Where records of an experiment are kept: under its name, or that of the folder of its runs, which experiments may
    share; for a published table also among the single ones."""
    experiment = catalogue.load(name)
    own = [f"{KEPT}/{folder}" for folder in dict.fromkeys([name, Path(experiment.records).name])]
    return _with_records([*own, *([KEPT] if experiment.paper is not None else [])])


def _with_records(places: Iterable[str]) -> list[str]:
    return [place for place in places if any(Path(place).glob("*.json"))]


def records_of(name: str, places: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The records at these places; without any, those of the experiment's own folder, those that are kept under its
    name, and for a published table the single kept ones of its task."""
    experiment = catalogue.load(name)
    task = experiment.config["task"]["name"]
    if not places:
        places = [*_with_records([experiment.records]), *kept_places(name)]
    # A record's name says what was run: one that was copied to the kept ones counts once.
    paths = {path.name: path for path in reversed(find(places))}
    found = zip(paths.values(), read_records(paths.values()), strict=True)
    own = {path.name: record for path, record in found if record["task"] == task or path.parent != Path(KEPT)}
    return [own[file_name] for file_name in sorted(own)]


def main(argv: Sequence[str] | None = None) -> int:
    """Print tables; 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m experiments.tables", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("places", nargs="*", metavar="EXPERIMENT|DIR|FILE|PATTERN")
    parser.add_argument("--format", choices=FORMATS, default="md")
    parser.add_argument("--sd", action="store_true", help="means over repeats with their standard deviation only")
    parser.add_argument("--records", nargs="+", metavar="DIR", default=[], help="an experiment's records, if elsewhere")
    options = parser.parse_args(argv)
    try:
        print(_text(options.places, options.format, options.records, options.sd), end="")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _text(places: Sequence[str], form: str, elsewhere: Sequence[str], sd: bool) -> str:
    if not places:
        raise ValueError("name an experiment or a folder with records")
    name = places[0] if len(places) == 1 and not Path(places[0]).exists() else ""
    if name in published.ELSEWHERE:
        raise ValueError(f"{name} {published.ELSEWHERE[name]}")
    if name in catalogue.names():
        records = records_of(name, elsewhere)
        text = of_experiment(name, records, form, sd)
        remarks = beside_csv(name, records) if form == "csv" else []
    else:
        records = read_records(find(places))
        text = of_records(records, form, sd)
        remarks = left_out(records) if form == "csv" else []
    for line in remarks:
        print(line, file=sys.stderr)
    return render.page(places[0], [text]) if form == "html" else text


def _presets(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The column that names presets, where edits of several stand beside each other; empty: a method's own values."""
    several = len({record.get("preset", "") for record in records if record["method"] != "none"}) > 1
    return ["preset"] if several else []


def _settings(record: Mapping[str, Any], fields: Sequence[str], keys: Sequence[str]) -> list[str]:
    """A record's cells in the columns of its own fields and of keys of its configuration."""
    own = flat(record["config"])
    return [*(record[name] for name in fields), *(_cell(own.get(key)) for key in keys)]


def _short(key: str, keys: Sequence[str]) -> str:
    """`method.alpha` -> `alpha` where that stays clear."""
    end = key.rpartition(".")[2]
    return end if sum(k.rpartition(".")[2] == end for k in keys) == 1 else key


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _value(metric: Mapping[str, Any] | None, sd: bool) -> str:
    return values.marked(metric, interval=not (sd and metric and "sd" in metric))


def require_one_n(metric_id: str, records: Sequence[Mapping[str, Any]]) -> None:
    """FID's bias depends on n, so n is a part of its ids; ids of other programs may lack it."""
    if values.family(metric_id) not in values.DISTANCES:
        return
    entries = [values.pick(side, metric_id) for r in records for side in (r["metrics"], r.get("unedited", []))]
    counts = sorted({entry["n"] // entry.get("repeats", 1) for entry in entries if entry})
    if len(counts) > 1:
        raise ValueError(
            f"{metric_id} is over {' and '.join(map(str, counts))} pictures: distances of different n do not share a "
            "column; make a table of the records of each n"
        )


def _a_class(record: Mapping[str, Any]) -> Any:
    return record["config"].get("task", {}).get("n")


def _n(record: Mapping[str, Any], table: str, metrics: Sequence[Mapping[str, Any]]) -> str:
    """Pictures a class in the table of scores, else what the values of one repeat rest on."""
    if table == "scores":
        return _cell(_a_class(record))
    return "/".join(map(str, sorted({metric["n"] // metric.get("repeats", 1) for metric in metrics})))


def _picked(metrics: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> list[Mapping[str, Any]]:
    return [metric for i in ids for metric in [values.pick(metrics, i)] if metric is not None]


def _words(record: Mapping[str, Any]) -> str:
    return record["config"].get("model", {}).get("words") or "no description"


if __name__ == "__main__":
    sys.exit(main())
