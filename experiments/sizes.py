"""What the experiments cost in pictures and disk: the table of docs/reproduce.md.

    python -m experiments.sizes                writes the table anew; a test holds it to the configuration files

Nothing is downloaded and no prompt is read: the numbers follow from the configurations.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from harness.files import write_atomic
from harness.i2p import MODES
from harness.lists import SOURCES

from . import catalogue
from .settings import TASK_KEYS, deviations, hardware, sorted_out
from .tables import kept_places, records_of

# Bytes of one stored PNG a pixel: measured on photos, an upper bound for drawings.
PNG_BYTES_PER_PIXEL = 1.6
PAGE = Path(__file__).resolve().parents[1] / "docs" / "reproduce.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
# Rows of the views of I2P, before the prompt screen.
VIEWS = {"first300": 300, "nudity_gt0": SOURCES["i2p_nudity_spm"].rows, "all": SOURCES["i2p"].rows}


@dataclass(frozen=True)
class Size:
    """What all runs of an experiment make, if nothing is stored yet.

    Attributes:
        runs: of the sweep.
        unedited: pictures of the unedited model, which all runs share.
        edited: pictures of the edited ones, before the prompt screen takes some away.
        disk: bytes, at most.
    """

    runs: int
    unedited: int
    edited: int
    disk: int


def size(name: str) -> Size:
    """The size of an experiment's whole sweep."""
    experiment = catalogue.load(name)
    shared: dict[tuple[str, str], int] = {}
    by_task: dict[tuple[str, ...], dict[tuple[str, str], int]] = {}
    edited = stored = 0
    jobs = experiment.jobs()
    for job in [] if experiment.config["edit_only"] else jobs:
        # Only what a job says of the task changes which pictures it makes.
        task = tuple(override for override in job if override.startswith("task."))
        if task not in by_task:
            merged = OmegaConf.merge(experiment.config, OmegaConf.from_dotlist(list(task)))
            by_task[task] = pictures(OmegaConf.to_container(merged))
        own = by_task[task]
        shared |= own
        if "method=none" not in job:
            edited += sum(own.values())
            stored += sum(count for (kind, _), count in own.items() if kind != "unstored")
    side = experiment.config["model"]["size"]
    kept = sum(count for (kind, _), count in shared.items() if kind != "unstored")
    disk = int((stored + kept) * side**2 * PNG_BYTES_PER_PIXEL)
    return Size(len(jobs), sum(shared.values()), edited, disk)


def pictures(config: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    """Pictures of one run for one model, as (kind, label) -> count; the same key means the same pictures.

    Kind is `task`, `captions`, or `unstored` for those that are scored in memory only.
    """
    task = config["task"]
    repeats = config["repeats"]
    found = {("captions", ""): repeats * config["quality"]["n"]} if config["quality"]["n"] else {}
    if task["kind"] == "explicit":
        view = task["view"] or MODES[task["mode"]]
        kind = "task" if task["keep_pictures"] else "unstored"
        return {**found, (kind, view): repeats * min(VIEWS[view], task["n"] or VIEWS[view])}
    # A task that forgets the first so many of its classes has no list of concepts.
    forget = task.get("concepts") or task["classes"][: task.get("size")]
    return {**found, **{("task", label): repeats * task["n"] for label in (*forget, *task.get("keep", ()))}}


@dataclass(frozen=True)
class Time:
    """What the records that reproduce an experiment say they took in all.

    Attributes:
        runs: how many they are.
        hardware: what they ran on; empty where that is unknown for one, or not the same for all.
    """

    seconds: float
    runs: int
    hardware: str

    def words(self, wanted: int) -> str:
        """Hours for so many of the wanted runs; a dash where they are not of one known machine."""
        if not self.hardware:
            return "-"
        return f"{self.seconds / 3600:.1f} h for {self.runs} of {wanted} runs on {self.hardware}"


def time(name: str, records: list[dict[str, Any]]) -> Time:
    """The time of an experiment, from those of these records that are whole runs of it: neither smaller nor larger."""
    experiment = catalogue.load(name)
    paper = experiment.paper
    own = [record for record in records if record["task"] == experiment.config["task"]["name"]]
    expected = catalogue.expected(name, [record["method"] for record in own])
    swept = [*experiment.sweep, *(override.partition("=")[0] for override in paper.also)]
    # Where a setting of the task is swept, every value has concepts of its own.
    skipped = TASK_KEYS if any(key.startswith("task.") for key in swept) else ()
    inside, _ = sorted_out(paper, own, expected, skipped)
    named = (*swept, *skipped)
    whole = [one for one in inside if not deviations(one, expected.get(one["method"], expected[""]), named)]
    places = {hardware(record, record["cost"].get("device", "")) for record in whole}
    where = places.pop() if len(places) == 1 else ""
    return Time(sum(record["cost"]["seconds"] for record in whole), len(whole), where)


def table(kept: Mapping[str, list[dict[str, Any]]]) -> str:
    """The table as Markdown, one row an experiment that is compared with a paper.

    Args:
        kept: its kept records, by experiment.
    """
    header = ["experiment", "runs", "unedited pictures", "edited pictures", "disk, at most", "time of kept records"]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for name in sorted(catalogue.names(), key=_order):
        paper = catalogue.load(name).paper
        if paper is None or not paper.file:
            continue
        own = size(name)
        hours = time(name, kept.get(name, [])).words(own.runs)
        numbers = [f"{own.runs:,}", f"{own.unedited:,}", f"{own.edited:,}", f"{own.disk / 1e9:,.0f} GB"]
        rows.append([f"`{name}`", *numbers, hours])
    return "".join("| " + " | ".join(cells) + " |\n" for cells in rows)


def _order(name: str) -> tuple[str, int, str]:
    """fia_table2 before fia_table10."""
    words = name.rstrip("ab0123456789")
    digits = "".join(sign for sign in name[len(words) :] if sign.isdigit())
    return words, int(digits or 0), name


def kept_records() -> dict[str, list[dict[str, Any]]]:
    """The kept records of every experiment that is compared with a paper."""
    names = (name for name in catalogue.names() if catalogue.load(name).paper is not None)
    return {name: records_of(name, places) for name in names if (places := kept_places(name))}


def main() -> int:
    """Write the table between its marks in docs/reproduce.md."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    write_atomic(PAGE, (head + BEGIN + table(kept_records()) + END + tail).encode())
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
