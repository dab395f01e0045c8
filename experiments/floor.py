"""The least that FIA's exact statistics can cost, from the layers' shapes: `python -m experiments.floor`.

The cosine factor of Eq. 1 needs `X^T Y` of every measured layer, prompt and step, which is as much arithmetic as the
layer itself; `Y` is the layer's own output. Nothing is computed here: the models lie on the meta device.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fia.neurons import Evidence
from fia.saliency import MOMENTS, fitting
from harness.model import LAYER_SUFFIXES

from .architectures import PUBLISHED, parts_on_meta

TINY = Path(__file__).resolve().parents[1] / "tinyworld" / "tiny-v1"
STEPS = 10  # the paper's
TOKENS_OF_TEXT = 77
GB = 1e9
SMALL_GPU = 24 * GB


@dataclass(frozen=True)
class Floor:
    """What one guided prompt costs at one step (two samples: with the prompt and without), and what is held.

    Attributes:
        layers: measured layers by name, as (tokens, Cout, Cin).
        unet: floating-point operations of the UNet.
        product: of `X^T Y` for one guidance half; twice that for `halves: both`.
        pipeline: weights of all parts of the pipeline; 0 where only the UNet is known.
    """

    name: str
    layers: Mapping[str, tuple[int, int, int]]
    unet: int
    product: int
    pipeline: int = 0

    @property
    def weights(self) -> int:
        return sum(rows * columns for _, rows, columns in self.layers.values())

    def share(self, halves: int) -> float:
        """Arithmetic of the exact term in parts of the UNet call's, for one or both guidance halves."""
        return halves * self.product / self.unet

    def traffic(self, halves: int, chunk: int, element: int) -> tuple[int, int]:
        """Bytes a prompt and step: the least, and those of one tensor operation after the other (statistics.py).

        At least, X and Y are read once more and the running sum is read and written once a chunk of prompts. One
        operation after the other also writes the product (and adds the other half to it), takes its absolute value,
        writes the divisor, and reads both to add their quotient to the sum.
        """
        read = halves * element * sum(tokens * (rows + columns) for tokens, rows, columns in self.layers.values())
        passes = 1 + 2 * (halves - 1) + 2 + 1 + 4
        return read + 8 * self.weights // chunk, read + 4 * passes * self.weights

    @property
    def moments(self) -> int:
        """Bytes of the moments of one step."""
        return 4 * MOMENTS * self.weights

    def state(self, grid: int = 1) -> int:
        """Bytes that a concept holds until its pass ends, with so many values of r1."""
        r1s = [(1 + index) / (1 + grid) for index in range(grid)]
        shapes = [torch.empty(rows, columns, device="meta") for _, rows, columns in self.layers.values()]
        return sum(Evidence.empty(shape, STEPS, r1s).nbytes for shape in shapes)


def floor(name: str, unet: nn.Module, kind: str = "ffn2", pipeline: int = 0) -> Floor:
    """Count what a UNet on the meta device does for one guided prompt."""
    config = unet.config
    found: dict[str, tuple[int, int, int]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda layer, args, at=at: found.update({at: (args[0].shape[1], layer.out_features, layer.in_features)})
        )
        for at, module in unet.named_modules()
        if ".transformer_blocks." in at and at.endswith(LAYER_SUFFIXES[kind])
    ]
    extra: dict[str, Any] = {}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        extra["added_cond_kwargs"] = {
            "text_embeds": torch.empty(2, pooled, device="meta"),
            "time_ids": torch.empty(2, 6, device="meta"),
        }
    latents = torch.empty(2, config.in_channels, config.sample_size, config.sample_size, device="meta")
    text = torch.empty(2, TOKENS_OF_TEXT, config.cross_attention_dim, device="meta")
    time = torch.empty((), device="meta")
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            unet(latents, time, encoder_hidden_states=text, **extra)
    finally:
        for handle in handles:
            handle.remove()
    product = sum(2 * tokens * rows * columns for tokens, rows, columns in found.values())
    return Floor(name, dict(sorted(found.items())), counter.get_total_flops(), product, pipeline)


def published(name: str) -> Floor:
    """Of one of `architectures.PUBLISHED`."""
    parts = parts_on_meta(name)
    modules = [part for part in vars(parts).values() if isinstance(part, nn.Module)]
    weights = sum(parameter.numel() for module in modules for parameter in module.parameters())
    return floor(name, parts.unet, pipeline=weights)


def tiny() -> Floor:
    """The embedded world's, from its configuration file."""
    from diffusers import UNet2DConditionModel

    config = json.loads((TINY / "unet" / "config.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        return floor("tiny", UNet2DConditionModel.from_config(config))


def floors() -> dict[str, Floor]:
    """Of the published architectures and the embedded world."""
    return {name: published(name) for name in PUBLISHED} | {"tiny": tiny()}


def table(found: Mapping[str, Floor], chunk: int = 8) -> str:
    """The floors as Markdown: arithmetic and traffic of the exact term, and memory."""
    header = [
        *("model", "UNet, TFLOP a guided prompt", "X^T Y, cond", "both", "least traffic, MB a prompt (both)"),
        *("one operation after the other", "moments, MB", "a concept, MB", "each further r1, MB"),
    ]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for name, own in found.items():
        least, plain = own.traffic(2, chunk, 4 if name == "tiny" else 2)
        numbers = [f"{own.unet / 1e12:.4g}", f"{own.share(1):.1%}", f"{own.share(2):.1%}"]
        sizes = [least, plain, own.moments, own.state(), own.state(2) - own.state()]
        rows.append([name, *numbers, *(f"{size / 1e6:,.1f}" for size in sizes)])
    return "".join("| " + " | ".join(cells) + " |\n" for cells in rows)


def group_on(own: Floor, memory: float, element: int = 2) -> tuple[int, float]:
    """Concepts a pass on a device of so many bytes, and bytes of weights and statistics then.

    Args:
        element: bytes of one of the pipeline's weights.
    """
    model = element * own.pipeline
    group = fitting(own.state(), own.moments, memory - model, memory)
    return group, model + own.moments + group * own.state()


def main() -> int:
    """Print the table, and what a GPU of 24 GB holds."""
    found = floors()
    print(table(found), end="")
    for name in PUBLISHED:
        group, held = group_on(found[name], SMALL_GPU)
        print(f"{name} in float16 on 24 GB: {group} concepts a pass, weights and statistics {held / GB:.1f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
