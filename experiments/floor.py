"""The least that each stage can cost, from shapes: `python -m experiments.floor`.

The cosine factor of Eq. 1 needs `X^T Y` of every measured layer, prompt and step, which is as much arithmetic as the
layer itself; `Y` is the layer's own output. For the other stages the arithmetic of their networks and matrices is
counted. Next to nothing is computed here: the models lie on the meta device.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from baselines.scapre import ScaPre
from baselines.scapre_common import SAMPLES
from fia.neurons import Evidence
from fia.saliency import MOMENTS, fitting
from harness.model import LAYER_SUFFIXES

from .architectures import PUBLISHED, parts_on_meta

TINY = Path(__file__).resolve().parents[1] / "tinyworld" / "tiny-v1"
STEPS = 10  # the paper's
TOKENS_OF_TEXT = 77
CONCEPTS = 50
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

    def traffic(self, halves: int, chunk: int, element: int) -> tuple[int, int, int]:
        """Bytes a prompt and step: the least, those of `fia.kernels`, and of one tensor operation after the other.

        At least, X and Y are read once more and the running sum is read and written once a chunk of prompts. The
        kernels read X and Y once for the sums of tokens and once for the product, whose halves are written and read.
        One operation after the other (`fia.activity`) takes the bias off the layer's output (and before that widens it
        and X, where they have fewer digits than the sums), squares X and Y, sums the squares up and reads both for the
        product. It then writes the product (and adds the other half to it), takes its absolute value, writes the
        divisor, divides by it and sums the quotients up over the prompts of the chunk, whose sum is written and added
        to the running one. The spread of the base prompts takes more.

        Args:
            element: bytes of an activation; sums have four.
        """
        x = halves * sum(tokens * columns for tokens, _, columns in self.layers.values())
        y = halves * sum(tokens * rows for tokens, rows, _ in self.layers.values())
        running = 8 * self.weights // chunk
        fused = 2 * element * (x + y) + halves * (4 + 4) * self.weights + running
        norms_and_product = 4 * (3 + 1)
        widened = element + 4 if element < 4 else 0
        passes = 1 + 2 * (halves - 1) + 2 + 1 + 3 + 1
        plain = x * (widened + norms_and_product) + y * (widened + 4 + 4 + norms_and_product)
        plain += 4 * passes * self.weights + 16 * self.weights // chunk
        return element * (x + y) + running, fused, plain

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


@dataclass(frozen=True)
class Rest:
    """Floating-point operations of what stands around the UNet.

    Attributes:
        text: one prompt's features.
        decoder: one picture from its latents.
        closed: edits of CONCEPTS concepts in closed form, by method.
    """

    text: int
    decoder: int
    closed: Mapping[str, int]


def rest(unet: nn.Module, vae: nn.Module, encoders: Sequence[nn.Module]) -> Rest:
    """Count with parts on the meta device."""
    ids = torch.zeros(1, TOKENS_OF_TEXT, dtype=torch.long, device="meta")
    size = unet.config.sample_size
    latents = torch.empty(1, vae.config.latent_channels, size, size, device="meta")
    projections = [
        layer
        for at, layer in unet.named_modules()
        if ".transformer_blocks." in at and at.endswith((LAYER_SUFFIXES["cross_k"], LAYER_SUFFIXES["cross_v"]))
    ]
    closed = closed_forms(sum(layer.out_features for layer in projections), projections[0].in_features)
    return Rest(sum(_flop(encoder, ids) for encoder in encoders), _flop(vae.decode, latents), closed)


def closed_forms(o: int, d: int, m: int = CONCEPTS) -> dict[str, int]:
    """Floating-point operations of edits in closed form, in float64, of names of two tokens.

    Args:
        o: channels of all key and value projections.
        d: width of the text features.
        m: concepts.
    """
    n = m * (TOKENS_OF_TEXT - 2)  # rows: from the last subject token on, padding included
    cholesky, step = d**3 // 3, 2 * o * d * d
    masked = 2 * n * d * o
    information, entropy = (2 * m * copies * d * o for copies in (2 * SAMPLES, ScaPre.entropy_samples))
    shared = 2 * n * d * d + cholesky + masked + step + entropy
    return {
        "uce": 2 * 2 * m * d * d + cholesky + 2 * d**3 + step,
        "scapre": shared + information,
        "scapre_scale": shared + 2 * information + 4 * m * d * o,
    }


def judges() -> dict[str, int]:
    """Floating-point operations a picture: the embedded world's judges, and the published ones' networks."""
    from torchvision.models import inception_v3, resnet50
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from tinyworld.judges import SIZE, Classifier, MarkerDetector, SecondClassifier, TinyClip

    picture = [np.zeros((SIZE, SIZE, 3), np.uint8)]
    with torch.device("meta"):
        published = {
            "ResNet-50, 224 pixels": (resnet50().eval(), 224),
            "CLIP ViT-B/32": (CLIPVisionModel(CLIPVisionConfig()).eval(), 224),
            "Inception v3, 299 pixels": (inception_v3(init_weights=False).eval(), 299),
        }
    return {
        "tiny classifier": _flop(Classifier.of().logits, picture),
        "tiny second classifier": _flop(SecondClassifier.of().logits, picture),
        "tiny CLIP": _flop(TinyClip.of().image_features, picture),
        "tiny detector of markers": _flop(MarkerDetector.of().detect, picture),
        **{
            name: _flop(network, torch.empty(1, 3, size, size, device="meta"))
            for name, (network, size) in published.items()
        },
    }


def _flop(run: Callable[[Any], Any], given: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(given)
    return counter.get_total_flops()


def rests() -> dict[str, Rest]:
    """Of the published architectures and the embedded world."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    found = {}
    for name in PUBLISHED:
        parts = parts_on_meta(name)
        encoders = [getattr(parts, part) for part in ("text_encoder", "text_encoder_2") if hasattr(parts, part)]
        found[name] = rest(parts.unet, parts.vae, encoders)
    with torch.device("meta"):
        unet, vae = (
            kind.from_config(json.loads((TINY / part / "config.json").read_text(encoding="utf-8")))
            for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
        )
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(TINY / "text_encoder"))
    return found | {"tiny": rest(unet, vae, [text])}


