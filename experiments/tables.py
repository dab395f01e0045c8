"""Tables made from records only: `python -m experiments.tables results/records [--format md|csv|latex]`.

One row a record: method, the settings in which the records differ, n, and the values with their 95 % intervals; scores
of the task's classes in one table, general quality in another. Shares are percent. Two metric ids never share a column,
and every table says which model it is about. Records without scores (`edit_only=true`) are counted, not shown.
"""

from __future__ import annotations

import argparse
import csv
import glob
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import values

# Keys of a configuration that say where and how a run was done, not what was computed.
NOT_SETTINGS = {
    "store", "records", "device", "dry_run", "edit_only", "export", "replay", "debug", "logger", "allow_noop",
    "batch_size", "speed",
}  # fmt: skip
# What a method's or group's name already says.
NAMES = ("_target_", "name", "words")


def read_records(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The records in these JSON files.

    Raises:
        ValueError: a file is not a record.
    """
    records = []
    for path in paths:
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read as a record ({error})") from None
        if not isinstance(record, dict) or not {"method", "metrics", "config"} <= set(record):
            raise ValueError(f"{path}: not a record (a record has method, metrics and config)")
        records.append(record)
    return records


def find(places: Sequence[str]) -> list[Path]:
    """Record files in folders (not below them), matching globs, or named; sorted, each once."""
    found: dict[Path, None] = {}
    for place in places:
        path = Path(place)
        matches = sorted(path.glob("*.json")) if path.is_dir() else [Path(p) for p in sorted(glob.glob(place))]
        if not matches:
            raise ValueError(f"no record at {place!r}: name a folder with records, a file, or a quoted pattern")
        found.update(dict.fromkeys(matches))
    return list(found)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested configuration -> dotted keys. Lists are one value."""
    result: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            result.update(flat(value, f"{prefix}{name}."))
        else:
            result[f"{prefix}{name}"] = value
    return result


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
                groups.setdefault(record["method"], set()).add(json.dumps(one.get(key)))
            if any(len(group) > 1 for group in groups.values()):
                found.append(key)
        elif len({json.dumps(one.get(key)) for one in settings}) > 1:
            found.append(key)
    return found


@dataclass(frozen=True)
class Table:
    """One table of a group of records: `caption` says what its n counts."""

    caption: str
    header: list[str]
    body: list[list[str]]


CAPTIONS = {
    "scores": "Concepts to forget and to keep; n: pictures a class.",
    "quality": "General quality; n: captions.",
}


def tables(records: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The tables of these records: scores, and general quality where it was measured.

    A record is left out of a table that has nothing of it. The unedited model's row comes first where the records share
    one.
    """
    shown = values.headline_ids(records)
    keys = differing([record for record in records if record["metrics"]])
    found = []
    for name, ids in values.groups(shown).items():
        header = ["method", *(_short(key, keys) for key in keys), "n", *(values.title(i, shown) for i in ids)]
        measured = [r for r in records if any(values.pick(r["metrics"], i) for i in ids)]
        lines = [
            (r["method"], [_cell(flat(r["config"]).get(key)) for key in keys], r, _picked(r["metrics"], ids))
            for r in measured
        ]
        unedited = [_picked(r.get("unedited", []), ids) for r in measured]
        shared = all(metrics == unedited[0] for metrics in unedited) and unedited[0]
        if shared and not any(r["method"] == "none" for r in measured):
            lines.insert(0, ("unedited", [""] * len(keys), measured[0], unedited[0]))
        body = [
            [who, *settings, _n(record, name, metrics), *(values.show(values.pick(metrics, i)) for i in ids)]
            for who, settings, record, metrics in lines
        ]
        found.append(Table(CAPTIONS[name], header, body))
    return found


def notes(records: Sequence[Mapping[str, Any]], families: Iterable[str] | None = None) -> list[str]:
    """What stands below the tables: which models, what each column is, which way is better, what was left out.

    Args:
        families: of the metrics that are shown; None: all.
    """
    models = dict.fromkeys(f"{r['model']}: {_words(r)}{_world(r)}" for r in records)
    ids = [i for i in values.headline_ids(records) if families is None or values.family(i) in families]
    entries = [m for r in records for m in r["metrics"] if m["subject"] == "all"]
    lines = [*(f"Model {model}." for model in models), *(values.legend(i, ids, entries) for i in ids)]
    return [*lines, *(values.remarks(ids) if ids else []), *left_out(records)]


def left_out(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line on the records without scores, which no table shows; no line where there are none."""
    count = sum(not record["metrics"] for record in records)
    if not count:
        return []
    return [f"Left out: {count} record{'s' if count > 1 else ''} without scores (edit_only=true)."]


def _world(record: Mapping[str, Any]) -> str:
    return f"; world {record['world']}" if record.get("world") else ""


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """The tables as Markdown with their notes."""
    lines = []
    for table in tables(records):
        lines += [table.caption, ""]
        rows = [table.header, ["---"] * len(table.header), *table.body]
        lines += ["| " + " | ".join(cells) + " |" for cells in rows]
        lines.append("")
    return "\n".join([*lines, *(f"{note}  " for note in notes(records))]).rstrip() + "\n"


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """All columns in one CSV: full metric ids as headers; value, low, high and n in columns of their own, as in the
    records. The column n is the pictures a class that were asked for."""
    ids = values.headline_ids(records)
    scored = [record for record in records if record["metrics"]]
    keys = differing(scored)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    parts = {"": "value", ":low": "low", ":high": "high", ":n": "n"}
    writer.writerow(["method", "model", "task", *keys, "n", *(f"{i}{part}" for i in ids for part in parts)])
    for record in scored:
        settings = flat(record["config"])
        cells = [record["method"], record["model"], record["task"], *(_cell(settings.get(k)) for k in keys)]
        cells.append(_a_class(record))
        for i in ids:
            metric = values.pick(record["metrics"], i) or {}
            cells += [metric.get(name) for name in parts.values()]
        writer.writerow(cells)
    return buffer.getvalue()


def latex(records: Sequence[Mapping[str, Any]]) -> str:
    """Each table as a LaTeX tabular; captions and notes are comments."""
    lines = []
    for table in tables(records):
        rows = [" & ".join(_tex(cell) for cell in cells) + r" \\" for cells in [table.header, *table.body]]
        rows.insert(1, r"\hline")
        begin = r"\begin{tabular}{l" + "r" * (len(table.header) - 1) + "}"
        lines += [f"% {table.caption}", begin, *rows, r"\end{tabular}"]
    return "\n".join([*(f"% {note}" for note in notes(records)), *lines]) + "\n"


FORMATS = {"md": markdown, "csv": as_csv, "latex": latex}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of the named records; 2 where there are none."""
    parser = argparse.ArgumentParser(prog="python -m experiments.tables", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("places", nargs="+", metavar="DIR|FILE|PATTERN")
    parser.add_argument("--format", choices=FORMATS, default="md")
    options = parser.parse_args(argv)
    try:
        records = read_records(find(options.places))
        # One table a task and unedited model (a world that was trained again is another model): rows of different ones
        # have nothing to compare.
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for record in records:
            key = (record["task"], record["model"], record["split"], record["fingerprints"]["base"])
            groups.setdefault(key, []).append(record)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for (task, model, *_), group in groups.items():
        if options.format == "md":
            print(f"### {task}, model {model}\n")
        print(FORMATS[options.format](group))
        if options.format == "csv":  # which has no place for remarks
            for line in left_out(group):
                print(line, file=sys.stderr)
    return 0


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


def _a_class(record: Mapping[str, Any]) -> Any:
    return record["config"].get("task", {}).get("n")


def _n(record: Mapping[str, Any], table: str, metrics: Sequence[Mapping[str, Any]]) -> str:
    """Pictures a class in the table of scores, else what the values rest on."""
    if table == "scores":
        return _cell(_a_class(record))
    return "/".join(map(str, sorted({metric["n"] for metric in metrics})))


def _picked(metrics: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> list[Mapping[str, Any]]:
    return [metric for i in ids for metric in [values.pick(metrics, i)] if metric is not None]


def _words(record: Mapping[str, Any]) -> str:
    return record["config"].get("model", {}).get("words") or "no description"


def _tex(text: str) -> str:
    for sign in "&%_#$":
        text = text.replace(sign, "\\" + sign)
    return text


if __name__ == "__main__":
    sys.exit(main())
