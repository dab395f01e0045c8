"""Compute a record again and compare: `python run.py replay=RECORD.json [store=DIR] [records=DIR] [device=...]`.

The record's resolved configuration is run as it stands. By default that happens in a fresh store that is thrown away
afterwards, because a run that finds everything stored compares the stored values with themselves. With `store=DIR` the
run goes on from what DIR holds, and the result says how much of it was found there.

On the same device, hardware and versions every value has to be equal. Elsewhere kernels round differently: there a
value has to lie in the recorded interval, or within OTHER_MACHINE of the recorded value where it has no interval. What
follows from values, such as the ends of intervals, is shown there where it differs, and is no failure.

A record is data that may come from anybody, and its configuration names code. Only code that conf/, or a configuration
folder of your own (`--config-dir`), names too is run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.files import passing_folder
from harness.record import Record, read

from .config import ROOT_KEYS, dotted
from .targets import require_known

log = logging.getLogger(__name__)

# What may be said beside `replay=`; everything else is the record's.
ALLOWED = ("replay", "store", "records", "device", "debug")
GROUPS = ("method", "task", "model", "suite", "sampler", "quality")
# Relative tolerance, on another machine, of values without an interval. Fixed by hand.
OTHER_MACHINE = 0.01


class ReplayDiffers(RuntimeError):
    """The record could be computed again, with another result."""


@dataclass(frozen=True)
class Difference:
    """One value that is not what the record says.

    Attributes:
        what: metric and subject, or the field.
        recorded, again: the two values.
        allowed: the tolerance in words.
        fatal: beyond the tolerance.
    """

    what: str
    recorded: Any
    again: Any
    allowed: str
    fatal: bool

    def __str__(self) -> str:
        found = "DIFFERENT" if self.fatal else "within the tolerance"
        return f"{self.what}: {_show(self.recorded)} -> {_show(self.again)} ({self.allowed}): {found}"


def replay(cfg: DictConfig, overrides: Sequence[str], folders: Sequence[str] = ()) -> None:
    """Run the record that `cfg.replay` names again and print every difference.

    Args:
        cfg: a composed configuration, of which only ALLOWED counts.
        overrides: of the command line.
        folders: the user's own configuration folders.

    Raises:
        ValueError: the file is no record, or names code that no configuration names.
        ReplayDiffers: a value is beyond its tolerance.
    """
    said = {item.partition("=")[0].lstrip("+~"): item for item in overrides}
    for name in said:
        if name not in ALLOWED:
            others = ", ".join(ALLOWED[1:])
            raise ValueError(f"{said[name]}: a replay runs the record's own configuration; only {others} may be said")
    path = Path(str(cfg.replay)).expanduser()
    if not path.is_file():
        raise ValueError(f"replay={path}: no such file; name a record, the JSON file that a run ends with")
    record = read(path)
    config, added = configuration(record, cfg, path)
    require_known(config, folders, path)
    with ExitStack() as stack:
        config |= {name: _place(name, cfg, said, path, stack) for name in ("store", "records")}
        if "device" in said:
            config["device"] = cfg.device
        from .run import benchmark

        again, _ = benchmark(OmegaConf.create(config))
        _report(path, record, again, "store" in said, added)


def configuration(record: Record, cfg: DictConfig, path: Path) -> tuple[dict[str, Any], list[str]]:
    """The configuration that `benchmark` was given for a record, and the settings that the record does not have.

    Those came after it was written and have the default of `cfg`.
    """
    config = json.loads(json.dumps(record.config))
    lacking = [name for name in GROUPS if not isinstance(config.get(name), Mapping)]
    if lacking:
        raise ValueError(f"{path}: its configuration has no {lacking[0]}; it cannot be run again")
    for name, value in dotted(config):
        if "${" in str(value):
            raise ValueError(f"{path}: {name} is {value!r}; a recorded configuration is resolved")
    # `setup` had taken these out of their groups.
    config["method"] |= config.pop("speed", {})
    if record.preset:
        config["method"]["preset"] = record.preset
    for name in ("batch_size", "compile"):
        if name in config:
            config["model"][name] = config.pop(name)
    added = [name for name in ROOT_KEYS if name not in config]
    config |= {name: OmegaConf.to_container(cfg, resolve=True)[name] for name in added}
    config |= {"replay": None, "export": None, "dry_run": False, "debug": cfg.debug, "logger": {"name": "none"}}
    return config, added


def differences(recorded: Mapping[str, Any], again: Mapping[str, Any], same_machine: bool) -> list[Difference]:
    """What two records (`Record.as_dict`) do not agree on, value by value; times and counts of work are no results."""
    found = []
    for what, one in _facts(recorded, same_machine).items():
        other = _facts(again, same_machine).get(what)
        if one != other:
            found.append(Difference(what, one, other, "has to be equal", True))
    black = [data["counts"].get("images_black") for data in (recorded, again)]
    found += _shown_difference("pictures of one single colour", *black, same_machine)
    lists = {"edited": "metrics", "unedited": "unedited"}
    for words, name in lists.items():
        found += _metric_differences(words, recorded[name], again[name], same_machine)
    for number, (one, other) in enumerate(zip(recorded["stages"], again["stages"]), start=1):
        found += _metric_differences(f"after stage {number}", one["metrics"], other["metrics"], same_machine)
    for name, share in recorded["edit"].get("shares", {}).items():
        other = again["edit"].get("shares", {}).get(name)
        found += _number_difference(f"edit, share of {name}", share, other, None, same_machine)
    return found


def environment_changes(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """By dotted name, the (recorded, present) entries of two environments that are not the same."""
    one, other = dict(dotted(recorded)), dict(dotted(now))
    return {name: (one.get(name), other.get(name)) for name in sorted(one | other) if one.get(name) != other.get(name)}


def _place(name: str, cfg: DictConfig, said: Mapping[str, str], path: Path, stack: ExitStack) -> str:
    """The store or the folder of records: the user's, or one that goes with the stack."""
    if name not in said:
        return str(stack.enter_context(passing_folder(f"forget-bench-replay-{name}-")))
    if name == "records" and Path(cfg.records).expanduser().resolve() == path.resolve().parent:
        raise ValueError(f"records={cfg.records} holds the record itself, which would be replaced; name another folder")
    return cfg[name]


