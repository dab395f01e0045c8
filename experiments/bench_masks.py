"""What FIA's masks cost beyond the denoising that they cannot do without (`python -m experiments.bench --parts masks`).

    denoising     bare denoising of the base prompts and of all concepts' prompts: same batches, sampler and steps
    statistics    the same prompts and steps with FIA's statistics and thresholds (Eq. 1-3): one pass for the concepts,
                  whose first UNet calls have one unconditional row a batch, since all prompts start from one latent,
                  and whose last ones have only the half that counts, where `halves` names one
    products      only the products X^T Y that the exact cosine factor needs, at the layers' shapes and calls; and
                  Y = X W^T, where it is not the layer's own output
    thresholds    Eq. 3's top r1 of every layer once, by selection; and `sorts`, by sorting
    selection     Eq. 4-6: the mask of one concept from what is kept of it

On CUDA also the peaks of device memory of the first two, before anything that only the others need is there.
The ratio is statistics to denoising, a median over paired rounds, every second of which runs backwards; beside it the
same of one UNet sample, to which the rows that are spared give nothing. The floor is the statistics' share of
denoising's UNet samples plus products to denoising.
"""

from __future__ import annotations

import logging
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig

from fia.activity import DTYPES, fused, products_of
from fia.fia import FIA
from fia.neurons import budget
from fia.saliency import Job, groups, held
from fia.saliency import measure as run_statistics
from fia.statistics import is_own
from harness.masks import kth_largest
from harness.method import Meter, StageCost
from harness.model import DiffusionModel

from .goals import Goal
from .setup import setup

log = logging.getLogger(__name__)

SETTINGS = ("edit_only=true",)
Shape = tuple[int, int, int, int]  # of what a layer meets in a full batch: prompts, tokens, Cin, Cout
MOST, MOST_TO_FLOOR = 1.10, 1.05
CONCEPTS = 2  # a round on a processor takes half a minute with two


