"""Faster forward passes compute what the modules' own do, see every hook and every edit, and stay out of training."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers.models.activations import GEGLU
from torch import nn

from harness.edit import Edit
from harness.hooks import is_hooked
from harness.inference import TextKeeping, speed_up
from harness.model import DiffusionModel
from harness.sampler import Sampler

SAMPLER = Sampler("ddim", 3, 4.0)
PROMPTS = ["a dog", "a church"]


@pytest.fixture
def stock(random_sd_folder):
    """The UNet of the random model as diffusers runs it."""
    return diffusers.UNet2DConditionModel.from_pretrained(random_sd_folder / "unet").eval().requires_grad_(False)


def inputs(model: DiffusionModel, layout: torch.memory_format = torch.channels_last) -> tuple:
    latents = model.latents([1, 2]).contiguous(memory_format=layout)
    return latents, torch.tensor(500), model.encode(PROMPTS).hidden


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_unet_call_is_the_stock_one_but_for_rounding(random_sd_model, stock, layout):
    with torch.no_grad():
        ours, theirs = (unet(*inputs(random_sd_model, layout)).sample for unet in (random_sd_model.unet, stock))
    assert theirs.abs().max() > 0.1
    # A chain of some fifty layers, each of which rounds in another order.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    processors = random_sd_model.unet.attn_processors.values()
    assert processors and all(isinstance(processor, TextKeeping) for processor in processors)
    assert random_sd_model.unet.state_dict().keys() == stock.state_dict().keys()


@pytest.mark.parametrize(
    ("channels", "groups", "size"), [(48, 16, (16, 16)), (30, 5, (3, 7)), (8, 8, (2, 2)), (6, 1, (4, 4))]
)
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_group_norm_in_channels_last_layout(channels, groups, size, offset):
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, channels, *size) + offset
    exact = norm.double()(x.double())
    norm.float()
    speed_up(norm)
    with torch.no_grad():
        ours = norm(x.contiguous(memory_format=torch.channels_last))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    # `offset` takes that much of the last bits of what is left after the mean is gone.
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=3e-6 * (1 + offset))


@pytest.mark.parametrize("bias", [True, False])
def test_geglu_by_halves(bias):
    torch.manual_seed(0)
    module, x = GEGLU(12, 20, bias=bias), torch.randn(2, 5, 12)
    with torch.no_grad():
        theirs = module(x)
        speed_up(module)
        torch.testing.assert_close(module(x), theirs, rtol=1e-6, atol=1e-6)


def test_keeping_the_texts_keys_changes_no_bit(random_sd_model):
    model, counts = random_sd_model, []
    text, noise = model.encode(PROMPTS), model.latents([1, 2])
    again = list(model.trajectory(text, noise, SAMPLER, 4.0))
    layer = next(iter(model.layers("cross_k").values()))
    forward = layer.forward
    layer.forward = lambda x: counts.append(1) or forward(x)
    kept = list(model.trajectory(text, noise, SAMPLER, 4.0, keep_text=True))
    assert len(counts) == 1, "once for all steps"
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    list(model.trajectory(text, noise, SAMPLER, 4.0))
    assert len(counts) == 1 + 3


@pytest.mark.parametrize("kind", ["cross_k", "cross_v", "ffn1", "ffn2", "self_k"])
@pytest.mark.parametrize("after", [False, True])
def test_hooks_see_every_call(random_sd_model, kind, after):
    model, seen = random_sd_model, []
    text, noise = model.encode(PROMPTS), model.latents([1, 2])
    plain = model.denoise(text, noise, SAMPLER, 4.0)
    for layer in model.layers(kind).values():
        register = layer.register_forward_hook if after else layer.register_forward_pre_hook
        register(lambda module, args, *_: seen.append(args[0].shape[-1] == module.in_features))
        assert is_hooked(layer)
    hooked = model.denoise(text, noise, SAMPLER, 4.0)
    assert seen == [True] * len(model.layers(kind)) * SAMPLER.calls()
    # Looking changes rounding at most (ffn1 is then computed in one piece).
    torch.testing.assert_close(hooked, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["cross_k", "ffn1"])
def test_an_edit_in_place_counts_from_the_next_walk_on(random_sd_model, kind):
    model = random_sd_model
    text, noise = model.encode(PROMPTS), model.latents([1, 2])
    before = model.denoise(text, noise, SAMPLER, 4.0)
    weights = [layer.weight.clone() for layer in model.layers(kind).values()]
    with torch.no_grad():
        for layer in model.layers(kind).values():
            layer.weight.zero_()
        edited = model.denoise(text, noise, SAMPLER, 4.0)
        for layer, weight in zip(model.layers(kind).values(), weights, strict=True):
            layer.weight.copy_(weight)
    assert (edited - before).abs().max() > 1e-3
    assert torch.equal(model.denoise(text, noise, SAMPLER, 4.0), before)


def test_with_gradients_the_stock_code_runs(random_sd_model, stock):
    found = []
    for unet in (random_sd_model.unet, stock):
        weight = unet.get_parameter("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight")
        weight.requires_grad_(True)
        value = unet(*inputs(random_sd_model), cross_attention_kwargs=None).sample.square().mean()
        value.backward()
        found.append((value, weight.grad))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs) and theirs.abs().max() > 0


def test_what_is_trained_can_agree_with_its_target_to_the_last_bit(random_sd_model):
    model, (latents, t, _) = random_sd_model, inputs(random_sd_model)
    text, weight = model.encode(PROMPTS), next(iter(model.layers("ffn2").values())).weight
    with torch.no_grad():
        target = model.predict(latents, t.expand(2), text)
    weight.requires_grad_(True)
    assert torch.equal(model.predict(latents, t.expand(2), text), target)


def test_a_compiled_unet_serves_edits_and_leaves_hooks_to_the_plain_one(random_sd_folder, monkeypatch):
    made = []

    def compiled(module, dynamic):
        made.append(torch._dynamo.optimize("eager", dynamic=dynamic)(module))
        return made[-1]

    model = DiffusionModel.load(random_sd_folder)
    monkeypatch.setattr(torch, "compile", compiled)
    fast, seen = DiffusionModel.load(random_sd_folder, compile=True), []
    text, noise = model.encode(PROMPTS), model.latents([1, 2])
    counters = torch._dynamo.utils.counters["frames"]

    def agree() -> torch.Tensor:
        ours, plain = (m.denoise(text, noise, SAMPLER, 4.0) for m in (fast, model))
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
        return ours

    unedited = agree()
    assert len(made) == 1 and counters["ok"] > 0
    frames = counters["total"]
    names = [f"{name}.weight" for name in model.layers("ffn2")]

    def pruned(m: DiffusionModel):
        mask = {name: torch.ones_like(m.unet.get_parameter(name), dtype=torch.bool) for name in names}
        return Edit.make("mask", mask, m).applied(m)

    with pruned(fast), pruned(model):
        assert not torch.allclose(agree(), unedited, rtol=1e-2, atol=1e-2)
    assert torch.equal(agree(), unedited)
    with torch.no_grad():
        for m in (fast, model):
            for layer in m.layers("ffn2").values():
                layer.weight.mul_(0.5)
    agree()
    for layer in fast.layers("ffn2").values():
        layer.register_forward_pre_hook(lambda *_: seen.append(1))
    agree()
    assert len(seen) == len(fast.layers("ffn2")) * SAMPLER.calls()
    assert counters["total"] == frames, "nothing was compiled again"
