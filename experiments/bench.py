"""How fast this machine is, and what FIA's calibration costs beyond the denoising it cannot do without.

    python -m experiments.bench                               the tiny world, on the device that a run would use
    python -m experiments.bench --rounds 5 model=sd15 task=imagenette    settings as for run.py

Three things are measured in turn, round after round, so that a machine that slows down slows all of them:

    pictures      whole pictures with the unedited model: denoising with the run's sampler, and decoding
    denoising     bare denoising of FIA's calibration prompts: same sampler, chunk and number of steps, nothing read
    calibration   FIA's edit of the task's concepts from nothing: denoising, statistics, selection, fusion

The ratio is calibration to denoising in seconds per UNet sample; 1 would mean that reading and selecting is free.
Medians over the rounds are printed, and written with every round and the hardware to results/bench/MODEL-DEVICE.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from . import cli

RESULTS = Path(__file__).resolve().parents[1] / "results" / "bench"


def measure(cfg: DictConfig, rounds: int) -> dict[str, Any]:
    """Time pictures, bare denoising and calibration `rounds` times each.

    Returns:
        JSON values: what was run, `rounds` (seconds and UNet samples of every measurement), `medians`, `environment`.

    Raises:
        ValueError: the configuration is not usable, or its method is not FIA.
    """
    from fia.fia import FIA
    from harness.method import Cost
    from harness.prompts import contrast_pairs
    from harness.record import environment

    from .setup import setup

    parts = setup(cfg)
    method, concepts = parts.method, parts.task.concepts
    if not isinstance(method, FIA):
        raise ValueError(f"method={parts.config['method']['name']}: the benchmark measures FIA; say method=fia")
    model = parts.model()
    seed = parts.config["seed"]
    prompts = contrast_pairs(concepts[0], count=method.num_pairs, seed=seed, words=method.words)[0]
    steps = method.sampler.calls() if method.steps is None else method.steps

    def denoise(texts: Sequence[str], sampler: Any, stop_after: int | None = None) -> Any:
        noise = model.latents([seed] * len(texts))
        return model.denoise(model.encode(texts), noise, sampler, sampler.guidance, stop_after=stop_after)

    def pictures() -> None:
        model.decode(denoise(batch, parts.sampler))

    def denoising() -> None:
        for start in range(0, len(prompts), method.chunk):
            denoise(prompts[start : start + method.chunk], method.sampler, steps)

    def calibration() -> None:
        method.edit(model, concepts, seed, lambda name, key, make: make())

    batch = (prompts * parts.batch_size)[: parts.batch_size]
    work: dict[str, Callable[[], None]] = {
        "pictures": pictures, "denoising": denoising, "calibration": calibration
    }  # fmt: skip
    # Once unmeasured: kernels are chosen, memory is claimed and text features are kept.
    pictures()
    denoising()
    found = []
    for number in range(rounds):
        cost = Cost(model, parts.device)
        for name, run in work.items():
            with cost.stage(name):
                run()
        found.append(cost.as_dict()["stages"])
        logging.getLogger(__name__).info("round %d of %d", number + 1, rounds)

    def per_sample(name: str) -> float:
        return statistics.median(stages[name]["seconds"] / stages[name]["unet_samples"] for stages in found)

    ratios = [
        (stages["calibration"]["seconds"] / stages["calibration"]["unet_samples"])
        / (stages["denoising"]["seconds"] / stages["denoising"]["unet_samples"])
        for stages in found
    ]
    return {
        "model": model.name,
        "words": model.words,
        "fingerprint": model.fingerprint,
        "task": parts.task.name,
        "device": str(parts.device),
        "dtype": parts.config["dtype"],
        "method": parts.config["method"],
        "sampler": parts.config["sampler"],
        "batch_size": parts.batch_size,
        "concepts": len(concepts),
        "rounds": found,
        "medians": {
            "images_per_second": statistics.median(len(batch) / stages["pictures"]["seconds"] for stages in found),
            "denoising_ms_per_unet_sample": 1000 * per_sample("denoising"),
            "calibration_ms_per_unet_sample": 1000 * per_sample("calibration"),
            "calibration_to_denoising": statistics.median(ratios),
            "calibration_seconds": statistics.median(stages["calibration"]["seconds"] for stages in found),
        },
        "environment": environment(),
    }


def show(result: dict[str, Any]) -> str:
    """The medians in words."""
    medians, hardware = result["medians"], result["environment"]["hardware"]
    where = ", ".join(hardware["gpus"]) if result["device"].startswith("cuda") else hardware["cpu"]
    return "\n".join(
        [
            f"{result['words'] or result['model']}, {result['dtype']} on {result['device']} "
            f"({where}, {hardware['threads']} threads); medians of {len(result['rounds'])} rounds",
            f"pictures      {medians['images_per_second']:.2f} images/s "
            f"({result['sampler']['name']}, {result['sampler']['steps']} steps, batch {result['batch_size']})",
            f"denoising     {medians['denoising_ms_per_unet_sample']:.2f} ms a UNet sample",
            f"calibration   {medians['calibration_ms_per_unet_sample']:.2f} ms a UNet sample, "
            f"{medians['calibration_seconds']:.1f} s for {result['concepts']} concepts",
            f"ratio         {medians['calibration_to_denoising']:.2f} (calibration : denoising)",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as for run.py")
    options = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if options.rounds < 1:
            raise ValueError(f"--rounds {options.rounds}: at least 1")
        with initialize_config_dir(str(cli.CONF), version_base="1.3"):
            cfg = compose("config", overrides=[*options.settings, "edit_only=true"])
        result = measure(cfg, options.rounds)
    except Exception as error:
        if cli.exit_code(error) != cli.BAD_INPUT:
            raise
        print(cli.one_line(error, options.settings), file=sys.stderr)
        return cli.BAD_INPUT
    from harness.files import write_atomic

    path = RESULTS / f"{result['model']}-{result['device'].replace(':', '')}.json"
    write_atomic(path, (json.dumps(result, indent=1) + "\n").encode())
    print(show(result))
    print(f"written: {path.relative_to(RESULTS.parents[1])}")
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())
