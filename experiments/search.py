"""An equal-budget search: `python -m experiments.search FILE [METHOD ...] [--tuning-only | --tuned FOLDER]`.

Every method tries at most `budget` settings on the tuning split. Two of them are then run on the test split, so that no
reported value was chosen on the pictures it is measured on: `searched`, the one with the best overall score, and
`keeping`, the one that forgets most among those that keep 95 % of the unedited model's preserve accuracy; and with them
`defaults`, the method's own values as they are specified. Runs go through the store: a search that was interrupted goes
on where it stopped. With `--tuned FOLDER` the records of an earlier search stand for the runs on the tuning split. All
methods in one table: methods.py.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.files import write_atomic
from harness.names import unknown

from . import values
from .cli import CONF, INTERRUPTED, exit_code, one_line
from .front import FAMILIES, best_keeping, best_overall, points
from .records import flat, read_records
from .tables import NOT_SETTINGS

# Not a file of conf/preset/: the method keeps the values of its own YAML.
NO_PRESET = "preset@_global_=none/none"
# Folders of a search's records: TUNING/METHOD and TEST/ROLE/TASK.
TUNING, TEST = "tuning", "test"
SEARCHED, DEFAULTS, KEEPING = "searched", "defaults", "keeping"


@dataclass
class Search:
    """A search file.

    Attributes:
        budget: most settings a method may try.
        common, tuning, test: overrides of every run, and of the runs on either split.
        tasks: what the chosen settings are run on, on the test split; `keeping` on the first of them only.
        methods: by method, the values to try by key; their product is the grid.
        random, random_test: methods whose edit depends on the seed, and further overrides of their runs on the test
            split, such as `repeats=3`.
        defaults: further overrides of the runs of a method's own values, such as fewer pictures to train on.
    """

    budget: int
    common: list[str]
    tuning: list[str]
    test: list[str]
    tasks: list[str]
    methods: dict[str, dict[str, list[Any]]]
    random: list[str] = field(default_factory=list)
    random_test: list[str] = field(default_factory=list)
    defaults: dict[str, list[str]] = field(default_factory=dict)

    def grid(self, method: str) -> list[list[str]]:
        """The settings of a method as overrides; a method without keys has one, its own.

        Raises:
            ValueError: the file does not know the method, or gives it more settings than the budget.
        """
        if method not in self.methods:
            raise unknown("method of this search", method, self.methods)
        keys = self.methods[method]
        settings = [
            [f"{key}={_literal(value)}" for key, value in zip(keys, chosen)]
            for chosen in itertools.product(*keys.values())
        ]
        if len(settings) > self.budget:
            raise ValueError(f"{method} has {len(settings)} settings, the budget of this search is {self.budget}")
        return settings


@dataclass
class Job:
    """One run of the search: where its record goes, and its overrides."""

    folder: Path
    overrides: list[str]


def read(path: Path) -> Search:
    """A search file; ValueError in one line where it is not one."""
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Search), OmegaConf.load(path)))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; a search is a YAML file such as conf/search/tiny_5v5.yaml") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error


def tuning_jobs(search: Search, method: str, folder: Path) -> list[Job]:
    """The settings of one method on the tuning split."""
    base = [f"method={method}", *search.common, *search.tuning]
    return [Job(folder / TUNING / method, [*base, *setting]) for setting in search.grid(method)]


def test_jobs(search: Search, chosen: Mapping[str, Mapping[str, Sequence[str]]], folder: Path) -> Iterator[Job]:
    """The runs on the test split, task by task and role by role; KEEPING, of the first task only, comes last.

    Args:
        chosen: by method, the settings of the roles SEARCHED and (where a setting keeps enough) KEEPING.
    """
    parts = [*itertools.product(search.tasks, (SEARCHED, DEFAULTS)), (search.tasks[0], KEEPING)]
    for task, role in parts:
        for method, settings in chosen.items():
            own = [NO_PRESET, *search.defaults.get(method, [])] if role == DEFAULTS else settings.get(role)
            if own is None:
                continue
            repeated = search.random_test if method in search.random else []
            base = [f"method={method}", f"task={task}", *search.common, *search.test, *repeated]
            yield Job(folder / TEST / role / task, [*base, *own])


def run(job: Job) -> Path:
    """Run one configuration; returns its record's path."""
    from .config import checked
    from .run import benchmark

    cfg = _composed(job)
    checked(cfg)
    return benchmark(cfg)[1]


