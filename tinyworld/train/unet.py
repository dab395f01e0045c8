"""The UNet: epsilon prediction on scaled latents under the frozen text encoder, with SD's noise schedule.

The loss is weighted by min(SNR, 5) / SNR (Hang et al. 2023, arXiv 2303.09556, equation 4), which reaches the same
quality in far fewer steps; one caption in ten is empty, for classifier-free guidance.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from .data import Drawn
from .loop import autocast, fit_cycles
from .recipe import Recipe, Stage
from .vae import latents

EMPTY_SHARE = 0.1
SNR_LIMIT = 5.0
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


def new_unet(recipe: Recipe, plain_top: bool = False) -> UNet2DConditionModel:
    """Transformer blocks at every resolution, as at SD's upper three: plain blocks could draw objects by themselves.

    `plain_top` leaves those of the highest resolution out: the smaller network that is trained first.
    """
    lower = len(recipe.unet_channels) - 1
    top = "" if plain_top else "CrossAttn"
    return UNet2DConditionModel(
        sample_size=64 // 2 ** (len(recipe.vae_channels) - 1),
        in_channels=recipe.latent_channels,
        out_channels=recipe.latent_channels,
        layers_per_block=1,
        block_out_channels=tuple(recipe.unet_channels),
        down_block_types=(f"{top}DownBlock2D", *("CrossAttnDownBlock2D",) * lower),
        up_block_types=(*("CrossAttnUpBlock2D",) * lower, f"{top}UpBlock2D"),
        transformer_layers_per_block=tuple(recipe.unet_transformers),
        cross_attention_dim=recipe.text_width,
        # diffusers reads this as the number of heads (a naming slip that it keeps).
        attention_head_dim=recipe.heads,
        norm_num_groups=16,
    )


def grow(plain: UNet2DConditionModel, recipe: Recipe) -> UNet2DConditionModel:
    """The full network with the weights of `plain`; its new transformer blocks start as the identity."""
    grown = new_unet(recipe)
    known = plain.state_dict()
    grown.load_state_dict(known, strict=False)
    for name, module in grown.named_modules():
        # Transformer blocks add their projection to their input.
        if name.endswith("proj_out") and f"{name}.weight" not in known:
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    return grown


@torch.no_grad()
def caption_features(captions: list[str], tokenizer: CLIPTokenizer, text: CLIPTextModel) -> tuple[torch.Tensor, list]:
    """Features float16 [unique, positions, width] of every distinct caption, and each caption's row in them.

    Row 0 is the empty caption.
    """
    unique = ["", *dict.fromkeys(captions)]
    rows = {caption: row for row, caption in enumerate(unique)}
    parts = []
    for start in range(0, len(unique), 256):
        ids = tokenizer(unique[start : start + 256], padding="max_length", return_tensors="pt").input_ids
        parts.append(text(ids).last_hidden_state.half())
    return torch.cat(parts), [rows[caption] for caption in captions]


def train_unet(recipe: Recipe, data: Drawn, out: Path, folder: Path) -> None:
    """Write the finished pipeline (all of its parts) to `out`."""
    vae = AutoencoderKL.from_pretrained(out / "vae").eval()
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    text = CLIPTextModel.from_pretrained(out / "text_encoder").eval()
    # Kept, so that a training that was stopped does not encode everything again.
    cache = folder / "encoded.safetensors"
    if not cache.exists():
        features, rows = caption_features(data.captions, tokenizer, text)
        save_file({"features": features, "rows": torch.tensor(rows), "latents": latents(vae, data)}, cache)
    encoded = load_file(cache)
    features, rows, pictures = encoded["features"], encoded["rows"].numpy(), encoded["latents"]
    noise_schedule = DDPMScheduler(**SCHEDULE)
    snr = noise_schedule.alphas_cumprod / (1 - noise_schedule.alphas_cumprod)
    weights = snr.clamp(max=SNR_LIMIT) / snr

    def loss(unet: UNet2DConditionModel, rng: np.random.Generator, n: int) -> torch.Tensor:
        picked = rng.integers(len(data), size=n)
        caption = np.where(rng.random(n) < EMPTY_SHARE, 0, rows[picked])
        # One timestep from each of n equal parts of the range: less noise in the loss than free draws.
        t = torch.from_numpy(((np.arange(n) + rng.random(n)) * 1000 / n).astype(np.int64))
        x = pictures[picked].float()
        noise = torch.randn_like(x)
        noisy = noise_schedule.add_noise(x, noise, t).to(memory_format=torch.channels_last)
        with autocast():
            predicted = unet(noisy, t, features[caption].float()).sample
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        return (weights[t] * error).mean()

    def trained(unet: UNet2DConditionModel, name: str, stages: list[Stage], seed: int) -> UNet2DConditionModel:
        unet = unet.to(memory_format=torch.channels_last)
        # The backward pass of fused attention is slow on processors without a GPU.
        unet.set_attn_processor(AttnProcessor())
        fit_cycles(name, unet, partial(loss, unet), stages, folder, seed)
        unet.set_default_attn_processor()
        return unet

    torch.manual_seed(recipe.seed + 2)
    plain = trained(new_unet(recipe, plain_top=True), "unet_plain", recipe.unet_plain, recipe.seed + 20)
    unet = trained(grow(plain, recipe), "unet", recipe.unet, recipe.seed + 30)
    scheduler = PNDMScheduler(**SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(out)
