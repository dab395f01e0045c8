"""Configurations of published models, as far as they decide shapes; sizes and costs are computed from these.

They are those of the releases' own `config.json` files, at the revisions of `harness/releases.py`; what they leave out
has the library's default.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

SD_UNET: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
# CLIP ViT-L/14, the text encoder of SD 1.x and the first of SDXL; OpenCLIP ViT-bigG/14, SDXL's second.
CLIP_L: dict[str, Any] = {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
}
CLIP_G: dict[str, Any] = {
    **{"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20},
    **{"projection_dim": 1280, "hidden_act": "gelu"},
}
PUBLISHED = ("sd", "sdxl")


def parts_on_meta(name: str) -> SimpleNamespace:
    """The parts of `sd` (1.x) or `sdxl` that have weights, on the meta device, which holds shapes and no memory."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        parts = SimpleNamespace(
            tokenizer=None,
            unet=UNet2DConditionModel(**{"sd": SD_UNET, "sdxl": SDXL_UNET}[name]),
            vae=AutoencoderKL(**VAE),
            text_encoder=CLIPTextModel(CLIPTextConfig(**CLIP_L)),
        )
        if name == "sdxl":
            parts.text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G))
    return parts
