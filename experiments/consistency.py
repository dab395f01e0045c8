"""How far batch and chunk sizes move pictures and masks: `python -m experiments.consistency [SETTING=VALUE ...]`.

Kernels round differently at other sizes. Two things are measured on the run's model and concepts: pictures at batch 1
against batch 16 (difference of pixel values), and the single-concept masks of FIA at chunk 1 against chunk 16 (their
overlap |A and B| / |A or B|, and how far the score of every differing weight lies from the threshold of its row or its
layer, as a share of the layer's largest score). Printed as JSON; nothing is stored.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from . import cli

PICTURES, BATCHES, CHUNKS = 32, (1, 16), (1, 16)


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
    """Overlap of the single-concept masks at both chunk sizes, and the margins of what differs."""
    from fia.neurons import budget, kth_largest, score
    from harness.masks import unpack

    method = parts.method
    shared = either = differing = 0
    margins = [0.0]
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
        r2 = method.r2_of(concept)
        for name, a in found[0].items():
            b = found[1][name]
            shared, either = shared + int((a & b).sum()), either + int((a | b).sum())
            different = a ^ b
            if not different.any():
                continue
            differing += int(different.sum())
            kept = saliency[0]
            scores = score(
                kept[f"strength/{name}"],
                kept[f"count/{name}"].float() / (method.steps or method.sampler.calls()),
                strength_normalise=method.strength_normalise,
            )
            row = kth_largest(scores, budget(r2, scores.shape[1]))
            layer = kth_largest(scores.flatten(), budget(r2, scores.numel()))
            distance = torch.minimum((scores - row).abs(), (scores - layer).abs()) / scores.max()
            margins.append(float(distance[different].max()))
    return {
        "concepts": len(parts.task.concepts),
        "chunks": CHUNKS,
        "selected": either,
        "differing": differing,
        "overlap": shared / either,
        "largest_margin_of_a_differing_weight": max(margins),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 2 on bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with initialize_config_dir(str(cli.CONF), version_base="1.3"):
            cfg = compose("config", overrides=arguments)
        from .setup import setup

        parts = setup(cfg)
        result = {"pictures": pictures(parts), "masks": masks(parts)}
    except Exception as error:
        print(cli.one_line(error, arguments), file=sys.stderr)
        return cli.exit_code(error)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
