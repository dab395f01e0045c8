"""FIA beside the program that its authors released, on one machine, model and set of prompts.

    git clone https://github.com/kaiyuan02415/Forget-It-All released
    python -m experiments.bench --parts released --released released                 a small model with random weights
    python -m experiments.bench --parts released --released released --random --rounds 1 device=cuda method.num_pairs=4

The folder is the user's own clone; nothing of it is kept here. Its functions run unchanged:
`compute_concept_saliency` and `build_concept_mask` for every concept, then `fuse_masks`. What is put in their place:

* `fia.utils.load_pipeline`: the pipeline is handed over in memory, with the scheduler and the noise that ours uses (the
  release draws noise on its device, and a GPU draws other numbers).
* prompts: our pairs, which for objects are those that the release builds, `method.num_pairs` of them.
* the configuration file: the same values, taken from ours; its r2 exceptions come as each concept's own r2.

Ours runs the preset `fia_release` with the release's sampler, steps and seed. Beside both stands our denoising of the
same prompts with nothing read off it; unlike ours it makes every unconditional row of the first calls.

Masks are compared entry by entry. In a single concept's mask an entry may differ only at a tie, where its score lies
within float tolerance of a threshold; in the fused mask only where a single one does. That holds in float32, the part's
default; in `dtype=float16`, which the release runs in, what a kernel rounds away depends on the batch, and differences
are counted and not judged.
"""

from __future__ import annotations

import importlib
import logging
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from fia.fia import FIA
from fia.masks import MaskSet
from fia.neurons import budget, score
from fia.saliency import Job
from harness.masks import unpack
from harness.method import Meter
from harness.model import DiffusionModel

from .bench_masks import denoising
from .goals import Goal
from .search import NO_PRESET
from .setup import setup

log = logging.getLogger(__name__)

DEFAULTS = (
    *("method=fia_release", NO_PRESET, "method.num_pairs=30", "dtype=float32"),
    *("task=custom", "task.concepts=[church,tench,gas pump]"),
)
SETTINGS = ("edit_only=true",)
RANDOM = "small"
NEEDED = ("hooks.py", "saliency.py", "neurons.py", "mask_fusion.py", "utils.py")
TIE = 1e-4  # of the largest score in the layer
LEAST, CONCEPTS_OF_GOAL = {"cpu": 10, "cuda": 20}, 3


@contextmanager
def released(folder: Path) -> Iterator[dict[str, Any]]:
    """The release's modules by name; inside, its package `fia` stands where ours stood.

    Raises:
        ValueError: the folder is not a clone of the release.
    """
    package = folder / "fia"
    missing = [name for name in NEEDED if not (package / name).is_file()]
    if missing:
        raise ValueError(f"--released {folder}: no clone of the released program, {missing[0]} is missing in its fia/")
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "fia"}
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield {Path(name).stem: importlib.import_module(f"fia.{Path(name).stem}") for name in NEEDED}
    finally:
        sys.path.remove(str(folder.resolve()))
        for name in [name for name in sys.modules if name.split(".")[0] == "fia"]:
            del sys.modules[name]
        sys.modules.update(ours)


class _Pipeline:
    """What the release asks a pipeline for: its UNet, and a call; with the noise of ours."""

    def __init__(self, model: DiffusionModel, seed: int) -> None:
        self._pipe, self._latents, self.unet = model.pipe, model.latents([seed]), model.unet

    def __call__(self, prompt: str, **options: Any) -> Any:
        return self._pipe(prompt, latents=self._latents.clone(), **options)


def _config(modules: Mapping[str, Any], model: DiffusionModel, method: FIA, job: Job) -> Any:
    """The release's own configuration of one concept."""
    return modules["utils"].FIAConfig(
        seed=job.how.seed,
        dtype=str(model.dtype).removeprefix("torch."),
        inference_steps=job.how.sampler.steps,
        saliency_steps=job.how.steps,
        r1=job.r1,
        r2=method.r2_of(job.concept),
        device=str(model.device),
    )