def rest_table(found: Mapping[str, Rest]) -> str:
    """The arithmetic around the UNet as Markdown, in GFLOP."""
    methods = list(next(iter(found.values())).closed)
    header = ["model", "text, a prompt", "VAE, a picture", *(f"{name}, {CONCEPTS} concepts" for name in methods)]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    rows += [
        [name, *(f"{flop / 1e9:.4g}" for flop in (own.text, own.decoder, *own.closed.values()))]
        for name, own in found.items()
    ]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in rows)


def floors() -> dict[str, Floor]:
    """Of the published architectures and the embedded world."""
    return {name: published(name) for name in PUBLISHED} | {"tiny": tiny()}


def table(found: Mapping[str, Floor], chunk: int = 8) -> str:
    """The floors as Markdown: arithmetic and traffic of the exact term, and memory."""
    header = [
        *(
            "model",
            "UNet, TFLOP a guided prompt",
            "X^T Y, cond",
            "both",
            "least traffic, MB a prompt (both)",
            "by kernels",
        ),
        *("one operation after the other", "moments, MB", "a concept, MB", "each further r1, MB"),
    ]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for name, own in found.items():
        traffic = own.traffic(2, chunk, 4 if name == "tiny" else 2)
        numbers = [f"{own.unet / 1e12:.4g}", *(f"{own.share(halves):.1%}" for halves in (1, 2))]
        sizes = [*traffic, own.moments, own.state(), own.state(2) - own.state()]
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
    """Print the tables, and what a GPU of 24 GB holds."""
    found = floors()
    print(table(found), end="")
    for name in PUBLISHED:
        group, held = group_on(found[name], SMALL_GPU)
        print(f"{name} in float16 on 24 GB: {group} concepts a pass, weights and statistics {held / GB:.1f} GB")
    print("\nGFLOP of the other stages\n" + rest_table(rests()), end="")
    print("\n| judge | GFLOP a picture |\n| --- | ---: |")
    for name, flop in judges().items():
        print(f"| {name} | {flop / 1e9:.3g} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
