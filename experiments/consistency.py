"""How far batch and chunk sizes move pictures and masks: `python -m experiments.consistency [SETTING=VALUE ...]`.

Kernels round differently at other sizes. Two things are measured on the run's model and concepts: pictures at batch 1
against batch 16 (difference of pixel values), and the single-concept masks of FIA at chunk 1 against chunk 16: their
overlap |A and B| / |A or B|, and why each differing weight differs. Rounding can move a weight over three thresholds:

    at_eq_3      its saliency passes tau_t at another number of steps: S and tau_t were equal up to rounding there
    at_eq_4_5    its score lies within TOLERANCE of the threshold of its row or its layer
    displaced    neither, but a weight of its layer that differs `at_eq_3` has taken or left its place
    unexplained  none of these: a fault

Printed as JSON; nothing is stored.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from . import cli

PICTURES, BATCHES, CHUNKS = 32, (1, 16), (1, 16)
# Of scores, as a share of the layer's largest; float32 sums over steps and prompts differ by some 1e-6.
TOLERANCE = 1e-5


def pictures(parts: Any) -> dict[str, Any]:
    """Differences of uint8 values between the same pictures drawn at both batch sizes."""
    model = parts.model()
    rows = list(parts.task.sets["classes"])
    rows = rows[:: max(1, len(rows) // PICTURES)][:PICTURES]
    drawn = []
    for size in BATCHES:
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        finals = [
            model.denoise(
                model.encode([row.prompt for row in batch]),
                model.latents([row.seed for row in batch]),
                parts.sampler,
                parts.sampler.guidance,
            )
            for batch in batches
        ]
        drawn.append(np.concatenate([np.asarray(model.decode(final)) for final in finals]).astype(int))
    difference = np.abs(drawn[0] - drawn[1])
    return {
        "pictures": len(rows),
        "batches": BATCHES,
        "largest_difference": int(difference.max()),
        "share_of_values_that_differ": float((difference > 0).mean()),
    }


def masks(parts: Any) -> dict[str, Any]:
    """Overlap of the single-concept masks at both chunk sizes, and why what differs does."""
    from harness.masks import unpack

    method = parts.method
    shared = either = 0
    reasons = dict.fromkeys(("at_eq_3", "at_eq_4_5", "displaced", "unexplained"), 0)
    strengths = [0.0]
    for concept in parts.task.concepts:
        found, saliency = [], []

        def stage(name: str, key: Any, make: Any, saliency: list = saliency) -> dict[str, torch.Tensor]:
            tensors = make()
            if name == "fia.saliency":
                saliency.append(tensors)
            return tensors

        for chunk in CHUNKS:
            one = dataclasses.replace(method, chunk=chunk)
            # Asked of a single concept, so that the saliency that passes by is this concept's.
            packed = one.masks(parts.model(), [concept], parts.config["seed"], stage)
            found.append(unpack(packed.masks[concept]))
        for name, a in found[0].items():
            b = found[1][name]
            shared, either = shared + int((a & b).sum()), either + int((a | b).sum())
            one, other = (kept[f"strength/{name}"] for kept in saliency)
            strengths.append(float((one - other).abs().max() / one.max().clamp(min=1e-30)))
            for reason, count in explained(method, concept, name, a ^ b, saliency).items():
                reasons[reason] += count
    return {
        "concepts": len(parts.task.concepts),
        "chunks": CHUNKS,
        "selected": either,
        "differing": either - shared,
        "overlap": shared / either,
        "reasons": reasons,
        # Of the mean of S over steps, as a share of the layer's largest: the rounding that all this is about.
        "largest_difference_of_strength": max(strengths),
    }


def explained(
    method: Any, concept: Any, name: str, different: torch.Tensor, saliency: list[dict[str, torch.Tensor]]
) -> dict[str, int]:
    """How many of a layer's differing weights have which reason."""
    from fia.neurons import budget, kth_largest, score

    counts = [kept[f"count/{name}"] for kept in saliency]
    steps = method.steps or method.sampler.calls()
    at_eq_3, near = different & (counts[0] != counts[1]), torch.zeros_like(different)
    for kept, count in zip(saliency, counts, strict=True):
        scores = score(kept[f"strength/{name}"], count.float() / steps, strength_normalise=method.strength_normalise)
        r2 = method.r2_of(concept)
        row, layer = (
            kth_largest(scores, budget(r2, scores.shape[1])),
            kth_largest(scores.flatten(), budget(r2, scores.numel())),
        )
        near |= torch.minimum((scores - row).abs(), (scores - layer).abs()) <= TOLERANCE * scores.max()
    rest = different & ~at_eq_3 & ~near
    moved = int(rest.sum())
    return {
        "at_eq_3": int(at_eq_3.sum()),
        "at_eq_4_5": int((different & ~at_eq_3 & near).sum()),
        "displaced": moved if at_eq_3.any() else 0,
        "unexplained": 0 if at_eq_3.any() else moved,
    }


def measure(arguments: Sequence[str]) -> dict[str, Any]:
    """Both differences, for the run that these settings mean."""
    from .setup import setup

    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        parts = setup(compose("config", overrides=list(arguments)))
    return {"pictures": pictures(parts), "masks": masks(parts)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 2 on bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return cli.print_json(lambda: measure(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main())
