"""Forward passes without gradients: the sums of diffusers' modules in fewer operations and in a better layout.

`speed_up` changes how modules compute, not what they are: parameters, names, hooks and files stay, an edit of a weight
in place counts from the next call on. Results differ from the modules' own by float rounding (tests/test_inference.py),
so the modules' own code runs where gradients are on, and inside `as_stock`: what is trained must be able to agree with
its target to the last bit.

    GroupNorm   channels last on a CPU: sums over the pixels for all channels at once, not group by group
    GEGLU       on a CPU: value and gate by the two halves of the weight, so that neither is a strided view of both
    Attention   keys and values of the text are computed once and kept, where the caller gives a place for them

docs/performance.md says what each of them is worth.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from .hooks import is_hooked

# Where keys and values of the text are kept, by the attention layer that made them.
Kept = MutableMapping[nn.Module, tuple[Tensor, Tensor]]

_stock_only = False


@contextmanager
def as_stock() -> Iterator[None]:
    """The modules' own code runs inside the block, with and without gradients."""
    global _stock_only
    before, _stock_only = _stock_only, True
    try:
        yield
    finally:
        _stock_only = before


def _is_stock() -> bool:
    return _stock_only or torch.is_grad_enabled()


def speed_up(network: nn.Module) -> None:
    """Let a UNet or VAE compute as above, from now on."""
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = partial(_group_norm, module)  # type: ignore[method-assign]
        elif isinstance(module, GEGLU):
            module.forward = partial(_geglu, module)
        elif isinstance(module, Attention) and _is_plain(module):
            module.set_processor(TextKeeping())


class TextKeeping(AttnProcessor2_0):
    """Scaled dot-product attention without what plain layers do not have; it can keep keys and values of the text."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        kept: Kept | None = None,
    ) -> Tensor:
        """Attention of one layer: [n, tokens, width] to the same shape.

        Args:
            attn: the layer.
            hidden_states: [n, tokens, width].
            encoder_hidden_states: [n, positions, text width], or None for self-attention.
            attention_mask: where there is one, or stock code is to run, diffusers' own processor computes.
            temb: not used by plain layers.
            kept: from the UNet's `cross_attention_kwargs`: keys and values of earlier calls with the same text and the
                same weights; new ones are added.
        """
        if attention_mask is not None or _is_stock():
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        rows, _, width = hidden_states.shape
        if encoder_hidden_states is None:
            key, value = attn.to_k(hidden_states), attn.to_v(hidden_states)
        elif kept is None or is_hooked(attn.to_k) or is_hooked(attn.to_v):
            key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        else:
            if attn not in kept:
                kept[attn] = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
            key, value = kept[attn]
        query, key, value = (
            x.view(rows, -1, attn.heads, width // attn.heads).transpose(1, 2)
            for x in (attn.to_q(hidden_states), key, value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return attn.to_out[0](mixed.transpose(1, 2).reshape(rows, -1, width))


def _is_plain(attn: Attention) -> bool:
    """As in the transformer blocks of SD and SDXL: queries, keys and values as wide as the layer, nothing around it."""
    extras = (attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k, getattr(attn, "add_k_proj", None))
    return (
        all(extra is None for extra in extras)
        and not attn.norm_cross
        and not attn.residual_connection
        and attn.rescale_output_factor == 1
        and attn.to_q.out_features == attn.to_k.out_features == attn.query_dim
        and attn.to_out[1].p == 0
    )


def _group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """GroupNorm of [n, channels, height, width]; shorter types than float32 would lose digits on the way."""
    fits = x.device.type == "cpu" and x.dtype == torch.float32 and x.dim() == 4 and norm.affine
    by_channel = fits and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    if not by_channel or _is_stock():
        return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    n, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(n, height * width, channels)

    def mean(values: Tensor) -> Tensor:
        """[n, pixels, channels] to [n, 1, channels]: the mean over the pixels and channels of every group."""
        grouped = values.mean(1).view(n, norm.num_groups, -1)
        return grouped.mean(-1, keepdim=True).expand_as(grouped).reshape(n, 1, channels)

    centred = pixels - mean(pixels)
    scale = (mean(centred.square()) + norm.eps).rsqrt() * norm.weight
    normed = torch.addcmul(norm.bias, centred, scale)
    return normed.view(n, height, width, channels).permute(0, 3, 1, 2)


def _geglu(module: GEGLU, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """value * gelu(gate), [n, tokens, width] to [n, tokens, inner width]."""
    linear = module.proj
    if x.device.type != "cpu" or _is_stock() or type(linear) is not nn.Linear or is_hooked(linear):
        value, gate = linear(x).chunk(2, dim=-1)
        return value * F.gelu(gate)
    weights = linear.weight.chunk(2)
    biases = (None, None) if linear.bias is None else linear.bias.chunk(2)
    value, gate = (F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
    return F.gelu(gate).mul_(value)
