"""The order of the stages and the folder they fill."""

from __future__ import annotations

import logging
from pathlib import Path

from .data import Drawn, drawn
from .judges import train_judges
from .recipe import Recipe
from .text import train_text
from .unet import train_unet
from .vae import train_vae

log = logging.getLogger(__name__)

STAGES = ("vae", "text", "unet", "judges")
# Seeds of the held-out pictures are kept apart from those of the training pictures.
HELD_OUT_SEED = 7_919


def build(recipe: Recipe, out: Path, stages: list[str]) -> None:
    """Run the stages in order; each finds its predecessors' results in `out`."""
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    data = training_pictures(recipe, work)
    if "vae" in stages and not (out / "pipeline" / "vae" / "config.json").exists():
        train_vae(recipe, data, work).save_pretrained(out / "pipeline" / "vae")
    if "text" in stages and not (out / "pipeline" / "text_encoder" / "config.json").exists():
        train_text(recipe, data, out / "pipeline", work)
    if "unet" in stages and not (out / "pipeline" / "model_index.json").exists():
        train_unet(recipe, data, out / "pipeline", work)
    if "judges" in stages:
        train_judges(recipe, data, held_out_pictures(recipe, work), out, work)


def training_pictures(recipe: Recipe, work: Path) -> Drawn:
    return drawn(work / "train", recipe.pictures, recipe.seed, frozenset(recipe.without))


def held_out_pictures(recipe: Recipe, work: Path) -> Drawn:
    return drawn(work / "held_out", recipe.held_out, recipe.seed + HELD_OUT_SEED, frozenset(recipe.without))