def recorded(job: Job, folder: Path) -> Path:
    """The record below `folder` that an earlier search wrote for this job.

    A record leaves out what decides no result, so the two have to agree in every key that both have.

    Raises:
        ValueError: no record has this configuration, or several have.
    """
    wanted = _settings(OmegaConf.to_container(_composed(job), resolve=True))
    found = []
    for path in sorted((folder / TUNING / job.folder.name).glob("*.json")):
        mine = _settings(read_records([path])[0]["config"])
        if all(mine.get(key, value) == value for key, value in wanted.items()):
            found.append(path)
    if len(found) != 1:
        place = folder / TUNING / job.folder.name
        raise ValueError(f"{len(found)} records in {place} have the configuration {' '.join(job.overrides)}, not one")
    return found[0]


def _composed(job: Job) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=[*job.overrides, f"records={job.folder}"])


def _settings(config: Any) -> dict[str, Any]:
    """The keys of a configuration that decide results, by their full names; what a run finds out itself is left out."""
    settings = {key: value for key, value in flat(config).items() if key.split(".")[0] not in NOT_SETTINGS}
    return {key: value for key, value in settings.items() if key != "dtype"}


def choose(paths: Sequence[Path]) -> dict[str, int]:
    """Which of the records, one a setting in the grid's order, has which role; the first of equal ones.

    KEEPING is left out where no setting keeps enough.
    """
    found = points(read_records(paths))
    if len(found) != len(paths):
        raise ValueError(f"{len(paths) - len(found)} of {len(paths)} settings have no accuracy; a search needs all")
    best = {SEARCHED: best_overall(found), KEEPING: best_keeping(found)}
    return {role: found.index(point) for role, point in best.items() if point is not None}


def markdown(rows: Sequence[tuple[str, str, Mapping[str, Any], list[str]]]) -> str:
    """What was tried: (method, setting, record, its roles) as a table."""
    header = ["method", "setting", "forget %", "preserve %", "overall %", "chosen"]
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header))]
    for method, setting, record, chosen in rows:
        shown = [values.show(values.pick_family(record["metrics"], name)) for name in FAMILIES]
        lines.append("| " + " | ".join([method, setting or "its own", *shown, ", ".join(chosen)]) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Search, report on the test split, and write what was tried to FOLDER/METHOD.md."""
    parser = argparse.ArgumentParser(prog="python -m experiments.search", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="only these (default: all of the file)")
    stages = parser.add_mutually_exclusive_group()
    stages.add_argument("--tuning-only", action="store_true", help="stop before the test split")
    stages.add_argument("--tuned", type=Path, metavar="FOLDER", help="records of an earlier search, with its tuning/")
    parser.add_argument("--out", type=Path, help="folder of the records (default: runs/search/NAME)")
    options = parser.parse_intermixed_args(argv)
    try:
        search = read(options.file)
        methods = options.methods or list(search.methods)
        grids = {method: search.grid(method) for method in methods}
        folder = options.out or Path("runs") / "search" / options.file.stem
        chosen = {}
        for method, settings in grids.items():
            jobs = tuning_jobs(search, method, folder)
            paths = [recorded(job, options.tuned) if options.tuned else run(job) for job in jobs]
            roles = choose(paths)
            chosen[method] = {role: settings[i] for role, i in roles.items()}
            tried = markdown(
                [
                    (method, " ".join(setting), record, [role for role, at in roles.items() if at == i])
                    for i, (setting, record) in enumerate(zip(settings, read_records(paths), strict=True))
                ]
            )
            write_atomic(folder / f"{method}.md", tried.encode())
            print(tried, flush=True)
        if not options.tuning_only:
            for job in test_jobs(search, chosen, folder):
                print(f"record: {run(job)}", flush=True)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        print(one_line(error), file=sys.stderr)
        return exit_code(error)
    return 0


def _literal(value: Any) -> str:
    """A value as Hydra's command line reads it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.exit(main())
