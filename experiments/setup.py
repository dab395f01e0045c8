"""From a composed configuration to checked parts: task, method, model, sampler, store. Nothing is computed here.

What is wrong with the input is found here, in one line each, before any weight is loaded or any file written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from harness.model import LazyModel, as_dtype
from harness.names import unknown
from harness.sampler import Sampler
from harness.store import Store
from harness.task import Task, quality_set

log = logging.getLogger(__name__)

ROOT_KEYS = (
    "method", "task", "model", "suite", "sampler", "quality", "schedule", "repeats", "logger", "store", "records",
    "device", "dtype", "seed", "dry_run", "edit_only", "export", "replay", "allow_noop", "debug",
)  # fmt: skip
FLAGS = ("dry_run", "edit_only", "allow_noop", "debug")
# Pictures that go through the model together where the model's config says nothing.
BATCH_SIZE = 8


@dataclass
class Setup:
    """The parts of one run.

    Attributes:
        config: the resolved configuration as plain JSON, `device`, `dtype` and `batch_size` as they were
            decided.
        model: its weights are loaded at the first call.
        method: what `conf/method/*.yaml` names, with the configuration it was made from in `config["method"]`.
        preset: where the method's values come from: a suite's preset, or the method's own (the paper's).
        metrics: of the suite; empty for `edit_only`.
    """

    config: dict[str, Any]
    task: Task
    method: Any
    model: LazyModel
    sampler: Sampler
    store: Store
    device: torch.device
    preset: str
    batch_size: int
    metrics: tuple[Any, ...]

    @property
    def edit_parts(self) -> dict[str, Any]:
        """Everything that decides the edit, as the store's key."""
        return {
            "model": self.model.fingerprint,
            "method": self.config["method"],
            "version": self.method.version,
            "concepts": [[concept.name, concept.kind] for concept in self.task.concepts],
            "seed": self.config["seed"],
            # A method's calibration draws at the model's size unless its config names another.
            "size": self.model.size,
        }


def setup(cfg: DictConfig) -> Setup:
    """Check a configuration and make its parts.

    Raises:
        ValueError: one line that names the setting, what is wrong with it and what would be right.
    """
    config = _resolved(cfg)
    _check_root(config)
    device = _device(config["device"])
    dtype = _dtype(config, device)
    preset = config["method"].pop("preset", "")
    # How it is run, not what: at the root of the record's configuration it stays out of the record's identity.
    batch_size = _batch_size(config["model"].pop("batch_size", None))
    config |= {"device": str(device), "dtype": dtype, "batch_size": batch_size}
    # Copies, because the originals resolve `preset` and interpolations that are gone from `config`.
    method = instantiate(OmegaConf.create(config["method"]), _convert_="all")
    sampler = instantiate(OmegaConf.create(config["sampler"]))
    task = _task(config)
    return Setup(
        config=config,
        task=task,
        method=method,
        model=_model(config["model"], device, dtype, config["suite"]["name"]),
        sampler=sampler,
        store=Store(config["store"]),
        device=device,
        preset=preset,
        batch_size=batch_size,
        metrics=tuple(task.metrics),
    )


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as a plain dictionary, with every `???` named."""
    for name, value in dotted(OmegaConf.to_container(cfg, resolve=False)):
        if value == "???":
            raise ValueError(f"{name} is not set: say {name}=...")
    config = OmegaConf.to_container(cfg, resolve=True)
    config.pop("hydra", None)
    return config


def dotted(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in a nested configuration that is not a mapping itself."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


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
    if config["schedule"] != "joint":
        raise ValueError(f"schedule={config['schedule']} is not available yet; only schedule=joint is")
    if config["repeats"] != 1:
        raise ValueError(
            f"repeats={config['repeats']!r} is not available yet; only repeats=1 is (sweep over seed=0,1,2)"
        )
    if config["replay"] is not None:
        raise ValueError("replay is not available yet; run the record's configuration again by hand")
    for name in ("store", "records"):
        if not isinstance(config[name], str) or not config[name].strip():
            raise ValueError(f"{name}={config[name]!r}: name a folder")
        if Path(config[name]).expanduser().is_file():
            raise ValueError(f"{name}={config[name]} is a file; name a folder")
    if config["export"] is not None:
        target = Path(str(config["export"])).expanduser()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ValueError(f"export={target} exists and is not an empty folder; name a new one")


def _device(name: object) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(name))
    except RuntimeError:
        raise ValueError(f"device={name!r}: say auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; say device=cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device=mps: this machine has none; say device=cpu")
    return device


def _dtype(config: Mapping[str, Any], device: torch.device) -> str:
    """The name of the dtype: what is asked for, else the model's on a GPU, else float32."""
    if config["dtype"] != "auto":
        return str(as_dtype(config["dtype"])).removeprefix("torch.")
    if device.type == "cpu":
        return "float32"
    return str(as_dtype(config["model"].get("dtype") or "float32")).removeprefix("torch.")


def _model(config: Mapping[str, Any], device: torch.device, dtype: str, suite: str) -> LazyModel:
    options = {name: config.get(name) for name in ("size", "vae_dtype") if config.get(name) is not None}
    return LazyModel(
        config["path"],
        device=device,
        dtype=dtype,
        name=config["name"],
        suite=suite,
        words=config.get("words", ""),
        revision=config.get("revision"),
        **options,
    )


def _task(config: Mapping[str, Any]) -> Task:
    """The task; with captions and the suite's metrics unless the run stops after the edit."""
    # Called by us, because `instantiate` turns the dataclasses that it is given into configurations.
    make = instantiate(OmegaConf.create(config["task"]), _partial_=True)
    if config["edit_only"]:
        return make()
    suite = OmegaConf.create(config["suite"])
    captions = quality_set(instantiate(suite.captions), config["quality"]["n"], config["task"]["split"])
    metrics = [instantiate(metric) for metric in suite.metrics]
    task = make(quality=captions, metrics=metrics)
    if not task.sets:
        raise ValueError(
            f"task {task.name} of kind {task.kind} has no pictures to score: say edit_only=true, or quality.n > 0"
        )
    return task


def _batch_size(size: object) -> int:
    if size is None:
        return BATCH_SIZE
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"model.batch_size={size!r}: a whole number of at least 1")
    return size
