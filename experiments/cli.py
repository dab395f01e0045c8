"""What the command line says: one line for bad input, exit codes, and the printing around a run.

Nothing heavy is imported here; `run.py --help` has to answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.main import get_args_parser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness import processes
from harness.names import unknown

DONE, FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
CONF = Path(__file__).resolve().parents[1] / "conf"
ROOMS = {"harness", "fia", "baselines", "eval", "tinyworld", "experiments", "__main__"}


# What a chain of causes holds where the input was right and the network failed; the Hub's client has its own classes.
NETWORK = {
    *("URLError", "SSLError", "HTTPException", "ConnectionError", "TimeoutError"),
    *("DownloadFailed", "TransportError", "LocalEntryNotFoundError"),
}
# Our own that are no bad input: the same input may do with other settings, or on another machine.
FAILURES = {"NoEffectError", "NoDevice"}


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), as schedulers do before they kill."""


# Hydra's own; it answers an unknown one with its whole usage. Its --experimental-rerun would open a pickle.
OPTIONS = (
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r"),
    *("--multirun", "-m", "--shell-completion", "-sc", "--config-path", "-cp", "--config-name", "-cn"),
    *("--config-dir", "-cd", "--info", "-i"),
)


def run_one(cfg: DictConfig) -> Path | None:
    """Run one configuration, print its result, and return the record's path (None for a dry run and a replay, and
    in every process but the main one)."""
    if cfg.replay is not None:
        if processes.count() > 1:
            raise ValueError("replay runs on one process; start it with python")
        from .replay import replay

        hydra = HydraConfig.get()
        folders = [source.path for source in hydra.runtime.config_sources if source.schema == "file"]
        replay(cfg, hydra.overrides.task, folders)
        return None
    from .config import checked

    checked(cfg)  # before torch is imported
    from .run import benchmark, plan
    from .show import show_plan, show_record

    if cfg.dry_run:
        if processes.rank() == 0:
            show_plan(plan(cfg))
        return None
    record, path = benchmark(cfg)
    if processes.rank() > 0:
        return None
    show_record(record)
    print(f"record: {path}", flush=True)
    return path


def ordered(argv: Sequence[str]) -> list[str]:
    """The command line with its options known and `-m` in front: Hydra takes it only before the first key=value.

    Raises:
        ValueError: an unknown option, one with a wrong value, or a multirun without a folder.
    """
    for item in argv:
        if item.startswith("-") and item.partition("=")[0] not in OPTIONS:
            raise unknown("option", item, [name for name in OPTIONS if name.startswith("--")])
    many = [item for item in argv if item in ("-m", "--multirun")]
    if many and processes.count() > 1:
        raise ValueError("-m: a multirun starts on one process; a launcher gives each job a GPU (docs/launchers.md)")
    for item in argv:
        name, _, value = item.partition("=")
        if name.lstrip("+~") == "hydra.sweep.dir" and value.strip("'\" ") in ("", "null"):
            raise ValueError(f"{item}: name a folder for the jobs of the multirun, or leave it out")
    found = [*many[:1], *(item for item in argv if item not in many)]
    _check_options(found)
    return found


def _check_options(argv: Sequence[str]) -> None:
    """Raise ValueError where Hydra would print its whole usage."""

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{message} (python run.py --hydra-help lists the options)")

    if "--version" not in argv:  # answered while it is parsed
        parser = get_args_parser()
        parser.error = refuse
        parser.parse_args(list(argv))


def exit_code(error: BaseException) -> int:
    """2 where the input was at fault, else 1.

    Our own modules raise ValueError for bad input on purpose. A ValueError from deep inside a library is a failure, and
    so is one of ours that a network caused: the same input may do later.
    """
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        # What is made from the configuration refuses what it is given, a user's own method too.
        return BAD_INPUT if isinstance(error.__cause__, TypeError | ValueError) else exit_code(error.__cause__)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return BAD_INPUT
    if type(error).__name__ in FAILURES or _network_failed(error):
        return FAILED
    return BAD_INPUT if isinstance(error, ValueError) and _raised_by_us(error.__traceback__) else FAILED


