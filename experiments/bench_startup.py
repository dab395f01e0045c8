"""How soon a run starts (`python -m experiments.bench`): the command line's help, and a dry run.

Each is a process of its own, from the start of the interpreter to its end.
"""

from __future__ import annotations

import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from .goals import Goal
from .setup import setup

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
# Of the configuration that says which device and dtype `auto` is; the commands have settings of their own.
SETTINGS = ("edit_only=true",)
MOST = {"help": 2, "stored run": 10}  # seconds


def measure(cfg: DictConfig, settings: Sequence[str], rounds: int) -> dict[str, Any]:
    """Time `run.py --help` and `run.py dry_run=true SETTINGS` in turn, after one unmeasured round.

    Returns:
        JSON values: what was run, `rounds` (seconds), `medians`.
    """
    with tempfile.TemporaryDirectory() as folder:
        commands = {"help": ["--help"], "dry run": [*settings, "dry_run=true", f"store={folder}/store"]}
        return timed(cfg, commands, rounds)


def timed(cfg: DictConfig, commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, Any]:
    """Time runs of run.py with these arguments in turn; the first round, which finds cold files, does not count."""
    parts = setup(cfg)
    found: list[dict[str, float]] = []
    for number in range(rounds + 1):
        seconds = {name: _seconds(arguments) for name, arguments in commands.items()}
        if number:
            found.append(seconds)
            log.info("round %d of %d", number, rounds)
    return {
        "model": cfg.model.name,
        "words": f"{cfg.method.name} on {cfg.model.name}",
        "device": str(parts.device),
        "dtype": parts.config["dtype"],
        "rounds": found,
        "medians": {name: statistics.median(one[name] for one in found) for name in commands},
    }


def goals(result: Mapping[str, Any]) -> list[Goal]:
    """Of what is in MOST."""
    return [Goal(f"{name}, s", seconds, MOST[name]) for name, seconds in result["medians"].items() if name in MOST]


def _seconds(arguments: Sequence[str]) -> float:
    """Seconds of one run of run.py.

    Raises:
        RuntimeError: it failed; the message ends with what it said.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "run.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise RuntimeError(f"run.py {' '.join(arguments)} ended with {done.returncode}: {said}")
    return time.perf_counter() - start


def rows(result: Mapping[str, Any]) -> list[str]:
    """The medians as rows of a table."""
    return [f"| {name}, s from start to end | {value:.1f} |" for name, value in result["medians"].items()]
