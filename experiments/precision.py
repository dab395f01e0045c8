"""What half precision does to FIA's masks: `python -m experiments.precision [SETTING=VALUE ...]`.

A model in float16 or bfloat16 rounds what its layers take in and give out. The single-concept masks of the run's
concepts are made by the model in float32 and in half precision, there once with Y of Eq. 1 as the layer gives it
(`saliency_dtype=float32`, the default) and once with Y computed again from the layer's input (`float64`). Where both
differ from the float32 model's masks alike, and less from each other, computing Y again buys nothing.

`dtype=float16` or `dtype=bfloat16` measures one of them. Printed as JSON; nothing is stored.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from hydra import compose, initialize_config_dir
from torch import Tensor

from . import cli

HALF = ("float16", "bfloat16")
# Parameters of FIA by what they make of Y.
OWN, AGAIN = {"saliency_dtype": "float32"}, {"saliency_dtype": "float64"}

Masks = dict[tuple[str, str], Tensor]  # by concept and layer


def masks(arguments: Sequence[str], dtype: str, **parameters: Any) -> Masks:
    """The masks of all concepts of a run, by the model in `dtype`; `parameters` replace the method's."""
    from fia.fia import FIA
    from harness.masks import unpack

    from .setup import setup

    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        parts = setup(compose("config", overrides=["edit_only=true", *arguments, f"dtype={dtype}"]))
    if not isinstance(parts.method, FIA):
        raise ValueError(f"method={parts.config['method']['name']}: FIA's masks are measured; say method=fia")
    method = dataclasses.replace(parts.method, **parameters)
    found = method.masks(parts.model(), parts.task.concepts, parts.config["seed"], lambda _name, _key, make: make())
    return {
        (concept.name, layer): mask for concept, packed in found.masks.items() for layer, mask in unpack(packed).items()
    }


def difference(one: Mapping[Any, Tensor], other: Mapping[Any, Tensor]) -> dict[str, Any]:
    """Weights that either selects, and how many of them only one does."""
    either = sum(int((mask | other[key]).sum()) for key, mask in one.items())
    differing = sum(int((mask ^ other[key]).sum()) for key, mask in one.items())
    return {"selected": either, "differing": differing, "share": differing / either if either else 0.0}


def measure(arguments: Sequence[str]) -> dict[str, Any]:
    """The difference of every two ways, by dtype and by what is compared.

    Raises:
        ValueError: a dtype is named that is none of half precision, or another method than FIA.
    """
    said = [text.removeprefix("dtype=") for text in arguments if text.startswith("dtype=")]
    settings = [text for text in arguments if not text.startswith("dtype=")]
    if not set(said) <= set(HALF):
        raise ValueError(f"dtype={said[-1]}: half precision is measured; say {' or '.join(HALF)}, or nothing for both")
    exact = masks(settings, "float32", **OWN)
    result = {}
    for dtype in said or HALF:
        ways = {
            "float32 model": exact,
            "Y as the layer gives it": masks(settings, dtype, **OWN),
            "Y again": masks(settings, dtype, **AGAIN),
        }
        result[dtype] = {f"{a}, {b}": difference(ways[a], ways[b]) for a, b in combinations(ways, 2)}
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 2 on bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return cli.print_json(lambda: measure(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main())
