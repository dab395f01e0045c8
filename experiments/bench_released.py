"""FIA beside the program that its authors released, on one machine, model and set of prompts.

    git clone https://github.com/kaiyuan02415/Forget-It-All released
    python -m experiments.bench_released --released released

The folder is the user's own clone; nothing of it is kept here. Its functions run unchanged, on a pipeline of the SD
classes with random weights (or `--model`, any folder of SD's classes): `compute_concept_saliency` and
`build_concept_mask` for every concept, then `fuse_masks`. What is put in their place:

* `fia.utils.load_pipeline`: the pipeline is handed over in memory, on the CPU in float32.
* prompts: our pairs, which for objects are those that the release builds, as many as `--pairs` says.
* the configuration file: the same values, taken from ours; its r2 exceptions come as each concept's own r2.

Ours runs the preset `fia_release` with the release's sampler, steps and seed. Masks are compared entry by entry: an
entry may differ only at a tie, where its score lies within float tolerance of a threshold. Both programs take their
turn `--rounds` times in one process.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from fia.fia import FIA
    from fia.saliency import Job
    from harness.model import DiffusionModel

RESULTS = Path(__file__).resolve().parents[1] / "results" / "bench"
CONCEPTS = ("church", "tench", "gas pump")
NEEDED = ("hooks.py", "saliency.py", "neurons.py", "mask_fusion.py", "utils.py")
TIE = 1e-4  # of the largest score in the layer


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


def run_released(
    modules: dict[str, Any], model: DiffusionModel, method: FIA, jobs: Sequence[Job]
) -> tuple[list[list[Any]], list[Any]]:
    """Masks of every concept, a list of layers each, and the fused ones, by the release's own functions."""
    masks = []
    for job in jobs:
        config = modules["utils"].FIAConfig(
            seed=job.how.seed,
            dtype="float32",
            inference_steps=job.how.sampler.steps,
            saliency_steps=job.how.steps,
            r1=job.r1,
            r2=method.r2_of(job.concept),
            device="cpu",
        )
        saliency = modules["saliency"].compute_concept_saliency(model.pipe, job.prompts, job.base, config)
        masks.append(modules["neurons"].build_concept_mask(saliency, config))
    return masks, modules["mask_fusion"].fuse_masks(masks, method.alpha)[0]


def differing(scores: np.ndarray, ours: np.ndarray, theirs: np.ndarray, r2: float) -> tuple[int, int]:
    """Entries in which two masks of a layer differ, and how many of these are no ties at a threshold of Eq. 4-5."""
    import numpy as np

    from fia.neurons import budget

    rows, columns = scores.shape
    by_row = np.sort(scores, axis=1)[:, ::-1][:, budget(r2, columns) - 1]
    by_layer = np.sort(scores.ravel())[::-1][budget(r2, rows * columns) - 1]
    places = np.argwhere(ours != theirs)
    far = [min(abs(scores[i, j] - by_row[i]), abs(scores[i, j] - by_layer)) > TIE * scores.max() for i, j in places]
    return len(places), sum(far)


