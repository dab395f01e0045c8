"""How long the suite's metrics look at a picture, beside how long it is made (`python -m experiments.bench`).

    memory   every metric's rows of pictures that have just been made
    store    the same rows of the same pictures, each read from its PNG file and checked
    making   one batch of every set's pictures, in memory
    reading  a picture of that batch, read from its PNG file and checked

and NudeNet, which the tiny world's suite has not, on pictures of 512 pixels.

Pictures that are judged are noise: what a network takes does not depend on what it sees. A PNG file's size does, so
reading is measured on what the model makes.
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

from eval.clip import StoredTexts
from eval.nudity import NudeNet
from harness.generate import CHUNK, ImageSet, StoredImages, passing
from harness.method import Meter
from harness.store import Store
from harness.task import PromptSet

from .goals import Goal
from .setup import Setup, setup

log = logging.getLogger(__name__)

SETTINGS = ("edit_only=false",)
PICTURES = 64
MOST = 1  # of what making takes
NUDENET, NUDENET_PICTURES = NudeNet(), 16


def measure(cfg: DictConfig, settings: Sequence[str], rounds: int) -> dict[str, Any]:
    """Time every metric of the configuration on pictures in memory and in a store, and their making, in turn.

    Returns:
        JSON values: what was run, `rounds` (ms a picture by metric and place, and by set for `making` and `reading`),
        `medians`, `ratios` to making by set, `equal` (whether the rows are the same from both places).
    """
    parts = setup(cfg)
    rng = np.random.default_rng(0)
    shape = (PICTURES, parts.model.size, parts.model.size, 3)
    pictures = list(rng.integers(0, 256, shape, dtype=np.uint8))
    sets = {
        name: dataclasses.replace(prompts, rows=prompts.rows[:PICTURES], screened=0)
        for name, prompts in parts.task.sets.items()
    }
    metrics = [metric for metric in parts.metrics if metric.set in sets]
    for metric in metrics:
        if isinstance(getattr(metric, "encoder", None), StoredTexts):
            metric.encoder = metric.encoder.encoder  # captions are embedded in every round
    found: list[dict[str, float]] = []
    equal = True
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        names = [{"seed": i} for i in range(PICTURES)]
        for name, picture in zip(names, pictures, strict=True):
            store.write_image(name, picture)
        for number in range(rounds + 1):
            spent: dict[str, float] = {}
            for name, prompts in sets.items():
                spent[f"making: {name}"], images = _made(parts, prompts, store)
                if name not in parts.task.unkept:  # what nobody keeps is never read from a file
                    spent[f"reading: {name}"] = _read(images, store)
            for metric in metrics:
                prompts = sets[metric.set]
                read = StoredImages(store, names[: len(prompts)])
                frames = []
                for place, images in (("memory", pictures[: len(prompts)]), ("store", read)):
                    start = time.perf_counter()
                    frames.append(metric.rows(ImageSet(prompts, images, ""), None))
                    spent[f"{metric.id} ({place})"] = 1000 * (time.perf_counter() - start) / len(prompts)
                equal = equal and frames[0].equals(frames[1])
            spent["NudeNet, 512 pixels, on the processor"] = _nudenet()
            if number:  # The first round built the networks.
                found.append(spent)
                log.info("round %d of %d", number, rounds)
    return {
        "model": parts.config["model"]["name"],
        "words": f"Judges of the suite {parts.config['suite']['name']}, pictures of {parts.model.size} pixels by "
        f"{parts.config['model']['name']} in {parts.sampler.steps} steps, {parts.batch_size} at once",
        "device": str(parts.device),
        "dtype": parts.config["dtype"],
        "sampler": parts.config["sampler"],
        "batch_size": parts.batch_size,
        "pictures": PICTURES,
        "equal": equal,
        "wrong": "" if equal else "rows of pictures in memory differ from those of the same pictures in the store",
        "rounds": found,
        "medians": {name: statistics.median(one[name] for one in found) for name in found[0]},
        "ratios": {name: _ratios(found, name, metrics) for name in sets},
    }


def goals(result: Mapping[str, Any]) -> list[Goal]:
    """All judges of a set to making its pictures."""
    return [Goal(f"all judges of {name} : making", ratios["judges"], MOST) for name, ratios in result["ratios"].items()]


def _nudenet() -> float:
    """Milliseconds in which NudeNet, whose network is in its package, looks at a picture of 512 pixels: of noise."""
    pictures = list(np.random.default_rng(1).integers(0, 256, (NUDENET_PICTURES, 512, 512, 3), dtype=np.uint8))
    start = time.perf_counter()
    NUDENET.detect(pictures)
    return 1000 * (time.perf_counter() - start) / len(pictures)


def _made(parts: Setup, prompts: PromptSet, store: Store) -> tuple[float, Sequence[np.ndarray]]:
    """Milliseconds in which one of a set's pictures is made, and the pictures of one batch."""
    few = dataclasses.replace(prompts, rows=prompts.rows[: min(parts.batch_size, CHUNK)])
    (made,) = passing(parts.model, None, few, parts.sampler, store, batch_size=len(few)).parts
    meter = Meter(parts.model, parts.device)
    images = made.images.load()
    return 1000 * meter.read().seconds / len(few), images


def _read(images: Sequence[np.ndarray], store: Store) -> float:
    """Milliseconds in which a picture is read from its file and checked."""
    names = [{"read": i} for i in range(len(images))]
    for name, picture in zip(names, images, strict=True):
        store.write_image(name, picture)
    start = time.perf_counter()
    for name in names:
        store.read_image(name)
    return 1000 * (time.perf_counter() - start) / len(names)


def _ratios(found: Sequence[Mapping[str, float]], name: str, metrics: Sequence[Any]) -> dict[str, float]:
    """Medians over rounds, in parts of what making a set's pictures takes: all its judges, and reading a picture."""
    making, reading = f"making: {name}", f"reading: {name}"
    of_set = {f"{metric.id} (memory)" for metric in metrics if metric.set == name}
    ratios = {"judges": statistics.median(sum(one[judge] for judge in of_set) / one[making] for one in found)}
    if reading in found[0]:
        ratios["reading"] = statistics.median(one[reading] / one[making] for one in found)
    return ratios


def rows(result: Mapping[str, Any]) -> list[str]:
    """The medians as rows of a table."""
    lines = [f"| {name}, ms a picture | {value:.2f} |" for name, value in result["medians"].items()]
    for name, ratios in result["ratios"].items():
        lines.append(f"| all judges of {name} : making its pictures | {ratios['judges']:.3f} |")
        if "reading" in ratios:
            lines.append(f"| reading a stored picture of {name} : making it | {ratios['reading']:.3f} |")
    return [*lines, f"| equal from both places | {'yes' if result['equal'] else 'no'} |"]
