"""The configuration of a run as plain JSON, with every check that needs neither torch nor a method's code.

A wrong value is answered here in about a second; `setup` checks what is left, once torch is loaded.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from harness import sources, weights
from harness.folder import EXPORTED
from harness.names import unknown
from harness.task import PROMPTS, caption_list, check_captions

from .targets import require_own

ROOT_KEYS = (
    "method", "task", "model", "suite", "sampler", "quality", "schedule", "order", "repeats", "logger", "store",
    "records", "device", "dtype", "seed", "dry_run", "edit_only", "export", "replay", "allow_noop", "debug",
)  # fmt: skip
FLAGS = ("dry_run", "edit_only", "allow_noop", "debug")


def checked(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as a plain dictionary.

    Raises:
        ValueError: one line that names the setting, what is wrong with it and what would be right.
    """
    config = _resolved(cfg)
    _check_root(config)
    require_own(config)
    _check_device_and_dtypes(config)
    instantiate(OmegaConf.create(config["sampler"]))
    # The model before the prompts: they may have to be downloaded, which is in vain without a model.
    _check_model(config["model"])
    _check_task(config["task"])
    check_captions(config["quality"]["n"])
    caption_list(config["suite"], config["quality"].get("list"))
    return config


def dotted(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in a nested configuration that is not a mapping itself."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as a plain dictionary, with every `???` named."""
    for name, value in dotted(OmegaConf.to_container(cfg, resolve=False)):
        if value == "???":
            raise ValueError(f"{name} is not set: say {name}=...")
    config = OmegaConf.to_container(cfg, resolve=True)
    # Hydra's own, and what an experiment is compared with: neither decides what a run computes.
    for name in ("hydra", "paper"):
        config.pop(name, None)
    return config


def _check_root(config: Mapping[str, Any]) -> None:
    for name in config:
        if name not in ROOT_KEYS:
            raise unknown("key", name, ROOT_KEYS)
    for name in ("method", "task", "model", "suite", "sampler", "quality", "logger"):
        if not isinstance(config[name], Mapping):
            raise ValueError(f"{name}={config[name]!r} does not name a file of conf/{name}/")
    for name in FLAGS:
        if not isinstance(config[name], bool):
            raise ValueError(f"{name}={config[name]!r}: say true or false")
    seed = config["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed!r}: an integer from 0 to 2^63 - 1")
    if config["schedule"] not in ("joint", "sequential", "merged"):
        raise unknown("schedule", config["schedule"], ("joint", "sequential", "merged"))
    order = config["order"]
    if order != "given" and (isinstance(order, bool) or not isinstance(order, int) or order < 0):
        raise ValueError(f"order={order!r}: say given, or a seed (a whole number from 0)")
    repeats = config["repeats"]
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"repeats={repeats!r}: a whole number of at least 1")
    if seed + repeats > 2**63:
        raise ValueError(f"seed={seed} with repeats={repeats}: the last repeat's seed is above 2^63 - 1")
    if repeats > 1 and config["schedule"] == "sequential":
        raise ValueError("repeats>1 is not available with schedule=sequential; sweep over seed=0,1,2 instead")
    if config["replay"] is not None:
        raise ValueError("replay is not available here: experiments.replay runs a record, `benchmark` a configuration")
    for name in ("store", "records"):
        if not isinstance(config[name], str) or not config[name].strip():
            raise ValueError(f"{name}={config[name]!r}: name a folder")
        if Path(config[name]).expanduser().is_file():
            raise ValueError(f"{name}={config[name]} is a file; name a folder")
    if config["export"] is not None:
        target = Path(str(config["export"])).expanduser()
        # An earlier export may be this edit's, of a run that was stopped later; `export` looks.
        if target.exists() and not (target / EXPORTED).is_file() and (not target.is_dir() or any(target.iterdir())):
            raise ValueError(f"export={target} exists and is not an empty folder; name a new one")


def _check_device_and_dtypes(config: Mapping[str, Any]) -> None:
    """How they are written; whether the machine has the device is for `setup` to see."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(config["device"])):
        raise ValueError(f"device={config['device']!r}: say auto, cpu, cuda, cuda:1 or mps")
    model = config["model"]
    for name, value, other in (
        ("dtype", config["dtype"], "auto"),
        ("model.dtype", model.get("dtype"), None),
        ("model.vae_dtype", model.get("vae_dtype"), None),
    ):
        if value != other and weights.dtype_name(value) not in weights.DTYPES:
            raise unknown(name, value, weights.DTYPES)


def _check_model(model: Mapping[str, Any]) -> None:
    for name in ("size", "batch_size"):
        value = model.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"model.{name}={value!r}: a whole number of at least 1, or null")
    if not isinstance(model.get("compile", False), bool):
        raise ValueError(f"model.compile={model['compile']!r}: say true or false")
    if not isinstance(model["path"], str) or not model["path"].strip():
        raise ValueError(f"model.path={model['path']!r}: name a diffusers folder, a .safetensors file or a Hub id")
    weights.local(model["path"])


def _check_task(task: Mapping[str, Any]) -> None:
    """Everything about the task but its published list, which may have to be downloaded."""
    if task.get("prompts") in PROMPTS:
        task = {**task, "prompts": "neutral"}
    # What is not on this machine is for `setup` to fetch, and to complain about.
    with sources.no_downloads(), contextlib.suppress(sources.SourceError):
        # Called by us, because `instantiate` would turn the dataclasses that it is given into configurations.
        instantiate(OmegaConf.create(task), _partial_=True)()
