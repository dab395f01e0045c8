"""Tables made from records only: `python -m experiments.tables results/records [--format md|csv|latex]`.

One row a record: method, the settings in which the records differ, pictures a class, and the scores with their 95 %
intervals. Shares are percent. Two metric ids never share a column, and every table says which model it is about.
"""

from __future__ import annotations

import argparse
import csv
import glob
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import values

# Keys of a configuration that say where and how a run was done, not what was computed.
NOT_SETTINGS = {
    "store", "records", "device", "dry_run", "edit_only", "export", "replay", "debug", "logger", "allow_noop",
    "batch_size",
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


def rows(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of these records; the unedited model's row comes first where they share one."""
    ids = values.headline_ids(records)
    keys = differing(records)
    header = ["method", *(_short(key, keys) for key in keys), "n", *(values.title(i, ids) for i in ids)]
    body = []
    for record in records:
        settings = flat(record["config"])
        # `metrics` of the unedited model are the same object in every record that shares its pictures.
        cells = [record["method"], *(_cell(settings.get(key)) for key in keys), _cell(_n(record))]
        body.append(cells + [values.show(values.pick(record["metrics"], i)) for i in ids])
    unedited = {json.dumps(r.get("unedited"), sort_keys=True) for r in records if r.get("unedited")}
    if len(unedited) == 1 and not any(record["method"] == "none" for record in records):
        metrics = json.loads(unedited.pop())
        first = ["unedited", *("" for _ in keys), _cell(_n(records[0]))]
        body.insert(0, first + [values.show(values.pick(metrics, i)) for i in ids])
    return header, body


def notes(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What stands below a table: which models, which metrics, which way is better."""
    models = dict.fromkeys(f"{r['model']}: {_words(r)}{_world(r)}" for r in records)
    lines = [f"Model {model}." for model in models]
    measured = [m for i in values.headline_ids(records) for m in [_first(records, i)]]
    arrows = {True: "higher is better", False: "lower is better", None: "no direction"}
    lines += [f"{values.title(m['id'], [])}: {m['id']}, {arrows[m['higher_is_better']]}." for m in measured]
    return [*lines, "Brackets: 95 % intervals."]


def _world(record: Mapping[str, Any]) -> str:
    return f"; world {record['world']}" if record.get("world") else ""


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown with its notes."""
    header, body = rows(records)
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *body]]
    return "\n".join([*lines, "", *(f"{note}  " for note in notes(records))]).rstrip() + "\n"


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """The table as CSV: full metric ids as headers; value, low and high in columns of their own, as in the records."""
    ids = values.headline_ids(records)
    keys = differing(records)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["method", "model", "task", *keys, "n", *(f"{i}{part}" for i in ids for part in ("", ":low", ":high"))]
    )
    for record in records:
        settings = flat(record["config"])
        cells = [record["method"], record["model"], record["task"], *(_cell(settings.get(k)) for k in keys), _n(record)]
        for i in ids:
            metric = values.pick(record["metrics"], i) or {"value": None, "low": None, "high": None}
            cells += [metric["value"], metric["low"], metric["high"]]
        writer.writerow(cells)
    return buffer.getvalue()


def latex(records: Sequence[Mapping[str, Any]]) -> str:
    """The table as a LaTeX tabular; the notes are comments."""
    header, body = rows(records)
    lines = [" & ".join(_tex(cell) for cell in cells) + r" \\" for cells in [header, *body]]
    lines.insert(1, r"\hline")
    begin = r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}"
    return "\n".join([*(f"% {note}" for note in notes(records)), begin, *lines, r"\end{tabular}"]) + "\n"


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


def _n(record: Mapping[str, Any]) -> Any:
    return record["config"].get("task", {}).get("n")


def _words(record: Mapping[str, Any]) -> str:
    return record["config"].get("model", {}).get("words") or "no description"


def _first(records: Sequence[Mapping[str, Any]], metric_id: str) -> Mapping[str, Any]:
    return next(m for r in records for m in [values.pick(r["metrics"], metric_id)] if m is not None)


def _tex(text: str) -> str:
    for sign in "&%_#$":
        text = text.replace(sign, "\\" + sign)
    return text


if __name__ == "__main__":
    sys.exit(main())
