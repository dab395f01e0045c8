"""What a method is, and what it costs.

A method is a plain dataclass whose fields are its parameters, named by the papers' symbols; it turns a model and the
concepts to forget into an Edit. Everything else (loading, storing, timing, scoring) is the pipeline's.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .edit import Edit
    from .model import DiffusionModel
    from .task import Concept

# stage(name, key, make): the tensors stored under (name, key), or make() them and store them. `key` is JSON-able and
# holds everything that decides the tensors, apart from the model, which the pipeline adds.
Stage = Callable[[str, dict[str, Any], Callable[[], dict[str, Tensor]]], dict[str, Tensor]]


@dataclass(frozen=True)
class Scratch:
    """Where unfinished work on an artefact may lie, such as a checkpoint, and the account of what it cost.

    It outlives a kill and goes when the artefact is stored. One process works there at a time.

    Attributes:
        folder: made by whoever writes there.
        spent: what the edit has cost until now, JSON-able; to be kept with a checkpoint.
        found: to be told what was kept with the checkpoint from which the work goes on.
    """

    folder: Path
    spent: Callable[[], Any] = dict
    found: Callable[[Any], None] = lambda spent: None


def scratch(stage: Stage, name: str, key: dict[str, Any]) -> Scratch | None:
    """A place for unfinished work on the artefact (name, key), for use inside its `make`; None where a stage has none.

    `stage(name, key, make)` runs `make` in one process at a time, so that nobody else writes there.
    """
    give = getattr(stage, "scratch", None)
    return None if give is None else give(name, key)


class Method(Protocol):
    """One way to make a model forget concepts.

    Attributes:
        name: as on the command line.
        version: raised by hand when the same parameters would give another edit.
        speed_only: names of the parameters that decide speed or memory and not the edit; they stay out of its key. A
            method without such parameters need not declare it.
        idle: names of the parameters that decide nothing at their values in a run of a schedule; they stay out of its
            key too. Optional.
        joint_only: the edit does not depend on the concepts, so that no schedule but `joint` makes sense; optional.
    """

    name: str
    version: int
    speed_only: ClassVar[tuple[str, ...]] = ()

    def edit(self, model: DiffusionModel, concepts: Sequence[Concept], seed: int, stage: Stage) -> Edit:
        """The edit that makes `model` forget all `concepts` at once. It leaves the model as it found it.

        Raises:
            NoEffectError: the parameters lead to no change; the message says why.
        """
        ...


@dataclass
class StageCost:
    """What one named stage took; a stage that ran several times is added up.

    Attributes:
        seconds: wall clock.
        unet_samples: UNet calls in single samples (a guided sample counts 2).
        peak_memory_bytes: most device memory held on CUDA; elsewhere the process's high-water mark at the stage's end,
            which earlier stages may have set.
    """

    seconds: float = 0.0
    unet_samples: int = 0
    peak_memory_bytes: int = 0


class Meter:
    """What was spent since it was made: `read` may be called any number of times."""

    def __init__(self, model: Any, device: str | torch.device) -> None:
        """Meter `model` (anything with a `calls` count, a LazyModel too) on `device`."""
        self.model, self.device = model, torch.device(device)
        self._cuda = self.device.type == "cuda"
        if self._cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self._calls, self._start = model.calls, time.perf_counter()

    def read(self) -> StageCost:
        """Seconds and UNet samples so far, and the peak."""
        if self._cuda:
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self._start
        peak = torch.cuda.max_memory_allocated(self.device) if self._cuda else process_peak_bytes()
        return StageCost(seconds, self.model.calls - self._calls, peak)


class Cost:
    """Cost of a run: `with cost.stage("edit"): ...`. Stages do not nest, so their seconds can be added; what is done
    `aside` from one counts as another's.
    """

    def __init__(self, model: Any, device: str | torch.device) -> None:
        """See `Meter`."""
        self.model, self.device = model, torch.device(device)
        self.stages: dict[str, StageCost] = {}
        self._open: tuple[str, Meter] | None = None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[StageCost]:
        """Meter the block under `name`; what ran before an error counts too."""
        if self._open is not None:
            raise RuntimeError(f"stage {name!r} begins inside stage {self._open[0]!r}; stages do not nest")
        self._begin(name)
        try:
            yield self.stages[name]
        finally:
            self._end()

    @contextlib.contextmanager
    def aside(self, name: str) -> Iterator[StageCost]:
        """Meter the block under `name`, and not under the stage that it interrupts."""
        interrupted = self._end() if self._open is not None else None
        try:
            with self.stage(name) as entry:
                yield entry
        finally:
            if interrupted is not None:
                self._begin(interrupted)

    def _begin(self, name: str) -> None:
        self.stages.setdefault(name, StageCost())
        self._open = name, Meter(self.model, self.device)

    def _end(self) -> str:
        """Count what the open stage took since it began, and close it."""
        assert self._open is not None
        name, meter = self._open
        entry, spent = self.stages[name], meter.read()
        entry.seconds += spent.seconds
        entry.unet_samples += spent.unet_samples
        entry.peak_memory_bytes = max(entry.peak_memory_bytes, spent.peak_memory_bytes)
        self._open = None
        return name

    def add(self, others: Iterable[Mapping[str, StageCost]]) -> None:
        """Count in what other processes of the run spent in the same stages: samples add up, the highest peak counts,
        and the seconds stay this process's, which waited for the others."""
        for stages in others:
            for name, spent in stages.items():
                entry = self.stages.setdefault(name, StageCost())
                entry.unet_samples += spent.unet_samples
                entry.peak_memory_bytes = max(entry.peak_memory_bytes, spent.peak_memory_bytes)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: device, totals, and the stages by name in the order they first ran."""
        stages = self.stages.values()
        return {
            "device": device_name(self.device),
            "seconds": sum(stage.seconds for stage in stages),
            "unet_samples": sum(stage.unet_samples for stage in stages),
            "peak_memory_bytes": max((stage.peak_memory_bytes for stage in stages), default=0),
            "stages": {name: asdict(stage) for name, stage in self.stages.items()},
        }


def process_peak_bytes() -> int:
    """Most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def device_name(device: torch.device) -> str:
    """The GPU's product name, or the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