def measure(
    cfg: DictConfig, settings: Sequence[str], rounds: int, steps: int | None = None, concepts: int = CONCEPTS
) -> dict[str, Any]:
    """Time the parts `rounds` times each, on the configured task's first concepts.

    Args:
        steps: UNet calls of every walk, the method's own by default.
        concepts: how many at most.

    Returns:
        JSON values: what was run, `rounds` (seconds of every part), `medians`.

    Raises:
        ValueError: the configuration is not usable, or its method is not FIA with the cosine factor.
    """
    parts = setup(cfg)
    method = parts.method
    if not isinstance(method, FIA) or not method.cosine:
        raise ValueError(f"method={parts.config['method']['name']}: the exact term is measured; say method=fia")
    whole = min(method.steps or method.sampler.calls(), method.sampler.calls())
    method.steps = min(steps or whole, method.sampler.calls())
    model = parts.model()
    few = list(dict.fromkeys(parts.task.concepts))[:concepts]
    jobs = [method.job_of(model, concept, parts.config["seed"]) for concept in few]
    jobs = next(groups(jobs, len(jobs)))
    layers = model.layers(method.kind)
    kept: dict[Any, dict[str, torch.Tensor]] = {}

    def with_statistics() -> None:
        kept.clear()
        kept.update(run_statistics(model, jobs))

    work: dict[str, Callable[[], Any]] = {"denoising": lambda: denoising(model, jobs), "statistics": with_statistics}
    # Everything once unmeasured: kernels are chosen, memory is claimed and text features are kept.
    peaks = {name: spent(run, model, parts.device).peak_memory_bytes for name, run in work.items()}
    own, kernels = is_own(jobs[0].how), fused(next(iter(layers.values())).weight)
    shapes = inputs(model, jobs[0])
    dtype = model.dtype if own and kernels else DTYPES[method.saliency_dtype]
    random = operands(shapes.values(), 2 if method.halves == "both" else 1, dtype, model.device)
    # In full batches: what is left over in the end is a part of one.
    full = next(iter(shapes.values()))[0]
    calls = method.steps * sum(len(prompts) for prompts in (jobs[0].base, *(job.prompts for job in jobs))) / full

    def products() -> None:
        for shape in shapes.values():
            x, y, weight = random[shape]
            if own and kernels:
                for y_half, x_half in zip(y, x, strict=True):
                    kernels.products(y_half, x_half)
            else:
                products_of(y if own else x @ weight.mT, x)

    def thresholds(find: Callable[[torch.Tensor, int], Any]) -> Callable[[], None]:
        def run() -> None:
            for name in layers:
                values = kept[jobs[0].concept, jobs[0].r1][f"strength/{name}"].to(model.device).flatten()
                find(values, budget(method.r1, values.numel()))

        return run

    others: dict[str, Callable[[], Any]] = {
        "products": products,
        "thresholds": thresholds(kth_largest),
        "sorts": thresholds(lambda values, k: values.sort(descending=True).values[k - 1]),
        "selection": lambda: method.choose(kept[jobs[0].concept, jobs[0].r1], jobs[0], model.device),
    }
    for run in others.values():
        run()
    work |= others
    found: list[dict[str, float]] = []
    samples: dict[str, int] = {}
    for number in range(rounds):
        seconds = {}
        for name in list(work)[:: -1 if number % 2 else 1]:
            cost = spent(work[name], model, parts.device)
            seconds[name], samples[name] = cost.seconds, cost.unet_samples
        found.append(seconds)
        log.info("round %d of %d", number + 1, rounds)
    return {
        "model": model.name,
        "words": f"FIA's masks, {model.words or model.name}, halves {method.halves}, {len(jobs)} concepts, "
        f"{method.chunk} prompts a call, {method.steps} steps{'' if method.steps == whole else f' of {whole}'}",
        "fingerprint": model.fingerprint,
        "task": parts.task.name,
        "device": str(parts.device),
        "dtype": parts.config["dtype"],
        "method": parts.config["method"],
        "chunk": method.chunk,
        "concepts": len(jobs),
        "steps": method.steps,
        # What the first call and the last one spare weighs more in a shorter walk: no goal is about one.
        "whole": method.steps >= whole,
        "unet_samples": {name: samples[name] for name in ("denoising", "statistics")},
        "memory": dict(zip(("concept", "moments"), held(model, jobs[0]), strict=True)),
        # A processor's would be that of the whole process, whatever ran last.
        "peaks": peaks if parts.device.type == "cuda" else {},
        "rounds": found,
        "medians": medians(found, calls, samples, len(jobs), len(layers), method.steps),
    }


def spent(run: Callable[[], Any], model: DiffusionModel, device: torch.device) -> StageCost:
    """What one call took."""
    meter = Meter(model, device)
    run()
    return meter.read()


