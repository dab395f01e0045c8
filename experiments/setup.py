"""From a composed configuration to checked parts: task, method, model, sampler, store. Nothing is computed here.

What is wrong with the input is found here or already by `config.checked`, in one line each, before any weight is loaded
or any file written.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from harness import sources, weights
from harness.model import AbsentModel, LazyModel, as_dtype
from harness.model_files import NotDownloaded
from harness.processes import ALONE, Team
from harness.sampler import Sampler
from harness.store import Store
from harness.task import Task, caption_list, quality_set

from .config import checked
from .gpus import free_gpu
from .sweep import has_neighbours

# Pictures that go through the model together where the model's config says nothing.
BATCH_SIZE = 8


@dataclass
class Setup:
    """The parts of one run.

    Attributes:
        config: the resolved configuration as plain JSON, `device`, `dtype`, `batch_size` and `compile` as they were
            decided, in `speed` what the method declares as `speed_only`, and in `model.published` whether the weights
            are those of a known release (null: it cannot be told).
        model: its weights are loaded at the first call; absent only in a dry run.
        method: what `conf/method/*.yaml` names, with the configuration it was made from in `config["method"]`.
        preset: where the method's values come from: a suite's preset, or the method's own (the paper's).
        metrics: of the suite; empty for `edit_only`.
        team: the processes that make this run.
    """

    config: dict[str, Any]
    task: Task
    method: Any
    model: LazyModel | AbsentModel
    sampler: Sampler
    store: Store
    device: torch.device
    preset: str
    batch_size: int
    metrics: tuple[Any, ...]
    team: Team = ALONE


def setup(cfg: DictConfig, team: Team = ALONE) -> Setup:
    """Check a configuration and make its parts.

    Raises:
        ValueError: one line that names the setting, what is wrong with it and what would be right.
    """
    config = checked(cfg)
    device = _device(config["device"])
    dtype = _dtype(config, device)
    preset = config["method"].pop("preset", "")
    # Copies, here and below: the originals resolve `preset` and interpolations that are gone from `config`.
    method = instantiate(OmegaConf.create(config["method"]), _convert_="all")
    # How it is run, not what: at the root of the record's configuration it stays out of the record's identity, and
    # outside `method` also out of the edit's key.
    batch_size = config["model"].pop("batch_size", None) or BATCH_SIZE
    compiled = config["model"].pop("compile", False)
    speed = {name: config["method"].pop(name, getattr(method, name)) for name in getattr(method, "speed_only", ())}
    config |= {"device": str(device), "dtype": dtype, "batch_size": batch_size, "compile": compiled}
    config["speed"] = speed
    sampler = instantiate(OmegaConf.create(config["sampler"]))
    # The model first: without it, nobody needs the prompts.
    model = _model(config, device, dtype)
    with sources.no_downloads() if config["dry_run"] else nullcontext():
        task = _task(config)
    return Setup(
        config=config,
        task=task,
        method=method,
        model=model,
        sampler=sampler,
        store=Store(config["store"], readonly=config["dry_run"]),
        device=device,
        preset=preset,
        batch_size=batch_size,
        metrics=tuple(task.metrics),
        team=team,
    )


def repeated(parts: Setup) -> list[Setup]:
    """The repeats of a run: the same parts with the edit's seed counting up and other noise in every picture.

    The first is the run itself: a repeated run finds what a single one stored. Only it exports its edit.
    """
    runs = [parts]
    for number in range(1, parts.config["repeats"]):
        config = {**parts.config, "seed": parts.config["seed"] + number, "export": None}
        sets = {name: prompts.repeat(number) for name, prompts in parts.task.sets.items()}
        runs.append(replace(parts, config=config, task=replace(parts.task, sets=sets)))
    return runs


def _device(name: object) -> torch.device:
    if name == "auto":
        if torch.cuda.device_count() > 1 and has_neighbours():
            torch.cuda.set_device(free_gpu(torch.cuda.device_count()))
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(str(name))
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


def _model(config: Mapping[str, Any], device: torch.device, dtype: str) -> LazyModel | AbsentModel:
    """The model, and in its configuration whether its files are a known release's.

    A dry run counts pictures of a model of the Hub without its files, where the configuration says their size.
    """
    model = config["model"]
    try:
        place = weights.locate(model["path"], model.get("revision"), download=not config["dry_run"])
    except NotDownloaded as error:
        if model.get("size") is None:
            raise
        return AbsentModel(model["name"], model.get("words") or model["name"], model["size"], str(error))
    model["published"] = weights.published(model["path"], place)
    options = {name: model.get(name) for name in ("size", "vae_dtype") if model.get(name) is not None}
    return LazyModel(
        place,
        device=device,
        dtype=dtype,
        name=model["name"],
        suite=config["suite"]["name"],
        words=_words(model, place),
        compile=config["compile"],
        **options,
    )


def _words(config: Mapping[str, Any], place: Path) -> str:
    """What the model is, for the screen; an embedded world's name comes from its own card, which a freeze rewrites."""
    from tinyworld.freeze import CARD, card

    words = config.get("words") or config["name"]
    return f"{words} ({card(place)['name']})" if (place / CARD).is_file() else words


def _task(config: Mapping[str, Any]) -> Task:
    """The task; with captions and the suite's metrics unless the run stops after the edit."""
    # Called by us, because `instantiate` turns the dataclasses that it is given into configurations.
    make = instantiate(OmegaConf.create(config["task"]), _partial_=True)
    if config["edit_only"]:
        return make()
    suite, quality = OmegaConf.create(config["suite"]), config["quality"]
    provider = instantiate(caption_list(suite, quality.get("list")))
    captions = quality_set(provider, quality["n"], config["task"]["split"], quality.get("list") or "")
    metrics = [instantiate(metric) for metric in suite.metrics if metric.pop("enabled", True)]
    task = make(quality=captions, metrics=metrics)
    if not task.sets:
        raise ValueError(
            f"task {task.name} of kind {task.kind} has no pictures to score: say edit_only=true, or quality.n > 0"
        )
    for metric in metrics:
        if metric.set in task.sets and hasattr(metric, "check"):
            metric.check(task)
    return task
