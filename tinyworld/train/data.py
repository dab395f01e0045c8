"""The drawn data set: pictures, captions and labels, made once by a seeded renderer and kept as plain arrays."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..captions import caption
from ..scene import render, sample_scene
from ..vocabulary import ARTISTS, ICONS, MARKERS, PLACES

# Label of "nothing of this kind"; IGNORED marks pictures whose label would be ambiguous (two icons).
NONE, IGNORED = -1, -2


@dataclass
class Drawn:
    """Pictures uint8 [n, 64, 64, 3], captions, and labels int16 [n, 3] (icon, artist, place)."""

    images: np.ndarray
    captions: list[str]
    labels: np.ndarray
    # One row a marker: picture, marker, centre x and y in 0..1.
    markers: np.ndarray

    def __len__(self) -> int:
        return len(self.captions)


def draw(count: int, seed: int, without: frozenset[str] = frozenset()) -> Drawn:
    """Draw `count` random scenes; picture i depends on (seed, i) alone."""
    images = np.empty((count, 64, 64, 3), np.uint8)
    captions, labels, markers = [], np.full((count, 3), NONE, np.int16), []
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        scene = sample_scene(rng, without)
        rendered = render(scene, rng)
        images[i] = rendered.image
        captions.append(caption(scene, rng))
        if scene.icons:
            labels[i, 0] = ICONS.index(scene.icons[0]) if len(scene.icons) == 1 else IGNORED
        if scene.artist:
            labels[i, 1] = ARTISTS.index(scene.artist)
        if scene.place:
            labels[i, 2] = PLACES.index(scene.place)
        for name, (x0, y0, x1, y1) in rendered.boxes:
            if name in MARKERS:
                markers.append((i, MARKERS.index(name), (x0 + x1) / 2, (y0 + y1) / 2))
    return Drawn(images, captions, labels, np.array(markers, np.float32).reshape(-1, 4))


def drawn(folder: Path, count: int, seed: int, without: frozenset[str] = frozenset()) -> Drawn:
    """`draw`, kept in `folder` (arrays and a JSON file; no pickle)."""
    done = folder / "captions.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        data = draw(count, seed, without)
        np.save(folder / "images.npy", data.images)
        np.save(folder / "labels.npy", data.labels)
        np.save(folder / "markers.npy", data.markers)
        partial = folder / "captions.json.part"
        partial.write_text(json.dumps(data.captions))
        os.replace(partial, done)
    return Drawn(
        np.load(folder / "images.npy", mmap_mode="r"),
        json.loads(done.read_text()),
        np.load(folder / "labels.npy"),
        np.load(folder / "markers.npy"),
    )
