"""Saliency of single concepts as artefacts: Eq. 1-3 run for a group of concepts, kept for every one of them.

What is kept of a concept is all that Eq. 3 needs, by layer: `strength/LAYER`, the mean of S over the steps, and
`count/LAYER`, the number of steps at which S passed its threshold. Selection, fusion and their parameters come later.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from harness.memory import free_bytes
from harness.model import DiffusionModel
from harness.task import Concept

from .neurons import Evidence
from .statistics import Calibration, contrast_each_step

log = logging.getLogger(__name__)

# Concepts a pass, at most: one more would save 0.2 % of the UNet samples, and a pass that is killed begins anew.
LARGEST_GROUP = 16
# Share of the free memory that one pass may fill; the rest is the UNet's own.
MEMORY_SHARE = 0.5
# Arrays of the layers' size that one step needs: mean and variance, or a threshold and a mean.
MOMENTS = 2


@dataclass(frozen=True)
class Job:
    """Everything that decides the saliency of one concept on one model.

    Attributes:
        prompts, base: prompts with the concept, and without it.
        kind: of the layers.
        r1, strict: see `neurons.passes`.
        how: the calibration runs.
        grid: every r1 whose counts are kept, in ascending order, `r1` among them.
    """

    concept: Concept
    prompts: tuple[str, ...]
    base: tuple[str, ...]
    kind: str
    r1: float
    strict: bool
    how: Calibration
    grid: tuple[float, ...]

    def key(self, r1: float) -> dict[str, Any]:
        """What decides the saliency at one r1 of the grid, as JSON."""
        key = asdict(self)
        del key["concept"], key["how"]["chunk"], key["grid"]  # the prompts name the concept; the others decide speed
        return key | {"r1": r1}

    @property
    def dtype(self) -> torch.dtype:
        """Of the sums over prompts and steps."""
        return torch.float64 if self.how.dtype == "float64" else torch.float32

    def evidence(self, weight: Tensor) -> Evidence:
        """Room for what is kept of a layer with this weight, on its device."""
        return Evidence.empty(weight, self.how.steps, self.grid, self.dtype)


def groups(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    """At most `size` concepts at a time that share their base prompts, which then run once for all of them.

    They are sorted by their prompts, so that every process meets them in the same order.
    """
    for _, same in groupby(sorted(jobs, key=lambda job: (job.base, job.prompts)), key=lambda job: job.base):
        batch = list(same)
        for start in range(0, len(batch), size):
            yield batch[start : start + size]


def group_that_fits(model: DiffusionModel, jobs: Sequence[Job]) -> int:
    """How many of these concepts one pass can hold: by the memory that is free now and the sizes of the layers."""
    size = LARGEST_GROUP
    for job in jobs:
        size = min(size, fitting(*held(model, job), free_bytes(model.device), free_bytes("cpu")))
    return size


def held(model: DiffusionModel, job: Job) -> tuple[int, int]:
    """Bytes on the device: of one concept until its pass ends, and of the moments of one step."""
    weights = [torch.empty_like(layer.weight, device="meta") for layer in model.layers(job.kind).values()]
    moments = MOMENTS * job.dtype.itemsize * sum(weight.numel() for weight in weights)
    return sum(job.evidence(weight).nbytes for weight in weights), moments


def fitting(concept: int, moments: int, on_device: float, in_memory: float) -> int:
    """The size of a group, at least 1, where a concept holds `concept` bytes and a step's moments take `moments`.

    Args:
        on_device: free bytes on the device; a share of them is left to the denoising itself.
        in_memory: free bytes of main memory, where finished tensors wait until they are stored.
    """
    room = min(MEMORY_SHARE * on_device - moments, MEMORY_SHARE * in_memory)
    return max(1, min(LARGEST_GROUP, int(room // concept)))


def measure(model: DiffusionModel, jobs: Sequence[Job]) -> dict[tuple[Concept, float], dict[str, Tensor]]:
    """Run the prompts of one group; the tensors to keep of every concept and r1 of its grid, on the CPU."""
    how = jobs[0].how
    layers = model.layers(jobs[0].kind)
    evidence = [{name: job.evidence(layer.weight) for name, layer in layers.items()} for job in jobs]

    def take(index: int, name: str, contrast: Tensor) -> None:
        weight, job = layers[name].weight, jobs[index]
        # A dense contrast is ours to overwrite; |W| c = |W c|, because c is never negative.
        saliency = contrast.mul_(weight).abs_() if contrast.dim() == 2 else contrast * weight.abs()
        evidence[index][name].add(saliency, job.strict)

    before = model.calls
    contrast_each_step(model, layers, jobs[0].base, [job.prompts for job in jobs], how, take)
    log.info(
        "FIA saliency of %s: %d base and %d concept prompts, %d steps, %d layers, %d UNet samples",
        ", ".join(job.concept.name for job in jobs),
        len(jobs[0].base),
        sum(len(job.prompts) for job in jobs),
        how.steps,
        len(layers),
        model.calls - before,
    )
    kept = {}
    for job in jobs:
        for r1, tensors in _to_keep(evidence.pop(0)).items():
            kept[job.concept, r1] = tensors
    return kept


def _to_keep(evidence: dict[str, Evidence]) -> dict[float, dict[str, Tensor]]:
    """The tensors of every r1; the strength is the same for all of them and shared."""
    kept: dict[float, dict[str, Tensor]] = {}
    for name, layer in evidence.items():
        if not torch.isfinite(layer.strength).all():
            raise FloatingPointError(f"the saliency of {name} holds NaN or infinity; try dtype=float32 or bfloat16")
        strength = layer.strength.div_(layer.steps).cpu()
        for r1, count in layer.counts.items():
            kept.setdefault(r1, {}).update({f"strength/{name}": strength, f"count/{name}": count.cpu()})
    return kept