def compare(folder: Path, path: Path | None, pairs: int, rounds: int, chunk: int) -> dict[str, Any]:
    """Run both programs and compare: JSON values.

    Raises:
        ValueError: the folder is no clone of the release, or the model has no feed-forward layers of SD's kind.
    """
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from fia.neurons import score
    from harness.masks import unpack
    from harness.model import DiffusionModel
    from harness.record import environment
    from harness.task import Concept

    from .cli import CONF

    model = small_model() if path is None else DiffusionModel.load(path)
    model.pipe.set_progress_bar_config(disable=True)
    with initialize_config_dir(str(CONF / "method"), version_base="1.3"):
        method = instantiate(compose("fia_release", overrides=[f"num_pairs={pairs}", f"chunk={chunk}"]))
    concepts = [Concept(name, "object") for name in CONCEPTS]
    jobs = [method.job_of(model, concept, 0) for concept in concepts]
    kept: dict[tuple[str, ...], dict[str, Any]] = {}

    def stage(kind: str, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        made = make()
        if kind == "fia.saliency":
            kept[key["prompts"]] = made
        return made

    seconds: dict[str, list[float]] = {"released": [], "ours": []}
    calls = {}
    unet_calls = _count_calls(model.unet)
    # Once unmeasured: kernels are chosen, and text features are kept by ours as in any run.
    model.denoise(model.encode(jobs[0].prompts[:1]), model.latents([0]), method.sampler, 7.5, stop_after=1)
    with released(folder) as modules:
        # Ours was imported before and stays as it is; only new imports of `fia` meet the release.
        for _ in range(rounds):
            before, start = unet_calls[0], time.perf_counter()
            theirs, fused = run_released(modules, model, method, jobs)
            seconds["released"].append(time.perf_counter() - start)
            calls["released"] = unet_calls[0] - before
            before, start = unet_calls[0], time.perf_counter()
            found = method.masks(model, concepts, 0, stage)
            _, own = found.fuse(concepts, alpha=method.alpha)
            seconds["ours"].append(time.perf_counter() - start)
            calls["ours"] = unet_calls[0] - before
    differ = no_ties = selected = 0
    for job, their_mask in zip(jobs, theirs, strict=True):
        mask, tensors = unpack(found.masks[job.concept]), kept[job.prompts]
        for name, their_layer in zip(sorted(mask), their_mask, strict=True):
            frequency = tensors[f"count/{name}"].float() / method.steps
            scores = score(tensors[f"strength/{name}"], frequency, strength_normalise=True).numpy()
            found_here, far = differing(scores, mask[name].numpy(), their_layer.numpy(), method.r2_of(job.concept))
            differ, no_ties, selected = differ + found_here, no_ties + far, selected + int(mask[name].sum())
    layers = sorted(own)
    return {
        "model": model.name or "random SD classes",
        "pairs": pairs,
        "chunk": chunk,
        "concepts": list(CONCEPTS),
        "seconds": seconds,
        "ratio": statistics.median(a / b for a, b in zip(seconds["released"], seconds["ours"], strict=True)),
        "unet_samples": calls,
        "selected": selected,
        "differing": differ,
        "differing_without_a_tie": no_ties,
        "pruned": [int(own[name].prune.sum()) for name in layers],
        "pruned_released": [int(layer.sum()) for layer in fused],
        "environment": environment(),
    }


def small_model() -> DiffusionModel:
    """SD's classes, small and untrained: what the two programs compute is the same, whatever the weights."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from harness.model import DiffusionModel

    torch.manual_seed(0)
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=40)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=40, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8, 8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4,
                          up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=4, latent_channels=4),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=64,
        ).eval(),
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
            set_alpha_to_one=False, steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return DiffusionModel(pipe)


def _count_calls(unet: Any) -> list[int]:
    """A counter of UNet calls in single samples, whoever makes them."""
    counter = [0]

    def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        counter[0] += len(args[0] if args else kwargs["sample"])

    unet.register_forward_pre_hook(count, with_kwargs=True)
    return counter


def show(result: dict[str, Any]) -> str:
    """The comparison in words."""
    samples, seconds = result["unet_samples"], result["seconds"]
    return "\n".join(
        [
            f"{result['model']}, {len(result['concepts'])} concepts, {result['pairs']} pairs of prompts, CPU, "
            f"{result['environment']['hardware']['threads']} threads; {len(seconds['ours'])} rounds",
            f"released  {statistics.median(seconds['released']):.1f} s, {samples['released']} UNet samples",
            f"ours      {statistics.median(seconds['ours']):.1f} s, {samples['ours']} UNet samples",
            f"ratio     {result['ratio']:.1f} (median of paired rounds)",
            f"masks     {result['differing']} of {result['selected']} selected weights differ, "
            f"{result['differing_without_a_tie']} of them not at a tie",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print and write; 1 where masks differ beyond ties, 2 on bad input."""
    from . import cli

    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench_released", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--released", type=Path, required=True, metavar="DIR", help="a clone of the released program")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a diffusers folder of SD's classes")
    parser.add_argument("--pairs", type=int, default=30, help="pairs of prompts a concept (default: all 30)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk", type=int, default=8, help="prompts a UNet call of ours")
    options = parser.parse_args(argv)
    try:
        for name in ("pairs", "rounds", "chunk"):
            if getattr(options, name) < 1:
                raise ValueError(f"--{name} {getattr(options, name)}: at least 1")
        result = compare(options.released, options.model, options.pairs, options.rounds, options.chunk)
    except Exception as error:
        if cli.exit_code(error) != cli.BAD_INPUT:
            raise
        print(cli.one_line(error), file=sys.stderr)
        return cli.BAD_INPUT
    from harness.files import write_atomic

    path = RESULTS / "released-cpu.json"
    write_atomic(path, (json.dumps(result, indent=1) + "\n").encode())
    print(show(result))
    print(f"written: {path.relative_to(RESULTS.parents[1])}")
    return cli.DONE if not result["differing_without_a_tie"] else cli.FAILED


if __name__ == "__main__":
    sys.exit(main())
