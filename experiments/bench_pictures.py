"""How fast whole pictures are made, beside stock diffusers with one picture a call (`python -m experiments.bench`).

    ours     `harness.generate`: prompts to stored PNG files, in the run's batches
    stock    the pipeline as diffusers loads it, called once a picture with the same noise, sampler and guidance, and
             its picture saved as PNG
    unet     one UNet call of a guided batch; with its arithmetic, and a float32 matrix product for comparison
    decoder  a batch's latents to pixels

The largest difference between the two's pixels stands beside their speed.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from harness.generate import generate
from harness.loading import quiet_libraries, read_pipeline
from harness.method import Meter
from harness.model import DiffusionModel
from harness.store import Store
from harness.task import PromptSet, Row

from .goals import Goal
from .setup import Setup, setup

log = logging.getLogger(__name__)

# No metric is needed.
SETTINGS = ("edit_only=true",)
BATCHES = 2  # of ours a round: the second one's inputs are made while the first is at work
STOCK = 2  # pictures of stock diffusers a round
SIDE = 1024  # of the matrices
MOST_OF_255 = 1
# On an H200, SD 1.5's sizes.
LEAST_RATIO, LEAST_PER_SECOND, GOAL_OF_A_GPU = 4, 4, ("pndm", 50, 512, "float16")


def measure(cfg: DictConfig, settings: Sequence[str], rounds: int) -> dict[str, Any]:
    """Time ours, stock and single UNet calls in turn, `rounds` times each after one unmeasured round.

    Returns:
        JSON values: what was run, `rounds` (seconds), `medians`.
    """
    parts = setup(cfg)
    model = parts.model()
    pipe = _stock(parts, model)
    found: list[dict[str, float]] = []
    difference = 0
    samples = 2 * parts.batch_size
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        for number in range(rounds + 1):
            prompts = asked(parts, number)
            rows = prompts.rows
            seconds = {}
            meter = Meter(model, parts.device)
            images = generate(model, None, prompts, parts.sampler, store, batch_size=parts.batch_size, progress=False)
            seconds["ours"] = meter.read().seconds / len(rows)
            meter = Meter(model, parts.device)
            pictures = [_stock_picture(pipe, model, parts, row, Path(folder)) for row in rows[:STOCK]]
            seconds["stock"] = meter.read().seconds / STOCK
            text = model.encode([row.prompt for row in rows[: parts.batch_size]])
            noise = model.latents([row.seed for row in rows[: parts.batch_size]])
            meter = Meter(model, parts.device)
            guidance = parts.sampler.guidance
            model.denoise(text, noise, parts.sampler, guidance, stop_after=1, both_halves=True, in_threads=True)
            seconds["unet"] = meter.read().seconds / samples
            meter = Meter(model, parts.device)
            model.decode(noise)
            seconds["decoder"] = meter.read().seconds / len(noise)
            seconds["product"] = _product_seconds(parts.device)
            for i, picture in enumerate(pictures):
                difference = max(difference, int(np.abs(picture.astype(int) - images.images[i]).max()))
            if number:  # The first one chose kernels and claimed memory.
                found.append(seconds)
                log.info("round %d of %d", number, rounds)
    flop = _unet_flop(model)
    return {
        "model": model.name,
        "words": model.words or model.name,
        "fingerprint": model.fingerprint,
        "device": str(parts.device),
        "dtype": parts.config["dtype"],
        "sampler": parts.config["sampler"],
        "size": parts.model.size,
        "batch_size": parts.batch_size,
        "compile": bool(parts.config["compile"]),
        "largest_difference": difference,
        "unet_gflop": flop / 1e9,
        "rounds": found,
        "medians": medians(found, flop),
    }


def asked(parts: Setup, number: int) -> PromptSet:
    """The prompts of a round, BATCHES batches of them, with noise of its own."""
    texts = list(dict.fromkeys(row.prompt for prompts in parts.task.sets.values() for row in prompts))
    count, size = BATCHES * parts.batch_size, parts.model.size
    rows = tuple(Row(str(n), texts[n % len(texts)], number * count + n, width=size, height=size) for n in range(count))
    return PromptSet("bench", rows, sexual_context=parts.task.kind == "explicit")


def medians(found: Sequence[Mapping[str, float]], flop: float) -> dict[str, float]:
    """What the rounds say; ratios are taken within a round."""
    return {
        "images_per_second": statistics.median(1 / one["ours"] for one in found),
        "stock_images_per_second": statistics.median(1 / one["stock"] for one in found),
        "ratio": statistics.median(one["stock"] / one["ours"] for one in found),
        "unet_ms_per_sample": statistics.median(1000 * one["unet"] for one in found),
        "unet_gflop_per_second": statistics.median(flop / one["unet"] / 1e9 for one in found),
        "product_gflop_per_second": statistics.median(2 * SIDE**3 / one["product"] / 1e9 for one in found),
        "decoder_ms_per_picture": statistics.median(1000 * one["decoder"] for one in found),
    }


def goals(result: Mapping[str, Any]) -> list[Goal]:
    """Pixels in float32; on CUDA the ratio to stock diffusers, and pictures a second as the goal words them."""
    own, sampler = result["medians"], result["sampler"]
    found = []
    if result["dtype"] == "float32" and not result["compile"]:
        found.append(Goal("the largest difference of a pixel", result["largest_difference"], MOST_OF_255))
    if result["device"].startswith("cuda"):
        found.append(Goal("the ratio to stock diffusers", own["ratio"], LEAST_RATIO, least=True))
        if (sampler["name"], sampler["steps"], result["size"], result["dtype"]) == GOAL_OF_A_GPU:
            found.append(Goal("pictures a second", own["images_per_second"], LEAST_PER_SECOND, least=True))
    return found


def rows(result: Mapping[str, Any]) -> list[str]:
    """The medians as rows of a table."""
    own, sampler = result["medians"], result["sampler"]
    return [
        f"| pictures a second: {sampler['name']}, {sampler['steps']} steps, {result['size']} pixels, batch "
        f"{result['batch_size']}{', compiled' if result['compile'] else ''} | {own['images_per_second']:.2f} |",
        f"| stock diffusers, one picture a call | {own['stock_images_per_second']:.2f} |",
        f"| ratio | {own['ratio']:.2f} |",
        f"| largest difference of a pixel, of 255 | {result['largest_difference']} |",
        f"| VAE's decoder, ms a picture | {own['decoder_ms_per_picture']:.2f} |",
        f"| UNet, ms a sample | {own['unet_ms_per_sample']:.2f} |",
        f"| UNet, GFLOP a sample | {result['unet_gflop']:.2f} |",
        f"| UNet, GFLOP/s | {own['unet_gflop_per_second']:.1f} |",
        f"| float32 matrix product of {SIDE} x {SIDE}, GFLOP/s | {own['product_gflop_per_second']:.1f} |",
    ]


def _stock(parts: Setup, model: DiffusionModel) -> Any:
    """The pipeline as diffusers loads and runs it."""
    pipe = read_pipeline(parts.model.path, model.dtype).to(parts.device)
    pipe.scheduler = parts.sampler.scheduler(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _stock_picture(pipe: Any, model: DiffusionModel, parts: Setup, row: Row, folder: Path) -> np.ndarray:
    """One call of the stock pipeline, its picture saved: uint8 [height, width, 3]."""
    with quiet_libraries():
        image = pipe(
            row.prompt,
            num_inference_steps=parts.sampler.steps,
            guidance_scale=parts.sampler.guidance,
            latents=model.latents([row.seed], row.width, row.height),
            width=row.width,
            height=row.height,
        ).images[0]
    image.save(folder / "stock.png")
    return np.asarray(image)


def _product_seconds(device: torch.device) -> float:
    """Seconds of a float32 matrix product: what the machine can do just now."""
    a = torch.ones(SIDE, SIDE, device=device)
    a @ a
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    a @ a
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _unet_flop(model: DiffusionModel) -> int:
    """Floating-point operations of one UNet sample, counted by torch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.predict(model.latents([0]), torch.tensor([500], device=model.device), model.encode([""]))
    return counter.get_total_flops()
