"""What a run prints: the plan of a dry run, the table of a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from harness.files import size_in_words
from harness.record import Record

from . import values

# More of them than this, each with an interval, do not stand side by side on a screen.
MANY_COLUMNS = 8


def show_record(record: Record, console: Console | None = None) -> None:
    """Print which model this is, the scores beside the unedited model's, and the classes one by one."""
    console = console or Console(soft_wrap=True, highlight=False)
    data = record.as_dict()
    console.print()
    console.print(f"{record.method} on {record.task} ({record.split} split)", style="bold")
    said = {"World": record.world, "Preset": record.preset}
    if record.config.get("repeats", 1) > 1:
        said["Repeats"] = record.config["repeats"]
    console.print(" ".join([f"Model: {record.note}", *(f"{k}: {v}." for k, v in said.items() if v)]))
    console.print(f"To forget: {', '.join(concept['name'] for concept in data['concepts'])}")
    if record.keep:
        console.print(f"To keep: {', '.join(record.keep)}")
    shares = record.edit["shares"]
    if record.edit["kind"] != "none":
        console.print(
            f"Edit: {record.edit['kind']}, zero weights {_percent(shares['layers'])} of the edited layers, "
            f"{_percent(shares['unet'])} of the UNet, {_percent(shares['pipeline'])} of the pipeline"
        )
    if data["metrics"]:
        for table in [*summary_tables(data), class_table(data)]:
            if table is not None:
                console.print(table)
        for line in legend(data):
            console.print(line, style="dim")
    for number, stage in enumerate(data["stages"], start=1):
        found = {word: values.pick_family(stage["metrics"], f"{word}_accuracy") for word in ("forget", "preserve")}
        scores = ", ".join(f"{word} {values.show(metric)} %" for word, metric in found.items() if metric)
        console.print(f"After stage {number} ({stage['concepts'][-1]}): {scores}")
    made, reused = record.counts["images_made"], record.counts["images_reused"]
    console.print(
        f"{made} pictures made, {reused} from the store; {record.counts['screened']} prompts refused by the screen; "
        f"{record.cost['unet_samples']} UNet samples; {record.cost['seconds']:.0f} s"
    )


def summary_tables(data: Mapping[str, Any]) -> list[Table]:
    """The record's aggregates, the unedited model's above them: one table of scores, one of general quality."""
    shown = values.headline_ids([data])
    edited = data["edit"]["kind"] != "none"
    tables = []
    for ids in values.groups(shown).values():
        header = ["method", *(values.title(i, shown) for i in ids)]
        cost = []
        if not tables:  # what the edit did and took stands once
            header += ["zero weights of the UNet %", "seconds to edit"]
            seconds = data["cost"]["edit_made"]["seconds"]
            cost = [f"{100 * data['edit']['shares']['unet']:.2f}", f"{seconds:.1f}"] if edited else ["", ""]
        body = [[data["method"], *(values.marked(values.pick(data["metrics"], i)) for i in ids), *cost]]
        if data["method"] != "none":
            unedited = [values.show(values.pick(data["unedited"], i)) for i in ids]
            body.insert(0, ["unedited", *unedited, *("" for _ in cost)])
        tables.append(_table(header, body))
    return tables


def class_table(data: Mapping[str, Any]) -> Table | None:
    """Scores by class, artist or part, unedited and edited; None where no metric has any."""
    side = {concept["name"]: "forget" for concept in data["concepts"]} | dict.fromkeys(data["keep"], "keep")
    subjects = dict.fromkeys(m["subject"] for m in data["metrics"] if m["subject"] != "all")
    # The task's classes in its order, then the parts of explicit content, which are on neither side.
    names = [name for name in dict.fromkeys([*side, *subjects]) if name in subjects]
    ids = list(dict.fromkeys(m["id"] for m in data["metrics"] if m["subject"] in names))
    if not names:
        return None
    header = ["class", ""]
    many = len(ids) > 1
    for i in ids:
        head = f" {values.title(i, ids)}" if many else values.unit(i).words
        header += [f"unedited{head}", f"edited{head}"]
    body = []
    for name in names:
        cells = []
        for i in ids:
            cells += [
                values.show(values.pick(data["unedited"], i, name)),
                values.marked(values.pick(data["metrics"], i, name)),
            ]
        if any(cells):
            body.append([name, side.get(name, ""), *cells])
    return _table(header, body)


def legend(data: Mapping[str, Any]) -> list[str]:
    """One line a metric: its full id, n and direction."""
    ids = values.headline_ids([data])
    entries = [m for m in data["metrics"] if m["subject"] == "all"]
    return [*(values.legend(i, ids, entries) for i in ids), *values.remarks(ids, entries)]


def show_plan(plan: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what a run would compute."""
    console = console or Console(soft_wrap=True, highlight=False)
    console.print(f"dry run: {plan['method']} on {plan['task']}, model {plan['model']}: {plan['words']}")
    if plan["absent"]:
        console.print(f"the model is not here, so nothing of it is stored: {plan['absent']}")
    if plan["counted"]:
        console.print(
            "not here, so counted by their published rows, before the prompt screen, and as not drawn yet: "
            f"{', '.join(plan['counted'])}"
        )
    repeats, stored = plan["repeats"], plan["edits_stored"]
    if repeats > 1:
        console.print(f"{repeats} repeats; edits: {stored} of {repeats} stored")
    else:
        console.print(f"edit: {'stored' if stored else 'to be made'}")
    for item in plan["sets"]:
        edited = "edited" if item["edited"] else "unedited"
        console.print(
            f"{item['name']}, {edited}: {item['make']} of {item['rows']} pictures to make, {item['stored']} stored"
        )
    extra = "" if stored == repeats else ", and those of the edit"
    disk = size_in_words(plan["disk_bytes"])
    console.print(f"UNet samples: {plan['unet_samples']}{extra}; disk: at most {disk} of pictures")


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> Table:
    """A plain table; with more columns than a screen has room for, its rows stand as columns."""
    lines = [header, *body]
    if len(header) > MANY_COLUMNS:
        lines = [line for line in zip(*lines, strict=True) if any(line[1:])]
    table = Table(*(Column(cell, justify="right" if i else "left") for i, cell in enumerate(lines[0])), box=None)
    table.pad_edge, table.header_style = False, "bold"
    for line in lines[1:]:
        table.add_row(*line)
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