def run_released(
    modules: Mapping[str, Any], model: DiffusionModel, method: FIA, jobs: Sequence[Job]
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Masks of every concept, a list of layers each, and the fused ones, by the release's own functions."""
    masks = []
    for job in jobs:
        config = _config(modules, model, method, job)
        pipe = _Pipeline(model, job.how.seed)
        saliency = modules["saliency"].compute_concept_saliency(pipe, job.prompts, job.base, config)
        masks.append(modules["neurons"].build_concept_mask(saliency, config))
    return masks, modules["mask_fusion"].fuse_masks(masks, method.alpha)[0]


def differing(scores: np.ndarray, ours: np.ndarray, theirs: np.ndarray, r2: float) -> tuple[np.ndarray, np.ndarray]:
    """Where two masks of a layer differ, and where they do although the score is at no threshold of Eq. 4-5.

    Args:
        scores: Eq. 3's [Cout, Cin].
        ours, theirs: bool [Cout, Cin].

    Returns:
        Two of bool [Cout, Cin].
    """
    rows, columns = scores.shape
    by_row = np.sort(scores, axis=1)[:, ::-1][:, budget(r2, columns) - 1]
    by_layer = np.sort(scores.ravel())[::-1][budget(r2, rows * columns) - 1]
    distance = np.minimum(abs(scores - by_row[:, None]), abs(scores - by_layer))
    differ = ours != theirs
    return differ, differ & (distance > TIE * scores.max())


def compare(
    method: FIA,
    jobs: Sequence[Job],
    kept: Mapping[tuple[str, ...], Mapping[str, Tensor]],
    masks: MaskSet,
    theirs: Sequence[Sequence[Tensor]],
    fused: Sequence[Tensor],
) -> dict[str, int]:
    """Count where the masks of both programs differ, of single concepts and fused.

    Args:
        kept: our saliency, by a concept's prompts.
        theirs: the release's masks of every job, a list of layers each in sorted order of their names.
        fused: the release's fused masks.

    Returns:
        `selected` weights of our single masks, `differing` ones, and `differing_without_a_tie`; `pruned` weights of our
        fused masks, `pruned_released` of theirs, `pruned_differing`, and `pruned_differing_without_a_tie`, where no
        single mask differs at a tie.
    """
    found: Counter[str] = Counter()
    at_ties: dict[str, np.ndarray] = {}
    for job, their_mask in zip(jobs, theirs, strict=True):
        mask, tensors = unpack(masks.masks[job.concept]), kept[job.prompts]
        for (name, layer), their_layer in zip(mask.items(), their_mask, strict=True):
            frequency = tensors[f"count/{name}"].float() / method.steps
            scores = score(tensors[f"strength/{name}"], frequency, strength_normalise=True).numpy()
            differ, far = differing(scores, layer.numpy(), their_layer.cpu().numpy(), method.r2_of(job.concept))
            at_ties[name] = at_ties.get(name, False) | (differ & ~far)
            found.update(selected=int(layer.sum()), differing=differ.sum(), differing_without_a_tie=far.sum())
    _, own = masks.fuse([job.concept for job in jobs], alpha=method.alpha)
    for name, their_layer in zip(sorted(own), fused, strict=True):
        ours, released = own[name].prune.numpy(), their_layer.cpu().numpy()
        differ = ours != released
        found.update(pruned=ours.sum(), pruned_released=released.sum(), pruned_differing=differ.sum())
        found.update(pruned_differing_without_a_tie=(differ & ~at_ties[name]).sum())
    return {name: int(count) for name, count in found.items()}


def measure(cfg: DictConfig, settings: Sequence[str], rounds: int, folder: Path) -> dict[str, Any]:
    """Run both programs and our bare denoising in turn, and compare the masks.

    Args:
        folder: a clone of the release.

    Returns:
        JSON values: what was run, `rounds` (seconds), `medians`, `unet_samples`, and what `compare` counts.

    Raises:
        ValueError: the folder is no clone of the release, or the method is not the release's.
    """
    parts = setup(cfg)
    method = parts.method
    if not isinstance(method, FIA) or method.cosine or method.halves != "both":
        raise ValueError(f"method={parts.config['method']['name']}: the release is compared; say method=fia_release")
    concepts = list(dict.fromkeys(parts.task.concepts))
    with released(folder) as modules, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        # Ours was imported before and stays as it is; only new imports of `fia` meet the release.
        model = parts.model()
        model.pipe.set_progress_bar_config(disable=True)
        model.pipe.scheduler = method.sampler.scheduler(model.pipe.scheduler.config)
        jobs = [method.job_of(model, concept, parts.config["seed"]) for concept in concepts]
        kept: dict[tuple[str, ...], dict[str, Tensor]] = {}

        def stage(kind: str, key: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
            made = make()
            if kind == "fia.saliency":
                kept[key["prompts"]] = made
            return made

        _warm_up(modules, model, method, jobs[0])
        unet_calls = _count_calls(model.unet)
        found: list[dict[str, float]] = []
        calls: dict[str, int] = {}
        for number in range(rounds):
            seconds = {}
            before, meter = unet_calls[0], Meter(model, parts.device)
            theirs, fused = run_released(modules, model, method, jobs)
            seconds["released"], calls["released"] = meter.read().seconds, unet_calls[0] - before
            model._features.clear()  # every round encodes its prompts, as the release does
            before, meter = unet_calls[0], Meter(model, parts.device)
            masks = method.masks(model, concepts, parts.config["seed"], stage)
            masks.fuse(concepts, alpha=method.alpha)
            seconds["ours"], calls["ours"] = meter.read().seconds, unet_calls[0] - before
            before, meter = unet_calls[0], Meter(model, parts.device)
            denoising(model, jobs)
            seconds["denoising"], calls["denoising"] = meter.read().seconds, unet_calls[0] - before
            found.append(seconds)
            log.info("round %d of %d", number + 1, rounds)
    compared = compare(method, jobs, kept, masks, theirs, fused)
    no_ties = {name: compared[f"{name}_without_a_tie"] for name in ("differing", "pruned_differing")}
    judged = model.dtype == torch.float32
    return {
        "model": model.name,
        "words": f"FIA beside its released program, {model.words or model.name}, {len(concepts)} concepts, "
        f"{len(jobs[0].prompts)} pairs of prompts, {method.chunk} prompts a call of ours",
        "fingerprint": model.fingerprint,
        "device": str(parts.device),
        "dtype": parts.config["dtype"],
        "method": parts.config["method"],
        "concepts": [concept.name for concept in concepts],
        "rounds": found,
        "medians": {
            "released": statistics.median(one["released"] for one in found),
            "ours": statistics.median(one["ours"] for one in found),
            "denoising": statistics.median(one["denoising"] for one in found),
            "ratio": statistics.median(one["released"] / one["ours"] for one in found),
            "ratio_to_denoising": statistics.median(one["released"] / one["denoising"] for one in found),
        },
        "unet_samples": calls,
        **compared,
        "wrong": "{differing} weights differ that are at no tie, and {pruned_differing} of the fused masks where no "
        "single mask differs at one".format(**no_ties)
        if judged and any(no_ties.values())
        else "",
    }


def _warm_up(modules: Mapping[str, Any], model: DiffusionModel, method: FIA, job: Job) -> None:
    """One prompt of the release's and one step of ours: kernels are chosen, and memory is claimed."""
    config = _config(modules, model, method, job)
    modules["saliency"].compute_concept_saliency(_Pipeline(model, job.how.seed), job.prompts[:1], job.base[:1], config)
    prompts = job.prompts[: method.chunk]
    noise = model.latents([job.how.seed] * len(prompts))
    model.denoise(model.encode(prompts), noise, method.sampler, method.sampler.guidance, stop_after=1)


def _count_calls(unet: Any) -> list[int]:
    """A counter of UNet calls in single samples, whoever makes them."""
    counter = [0]

    def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        counter[0] += len(args[0] if args else kwargs["sample"])

    unet.register_forward_pre_hook(count, with_kwargs=True)
    return counter


def goals(result: Mapping[str, Any]) -> list[Goal]:
    """How many times as fast as the released program, for three concepts or more."""
    least = LEAST["cuda" if result["device"].startswith("cuda") else "cpu"]
    enough = len(result["concepts"]) >= CONCEPTS_OF_GOAL
    return [Goal("the released program : ours", result["medians"]["ratio"], least, least=True)] if enough else []


def rows(result: Mapping[str, Any]) -> list[str]:
    """The medians and the masks' differences as rows of a table."""
    own, samples = result["medians"], result["unet_samples"]
    return [
        f"| released program, s | {own['released']:.1f} |",
        f"| ours, s | {own['ours']:.1f} |",
        f"| our denoising of the same prompts alone, s | {own['denoising']:.1f} |",
        f"| the released program : ours | {own['ratio']:.1f} |",
        f"| the released program : our denoising alone | {own['ratio_to_denoising']:.1f} |",
        f"| UNet samples of the released program | {samples['released']:,} |",
        f"| UNet samples of ours | {samples['ours']:,} |",
        f"| selected weights | {result['selected']:,} |",
        f"| of them different | {result['differing']:,} |",
        f"| different at no tie | {result['differing_without_a_tie']:,} |",
        f"| pruned weights after fusion | {result['pruned']:,} |",
        f"| of them, or of the released program's, different | {result['pruned_differing']:,} |",
        f"| different where no single mask is at a tie | {result['pruned_differing_without_a_tie']:,} |",
    ]
