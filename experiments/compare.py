"""Two records, picture by picture: `python -m experiments.compare A.json B.json [--store DIR] [--classes]`.

Prints A minus B for every value that can be compared by row (accuracies, CLIP scores, finds of a detector), with its
95 % interval. Both runs asked for the same prompts and noise, so the difference is known far better than two intervals
beside each other suggest. FID, KID and FSR are not compared.

The rows are in the store under keys that follow from a record's configuration and fingerprints; nothing is computed
but the sums. Prompts, judges and the unedited model have to be those of the record still.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from eval.repeats import pooled_rows, repeated_differences
from eval.stats import Interval
from harness.files import StoreError
from harness.generate import Chunks, ImageSet, image_parts, passing
from harness.record import Record, read
from harness.store import Store, content_key

from . import render, values
from .cli import CONF, exit_code, one_line
from .records import flat
from .replay import configuration
from .scores import stored_rows
from .setup import Setup, repeated, setup
from .tables import differing
from .targets import require_known

# Fields of two records, and settings, that have to be equal for their rows to be pairs.
SAME = ("task", "model", "split", "concepts", "keep")
SETTINGS = ("task", "sampler", "quality", "repeats")
MARKED = f"{values.MARK}: the 95 % interval lies on one side of zero."


@dataclass(frozen=True)
class Difference:
    """A's value of one metric and subject, B's, and A minus B."""

    metric: Mapping[str, Any]
    other: Mapping[str, Any]
    found: Interval

    @property
    def better(self) -> str:
        """`A` or `B` where the interval lies on one side of zero and the metric has a direction, else nothing."""
        _, low, high = self.found
        direction = self.metric["higher_is_better"]
        if low is None or low <= 0 <= high or direction is None:
            return ""
        return "A" if (low > 0) == direction else "B"

    def show(self) -> str:
        """`-3.0 [-5.1, -0.9]` in the family's unit, with values.MARK where zero is not in the interval."""
        entry = {**self.metric, **self.found._asdict(), "difference": self.found._asdict()}
        entry.pop("sd", None)  # the metric's own
        return values.marked(entry)

    def turned(self) -> Difference:
        """B minus A."""
        value, low, high = self.found
        ends = (None, None) if low is None else (-high, -low)
        return Difference(self.other, self.metric, Interval(-value, *ends))


@dataclass(frozen=True)
class Side:
    """A record, and the parts of its run, by which its rows and those of its counterparts are found.

    Attributes:
        runs: one a repeat.
    """

    path: Path
    record: Record
    runs: list[Setup]

    @classmethod
    def of(cls, path: Path, store: str | None = None, folders: Sequence[str] | None = None) -> Side:
        """The parts of a record's run.

        Args:
            store: where the rows are, if not where the record says.
            folders: the user's own configuration folders; only code that they or conf/ name is run. None: the record
                is one that this command has just written, so it lacks no setting and names no code of others.

        Raises:
            ValueError: it is no record, or its model or prompts are not on this machine, or have changed.
        """
        record = read(path)
        if folders is None:
            config, _ = configuration(record, OmegaConf.create({"debug": False}), path)
        else:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                config, _ = configuration(record, compose("config"), path)
            require_known(config, folders, path)
        # As in a dry run, nothing is loaded, downloaded or written; the device may be another machine's.
        config |= {"dry_run": True, "device": "cpu", "store": store or config["store"]}
        # Metrics that are not compared may ask for photos, which are not needed here.
        config["suite"]["metrics"] = [metric for metric in config["suite"]["metrics"] if _may_differ(metric)]
        parts = setup(OmegaConf.create(config))
        now = {"base": parts.model.fingerprint} | {name: prompts.key for name, prompts in parts.task.sets.items()}
        for name, key in now.items():
            if key == "absent":
                raise ValueError(f"{path}: its model is not on this machine; {parts.model.reason}")
            if key != record.fingerprints.get(name):
                what = "another model" if name == "base" else f"other {name} prompts"
                raise ValueError(
                    f"{path}: this checkout has {what} than the record, whose rows cannot be found with it"
                )
        return cls(path, record, repeated(parts))

    def differences(self, other: Record, path: Path, store: str | None = None) -> list[Difference]:
        """This record minus another one; see the module.

        Args:
            path: of the other record.
            store: where its rows are, if not where it says.

        Raises:
            ValueError: the two do not ask for the same pictures of the same model, or rows are not in the store.
        """
        _require_pairs(self, other, path)
        place = Store(store or other.config["store"], readonly=True)
        there = [replace(run, store=place) for run in self.runs]
        numbers = [{(m["id"], m["subject"]): m for m in record.as_dict()["metrics"]} for record in (self.record, other)]
        found = []
        for metric in self.runs[0].metrics:
            if not hasattr(metric, "differences") or metric.set not in self.runs[0].task.sets:
                continue
            tables = [
                [_rows(run, metric, record, number, where) for number, run in enumerate(runs)]
                for runs, record, where in ((self.runs, self.record, self.path), (there, other, path))
            ]
            source = self.runs[0].task.sets[metric.set].source
            for (id, subject), interval in _differences(metric, self.runs[0].task, *tables).items():
                key = (f"{id}/{source}" if source else id, subject)
                if all(key in side for side in numbers):
                    found.append(Difference(numbers[0][key], numbers[1][key], interval))
        return found


