"""What a run prints: the plan of a dry run, the table of a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.record import Record

from . import values


def show_record(record: Record, console: Console | None = None) -> None:
    """Print which model this is, the scores beside the unedited model's, and the classes one by one."""
    console = console or Console(soft_wrap=True, highlight=False)
    data = record.as_dict()
    console.print()
    console.print(f"{record.method} on {record.task} ({record.split} split)", style="bold")
    said = {"World": record.world, "Preset": record.preset}
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
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("method")
        for i in ids:
            table.add_column(values.title(i, shown), justify="right")
        cost = []
        if not tables:  # what the edit did and took stands once
            table.add_column("zero weights of the UNet %", justify="right")
            table.add_column("seconds to edit", justify="right")
            seconds = data["cost"]["edit_made"]["seconds"]
            cost = [f"{100 * data['edit']['shares']['unet']:.2f}", f"{seconds:.1f}"] if edited else ["", ""]
        if data["method"] != "none":
            table.add_row(
                "unedited", *(values.show(values.pick(data["unedited"], i)) for i in ids), *("" for _ in cost)
            )
        table.add_row(data["method"], *(values.show(values.pick(data["metrics"], i)) for i in ids), *cost)
        tables.append(table)
    return tables


def class_table(data: Mapping[str, Any]) -> Table | None:
    """Accuracy by class, unedited and edited; None where no metric has classes."""
    forget = [concept["name"] for concept in data["concepts"]]
    names = [name for name in [*forget, *data["keep"]] if any(m["subject"] == name for m in data["metrics"])]
    ids = list(dict.fromkeys(m["id"] for m in data["metrics"] if m["subject"] in names))
    if not names:
        return None
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class")
    table.add_column("")
    many = len({values.family(i) for i in ids}) > 1 or len(ids) > 2
    for i in ids:
        head = f" {values.title(i, ids)}" if many else values.unit(i).words
        table.add_column(f"unedited{head}", justify="right")
        table.add_column(f"edited{head}", justify="right")
    for name in names:
        cells = []
        for i in ids:
            cells += [
                values.show(values.pick(data["unedited"], i, name)),
                values.show(values.pick(data["metrics"], i, name)),
            ]
        if any(cells):
            table.add_row(name, "forget" if name in forget else "keep", *cells)
    return table


def legend(data: Mapping[str, Any]) -> list[str]:
    """One line a metric: its full id, n and direction."""
    ids = values.headline_ids([data])
    entries = [m for m in data["metrics"] if m["subject"] == "all"]
    return [*(values.legend(i, ids, entries) for i in ids), *values.remarks(ids)]


def show_plan(plan: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what a run would compute."""
    console = console or Console(soft_wrap=True, highlight=False)
    console.print(f"dry run: {plan['method']} on {plan['task']}, model {plan['model']}: {plan['words']}")
    console.print(f"edit: {'stored' if plan['edit_stored'] else 'to be made'}")
    for item in plan["sets"]:
        edited = "edited" if item["edited"] else "unedited"
        console.print(
            f"{item['name']}, {edited}: {item['make']} of {item['rows']} pictures to make, {item['stored']} stored"
        )
    extra = "" if plan["edit_stored"] else ", and those of the edit"
    console.print(f"UNet samples: {plan['unet_samples']}{extra}; disk: at most {_size(plan['disk_bytes'])} of pictures")


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
