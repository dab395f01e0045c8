"""How long the suite's metrics look at a picture (`python -m experiments.bench`).

    memory   every metric's rows of pictures that have just been made
    store    the same rows of the same pictures, each read from its PNG file and checked

Pictures are noise: what a network takes does not depend on what it sees.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig

from harness.generate import ImageSet, StoredImages
from harness.store import Store

from .setup import setup

log = logging.getLogger(__name__)

SETTINGS = ("edit_only=false",)
PICTURES = 64


def measure(cfg: DictConfig, settings: Sequence[str], rounds: int) -> dict[str, Any]:
    """Time every metric of the configuration on pictures in memory and in a store, in turn.

    Returns:
        JSON values: what was run, `rounds` (ms a picture by metric and place), `medians`, `equal` (whether the rows are
        the same from both places).
    """
    parts = setup(cfg)
    rng = np.random.default_rng(0)
    shape = (PICTURES, parts.model.size, parts.model.size, 3)
    pictures = list(rng.integers(0, 256, shape, dtype=np.uint8))
    found: list[dict[str, float]] = []
    equal = True
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        names = [{"seed": i} for i in range(PICTURES)]
        for name, picture in zip(names, pictures, strict=True):
            store.write_image(name, picture)
        for number in range(rounds + 1):
            spent: dict[str, float] = {}
            for metric in parts.metrics:
                prompts = parts.task.sets.get(metric.set)
                if prompts is None:
                    continue
                prompts = dataclasses.replace(prompts, rows=prompts.rows[:PICTURES], screened=0)
                read = StoredImages(store, names[: len(prompts)])
                frames = []
                for place, images in (("memory", pictures[: len(prompts)]), ("store", read)):
                    start = time.perf_counter()
                    frames.append(metric.rows(ImageSet(prompts, images, ""), None))
                    spent[f"{metric.id} ({place})"] = 1000 * (time.perf_counter() - start) / len(prompts)
                equal = equal and frames[0].equals(frames[1])
            if number:  # The first round built the networks.
                found.append(spent)
                log.info("round %d of %d", number, rounds)
    return {
        "model": parts.config["suite"]["name"],
        "words": f"Judges of the suite {parts.config['suite']['name']}, pictures of {parts.model.size} pixels",
        "device": str(parts.device),
        "dtype": "float32",
        "pictures": PICTURES,
        "equal": equal,
        "rounds": found,
        "medians": {name: statistics.median(one[name] for one in found) for name in found[0]},
    }


def rows(result: Mapping[str, Any]) -> list[str]:
    """The medians as rows of a table."""
    lines = [f"| {name}, ms a picture | {value:.2f} |" for name, value in result["medians"].items()]
    return [*lines, f"| equal from both places | {'yes' if result['equal'] else 'no'} |"]