def operands(
    shapes: Iterable[Shape], halves: int, dtype: torch.dtype, device: torch.device
) -> dict[Shape, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Random X and Y of a full batch [halves, prompts, tokens, Cin or Cout], and W [Cout, Cin], by shape.

    Once a shape, not once a layer: for SDXL's seventy layers they would take 33 GB.
    """
    return {
        shape: tuple(
            torch.randn(size, device=device, dtype=dtype)
            for size in ((halves, *shape[:2], shape[2]), (halves, *shape[:2], shape[3]), (shape[3], shape[2]))
        )
        for shape in dict.fromkeys(shapes)
    }


def denoising(model: DiffusionModel, jobs: Sequence[Job]) -> None:
    """The UNet calls of our calibration, in its batches, with nothing read off them."""
    how = jobs[0].how
    for prompts in (jobs[0].base, *(job.prompts for job in jobs)):
        for start in range(0, len(prompts), how.chunk):
            few = prompts[start : start + how.chunk]
            noise = model.latents([how.seed] * len(few), *how.size)
            options = {"size": how.size, "stop_after": how.steps, "both_halves": True}
            model.denoise(model.encode(few), noise, how.sampler, how.sampler.guidance, **options)


def inputs(model: DiffusionModel, job: Job) -> dict[str, Shape]:
    """What every measured layer meets, by name."""
    layers = model.layers(job.kind)
    seen: dict[str, Shape] = {}
    prompts = job.prompts[: job.how.chunk]

    def reader(name: str) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
        def read(layer: Any, args: tuple[torch.Tensor, ...]) -> None:
            seen[name] = (len(prompts), args[0].shape[1], layer.in_features, layer.out_features)

        return read

    handles = [layer.register_forward_pre_hook(reader(name)) for name, layer in layers.items()]
    try:
        latents = model.latents([job.how.seed] * len(prompts), *job.how.size)
        sampler = job.how.sampler
        model.denoise(model.encode(prompts), latents, sampler, sampler.guidance, size=job.how.size, stop_after=1)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def medians(
    found: Sequence[Mapping[str, float]],
    calls: float,
    samples: Mapping[str, int],
    concepts: int,
    layers: int,
    steps: int,
) -> dict[str, float]:
    """What the rounds say; ratios are taken within a round.

    Args:
        found: seconds of every part, by round.
        calls: UNet calls of a full batch that the products are needed for.
        samples: UNet samples of `denoising` and `statistics`.
        concepts, layers, steps: how many there are.
    """
    share = samples["statistics"] / samples["denoising"]

    def median(value: Callable[[Mapping[str, float]], float]) -> float:
        return statistics.median(value(seconds) for seconds in found)

    return {
        "denoising_ms_per_unet_sample": median(lambda s: 1000 * s["denoising"] / samples["denoising"]),
        "statistics_ms_per_unet_sample": median(lambda s: 1000 * s["statistics"] / samples["statistics"]),
        "ratio": median(lambda s: s["statistics"] / s["denoising"]),
        "ratio_per_unet_sample": median(lambda s: s["statistics"] / (share * s["denoising"])),
        "floor": median(lambda s: share + calls * s["products"] / s["denoising"]),
        "ratio_to_floor": median(lambda s: s["statistics"] / (share * s["denoising"] + calls * s["products"])),
        "thresholds_ms_per_layer": median(lambda s: 1000 * s["thresholds"] / layers),
        "sort_ms_per_layer": median(lambda s: 1000 * s["sorts"] / layers),
        "sort_to_threshold": median(lambda s: s["sorts"] / s["thresholds"]),
        "thresholds_share_of_statistics": median(lambda s: concepts * steps * s["thresholds"] / s["statistics"]),
        "selection_ms_per_concept": median(lambda s: 1000 * s["selection"]),
    }


def goals(result: Mapping[str, Any]) -> list[Goal]:
    """Of whole walks: 1.10 of bare denoising, or where the floor is higher than that 1.05 of the floor."""
    own = result["medians"]
    limit = max(MOST, MOST_TO_FLOOR * own["floor"])
    return [Goal("statistics : denoising", own["ratio"], limit)] if result["whole"] else []


def rows(result: Mapping[str, Any]) -> list[str]:
    """The medians as rows of a table."""
    own = result["medians"]
    values = {
        "bare denoising, ms a UNet sample": f"{own['denoising_ms_per_unet_sample']:.2f}",
        "with statistics, ms a UNet sample": f"{own['statistics_ms_per_unet_sample']:.2f}",
        "statistics : denoising": f"{own['ratio']:.3f}",
        "the same of a UNet sample": f"{own['ratio_per_unet_sample']:.3f}",
        "floor: share of UNet samples + products X^T Y : denoising": f"{own['floor']:.3f}",
        "statistics : floor": f"{own['ratio_to_floor']:.3f}",
        "threshold of Eq. 3, ms a layer": f"{own['thresholds_ms_per_layer']:.3f}",
        "the same by sorting": f"{own['sort_ms_per_layer']:.3f} ({own['sort_to_threshold']:.1f} x)",
        "thresholds in all, share of statistics": f"{own['thresholds_share_of_statistics']:.1%}",
        "Eq. 4-6, ms a concept": f"{own['selection_ms_per_concept']:.1f}",
    }
    memory = result["memory"]
    values |= {
        "held of a concept until the pass ends, MB": f"{memory['concept'] / 1e6:.1f}",
        "moments of one step, MB": f"{memory['moments'] / 1e6:.1f}",
    }
    values |= {f"peak of {name}, GB": f"{peak / 1e9:.2f}" for name, peak in result["peaks"].items()}
    return [f"| {what} | {value} |" for what, value in values.items()]


if __name__ == "__main__":
    from .bench import main

    sys.exit(main(["--parts", "masks", *sys.argv[1:]]))