def _may_differ(metric: Mapping[str, Any]) -> bool:
    """Whether what a metric's configuration names may have `differences`; of a function nobody knows before it runs."""
    made = get_object(metric["_target_"])
    return not isinstance(made, type) or hasattr(made, "differences")


def _differences(metric: Any, task: Any, one: Sequence[pd.DataFrame], other: Sequence[pd.DataFrame]) -> Any:
    """A metric's differences from its rows of every repeat."""
    runs = [metric.differences(*tables, task) for tables in zip(one, other, strict=True)]
    if len(runs) == 1:
        return runs[0]
    pooled = metric.differences(pooled_rows(one), pooled_rows(other), task)
    return repeated_differences(getattr(metric, "repeated", {}), runs, pooled)


def _require_pairs(side: Side, other: Record, path: Path) -> None:
    for record, where in ((side.record, side.path), (other, path)):
        if not record.metrics:
            raise ValueError(f"{where} has no scores (edit_only=true)")
    one, two = side.record.as_dict(), other.as_dict()
    for name in SAME:
        if one[name] != two[name]:
            raise ValueError(f"{side.path} and {path} have another {name}: {one[name]} and {two[name]}")
    for name in ("base", *side.runs[0].task.sets):
        if side.record.fingerprints.get(name) != other.fingerprints.get(name):
            what = "unedited model" if name == "base" else f"{name} prompts"
            raise ValueError(f"{side.path} and {path} have other {what}: their rows are not pairs")
    settings = [flat({name: record.config.get(name) for name in SETTINGS}) for record in (side.record, other)]
    for name in dict.fromkeys([*settings[0], *settings[1]]):
        here, there = (one.get(name) for one in settings)
        if here != there:
            raise ValueError(f"{side.path} and {path} have another {name}: {here} and {there}")


def _rows(parts: Setup, metric: Any, record: Record, repeat: int, path: Path) -> pd.DataFrame:
    """A metric's stored rows of a record's pictures in one repeat."""
    name = f"edit.{repeat}" if repeat else "edit"
    edit = SimpleNamespace(kind=record.edit["kind"], fingerprint=record.fingerprints[name])
    before = _pictures(parts, metric.set, None)
    images, reference = (before, None) if edit.kind == "none" else (_pictures(parts, metric.set, edit), before)
    try:
        return stored_rows(parts, metric, images, reference)
    except StoreError:
        raise ValueError(
            f"{path}: the rows of {metric.id} are not in the store {parts.store.root}; name their store with "
            "--store DIR, or run the record's configuration again"
        ) from None


def _pictures(parts: Setup, name: str, edit: Any) -> ImageSet | Chunks:
    """A set's pictures by their keys alone."""
    prompts = parts.task.sets[name]
    if name in parts.task.unkept:
        return passing(parts.model, edit, prompts, parts.sampler, parts.store, batch_size=parts.batch_size)
    keys = [content_key(image_parts(parts.model, edit, row, parts.sampler)) for row in prompts]
    return ImageSet(prompts, [], content_key(keys))


