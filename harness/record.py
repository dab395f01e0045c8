"""Results: one JSON record a run. Tables, charts and uploads are made from records only; `docs/record.md` documents
every field.

A record's file name follows from what was run, not from when: a repeated run replaces its own record.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .checks import is_number
from .files import write_atomic
from .store import canonical_json, content_key

SCHEMA = 4
# Schema 3 has no `sha256`; schema 2 also no `sd`, `repeats` and `difference`. Nothing else is different.
READABLE = (2, 3, SCHEMA)
SHA256 = "sha256"
REPOSITORY = Path(__file__).resolve().parents[1]

# Settings that say where and how a run happens, not what it measures; they do not enter a record's identity.
NOT_IDENTITY = frozenset(
    {
        *("store", "records", "logger", "device", "batch_size", "speed", "dry_run", "export", "replay", "debug"),
        *("compile", "progress", "hydra"),
    }
)
PACKAGES = (
    *("torch", "torchvision", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "scipy", "pandas"),
    *("pillow", "torchmetrics", "torch-fidelity", "open-clip-torch", "nudenet", "hydra-core", "omegaconf"),
)
_METRIC_FIELDS = ("id", "subject", "value", "n", "low", "high", "higher_is_better")
_OPTIONAL_FIELDS = ("reason", "sd", "repeats", "difference")
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass
class Record:
    """Everything that is known about one run.

    Attributes:
        method, task, model, suite: names of the run's configs.
        split: tuning or test.
        config: the resolved config, plain JSON.
        fingerprints: hex sha256 by name: `base`, `edit`, and one for each prompt set.
        concepts: [{name, kind}] that were to be forgotten, in order.
        keep: names of the classes that must survive.
        metrics: [{id, subject, value, n, low, high, higher_is_better}]; a value that could not be computed is null
            and has a `reason`; those of repeated runs have `sd` and `repeats`, and those that can be compared with the
            unedited model's picture by picture a `difference`, {value, low, high}.
        unedited: the same for the unedited model's pictures of the same prompts and seeds.
        stages: of a sequential schedule, after each stage: [{concepts, metrics}], the names of what was to be gone by
            then, and the metrics of the class pictures; empty otherwise.
        cost: nested dictionary of finite numbers: seconds, UNet samples, peak bytes, by stage.
        counts: images_made, images_reused, screened (rows that the prompt screen dropped), and others.
        edit: the edit's own information, pruned shares included.
        preset: which published or own variant of the method's parameters; empty where none.
        world: name and version of the embedded world, such as tiny-v1; empty on real models.
        note: in words, what a reader must know before comparing the numbers.
        created: UTC time of writing, ISO 8601; filled in by `write`, not part of the identity.
        environment: versions, code and hardware, from `environment()`; of a run with scores also `judges` and `photos`,
            hashes by metric id.
        schema: version of this layout.
    """

    method: str
    task: str
    model: str
    suite: str
    split: str
    config: dict[str, Any]
    fingerprints: dict[str, str]
    concepts: list[dict[str, str]] = field(default_factory=list)
    keep: list[str] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    unedited: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    edit: dict[str, Any] = field(default_factory=dict)
    preset: str = ""
    world: str = ""
    note: str = ""
    created: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def identity(self) -> str:
        """Hex sha256 of what was run: names, split, preset, world, config without places and devices, fingerprints."""
        config = {name: _without_batch(value) for name, value in self.config.items() if name not in NOT_IDENTITY}
        names = [self.method, self.task, self.model, self.suite, self.split, self.preset, self.world]
        return content_key({"names": names, "config": config, "fingerprints": self.fingerprints})

    @property
    def file_name(self) -> str:
        """`METHOD-TASK-MODEL-SPLIT-hash8.json`."""
        names = (self.method, self.task, self.model, self.split)
        return "-".join([*(_slug(name) for name in names), self.identity[:8]]) + ".json"

    def value(self, id: str, subject: str = "all") -> float | None:
        """The value of one metric; `KeyError` where the record has none of that id and subject."""
        for metric in self.metrics:
            if metric["id"] == id and metric["subject"] == subject:
                return metric["value"]
        raise KeyError(f"the record has no metric {id} of {subject}")

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON values; metrics given as dataclasses become dictionaries."""
        data = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        data["metrics"] = [_plain(metric) for metric in self.metrics]
        data["unedited"] = [_plain(metric) for metric in self.unedited]
        data["stages"] = [{**stage, "metrics": [_plain(m) for m in stage["metrics"]]} for stage in self.stages]
        data["concepts"] = [_plain(concept) for concept in self.concepts]
        data["keep"] = list(self.keep)
        return data

    def write(self, folder: Path | str) -> Path:
        """Validate and write the record; the same run's older record is replaced in one step.

        Returns:
            The file's path.

        Raises:
            ValueError: the record is not valid; nothing is written.
            StoreError: the folder cannot be written.
        """
        data = self.as_dict()
        data["created"] = self.created or datetime.now(UTC).isoformat(timespec="seconds")
        data["environment"] = self.environment or environment()
        data["schema"] = SCHEMA
        validate(data)
        path = Path(folder) / self.file_name
        write_atomic(path, (json.dumps(sealed(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
        return path


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """A record's JSON with the hex sha256 of the canonical JSON of everything else, as it is written."""
    rest = {name: value for name, value in data.items() if name != SHA256}
    return rest | {SHA256: content_key(rest)}


def read(path: Path | str) -> Record:
    """The record in a file.

    Raises:
        ValueError: the file is not a valid record; the message begins with its path.
    """
    return Record(**load(path))


def load(path: Path | str) -> dict[str, Any]:
    """The JSON of a record's file, checked, without its sha256.

    Raises:
        ValueError: the file is not a valid record, or has changed since it was written; the message begins with its
            path.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        data = {name: value for name, value in found.items() if name != SHA256} if isinstance(found, dict) else found
        validate(data)
        if data["schema"] == SCHEMA and SHA256 not in found:
            raise ValueError(f"the field {SHA256!r} is missing")
        if SHA256 in found and found[SHA256] != content_key(data):
            raise ValueError(f"it has changed since it was written: its {SHA256} does not match")
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such record") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise ValueError(f"{path}: it is nested too deeply for a record") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return data


def validate(data: Any) -> None:
    """Check a record's JSON without its sha256: schema version, fields, types, finite numbers, no metric twice.

    Raises:
        ValueError: one line that names the first field at fault.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"a record is a JSON object, not a {type(data).__name__}")
    if data.get("schema") not in READABLE:
        known = ", ".join(map(str, READABLE))
        raise ValueError(f"schema {data.get('schema')!r} is not known; this checkout reads schema {known}")
    for item in dataclasses.fields(Record):
        if item.name not in data:
            raise ValueError(f"the field {item.name!r} is missing")
        wanted = {"str": str, "int": int, "list": list, "dict": dict}[str(item.type).split("[")[0]]
        if not isinstance(data[item.name], wanted):
            found = type(data[item.name]).__name__
            raise ValueError(f"the field {item.name!r} is a {found} and should be a {wanted.__name__}")
    extra = set(data) - {item.name for item in dataclasses.fields(Record)}
    if extra:
        raise ValueError(f"the field {sorted(extra)[0]!r} is not part of schema {SCHEMA}")
    for name in ("method", "task", "model", "suite", "split"):
        if not data[name]:
            raise ValueError(f"the field {name!r} is empty")
    for name, fingerprint in data["fingerprints"].items():
        if not isinstance(fingerprint, str) or not _HEX64.fullmatch(fingerprint):
            raise ValueError(f"fingerprints.{name} is {fingerprint!r}, not a hex sha256")
    for name, count in data["counts"].items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"counts.{name} is {count!r}, not a count")
    _validate_concepts(data["concepts"])
    for index, stage in enumerate(data["stages"]):
        if not isinstance(stage, Mapping) or set(stage) != {"concepts", "metrics"}:
            raise ValueError(f"stages[{index}] is not an object of concepts and metrics")
        if not isinstance(stage["concepts"], list) or not isinstance(stage["metrics"], list):
            raise ValueError(f"stages[{index}]: concepts and metrics are lists")
    lists = {"metrics": data["metrics"], "unedited": data["unedited"]}
    lists |= {f"stages[{index}].metrics": stage["metrics"] for index, stage in enumerate(data["stages"])}
    for name, metrics in lists.items():
        seen: set[tuple[str, str]] = set()
        for index, metric in enumerate(metrics):
            _validate_metric(metric, f"{name}[{index}]", seen)
    try:
        canonical_json({name: value for name, value in data.items() if name not in ("metrics", "unedited", "stages")})
    except ValueError as error:
        raise ValueError(str(error).removeprefix("parts.")) from None


def _validate_concepts(concepts: list[Any]) -> None:
    for index, concept in enumerate(concepts):
        if not isinstance(concept, Mapping) or set(concept) != {"name", "kind"}:
            raise ValueError(f"concepts[{index}] is {concept!r}, not a name and a kind")


def _validate_metric(metric: Any, where: str, seen: set[tuple[str, str]]) -> None:
    if not isinstance(metric, Mapping):
        raise ValueError(f"{where} is a {type(metric).__name__}, not an object")
    missing = [name for name in _METRIC_FIELDS if name not in metric]
    odd = sorted(set(metric) - {*_METRIC_FIELDS, *_OPTIONAL_FIELDS})
    if missing or odd:
        raise ValueError(f"{where} {'lacks' if missing else 'has the unknown field'} {(missing or odd)[0]!r}")
    if not all(isinstance(metric[name], str) and metric[name] for name in ("id", "subject")):
        raise ValueError(f"{where} has no id or subject (the whole is the subject 'all')")
    name = (metric["id"], metric["subject"])
    where = f"{where} ({name[0]} of {name[1]})"
    if name in seen:
        raise ValueError(f"{where} is there twice; give one of the two metrics another id, or leave it out")
    seen.add(name)
    if isinstance(metric["n"], bool) or not isinstance(metric["n"], int) or metric["n"] < 0:
        raise ValueError(f"{where}: n is {metric['n']!r}, not a count")
    if not (metric["higher_is_better"] is None or isinstance(metric["higher_is_better"], bool)):
        raise ValueError(f"{where}: higher_is_better is {metric['higher_is_better']!r}, not true, false or null")
    _validate_interval(metric, where, bool(metric.get("reason")))
    if "difference" in metric:
        difference = metric["difference"]
        if not isinstance(difference, Mapping) or set(difference) != {"value", "low", "high"}:
            raise ValueError(f"{where}: the difference is not an object of value, low and high")
        _validate_interval(difference, f"{where}, difference")
    if ("sd" in metric) != ("repeats" in metric):
        raise ValueError(f"{where} has one of sd and repeats; they belong together")
    if "repeats" in metric:
        repeats, sd = metric["repeats"], metric["sd"]
        if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 2:
            raise ValueError(f"{where}: repeats is {repeats!r}, not a count of at least 2")
        if not is_number(sd) or sd < 0:
            raise ValueError(f"{where}: sd is {sd!r}, not a standard deviation")


def _validate_interval(found: Mapping[str, Any], where: str, may_lack: bool = False) -> None:
    """A value, null where it may be, with the ends of its interval."""
    for part in ("value", "low", "high"):
        number = found[part]
        if number is None and (part != "value" or may_lack):
            continue
        if not is_number(number):
            raise ValueError(f"{where}: {part} is {number!r}; what cannot be computed is null with a reason")
    low, high = found["low"], found["high"]
    if low is not None and high is not None and low > high:
        raise ValueError(f"{where}: the interval's low end {low} is above its high end {high}")


def environment() -> dict[str, Any]:
    """Versions, code and hardware of this process, as JSON values. Never fails: what is unknown is null.

    The code is that of the first call, which a run makes before it computes: a checkout may move while it does.
    """
    return {"versions": dict(_versions()), "code": dict(_code()), "hardware": dict(_hardware())}


@functools.cache
def _code() -> dict[str, Any]:
    return commit(REPOSITORY)


def commit(folder: Path) -> dict[str, Any]:
    """{commit, dirty} of the git checkout whose top is `folder`; nulls where it is none or git is missing.

    Dirty means that tracked or new files differ from the commit; records written under results/ do not count.
    """
    nothing = {"commit": None, "dirty": None}
    top = _git(folder, "rev-parse", "--show-toplevel")
    # An unpacked copy inside somebody else's repository must not borrow that repository's commit.
    if top is None or Path(top).resolve() != folder.resolve():
        return nothing
    head = _git(folder, "rev-parse", "--verify", "-q", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--", ".", ":(exclude)results")
    return {"commit": head, "dirty": None if changes is None else changes != ""}


def _git(folder: Path, *arguments: str) -> str | None:
    # Variables such as GIT_DIR, set inside hooks, would point git at another checkout.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env={**variables, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


@functools.cache
def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


@functools.cache
def _hardware() -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if cuda else [],
        "cuda": torch.version.cuda if cuda else None,
    }


def _cpu_model() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or None


def _plain(item: Any) -> Any:
    """A dataclass as a dictionary, named tuples in it too; without the optional fields that a metric does not have."""
    if not dataclasses.is_dataclass(item) or isinstance(item, type):
        return dict(item) if isinstance(item, Mapping) else item
    found = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    return {
        name: value._asdict() if hasattr(value, "_asdict") else value
        for name, value in found.items()
        if value is not None or name not in _OPTIONAL_FIELDS
    }


def _without_batch(value: Any) -> Any:
    """A config branch without what no picture depends on: a model's batch size, and whether a task stores pictures."""
    if not isinstance(value, Mapping):
        return value
    return {name: _without_batch(item) for name, item in value.items() if name not in ("batch_size", "keep_pictures")}


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "_", name).strip("_.") or "unnamed"
