"""One command runs method x task x model: `python run.py method=fia task=imagenette_5v5 model=tiny`.

The configuration lies in conf/; `python run.py --help` lists every choice. Exit codes: 0 done, 1 a run failed, 2 bad
input (one line), 130 interrupted, 143 terminated. The last line of a successful run is `record: PATH`. With `-m` every
combination of comma-separated values is run, a failed job does not stop the others, and one table of all of them ends
the run. `accelerate launch --multi_gpu --num_processes 8 run.py ...` makes one run on eight GPUs.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import hydra
from omegaconf import DictConfig

from experiments import cli, sweep
from harness import processes

# Errors of a single run are kept here: Hydra would print a line of its own for what it sees raised.
caught: list[BaseException] = []


@hydra.main(version_base="1.3", config_path=str(cli.CONF), config_name="config")
def job(cfg: DictConfig) -> None:
    """One run, alone or as a job of a multirun, which goes on when a job fails."""
    try:
        path = cli.run_one(cfg)
    except Exception as error:
        caught.append(error)
        if sweep.is_multirun():
            cli.show_traceback(cfg.debug, error)
            sweep.keep_outcome(error=cli.one_line(error), code=cli.exit_code(error))
    else:
        if sweep.is_multirun():
            sweep.keep_outcome(record=path)


@contextmanager
def termination() -> Iterator[None]:
    """Within this, SIGTERM ends the run as Ctrl-C does: what is half made is removed, and the exit is clean."""

    def end(*_: object) -> None:
        raise cli.Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: list[str]) -> int:
    """Run the command line `argv` and return the exit code."""
    # Hydra then raises what is wrong with the command line, instead of printing it and exiting with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    processes.hush()
    caught.clear()
    sweep.reset()
    try:
        sys.argv[1:] = cli.ordered(argv)
        with termination():
            job()
        if sweep.folder is None and caught:
            raise caught[0]
    except KeyboardInterrupt as error:
        if processes.speaks():
            print(cli.interruption(error, argv), file=sys.stderr)
        return cli.TERMINATED if isinstance(error, cli.Terminated) else cli.INTERRUPTED
    except Exception as error:
        sweep.rescue()
        if processes.speaks():
            cli.show_traceback("debug=true" in argv or "debug=True" in argv, error)
            print(f"{processes.name()}{cli.one_line(error, argv)}", file=sys.stderr)
        return cli.exit_code(error)
    finally:
        sweep.forget_empty()
    if not sweep.failures:
        return cli.DONE
    # A table that could not be made is a failure without a code.
    return cli.BAD_INPUT if sweep.codes == [cli.BAD_INPUT] * len(sweep.failures) else cli.FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