def table(found: Sequence[Difference], classes: bool) -> render.Table:
    """One row a value: A, B, A minus B; of the aggregates, or of every class too."""
    shown = [one for one in found if classes or one.metric["subject"] == "all"]
    ids = list(dict.fromkeys(one.metric["id"] for one in shown))
    body = [
        [
            values.title(one.metric["id"], ids),
            one.metric["subject"],
            str(one.metric["n"]),
            *(values.show(metric) for metric in (one.metric, one.other)),
            one.show(),
            one.better,
        ]
        for one in shown
    ]
    header = ["metric", "subject", "n", "A", "B", "A - B", "better"]
    return render.Table("A minus B on the same prompts and noise, paired by picture.", header, body)


def against_first(paths: Sequence[Path]) -> list[str]:
    """What a multirun prints below its table: every edited record minus the first one, as Markdown.

    Empty where there are no two edited records with scores. A record that has no rows at hand, or asked for other
    pictures, has one line with the reason.
    """
    edited = [(path, record) for path in dict.fromkeys(paths) for record in [read(path)] if _is_edited(record)]
    if len(edited) < 2:
        return []
    (path, first), *others = edited
    try:
        side = Side.of(path)
    except ValueError as error:
        return [f"No differences between methods: {error}"]
    keys = differing([record.as_dict() for _, record in edited])
    rows, lines = [], []
    for path, record in others:
        try:
            found = {one.metric["id"]: one for one in side.differences(record, path) if one.metric["subject"] == "all"}
        except ValueError as error:
            lines.append(f"No differences: {error}")
        else:
            rows.append((_who(record, keys), found))
    if rows:
        ids = list(dict.fromkeys(i for _, found in rows for i in found))
        label = " ".join(filter(None, _who(first, keys)))
        caption = f"Minus {label}, on the same prompts and noise, paired by picture. {MARKED}"
        header = ["method", *(key.rpartition(".")[2] for key in keys), *(values.title(i, ids) for i in ids)]
        body = [[*who, *(found[i].turned().show() if i in found else "" for i in ids)] for who, found in rows]
        lines = [*render.markdown(render.Table(caption, header, body)), *lines]
    return lines


def _is_edited(record: Record) -> bool:
    return bool(record.metrics) and record.edit.get("kind") != "none"


def _who(record: Record, keys: Sequence[str]) -> list[str]:
    settings = flat(record.config)
    return [record.method, *("" if settings.get(key) is None else str(settings[key]) for key in keys)]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the differences; exit codes as in `cli`."""
    parser = argparse.ArgumentParser(prog="python -m experiments.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("one", type=Path, metavar="A.json")
    parser.add_argument("other", type=Path, metavar="B.json")
    parser.add_argument("--store", metavar="DIR", help="where the rows of both are, if not where the records say")
    parser.add_argument("--classes", action="store_true", help="every class too")
    parser.add_argument("--config-dir", nargs="*", default=[], metavar="DIR", help="your own configuration folders")
    options = parser.parse_args(argv)
    try:
        side = Side.of(options.one, options.store, options.config_dir)
        found = side.differences(read(options.other), options.other, options.store)
    except Exception as error:
        print(one_line(error), file=sys.stderr)
        return exit_code(error)
    print("\n".join([*render.markdown(table(found, options.classes)), *_notes(side.record, options, found)]))
    return 0


def _notes(record: Record, options: argparse.Namespace, found: Sequence[Difference]) -> list[str]:
    """What A and B are, and what each row is."""
    entries = [one.metric for one in found]
    ids = list(dict.fromkeys(entry["id"] for entry in entries))
    lines = [f"A: {options.one}. B: {options.other}. Model: {record.note}"]
    lines += [values.legend(i, ids, entries) for i in ids]
    return [f"{line}  " for line in [*lines, MARKED]]


if __name__ == "__main__":
    sys.exit(main())
