"""How long the closed forms take for fifty concepts (`python -m experiments.bench --parts closed --random`).

The model keeps text features, so after the unmeasured round what is timed is a method's `edit` from features to a
checked edit.
Every method has the values of its own YAML. At SD 1.5's sizes an edit that takes longer than the goal is a failure.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from harness.task import Concept

from .cli import CONF
from .goals import Goal
from .search import NO_PRESET
from .setup import setup

log = logging.getLogger(__name__)

SETTINGS = ("edit_only=true",)
METHODS = ("uce", "uce_legacy", "scapre", "scapre_scale", "scapre_reconstruction")
CONCEPTS = 50
SD15_WEIGHTS = 24_960 * 768  # of the key and value projections: channels and features
GOALS = {"cpu": 10.0, "cuda": 1.0}  # seconds an edit at those sizes
WITHOUT_GOAL = ("scapre_reconstruction",)  # the paper's formulas need the root of a matrix for every projection


def measure(cfg: DictConfig, settings: Sequence[str], rounds: int) -> dict[str, Any]:
    """Time the edit of every closed form in turn, after one unmeasured round that computes the text features.

    Returns:
        JSON values: what was run, `rounds` (seconds by method), `medians`, `matrices` and `weights` that are edited.
    """
    parts = setup(cfg)
    model = parts.model()
    concepts = [Concept(f"thing {number}", "object") for number in range(CONCEPTS)]
    methods = {name: method(name) for name in METHODS}
    found: list[dict[str, float]] = []
    for number in range(rounds + 1):
        seconds = {}
        for name, one in methods.items():
            start = time.perf_counter()
            one.edit(model, concepts, 0, None)
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name] = time.perf_counter() - start
        if number:
            found.append(seconds)
            log.info("round %d of %d", number, rounds)
    layers = [*model.layers("cross_k").values(), *model.layers("cross_v").values()]
    weights = sum(layer.weight.numel() for layer in layers)
    return {
        "model": cfg.model.name,
        "words": f"Closed forms, {CONCEPTS} concepts, {cfg.model.words}",
        "device": str(parts.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "concepts": CONCEPTS,
        "matrices": len(layers),
        "weights": weights,
        "rounds": found,
        "medians": {name: statistics.median(one[name] for one in found) for name in METHODS},
    }


def goals(result: Mapping[str, Any]) -> list[Goal]:
    """At SD 1.5's sizes, of every method but the paper's formulas."""
    limit = GOALS.get(result["device"].partition(":")[0]) if result["weights"] == SD15_WEIGHTS else None
    if limit is None:
        return []
    medians = result["medians"].items()
    return [Goal(f"{name}, s an edit", seconds, limit) for name, seconds in medians if name not in WITHOUT_GOAL]


def method(name: str) -> Any:
    """A method for objects with the values of its own YAML."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=[f"method={name}", "task=custom", "task.concepts=[thing]", NO_PRESET])
    return instantiate(OmegaConf.to_container(cfg, resolve=True)["method"], _convert_="all")


def rows(result: Mapping[str, Any]) -> list[str]:
    """The medians as rows of a table."""
    lines = [f"| {name}, s an edit | {value:.2f} |" for name, value in result["medians"].items()]
    return [*lines, f"| matrices (weights) | {result['matrices']} ({result['weights']:,}) |"]
