"""General quality in the tiny world: captions and "photos" that play the part of COCO.

The scenes come from the world's own sampler, with everything left out that tasks erase: the ten objects, the five
artists and the markers. What remains (places, look-alikes, everyday things, people, composite scenes) must survive
any unlearning, so a fall of CLIP score or FID here is damage, never success. The reference pictures are renderings of
the very scenes that the captions describe, as COCO's photos belong to COCO's captions.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator

import numpy as np

from .captions import caption
from .scene import Scene, render, sample_scene
from .vocabulary import ARTISTS, MARKERS, OBJECTS

# Settings are chosen on `tuning` and reported on `test`. Far from the recipe's seeds: no scene was trained on.
SPLITS = {"tuning": 6_000_000, "test": 7_000_000}
LEFT_OUT = frozenset(OBJECTS + ARTISTS + MARKERS)


def scenes(n: int, split: str) -> Iterator[tuple[Scene, str, np.random.Generator]]:
    """The first `n` scenes of a split with caption and the generator that draws the picture.

    Scene i depends on (split, i) alone, so a shorter list is the beginning of a longer one.

    Raises:
        ValueError: The split is unknown or `n` is out of range.
    """
    if split not in SPLITS:
        near = difflib.get_close_matches(split, SPLITS)
        raise ValueError(f"unknown split {split!r}{f', did you mean {near[0]!r}' if near else ''}: {sorted(SPLITS)}")
    if not 0 < n < 1_000_000:
        raise ValueError(f"n must be in 1..999999, got {n}")
    for i in range(n):
        rng = np.random.default_rng((SPLITS[split], i))
        scene, words = _captioned(rng)
        while side(words) != split:
            scene, words = _captioned(rng)
        yield scene, words, rng


def side(words: str) -> str:
    """The split to which a caption belongs, whatever scene it was written for: no caption is on both."""
    return sorted(SPLITS)[hashlib.sha256(words.encode()).digest()[0] % len(SPLITS)]


def _captioned(rng: np.random.Generator) -> tuple[Scene, str]:
    scene = sample_scene(rng, LEFT_OUT)
    return scene, caption(scene, rng)


def captions(n: int, split: str) -> list[tuple[str, int]]:
    """The first `n` (prompt, seed) of a split; seeds are unique over both splits, prompts may repeat within one."""
    return [(prompt, SPLITS[split] + i) for i, (_, prompt, _) in enumerate(scenes(n, split))]


def reference_images(n: int, split: str) -> np.ndarray:
    """Renderings of the same scenes in the same order, uint8 [n, 64, 64, 3]."""
    return np.stack([render(scene, rng).image for scene, _, rng in scenes(n, split)])
