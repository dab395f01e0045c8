"""SD 1.x and SDXL at their published sizes, without a single weight: layers by kind, shapes, parameter counts.

The configurations are those of `experiments/architectures.py`. Everything lies on the meta device, which holds shapes
and no memory.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from experiments.architectures import PUBLISHED, parts_on_meta
from fia.neurons import Evidence
from fia.saliency import LARGEST_GROUP, MOMENTS, fitting
from harness.edit import Edit, pruned_shares
from harness.model import KINDS, DiffusionModel
from harness.trainer import parameter_names

# Transformer blocks by the UNet's block, and how many of them have which width.
BLOCKS = {
    "sd": {"down_blocks.0": 2, "down_blocks.1": 2, "down_blocks.2": 2, "mid_block": 1}
    | {"up_blocks.1": 3, "up_blocks.2": 3, "up_blocks.3": 3},
    "sdxl": {"down_blocks.1": 4, "down_blocks.2": 20, "mid_block": 10, "up_blocks.0": 30, "up_blocks.1": 6},
}
WIDTHS = {"sd": {320: 5, 640: 5, 1280: 6}, "sdxl": {640: 10, 1280: 60}}
TEXT_WIDTH = {"sd": 768, "sdxl": 2048}
UNET_PARAMETERS = {"sd": 859_520_964, "sdxl": 2_567_463_684}
PIPELINE_PARAMETERS = {
    "sd": 859_520_964 + 123_060_480 + 83_653_863,
    "sdxl": 2_567_463_684 + 123_060_480 + 694_659_840 + 83_653_863,
}
FFN2_WEIGHTS = {"sd": 49_561_600, "sdxl": 409_600_000}
KEY_VALUE_WEIGHTS = {"sd": 19_169_280, "sdxl": 340_787_200}
CROSS_ATTENTION_PARAMETERS = {"sd": 43_962_560, "sdxl": 545_670_400}


@pytest.fixture(scope="module", params=PUBLISHED)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> DiffusionModel:
    """The pipeline's parts with weights, at full size, and nothing of the rest."""
    return DiffusionModel(parts_on_meta(name), device="meta", name=name, fingerprint="meta")


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_no_memory_is_taken_and_the_totals_are_the_published_ones(model, name):
    modules = (model.unet, model.pipe.vae, *model.encoders)
    assert {parameter.device.type for module in modules for parameter in module.parameters()} == {"meta"}
    assert count(model.unet) == UNET_PARAMETERS[name]
    assert sum(count(module) for module in modules) == PIPELINE_PARAMETERS[name]
    assert model.is_xl == (name == "sdxl") and model.size == {"sd": 512, "sdxl": 1024}[name]


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_of_a_kind_is_found_with_its_shape(model, name, kind):
    layers = model.layers(kind)
    assert len(layers) == sum(BLOCKS[name].values()) == {"sd": 16, "sdxl": 70}[name]
    assert Counter(layer.partition(".attentions.")[0] for layer in layers) == BLOCKS[name]
    text = TEXT_WIDTH[name]
    shapes = Counter(tuple(layer.weight.shape) for layer in layers.values())
    expected = {
        "ffn1": lambda c: (8 * c, c),
        "ffn2": lambda c: (c, 4 * c),
        "cross_k": lambda c: (c, text),
        "cross_v": lambda c: (c, text),
        "self_k": lambda c: (c, c),
        "self_v": lambda c: (c, c),
    }[kind]
    assert shapes == {expected(width): number for width, number in WIDTHS[name].items()}
    # A GEGLU projection has a bias, keys and values have none.
    assert {layer.bias is not None for layer in layers.values()} == {kind.startswith("ffn")}


def test_sorted_names_stand_in_the_order_of_execution(model, name):
    blocks = [layer.partition(".attentions.")[0] for layer in model.layers("ffn2")]
    assert list(dict.fromkeys(blocks)) == list(BLOCKS[name])


def test_sums_over_a_kind(model, name):
    def weights(*kinds: str) -> int:
        return sum(layer.weight.numel() for kind in kinds for layer in model.layers(kind).values())

    sizes = {parameter: tensor.numel() for parameter, tensor in model.unet.named_parameters()}
    assert weights("ffn2") == FFN2_WEIGHTS[name]
    assert weights("cross_k", "cross_v") == KEY_VALUE_WEIGHTS[name]
    assert sum(sizes[parameter] for parameter in parameter_names(model, "xattn_kv")) == KEY_VALUE_WEIGHTS[name]
    assert sum(sizes[parameter] for parameter in parameter_names(model, "xattn")) == CROSS_ATTENTION_PARAMETERS[name]


def test_what_fia_holds_fits(model, name):
    """A concept of a group holds at most 250 MB at SD's size, and several of SDXL's fit into 24 GB beside the model."""
    weights = [layer.weight for layer in model.layers("ffn2").values()]
    concept = sum(Evidence.empty(weight, steps=10, r1s=[0.05]).nbytes for weight in weights)
    assert concept == 5 * FFN2_WEIGHTS[name] <= {"sd": 250e6, "sdxl": 2.1e9}[name]
    moments = 4 * MOMENTS * FFN2_WEIGHTS[name]
    pipeline = 2 * PIPELINE_PARAMETERS[name]  # float16
    group = fitting(concept, moments, 24e9 - pipeline, 64e9)
    assert group == {"sd": LARGEST_GROUP, "sdxl": 2}[name]
    left = 24e9 - pipeline - moments - group * concept
    assert left > 8e9  # for the UNet's own activations and the layer that is being reduced


def test_pruned_shares_have_the_published_denominators(model, name):
    """One layer pruned whole: its weights over those of its kind, of the UNet and of the pipeline."""
    layer, module = next(iter(model.layers("ffn2").items()))
    gone = torch.ones(module.weight.shape, dtype=torch.bool)
    shares = pruned_shares(Edit("mask", {f"{layer}.weight": gone}, {"base": model.fingerprint}), model)
    assert shares == {
        "layers": gone.numel() / FFN2_WEIGHTS[name],
        "unet": gone.numel() / UNET_PARAMETERS[name],
        "pipeline": gone.numel() / PIPELINE_PARAMETERS[name],
    }
