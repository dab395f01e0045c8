"""The order of the stages and the folder they fill."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

from harness.files import write_atomic

from ..freeze import RECIPE, REPORT
from .data import Drawn, drawn
from .judges import train_judges
from .recipe import Recipe
from .report import report
from .text import train_text
from .unet import train_unet
from .vae import train_vae

log = logging.getLogger(__name__)

STAGES = ("vae", "text", "unet", "judges", "report")
# Seeds of the held-out pictures are kept apart from those of the training pictures.
HELD_OUT_SEED = 7_919


def build(recipe: Recipe, out: Path, stages: list[str]) -> None:
    """Run the stages in order; each finds its predecessors' results in `out`.

    Raises:
        ValueError: `out` holds the results of another recipe.
    """
    _claim(out, recipe)
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
    if "report" in stages and not (out / REPORT).exists():
        found = report(out / "pipeline", out / "judges", recipe.report_n, recipe.profile_n, recipe.report_steps)
        write_atomic(out / REPORT, (json.dumps(found, indent=1) + "\n").encode())


def _claim(out: Path, recipe: Recipe) -> None:
    """Write the recipe into a new folder, or compare it with the one that is there: stages never mix two of them."""
    path, wanted = out / RECIPE, json.loads(json.dumps(asdict(recipe)))
    if path.exists():
        found = json.loads(path.read_text())
        differing = sorted(key for key in {**found, **wanted} if found.get(key) != wanted.get(key))
        if differing:
            raise ValueError(
                f"{out} holds results of a recipe with another {', '.join(differing)}: choose another out=DIR"
            )
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(wanted, indent=1) + "\n").encode())


def training_pictures(recipe: Recipe, work: Path) -> Drawn:
    return drawn(work / "train", recipe.pictures, recipe.seed, frozenset(recipe.without))


def held_out_pictures(recipe: Recipe, work: Path) -> Drawn:
    return drawn(work / "held_out", recipe.held_out, recipe.seed + HELD_OUT_SEED, frozenset(recipe.without))
