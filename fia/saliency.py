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

from harness.model import DiffusionModel
from harness.task import Concept

from .neurons import Evidence
from .statistics import Calibration, contrast_each_step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """Everything that decides the saliency of one concept on one model.

    Attributes:
        prompts, base: prompts with the concept, and without it.
        kind: of the layers.
        r1, strict: see `neurons.passes`.
        how: the calibration runs.
    """

    concept: Concept
    prompts: tuple[str, ...]
    base: tuple[str, ...]
    kind: str
    r1: float
    strict: bool
    how: Calibration

    def key(self) -> dict[str, Any]:
        """The same as JSON, without what only decides speed."""
        key = asdict(self)
        del key["concept"], key["how"]["chunk"]  # the prompts name the concept
        return key


def groups(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    """At most `size` concepts at a time that share their base prompts, which then run once for all of them."""
    for _, same in groupby(sorted(jobs, key=lambda job: job.base), key=lambda job: job.base):
        batch = list(same)
        for start in range(0, len(batch), size):
            yield batch[start : start + size]


def measure(model: DiffusionModel, jobs: Sequence[Job]) -> dict[Concept, dict[str, Tensor]]:
    """Run the prompts of one group; the tensors to keep of every concept, on the CPU."""
    how = jobs[0].how
    layers = model.layers(jobs[0].kind)
    dtype = torch.float64 if how.dtype == "float64" else torch.float32
    evidence = [{name: Evidence.empty(layer.weight, how.steps, dtype) for name, layer in layers.items()} for _ in jobs]

    def take(index: int, name: str, contrast: Tensor) -> None:
        saliency = layers[name].weight.detach().abs().to(dtype) * contrast
        evidence[index][name].add(saliency, jobs[index].r1, jobs[index].strict)

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
    return {job.concept: _to_keep(evidence.pop(0)) for job in jobs}


def _to_keep(evidence: dict[str, Evidence]) -> dict[str, Tensor]:
    kept = {}
    for name, layer in evidence.items():
        if not torch.isfinite(layer.strength).all():
            raise FloatingPointError(f"the saliency of {name} holds NaN or infinity; try dtype=float32 or bfloat16")
        kept[f"strength/{name}"] = layer.strength.div_(layer.steps).cpu()
        kept[f"count/{name}"] = layer.count.cpu()
    return kept
