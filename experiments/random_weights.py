"""Models of SD's classes with random weights, to measure speed with: it does not depend on what the weights are.

sd15     SD 1.5's sizes in float16 (2 GB on disk); the tokenizers know letters only
sdxl     SDXL's (7 GB)
small    a UNet of two levels with 32 and 64 channels, pictures of 64 pixels, for a processor
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .architectures import CLIP_G, CLIP_L, SD_UNET, SDXL_UNET, VAE

SMALL_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "cross_attention_dim": 64,
}
SMALL_VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
SMALL_TEXT: dict[str, Any] = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
}
# By size: UNet, VAE, text encoders.
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]] = {
    "sd15": (SD_UNET, VAE, [CLIP_L]),
    "sdxl": (SDXL_UNET, VAE, [CLIP_L, CLIP_G]),
    "small": (SMALL_UNET, SMALL_VAE, [SMALL_TEXT]),
}
SETTINGS = {
    "sd15": ["model=sd15", "model.name=sd15-random", "model.words='SD 1.5 with random weights'"],
    "sdxl": ["model=sdxl", "model.name=sdxl-random", "model.words='SDXL with random weights'"],
    "small": ["model=folder", "model.name=small-random", "model.words='a small model with random weights'"],
}


@contextlib.contextmanager
def random_model(size: str) -> Iterator[list[str]]:
    """Settings that name a model of this size with random weights, for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        _save(size, Path(folder))
        yield [*SETTINGS[size], f"model.path={folder}"]


def _save(size: str, folder: Path) -> None:
    """Write a diffusers folder."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers import UNet2DConditionModel as UNet
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from harness.loading import quiet_libraries

    unet, vae, texts = PARTS[size]
    torch.manual_seed(0)
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if size == "small":
        tokens["vocab_size"] = len(words)
    parts = {
        "vae": AutoencoderKL(**vae),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**texts[0], **tokens)),
        "tokenizer": tokenizer,
        "unet": UNet(**unet),
        "scheduler": PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
            set_alpha_to_one=False, steps_offset=1,
        ),
    }  # fmt: skip
    if len(texts) == 2:
        second = CLIPTextModelWithProjection(CLIPTextConfig(**texts[1], **tokens))
        pipe = StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=tokenizer)
    else:
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    with quiet_libraries():
        pipe.to(torch.float32 if size == "small" else torch.float16).save_pretrained(folder)
