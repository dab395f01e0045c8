"""One command runs method x task x model: `python run.py method=fia task=imagenette_5v5 model=tiny`.

The configuration lies in conf/; `python run.py --help` lists every choice. Exit codes: 0 done, 1 a run failed, 2 bad
input (one line), 130 interrupted. The last line of a successful run is `record: PATH`. With `-m` every combination of
comma-separated values is run, a failed job does not stop the others, and one table of all of them ends the run.
"""

from __future__ import annotations

import os
import sys

import hydra
from omegaconf import DictConfig

from experiments import cli, sweep

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
            sweep.keep_outcome(error=cli.one_line(error))
    else:
        if sweep.is_multirun():
            sweep.keep_outcome(record=path)


def main(argv: list[str]) -> int:
    """Run the command line `argv` and return the exit code."""
    # Hydra then raises what is wrong with the command line, instead of printing it and exiting with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    caught.clear()
    sweep.reset()
    try:
        sys.argv[1:] = cli.ordered(argv)
        job()
        if sweep.folder is None and caught:
            raise caught[0]
    except KeyboardInterrupt:
        print("interrupted: what was computed is stored; the same command goes on from there", file=sys.stderr)
        return cli.INTERRUPTED
    except Exception as error:
        cli.show_traceback("debug=true" in argv or "debug=True" in argv, error)
        print(cli.one_line(error, argv), file=sys.stderr)
        return cli.exit_code(error)
    finally:
        sweep.forget_empty()
    return cli.FAILED if sweep.failures else cli.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
