"""From a composed configuration to checked parts: task, method, model, sampler, store. Nothing is computed here.

What is wrong with the input is found here or already by `config.checked`, in one line each, before any weight is loaded
or any file written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from eval.clip import Clip, StoredTexts
from eval.style import StyleSimilarity
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

# Settings of a metric as they stand in a configuration, unlike the judges that it is made with.
PLAIN = (str, int, float, bool, list, tuple, dict, ListConfig, DictConfig, type(None))
# Pictures that go through the model together where the model's config says nothing.
BATCH_SIZE = 8


class NoDevice(ValueError):
    """This machine lacks the device that is asked for."""


@dataclass
class Setup:
    """The parts of one run.

    Attributes:
        config: the resolved configuration as plain JSON, `device`, `dtype`, `batch_size` and `compile` as they were
            decided, in `speed` what the method declares as `speed_only` or as `idle` in this run, and in
            `model.published` whether the weights are those of a known release (null: it cannot be told).
        model: its weights are loaded at the first call; absent only in a dry run.
        method: what `conf/method/*.yaml` names, with the configuration it was made from in `config["method"]`.
        preset: where the method's values come from: a suite's preset, or the method's own (the paper's).
        metrics: of the suite; empty for `edit_only`.
        team: the processes that make this run.
        world: name and hash of the embedded world whose judges score, such as `tiny-v1@0123456789ab`; empty for none.
        counted: prompt lists that are not on this machine, of which a dry run knows the number of rows only.
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
    world: str = ""
    counted: tuple[str, ...] = ()


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
    idle = method.idle(config["schedule"]) if hasattr(method, "idle") else ()
    aside = (*getattr(method, "speed_only", ()), *idle)
    speed = {name: config["method"].pop(name, getattr(method, name)) for name in aside}
    config |= {"device": str(device), "dtype": dtype, "batch_size": batch_size, "compile": compiled}
    config["speed"] = speed
    sampler = instantiate(OmegaConf.create(config["sampler"]))
    # The model first: without it, nobody needs the prompts.
    model = _model(config, device, dtype)
    with sources.counted() if config["dry_run"] else nullcontext(()) as counted:
        task = _task(config)
    store = Store(config["store"], readonly=config["dry_run"])
    for metric in task.metrics:
        if isinstance(metric, Clip | StyleSimilarity) and not store.readonly:
            metric.encoder = StoredTexts(metric.encoder, store)
    return Setup(
        config=config,
        task=task,
        method=method,
        model=model,
        sampler=sampler,
        store=store,
        device=device,
        preset=preset,
        batch_size=batch_size,
        metrics=tuple(task.metrics),
        team=team,
        world=_world(config["suite"].get("world")),
        counted=tuple(counted),
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


def _check_ids(metrics: Sequence[Any], suite: str) -> None:
    """Raise ValueError where two metrics are the same but for their judges: all of their values would share an id.

    One judge may serve several metrics under one id of their own, as with other thresholds or another rule.
    """
    seen = set()
    for metric in metrics:
        plain = {name: value for name, value in vars(metric).items() if isinstance(value, PLAIN)}
        key = (type(metric), metric.id, metric.set, repr(sorted(plain.items())))
        if key in seen:
            raise ValueError(f"suite {suite}: {metric.id} is there twice; give one of the two metrics another id")
        seen.add(key)


def _device(name: object) -> torch.device:
    if name == "auto":
        if torch.cuda.device_count() > 1 and has_neighbours():
            torch.cuda.set_device(free_gpu(torch.cuda.device_count()))
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(str(name))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise NoDevice(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; say device=cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise NoDevice("device=mps: this machine has none; say device=cpu")
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
    from tinyworld.freeze import CARD, card, verify

    words = config.get("words") or config["name"]
    if not (place / CARD).is_file():
        return words
    verify(place)
    return f"{words} ({card(place)['name']})"


def _world(name: str | None) -> str:
    """The stamp of the suite's embedded world, whose files are compared with what was frozen."""
    if not name:
        return ""
    from tinyworld.freeze import WORLD, stamp

    return stamp(WORLD.parent / name)


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
    _check_ids(metrics, suite.name)
    task = make(quality=captions, metrics=metrics)
    if not task.sets:
        raise ValueError(
            f"task {task.name} of kind {task.kind} has no pictures to score: say edit_only=true, or quality.n > 0"
        )
    for metric in metrics:
        if metric.set in task.sets and hasattr(metric, "check"):
            metric.check(task)
    return task
