"""Which operations take the time of a part of the benchmark of speed (`python -m experiments.bench --profile`).

masks      the masks of the measured concepts (Eq. 1-6): denoising, statistics, thresholds and selection
pictures   two batches, from prompts to stored PNG files
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from harness.generate import generate
from harness.model import DiffusionModel
from harness.store import Store

from .bench_pictures import asked
from .setup import Setup, setup

SHOWN = 10


def of_part(name: str, cfg: DictConfig, steps: int | None = None, concepts: int | None = None) -> list[dict[str, Any]]:
    """`most_time` of a pass of `masks` or `pictures`, after an unmeasured one.

    Args:
        cfg: a configuration that the part has measured.
        steps: masks: UNet calls of every walk; the method's own by default.
        concepts: masks: of how many of the task's concepts; all by default.
    """
    parts = setup(cfg)
    model = parts.model()
    run = _pictures(parts, model) if name == "pictures" else _masks(parts, model, steps, concepts)
    run()
    return most_time(run, parts.device)


def _masks(parts: Setup, model: DiffusionModel, steps: int | None, concepts: int | None) -> Callable[[], Any]:
    method, few = parts.method, list(dict.fromkeys(parts.task.concepts))[:concepts]
    method.steps = min(steps or method.steps, method.sampler.calls())
    return lambda: method.masks(model, few, parts.config["seed"], lambda kind, key, make: make())


def _pictures(parts: Setup, model: DiffusionModel) -> Callable[[], Any]:
    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            prompts, store = asked(parts, 0), Store(folder)
            generate(model, None, prompts, parts.sampler, store, batch_size=parts.batch_size, progress=False)

    return run


def most_time(run: Callable[[], Any], device: torch.device) -> list[dict[str, Any]]:
    """The operations with the most self time in one pass of `run`, the longest first: on CUDA the kernels.

    On a CPU the pass is made on one thread, because the profiler sees no other thread than its own.

    Returns:
        JSON values: `name`, `calls`, and `share` of the self time of all operations.
    """
    cuda, threads = device.type == "cuda", torch.get_num_threads()
    try:
        if not cuda:
            torch.set_num_threads(1)
        with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
            run()
            if cuda:
                torch.cuda.synchronize(device)
    finally:
        torch.set_num_threads(threads)
    where, clock = (DeviceType.CUDA, "self_device_time_total") if cuda else (DeviceType.CPU, "self_cpu_time_total")
    own = [event for event in seen.key_averages() if event.device_type == where]
    total = sum(getattr(event, clock) for event in own)
    longest = sorted(own, key=lambda event: -getattr(event, clock))[:SHOWN]
    return [
        {"name": event.key, "calls": event.count, "share": getattr(event, clock) / total} for event in longest
    ]  # fmt: skip


def rows(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """What was found as rows of a table."""
    return [f"| {one['name']}, share of all self time ({one['calls']:,} calls) | {one['share']:.1%} |" for one in found]
