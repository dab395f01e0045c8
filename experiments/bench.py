"""How fast masks, pictures and closed forms are made and pictures judged, and how soon a run starts, on this machine.

    python -m experiments.bench                                      the tiny world, on the device that a run would use
    python -m experiments.bench --rounds 5 --parts pictures model=sd15          settings as for run.py
    python -m experiments.bench --random device=cuda                 SD 1.5's shapes with random weights
    python -m experiments.bench --random model=sdxl device=cuda      SDXL's
    python -m experiments.bench --parts released --released DIR      FIA beside its authors' program
    python -m experiments.bench --parts masks,pictures --profile     also which operations take the time (operations.py)

    pictures   whole pictures in batches, packed and stored, beside stock diffusers with one picture a call
               (bench_pictures.py)
    judges     every metric's scores of pictures in memory and of the same pictures in the store, beside the making of
               pictures (bench_judges.py)
    startup    `run.py --help` and a dry run, each as a process of its own (bench_startup.py)
    closed     edits in closed form for fifty concepts (bench_closed.py)
    masks      what FIA's statistics add to bare denoising (bench_masks.py)
    stored     a whole run whose results are all in the store, once it has been made (bench_stored.py)
    released   FIA beside the program that its authors released, in a folder of yours (bench_released.py); only where
               that folder is named

What is compared takes turns within one process, round after round, so that a machine that slows down slows all of it.
Every round with versions and hardware is written to results/bench/PART-MODEL-DEVICE.json, in another dtype than float32
or compiled PART-MODEL-DEVICE-DTYPE-compiled.json, the medians as a table beside it. Both are overwritten by the next
measurement of their name; what docs/performance.md quotes is copied to results/bench_kept/, which git keeps. Where a
part has goals, the table says which are met, and a missed one ends the command with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra import compose, initialize_config_dir

from . import cli, goals
from .random_weights import random_model

RESULTS = Path(__file__).resolve().parents[1] / "results" / "bench"
# Of each part the module bench_NAME.py, with `measure(cfg, settings, rounds)`, `rows(result)`, SETTINGS that hold
# whatever is said, and where it has them `goals(result)` and DEFAULTS that hold unless something else is said.
USUAL = ("pictures", "judges", "startup", "closed", "masks", "stored")
# Judges of published models want pictures that mean something, and weights of their own.
OF_RANDOM_WEIGHTS = ("pictures", "closed", "masks")
OF_GPUS = ("sd15", "sdxl")  # what --random makes; the first where no model is named
PARTS = (*USUAL, "released")
PROFILED = ("masks", "pictures")
VERSIONS = ("python", "torch", "diffusers", "transformers", "numpy")


def run(name: str, settings: Sequence[str], rounds: int, profile: bool = False, **more: Any) -> tuple[Path, str]:
    """Measure one part, write its JSON and its table, print the table.

    Args:
        profile: also see which operations take its time, of the parts that PROFILED names.
        more: what the part's `measure` takes besides.

    Returns:
        The JSON's path, and what the measurement found to be wrong, or "".
    """
    from harness.files import write_atomic
    from harness.record import environment

    part = _module(name)
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        cfg = compose("config", overrides=[*getattr(part, "DEFAULTS", ()), *settings, *part.SETTINGS])
    result = {**part.measure(cfg, settings, rounds, **more), "environment": environment()}
    path = RESULTS / f"{name}-{_of_what(result)}.json"
    rows = part.rows(result)
    if hasattr(part, "goals"):
        wanted = part.goals(result)
        rows += goals.rows(wanted)
        result["goals"] = goals.as_json(wanted)
        result["wrong"] = "; ".join(filter(None, [result.get("wrong", ""), goals.missed(wanted)]))
    if profile:
        from . import operations

        result["operations"] = operations.of_part(name, cfg, **more)
        rows += operations.rows(result["operations"])
    table = "\n".join([heading(result), "", "| what | value |", "| --- | ---: |", *rows, "", versions(result), ""])
    write_atomic(path, (json.dumps(result, indent=1) + "\n").encode())
    write_atomic(path.with_suffix(".md"), table.encode())
    print(table)
    return path, result.get("wrong", "")


def _of_what(result: dict) -> str:
    """Model, device and what else tells measurements of one part apart, as a part of file names."""
    own = [result["dtype"]] if result["dtype"] != "float32" else []
    own += ["compiled"] if result.get("compile") else []
    return "-".join([result["model"], result["device"].replace(":", ""), *own])


def heading(result: dict) -> str:
    """What was measured, where and how often, in one line."""
    hardware = result["environment"]["hardware"]
    where = ", ".join(hardware["gpus"]) if result["device"].startswith("cuda") else hardware["cpu"]
    return (
        f"{result['words']}, {result['dtype']} on {result['device']} ({where}, {hardware['threads']} threads); medians "
        f"of {len(result['rounds'])} rounds"
    )


def versions(result: dict) -> str:
    """The commit and the libraries that a speed depends on, in one line; the JSON has all."""
    known, code = result["environment"]["versions"], result["environment"]["code"]
    commit = f"commit {code['commit'][:12]}{', changed since' if code['dirty'] else ''}" if code["commit"] else ""
    return "; ".join(filter(None, [", ".join(f"{name} {known[name]}" for name in VERSIONS), commit]))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.bench_{name}")


def _random_size(name: str, options: argparse.Namespace) -> str | None:
    """The model with random weights that a part runs on (`random_weights`); None where settings name the model."""
    if options.random:
        return next((size for size in OF_GPUS if f"model={size}" in options.settings), OF_GPUS[0])
    named = any(item.startswith(("model=", "model.")) for item in options.settings)
    return None if named else getattr(_module(name), "RANDOM", None)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; 1 where what was measured is wrong, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", help=f"of {','.join(PARTS)}; default: {','.join(USUAL)}, and what options add")
    parser.add_argument(
        "--random",
        action="store_true",
        help="SD 1.5's shapes with random weights instead of a model, or SDXL's with model=sdxl; --parts is then "
        + ",".join(OF_RANDOM_WEIGHTS),
    )
    parser.add_argument("--released", type=Path, metavar="DIR", help="a clone of FIA's released program")
    parser.add_argument("--steps", type=int, help="masks: UNet calls of every walk; default: the method's own")
    parser.add_argument("--concepts", type=int, default=2, help="masks: of the task's; default: %(default)s")
    parser.add_argument(
        "--profile",
        action="store_true",
        help=f"{', '.join(PROFILED)}: which operations take the time, by one more pass",
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as for run.py")
    options = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for option in ("rounds", "steps", "concepts"):
            number = getattr(options, option)
            if number is not None and number < 1:
                raise ValueError(f"--{option} {number}: at least 1")
        other = [item for item in options.settings if item.startswith("model=") and item[6:] not in OF_GPUS]
        if options.random and other:
            raise ValueError(f"--random {other[0]}: random weights are made for {' and '.join(OF_GPUS)}")
        usual = OF_RANDOM_WEIGHTS if options.random else USUAL
        names = options.parts.split(",") if options.parts else [*usual, *(["released"] if options.released else [])]
        for name in names:
            if name not in PARTS:
                raise ValueError(f"--parts {name}: there are {', '.join(PARTS)}")
        if "released" in names and options.released is None:
            raise ValueError("--parts released: say --released DIR, a clone of FIA's released program")
        if options.profile and not set(names) & set(PROFILED):
            raise ValueError(f"--profile: there is nothing to profile in {','.join(names)}; say --parts {PROFILED[0]}")
        profile = {"profile": True} if options.profile else {}
        more: dict[str, dict[str, Any]] = {
            "masks": {"steps": options.steps, "concepts": options.concepts, **profile},
            "pictures": profile,
            "released": {"folder": options.released},
        }
        done = []
        with contextlib.ExitStack() as models:
            random = functools.cache(lambda size: models.enter_context(random_model(size)))
            for name in names:
                size = _random_size(name, options)
                settings = [*(random(size) if size else []), *(x for x in options.settings if x != f"model={size}")]
                done.append(run(name, settings, options.rounds, **more.get(name, {})))
    except Exception as error:
        if cli.exit_code(error) != cli.BAD_INPUT:
            raise
        print(cli.one_line(error, options.settings), file=sys.stderr)
        return cli.BAD_INPUT
    for path, _ in done:
        print(f"written: {path.relative_to(RESULTS.parents[1])}")
    wrong = [f"{path.name}: {words}" for path, words in done if words]
    for line in wrong:
        print(line, file=sys.stderr)
    return cli.FAILED if wrong else cli.DONE


if __name__ == "__main__":
    sys.exit(main())