def _report(path: Path, record: Record, again: Record, kept_store: bool, added: Sequence[str]) -> None:
    """Print what was compared; `ReplayDiffers` where a value is beyond its tolerance."""
    # A record from before `judges` and `photos` does not say what they were.
    now = {name: part for name, part in again.environment.items() if name in record.environment}
    changes = environment_changes(record.environment, now)
    if record.config.get("device") != again.config["device"]:
        changes["device"] = (record.config.get("device"), again.config["device"])
    # Another commit, judge or photo may well be the reason of a difference, but it is no excuse for one.
    same_machine = all(name.startswith(("code.", "judges.", "photos.")) for name in changes)
    print(f"replay of {path} ({record.created})")
    for name, (one, other) in changes.items():
        print(f"{name}: {_show(one)} -> {_show(other)}")
    if not changes:
        print("the same device, hardware, versions and commit")
    for name in added:
        print(f"{name}: not in the record; the default {_show(again.config[name])}")
    print(_recomputed(again, kept_store))
    found = differences(record.as_dict(), again.as_dict(), same_machine)
    for difference in found:
        print(difference)
    values = sum(len(metrics) for metrics in (record.metrics, record.unedited, *(s["metrics"] for s in record.stages)))
    fatal = sum(difference.fatal for difference in found)
    if fatal:
        raise ReplayDiffers(f"{fatal} differences from {path}, {values} values compared")
    how = "equal" if not found else f"equal but for {len(found)} within the tolerance"
    print(f"{values} values compared: {how}")


def _recomputed(again: Record, kept_store: bool) -> str:
    """How much of the result was computed by this replay."""
    made, reused = again.counts["images_made"], again.counts["images_reused"]
    if not kept_store:
        return f"computed again: the edit and all {made} pictures, in a fresh store"
    found = again.counts["edit_reused"] == again.config["repeats"]
    edit = "found" if found else "computed again"
    line = f"store={again.config['store']}: the edit was {edit}, {made} pictures were computed again, {reused} found"
    if not made and found:
        line += "; what is stored was compared, which does not show that it can be computed again"
    return line


def _facts(record: Mapping[str, Any], same_machine: bool) -> dict[str, Any]:
    """Everything but the numbers: the same on every machine, the edit's bits on the same machine only."""
    names = ("method", "task", "model", "suite", "split", "preset", "world", "concepts", "keep")
    facts = {name: record[name] for name in names}
    facts |= {f"fingerprint of {name}": value for name, value in record["fingerprints"].items()}
    facts["kind of edit"] = record["edit"].get("kind")
    facts["screened prompts"] = record["counts"].get("screened")
    facts["stages"] = [stage["concepts"] for stage in record["stages"]]
    # Of a repeated run there are further edits: edit.1, edit.2 and so on.
    return {name: fact for name, fact in facts.items() if same_machine or not name.startswith("fingerprint of edit")}


def _metric_differences(
    words: str, recorded: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Any]], same_machine: bool
) -> list[Difference]:
    """Values, n and both ends of the intervals; of every value that either side has."""
    one, other = ({(m["id"], m["subject"]): m for m in metrics} for metrics in (recorded, again))
    found = []
    for key in {**one, **other}:
        what = f"{words}, {key[0]} of {key[1]}"
        if key not in one or key not in other:
            values = (one.get(key, {}).get("value"), other.get(key, {}).get("value"))
            found.append(Difference(what, *values, "not measured on both sides", True))
            continue
        before, after = one[key], other[key]
        if before["n"] != after["n"]:
            found.append(Difference(f"{what}, n", before["n"], after["n"], "has to be equal", True))
        found += _number_difference(what, before["value"], after["value"], before, same_machine)
        for name in ("low", "high", "sd", "difference", "reason"):
            if name in before or name == "reason":  # a record of schema 2 has neither sd nor difference
                found += _shown_difference(f"{what}, {name}", before.get(name), after.get(name), same_machine)
    return found


def _shown_difference(what: str, recorded: Any, again: Any, same_machine: bool) -> list[Difference]:
    """Of what follows from values that may differ on another machine: shown there, and no failure."""
    if recorded == again:
        return []
    allowed = "has to be equal" if same_machine else "may differ on another machine"
    return [Difference(what, recorded, again, allowed, same_machine)]


def _number_difference(
    what: str, recorded: float | None, again: float | None, metric: Mapping[str, Any] | None, same_machine: bool
) -> list[Difference]:
    """Empty where the two are equal. `metric` has the recorded interval."""
    if recorded == again:
        return []
    if same_machine or recorded is None or again is None:
        return [Difference(what, recorded, again, "has to be equal", True)]
    low, high = (metric["low"], metric["high"]) if metric else (None, None)
    if low is not None and high is not None:
        return [Difference(what, recorded, again, f"may lie in [{low:g}, {high:g}]", not low <= again <= high)]
    room = OTHER_MACHINE * abs(recorded)
    return [Difference(what, recorded, again, f"may differ by {room:.3g}", abs(again - recorded) > room)]


def _show(value: Any) -> str:
    text = repr(value) if isinstance(value, float) else "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
