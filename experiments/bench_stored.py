"""How long a run takes whose results are all in the store (`python -m experiments.bench --parts stored`).

It is made once, which takes as long as it takes, and then run again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from .bench_startup import SETTINGS, goals, rows, timed

__all__ = ["SETTINGS", "goals", "measure", "rows"]


def measure(cfg: DictConfig, settings: Sequence[str], rounds: int) -> dict[str, Any]:
    """Time `run.py SETTINGS` on a store of its own; the first, unmeasured round fills it."""
    with tempfile.TemporaryDirectory() as folder:
        return timed(cfg, {"stored run": [*settings, f"store={folder}/store", f"records={folder}/runs"]}, rounds)
