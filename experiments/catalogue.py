"""The experiment files of conf/experiment, composed as Hydra composes them, without torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import harness  # noqa: F401  (its interpolations)
from harness.names import unknown

from .cli import CONF
from .published import Paper
from .records import flat

FOLDER = CONF / "experiment"


@dataclass(frozen=True)
class Experiment:
    """An experiment file.

    Attributes:
        name: of the file.
        config: the resolved configuration of one of its runs, without the paper section.
        sweep: the values of every swept key, in order.
        paper: what it is compared with, or drawn as; None: tables of its records only.
    """

    name: str
    config: dict[str, Any]
    sweep: dict[str, list[str]]
    paper: Paper | None

    @property
    def records(self) -> str:
        """The folder of its records."""
        return self.config["records"]

    def jobs(self) -> list[list[str]]:
        """The overrides of every run: of the sweep, then the single ones that the paper section asks for."""
        pairs = [[f"{key}={value}" for value in values] for key, values in self.sweep.items()]
        single = [[override] for override in self.paper.also] if self.paper else []
        return [*(list(job) for job in itertools.product(*pairs)), *single]


def names() -> list[str]:
    """All experiment files."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def load(name: str, *overrides: str) -> Experiment:
    """An experiment, with overrides of a single run of it. It is composed once; leave it as it is.

    Raises:
        ValueError: there is no such file, or its paper section is not one.
    """
    if name not in names():
        raise unknown("experiment", name, names())
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=[f"+experiment={name}", *overrides], return_hydra_config=True)
    params = OmegaConf.to_container(cfg.hydra.sweeper.params) or {}
    sweep = {key: _choices(value) for key, value in params.items()}
    config = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), resolve=True)
    section = config.pop("paper", None)
    return Experiment(name, config, sweep, None if section is None else Paper.of(section))


def expected(name: str, methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Method -> the flat configuration that the experiment gives it; "" -> the experiment's own.

    Methods that conf/method does not have are left out.
    """
    known = {path.stem for path in (CONF / "method").glob("*.yaml")}
    chosen = {method: load(name, f"method={method}") for method in dict.fromkeys(methods) if method in known}
    return {method: flat(found.config) for method, found in {"": load(name), **chosen}.items()}


def _choices(value: str) -> list[str]:
    """`a,b` of Hydra's basic sweeper as a list; glob(*) stays what it is."""
    return [item.strip() for item in str(value).split(",")]
