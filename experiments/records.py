"""Finding and reading records, and their settings as flat keys; what tables, fronts and figures begin with."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.record import load


def read_records(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The records in these JSON files, checked.

    Raises:
        ValueError: a file is not a valid record, or has changed since it was written.
    """
    return [load(path) for path in paths]


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
