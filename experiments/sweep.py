"""A multirun: every job leaves its outcome in its folder, and the end gathers them into one table.

The outcomes go through files, so that launchers that run jobs in other processes (joblib, submitit, ray) work the same
(docs/launchers.md).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from harness.files import write_atomic

log = logging.getLogger(__name__)

OUTCOME = "outcome.json"
SCHEDULER_LOGS = ".submitit"
# What Hydra writes into a multirun's folder, beside one folder a job.
OVERRIDES = "multirun.yaml"
ROOT = Path(__file__).resolve().parents[1]
# Of this process's multirun: its folder (None in a single run), and once it has ended one line a failed job, and the
# exit codes that these jobs would have had alone.
folder: Path | None = None
failures: list[str] = []
codes: list[int] = []
# The folder and those above it, as far as this multirun had to make them, the nearest first; and what was in it before.
_made: list[Path] = []
_before: set[str] = set()


def is_multirun() -> bool:
    """True within a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def group() -> str | None:
    """The name of the multirun's folder, under which a logger can show its jobs together; None in a single run."""
    return Path(HydraConfig.get().sweep.dir).name if is_multirun() else None


def has_neighbours() -> bool:
    """True within a job beside which others run: Hydra's own launcher runs one after the other."""
    return is_multirun() and not HydraConfig.get().launcher._target_.endswith(".BasicLauncher")


def keep_outcome(record: Path | None = None, error: str | None = None, code: int = 0) -> None:
    """Write the running job's outcome into its folder: the record's path, or why it failed, and its exit code."""
    hydra = HydraConfig.get()
    outcome = {
        "overrides": list(hydra.overrides.task),
        "record": None if record is None else str(record.absolute()),
        "error": error,
        "code": code,
    }
    if error is not None:
        log.error("job %s failed: %s", hydra.job.num, error)
    write_atomic(Path(hydra.runtime.output_dir) / OUTCOME, json.dumps(outcome, indent=1).encode())


def reset() -> None:
    """Forget the multirun before; one process may start several."""
    global folder
    folder = None
    failures.clear()
    codes.clear()


def forget_empty() -> None:
    """Remove what a multirun without a record made: bad input leaves nothing behind, but a scheduler's logs.

    What lay in the folder before is not touched.
    """
    if folder is None or not folder.is_dir() or (folder / SCHEDULER_LOGS).exists():
        return
    if any(outcome["record"] for outcome in _outcomes(folder)):
        return
    for path in folder.iterdir():
        ours = path.name not in _before
        if path.name.isdigit():
            shutil.rmtree(path) if ours else (path / OUTCOME).unlink(missing_ok=True)
        elif path.name == OVERRIDES and ours:
            path.unlink()
    for place in _made:
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def _outcomes(place: Path) -> list[dict[str, Any]]:
    """What the jobs left, in the jobs' order. A job whose process was killed left a folder and nothing in it."""
    found = []
    for job in sorted((path for path in place.glob("*") if path.name.isdigit()), key=lambda path: int(path.name)):
        path = job / OUTCOME
        killed = {"overrides": [f"job {job.name}"], "record": None, "error": "its process ended before it did"}
        found.append(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else killed)
    return found


class Gather(Callback):
    """Hydra callback (conf/config.yaml): prints the combined table and the failures of a multirun."""

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        global folder
        folder = Path(config.hydra.sweep.dir).absolute()
        _made[:] = [place for place in (folder, *folder.parents) if not place.exists()]
        _before.clear()
        if folder.is_dir():
            _before.update(path.name for path in folder.iterdir())
        # Jobs in other processes import our rooms from wherever they were started.
        paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        # Hydra turns what a callback raises into a warning; a table that cannot be made must not look like success.
        try:
            gather(Path(config.hydra.sweep.dir).absolute())
        except Exception as error:
            failures.append(str(error))
            log.error("the combined table could not be made: %s", error)


def rescue() -> None:
    """Print the table of what a multirun did before its launcher failed, such as by a killed process."""
    if folder is None or failures or not any(outcome["record"] for outcome in _outcomes(folder)):
        return
    try:
        gather(folder)
    except Exception as error:  # the launcher's own failure is what the run ends with
        log.error("the combined table could not be made: %s", error)


def gather(place: Path) -> None:
    """Print what all finished jobs below `place` measured, one table a task and model, then one line a failed job (also
    kept in `failures`)."""
    outcomes = _outcomes(place)
    records = [Path(outcome["record"]) for outcome in outcomes if outcome["record"]]
    if records:
        from .compare import against_first
        from .tables import about, of_records, read_records

        groups: dict[tuple[str, ...], list[Path]] = {}
        for path, record in zip(records, read_records(records), strict=True):
            groups.setdefault(about(record), []).append(path)
        parts = []
        for paths in groups.values():
            parts.append(of_records(read_records(paths), "md"))
            print(f"\n{parts[-1]}")
            (place / "table.md").write_text("\n".join(parts), encoding="utf-8")
            try:
                differences = "\n".join(against_first(paths))
            except Exception as error:  # a supplement to what stands already
                differences = f"No differences between methods: {error}"
            if differences:
                print(differences)
                parts.append(f"{differences}\n")
                (place / "table.md").write_text("\n".join(parts), encoding="utf-8")
    for outcome in outcomes:
        if outcome["error"]:
            failures.append(f"{' '.join(outcome['overrides'])}: {outcome['error']}")
            codes.append(outcome.get("code", 1))
            log.error("failed: %s", failures[-1])
    log.info("%d of %d jobs done", len(outcomes) - len(failures), len(outcomes))
    for path in records:
        print(f"record: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
