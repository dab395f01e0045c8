"""Sizes and lengths of every training stage; `smoke` holds the reduced mode that the tests run."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field


@dataclass
class Stage:
    """One training loop: AdamW with a one-cycle learning rate."""

    steps: int
    batch: int
    lr: float
    # Decay of the averaged weights that are kept; 0 keeps the last ones.
    ema: float = 0.0
    weight_decay: float = 0.01


@dataclass
class Recipe:
    """Everything that decides the weights (besides library versions and the processor)."""

    seed: int = 0
    pictures: int = 60_000
    held_out: int = 4_000
    # Concepts whose drawings and captions are left out: the yardstick of forgetting.
    without: list[str] = field(default_factory=list)
    vocabulary: int = 900

    vae_channels: tuple[int, ...] = (24, 48, 96)
    latent_channels: int = 4
    text_width: int = 128
    text_layers: int = 3
    unet_channels: tuple[int, ...] = (48, 96, 128)
    # Transformer layers a block; the last number is also the middle block's.
    unet_transformers: tuple[int, ...] = (1, 3, 3)
    heads: int = 4

    # Later cycles start with a fresh optimiser from where the earlier ones ended.
    vae: list[Stage] = field(
        default_factory=lambda: [Stage(2_200, 16, 2e-3, ema=0.995), Stage(900, 16, 1.5e-3, ema=0.995)]
    )
    text: Stage = field(default_factory=lambda: Stage(900, 192, 1.5e-3, weight_decay=0.1))
    # First without transformer blocks at the highest resolution, whose steps cost half as much, then with them.
    unet_plain: list[Stage] = field(default_factory=lambda: [Stage(3_000, 64, 1.2e-3, ema=0.998)])
    unet: list[Stage] = field(
        default_factory=lambda: [Stage(1_400, 64, 1.0e-3, ema=0.998), Stage(400, 48, 6e-4, ema=0.99)]
    )
    judge: list[Stage] = field(
        default_factory=lambda: [Stage(2_400, 96, 4e-3), Stage(900, 96, 2e-3), Stage(1_500, 96, 2e-3)]
    )
    second_judge: list[Stage] = field(
        default_factory=lambda: [Stage(600, 96, 2e-3), Stage(900, 96, 4e-3), Stage(1_200, 96, 3e-3)]
    )
    clip: Stage = field(default_factory=lambda: Stage(800, 160, 1.5e-3, weight_decay=0.1))
    detector: Stage = field(default_factory=lambda: Stage(700, 64, 2e-3))

    # Pictures a name in the report on quality, and an object in its ablation profile.
    report_n: int = 20
    profile_n: int = 4
    report_steps: int = 10


def smoke(recipe: Recipe) -> Recipe:
    """The same recipe in a size that ends within a minute: it proves that every stage runs, nothing else."""
    recipe.pictures, recipe.held_out = 96, 32
    recipe.report_n, recipe.profile_n, recipe.report_steps = 1, 0, 1
    cycles = (recipe.vae, recipe.unet_plain, recipe.unet, recipe.judge, recipe.second_judge)
    for stage in (*itertools.chain(*cycles), recipe.text, recipe.clip, recipe.detector):
        stage.steps, stage.batch = 3, 8
    return recipe
