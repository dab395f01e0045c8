"""Record files with contents of our own, whole and sealed as a run writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.record import Record, sealed

REST = Record(*["x"] * 5, config={}, fingerprints={}).as_dict()


def write_record(path: Path, data: Mapping[str, Any]) -> Path:
    """A valid record with these fields; it has something plain in the others."""
    path.write_text(json.dumps(sealed(REST | data)))
    return path


def changed_record(path: Path, data: Mapping[str, Any]) -> Path:
    """These fields and no others under a sha256 that fits, as somebody else's program might write them."""
    path.write_text(json.dumps(sealed(data)))
    return path
