"""How fast pictures are made and judged, and how soon a run starts, on this machine.

    python -m experiments.bench                                      the tiny world, on the device that a run would use
    python -m experiments.bench --rounds 5 --parts pictures model=sd15          settings as for run.py
    python -m experiments.bench --parts pictures --random device=cuda           SD 1.5's shapes with random weights

    pictures   whole pictures in batches, packed and stored, beside stock diffusers with one picture a call
               (bench_pictures.py)
    judges     every metric's scores of pictures in memory and of the same pictures in the store (bench_judges.py)
    startup    `run.py --help` and a dry run, each as a process of its own (bench_startup.py)
    closed     edits in closed form for fifty concepts (bench_closed.py); only where it is asked for
    stored     a whole run whose results are all in the store; only where it is asked for, as it is made first

What is compared takes turns within one process, round after round, so that a machine that slows down slows all of it.
Every round with the hardware is written to results/bench/PART-MODEL-DEVICE.json, the medians as a table beside it.
FIA's masks have a command of their own: `python -m experiments.bench_masks`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir

from . import cli

RESULTS = Path(__file__).resolve().parents[1] / "results" / "bench"
# Part: the module with its `measure(settings, rounds)` and `table(result)`.
NAMES = ("pictures", "judges", "startup", "closed", "stored")
PARTS = {name: f"bench_{name}" for name in NAMES}
USUAL = ("pictures", "judges", "startup")


def run(name: str, settings: Sequence[str], rounds: int) -> Path:
    """Measure one part, write its JSON and its table, print the table; the JSON's path."""
    from harness.files import write_atomic
    from harness.record import environment

    part = importlib.import_module(f"{__package__}.{PARTS[name]}")
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        cfg = compose("config", overrides=[*settings, *part.SETTINGS])
    result = {**part.measure(cfg, settings, rounds), "environment": environment()}
    path = RESULTS / f"{name}-{result['model']}-{result['device'].replace(':', '')}.json"
    table = "\n".join([heading(result), "", "| what | value |", "| --- | ---: |", *part.rows(result), ""])
    write_atomic(path, (json.dumps(result, indent=1) + "\n").encode())
    write_atomic(path.with_suffix(".md"), table.encode())
    print(table)
    return path


def heading(result: dict) -> str:
    """What was measured, where and how often, in one line."""
    hardware = result["environment"]["hardware"]
    where = ", ".join(hardware["gpus"]) if result["device"].startswith("cuda") else hardware["cpu"]
    return (
        f"{result['words']}, {result['dtype']} on {result['device']} ({where}, {hardware['threads']} threads); medians "
        f"of {len(result['rounds'])} rounds"
    )


@contextlib.contextmanager
def random_model(wanted: bool) -> Iterator[list[str]]:
    """Settings that name a model of SD 1.5's shapes with random weights, for as long as the block lasts."""
    if not wanted:
        yield []
        return
    from .bench_pictures import save_random_sd

    with tempfile.TemporaryDirectory() as folder:
        save_random_sd(Path(folder))
        yield [
            "model=sd15",
            "model.name=sd15-random",
            f"model.path={folder}",
            "model.words='SD 1.5 with random weights'",
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", default=",".join(USUAL), help=f"of {','.join(PARTS)}; default: %(default)s")
    parser.add_argument("--random", action="store_true", help="SD 1.5's shapes with random weights instead of a model")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as for run.py")
    options = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if options.rounds < 1:
            raise ValueError(f"--rounds {options.rounds}: at least 1")
        names = options.parts.split(",")
        for name in names:
            if name not in PARTS:
                raise ValueError(f"--parts {name}: there are {', '.join(PARTS)}")
        with random_model(options.random) as model:
            paths = [run(name, [*model, *options.settings], options.rounds) for name in names]
    except Exception as error:
        if cli.exit_code(error) != cli.BAD_INPUT:
            raise
        print(cli.one_line(error, options.settings), file=sys.stderr)
        return cli.BAD_INPUT
    for path in paths:
        print(f"written: {path.relative_to(RESULTS.parents[1])}")
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())
