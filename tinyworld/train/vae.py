"""The autoencoder: 64 x 64 pictures to 16 x 16 latents with four channels, as SD's but small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from .data import Drawn
from .loop import autocast, fit_cycles
from .recipe import Recipe

KL_WEIGHT = 1e-4


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 [n, h, w, 3] to float [n, 3, h, w] in -1..1, channels last in memory."""
    tensor = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
    return (tensor.float() / 127.5 - 1).to(memory_format=torch.channels_last)


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def train_vae(recipe: Recipe, data: Drawn, folder: Path) -> AutoencoderKL:
    """Train with L1 + MSE on pixels, L1 on their differences (keeps thin parts) and a weak KL term."""
    torch.manual_seed(recipe.seed)
    blocks = len(recipe.vae_channels)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=tuple(recipe.vae_channels),
        layers_per_block=1,
        latent_channels=recipe.latent_channels,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    ).to(memory_format=torch.channels_last)

    def loss(rng: np.random.Generator, batch: int) -> torch.Tensor:
        picked = np.sort(rng.integers(len(data), size=batch))
        x = to_tensor(data.images[picked])
        with autocast():
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample
        y = y.float()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        edges = sum((a - b).abs().mean() for a, b in zip(_edges(x), _edges(y)))
        return (x - y).abs().mean() + (x - y).square().mean() + 0.5 * edges + KL_WEIGHT * kl

    fit_cycles("vae", vae, loss, recipe.vae, folder, recipe.seed)
    with torch.no_grad():
        sample = torch.cat([encode(vae, data.images[i : i + 64]) for i in range(0, min(len(data), 2048), 64)])
    # SD's convention: latents times this factor have unit variance.
    vae.register_to_config(scaling_factor=float(1 / sample.std()))
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray) -> torch.Tensor:
    """Posterior means [n, 4, 16, 16], not yet scaled."""
    return vae.encode(to_tensor(images)).latent_dist.mean.float()


@torch.no_grad()
def latents(vae: AutoencoderKL, data: Drawn, batch: int = 128) -> torch.Tensor:
    """Scaled latents of all pictures, float16 [n, 4, 16, 16]."""
    parts = []
    with autocast():
        for start in range(0, len(data), batch):
            parts.append((encode(vae, data.images[start : start + batch]) * vae.config.scaling_factor).half())
    return torch.cat(parts).contiguous()
