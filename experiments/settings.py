"""What a record's settings mean beside an experiment's: the published row it stands for, and where it deviates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.releases import RELEASES

from .published import Paper
from .records import flat

# Parts of a configuration that decide what is measured; the model is compared by itself, judges by their ids.
DECIDING = ("method", "task", "sampler", "quality", "schedule", "order", "repeats", "seed")
# Of the model, by what its pictures differ though the weights are the same, and where the weights lie.
MODEL_KEYS = ("model.size", "model.vae_dtype")
PLACE = ("model.path", "model.revision")
NOT_VALUES = ("_target_", "_convert_", "name", "preset", "task_name")
# What makes another task of one with the same name.
TASK_KEYS = ("task.concepts", "task.keep")
Record = Mapping[str, Any]
# Method -> flat configuration that the experiment would give it; "" for the experiment's own method.
Expected = Mapping[str, Mapping[str, Any]]


def sorted_out(
    paper: Paper, records: Sequence[Record], expected: Expected, skipped: Sequence[str] = ()
) -> tuple[list[Record], list[tuple[str, list[Record]]]]:
    """The records that reproduce the table, and the others by the reason why they do not.

    Args:
        skipped: keys of the task in which the records may differ from the experiment.
    """
    inside, apart = [], {}
    for record in records:
        if paper.methods and record["method"] not in (*paper.methods, "none"):
            continue
        own, wanted = flat(record["config"]), expected[""]
        other = [k for k in TASK_KEYS if k not in skipped and _plain(own.get(k)) != _plain(wanted.get(k))]
        if paper.model and record["model"] != paper.model:
            reason = f"made on {record['model']}; the published numbers are of {paper.model}"
        elif record["split"] != "test":
            reason = f"made on the {record['split']} split, on which settings are chosen"
        elif other:
            reason = f"made with another {other[0]} than the published one"
        else:
            inside.append(record)
            continue
        apart.setdefault(reason, []).append(record)
    return inside, list(apart.items())


def row_of(paper: Paper, record: Record) -> str:
    """The published row that a record stands for; empty where the paper has none."""
    own = flat(record["config"])
    for row, conditions in paper.rows.items():
        if conditions and all(_fits(own.get(key), wanted) for key, wanted in conditions.items()):
            return row
    return ""


def _fits(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, list | tuple) else value == wanted


def deviations(record: Record, expected: Mapping[str, Any], named: Sequence[str] = ()) -> list[str]:
    """What a record's settings are where they differ from the experiment's, as words.

    Args:
        expected: flat configuration of the experiment with the record's method.
        named: keys that the row's name says already.
    """
    own = flat(record["config"])
    # Of a method that the catalogue does not have nobody knows which settings are usual.
    known = record["method"] == expected.get("method.name")
    words = [] if known else ["settings as recorded"]
    for key in dict.fromkeys([*expected, *own]):
        root, _, rest = key.partition(".")
        deciding = key in MODEL_KEYS or root in (DECIDING if known else DECIDING[1:])
        if not deciding or key.rpartition(".")[2] in NOT_VALUES or key in named:
            continue
        if key in own and meant(own, key) != meant(expected, key):
            words.append(f"{rest if root == 'method' else key} {_say(own[key])}")
    dtype, native = own.get("dtype"), own.get("model.dtype")
    if native and dtype not in (None, "auto", native):
        words.append(f"dtype {dtype}")
    return [*words, *_unknown_weights(own, expected)]


def _unknown_weights(own: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Words where the weights came from another place than the experiment's and are not known to be its release's."""
    (path, revision), (release, pinned) = ([config.get(key) for key in PLACE] for config in (own, expected))
    if (path, revision) == (release, pinned) or (own.get("model.published") and release in RELEASES):
        return []
    return [f"weights unknown: {path}" + (f" at {revision}" if path == release else "")]


def meant(config: Mapping[str, Any], key: str) -> str:
    """The value in a flat configuration as it was meant: what a method was told to keep is the same where it is what
    the task keeps, and so is what a task keeps where it is all that it does not forget."""
    value = config.get(key)
    if key.startswith("method.") and value and value == config.get("task.keep"):
        return "task.keep"
    if key == "task.keep" and "task.x" in config and value == config["task.classes"][config["task.x"] :]:
        return "the rest of task.classes"
    return _plain(value)


def of_the_edit(word: str) -> bool:
    """Whether a deviation concerns the edit only, so that it says nothing about the unedited model's row."""
    return not word.startswith(("task.", "sampler.", "quality.", "model.", "repeats ", "dtype ", "weights "))


def hardware(record: Record, device: str) -> str:
    """What a device in a record's cost is: a GPU by its own name, a processor with the threads that were used; empty
    where the record does not say."""
    if device not in ("cpu", "mps"):
        return device
    found = record.get("environment", {}).get("hardware") or {}
    return f"{found['cpu']}, {found['threads']} threads" if found.get("cpu") else ""


def _plain(value: Any) -> str:
    """Tuples, lists and OmegaConf's own look the same; so do 1 and 1.0."""
    return json.dumps(float(value) if type(value) is int else value, sort_keys=True)


def _say(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) and value else json.dumps(value)