def interruption(error: KeyboardInterrupt, argv: Sequence[str]) -> str:
    """What to say when a run is interrupted or terminated."""
    words = "terminated" if isinstance(error, Terminated) else "interrupted"
    said = {item.partition("=")[0] for item in argv}
    if "replay" in said and "store" not in said:
        return f"{words}: a replay keeps nothing; with store=DIR the same command goes on where it stopped"
    return f"{words}: what was computed is stored; the same command goes on from there"


def one_line(error: BaseException, argv: Sequence[str] = ()) -> str:
    """The error in one line: what, where, and what would be right."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        where = re.search(r"full_key: (\S+)", str(error))
        return f"{where.group(1)}: {one_line(error.__cause__)}" if where else one_line(error.__cause__)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher":
            known = ", ".join(sorted(error.options))
            return f"unknown hydra/launcher {name!r}; installed: {known}; others are plugins (docs/launchers.md)"
        return str(unknown(group or "configuration", name, [option.removesuffix(".yaml") for option in error.options]))
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: {_first_line(error.message)} (write key=value; quote lists and spaces)"
    if isinstance(error, ConfigCompositionException):
        return _composition(error, argv)
    if isinstance(error, CompactHydraException | OmegaConfBaseException | ValueError):
        return _first_line(str(error)) or type(error).__name__
    return f"{type(error).__name__}: {_first_line(str(error))}"


def print_json(measure: Callable[[], Any], arguments: Sequence[str]) -> int:
    """Print what `measure` gives as JSON, or its error in one line; the exit code."""
    try:
        result = measure()
    except Exception as error:
        print(one_line(error, arguments), file=sys.stderr)
        return exit_code(error)
    print(json.dumps(result, indent=1))
    return DONE


def show_traceback(debug: bool, error: BaseException) -> None:
    """Print the traceback where `debug` asks for it."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)


def _composition(error: ConfigCompositionException, argv: Sequence[str]) -> str:
    text = str(error)
    if text.startswith("Ambiguous value"):
        return f"{_first_line(text)}: say -m to run each of the values, or quote one value that has commas"
    key = re.search(r"Could not override '([^']+)'", text)
    if key is None:
        cause = f" ({_first_line(str(error.__cause__))})" if error.__cause__ is not None else ""
        return f"{_first_line(text)}{cause}"
    name = key.group(1)
    known = known_keys(argv)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.75)
    # `alhpa` is more likely meant as `method.alpha` than as anything at the root.
    ends = {path.rpartition(".")[2]: path for path in known}
    near += [ends[end] for end in difflib.get_close_matches(name.rpartition(".")[2], ends, n=2, cutoff=0.75)]
    near = list(dict.fromkeys(near))[:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "`python run.py --cfg job` shows every key"
    return f"unknown key {name!r}; {hint}"


def known_keys(argv: Sequence[str]) -> list[str]:
    """Every key of the configuration that the valid group choices of `argv` compose, dotted; empty if none compose."""
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    chosen = [item for item in argv if item.partition("=")[0] in groups and "," not in item]
    own = [f"hydra.searchpath=[file://{Path(folder).absolute()}]" for folder in _config_dirs(argv)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for overrides in ([*own, *chosen], own):
            try:
                cfg = OmegaConf.to_container(compose("config", overrides=overrides), resolve=False)
            except HydraException:  # a second mistake on the same line
                continue
            return sorted(_dotted(cfg))
    return []


def _config_dirs(argv: Sequence[str]) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd", dest="folder")
    folder = parser.parse_known_args(list(argv))[0].folder
    return [folder] if folder else []


def _dotted(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _raised_by_us(trace: TracebackType | None) -> bool:
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] in ROOMS


def _network_failed(error: BaseException | None) -> bool:
    while error is not None:
        if NETWORK & {kind.__name__ for kind in type(error).__mro__}:
            return True
        error = error.__cause__
    return False
