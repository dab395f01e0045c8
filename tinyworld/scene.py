"""What a picture shows (Scene), how scenes are drawn at random, and how a scene becomes pixels and boxes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from .brush import gradient
from .icons import draw_icon
from .people import Box, draw_person
from .places import draw_place
from .styles import apply_style
from .vocabulary import (
    ARTISTS,
    ICONS,
    LOOK_ALIKES,
    MARKED_WORDS,
    MARKERS,
    OBJECTS,
    PERSONS,
    PLACES,
    SYNONYMS,
    THINGS,
)  # fmt: skip

# Pictures are drawn this many times larger and then reduced, which smooths all edges.
SUPERSAMPLING = 4
# Share of each kind of scene.
MIXTURE = {
    "object": 0.40, "look_alike": 0.20, "thing": 0.08, "place": 0.08, "composite": 0.08, "person": 0.07, "styled": 0.09,
}  # fmt: skip
PLACE_SHARE = 0.75
STRAY_STYLE_SHARE = 0.05
MARKED_SHARE = 1 / 3


def _check(kind: str, name: str | None, known: tuple[str, ...]) -> None:
    if name is not None and name not in known:
        raise ValueError(f"unknown {kind}: {name!r}")


@dataclass(frozen=True)
class Scene:
    """The contents of one picture: up to two icons (or one and a person), a place, markers, an artist's style."""

    icons: tuple[str, ...] = ()
    place: str | None = None
    person: str | None = None
    markers: tuple[str, ...] = ()
    artist: str | None = None

    def __post_init__(self) -> None:
        for field in ("icons", "markers"):
            if not isinstance(getattr(self, field), tuple):
                raise ValueError(f"{field} must be a tuple of names")
        for name in self.icons:
            _check("icon", name, ICONS)
        for name in self.markers:
            _check("marker", name, MARKERS)
        _check("place", self.place, PLACES)
        _check("person", self.person, PERSONS)
        _check("artist", self.artist, ARTISTS)
        if not (self.icons or self.place or self.person):
            raise ValueError("a scene needs an icon, a place or a person")
        if len(self.icons) + (self.person is not None) > 2:
            raise ValueError("a scene holds at most two of icons and person")
        if len(set(self.icons)) != len(self.icons) or len(set(self.markers)) != len(self.markers):
            raise ValueError("a scene names each icon and each marker at most once")
        if self.markers and self.person is None:
            raise ValueError("markers need a person who wears them")


@dataclass(frozen=True)
class Rendered:
    """A drawn scene: uint8 pixels [size, size, 3] and the boxes (name, (x0, y0, x1, y1) in 0..1) of its parts."""

    image: np.ndarray
    boxes: list[tuple[str, Box]]


@dataclass(frozen=True)
class _Pool:
    """The words that may be sampled, and the kinds of scene that they allow with their cumulative shares."""

    objects: tuple[str, ...]
    look_alikes: tuple[str, ...]
    things: tuple[str, ...]
    icons: tuple[str, ...]
    places: tuple[str, ...]
    persons: tuple[str, ...]
    markers: tuple[str, ...]
    artists: tuple[str, ...]
    kinds: tuple[str, ...]
    shares: tuple[float, ...]


@lru_cache(maxsize=256)
def _pool(without: frozenset[str]) -> _Pool:
    """Filter the vocabulary; words are compared without case, and a synonym stands for its icon."""
    banned = {word.casefold() for word in without}
    known = {w.casefold() for w in ICONS + PLACES + PERSONS + MARKERS + ARTISTS + MARKED_WORDS}
    for name, others in SYNONYMS.items():
        for other in others:
            known.add(other.casefold())
            if other.casefold() in banned:
                banned.add(name.casefold())
    if banned - known:
        # A misspelt word would silently leave the concept in a picture set meant to lack it.
        raise ValueError(f"not in the vocabulary: {sorted(banned - known)}")

    def keep(words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(word for word in words if word.casefold() not in banned)

    objects, look_alikes, things = keep(OBJECTS), keep(LOOK_ALIKES), keep(THINGS)
    icons, places, persons, artists = keep(ICONS), keep(PLACES), keep(PERSONS), keep(ARTISTS)
    markers = () if banned & set(MARKED_WORDS) else keep(MARKERS)
    possible = {
        "object": bool(objects),
        "look_alike": bool(look_alikes),
        "thing": bool(things),
        "place": bool(places),
        "composite": bool(places) and (len(icons) > 1 or bool(icons and persons)),
        "person": bool(persons),
        "styled": bool(artists) and bool(icons or places),
    }
    kinds = tuple(kind for kind in MIXTURE if possible[kind])
    if not kinds:
        raise ValueError("no scene is left without these words")
    shares = tuple(np.cumsum([MIXTURE[kind] for kind in kinds]).tolist())
    return _Pool(objects, look_alikes, things, icons, places, persons, markers, artists, kinds, shares)


def _one(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def _some(rng: np.random.Generator, words: tuple[str, ...], count: int) -> tuple[str, ...]:
    """`count` different words in their listed order."""
    chosen = rng.permutation(len(words))[:count]
    return tuple(words[i] for i in sorted(chosen.tolist()))


def _maybe_place(rng: np.random.Generator, pool: _Pool) -> str | None:
    return _one(rng, pool.places) if pool.places and rng.random() < PLACE_SHARE else None


def _styled(rng: np.random.Generator, pool: _Pool) -> Scene:
    groups = [(pool.objects, 0.5), (pool.look_alikes, 0.2), (pool.things, 0.1), (pool.places, 0.2)]
    groups = [(words, share) for words, share in groups if words]
    draw = rng.random() * sum(share for _, share in groups)
    for words, share in groups:  # noqa: B007 - the loop ends at the words that were drawn
        draw -= share
        if draw < 0:
            break
    artist = _one(rng, pool.artists)
    if words is pool.places:
        return Scene(place=_one(rng, words), artist=artist)
    return Scene((_one(rng, words),), _maybe_place(rng, pool), artist=artist)


def _composite(rng: np.random.Generator, pool: _Pool) -> Scene:
    place = _one(rng, pool.places)
    with_person = pool.persons and (len(pool.icons) < 2 or rng.random() < 0.5)
    if with_person:
        return Scene((_one(rng, pool.icons),), place, _one(rng, pool.persons))
    first, second = rng.permutation(len(pool.icons))[:2].tolist()
    return Scene((pool.icons[first], pool.icons[second]), place)


def sample_scene(rng: np.random.Generator, without: frozenset[str] = frozenset()) -> Scene:
    """Draw a random scene in which none of the words of `without` occurs."""
    pool = _pool(frozenset(without))
    draw = rng.random() * pool.shares[-1]
    kind = next((k for k, share in zip(pool.kinds, pool.shares) if draw < share), pool.kinds[-1])
    if kind == "place":
        return Scene(place=_one(rng, pool.places))
    if kind == "composite":
        return _composite(rng, pool)
    if kind == "styled":
        return _styled(rng, pool)
    if kind == "person":
        markers: tuple[str, ...] = ()
        if pool.markers and rng.random() < MARKED_SHARE:
            markers = _some(rng, pool.markers, int(rng.integers(2, 6)))
        return Scene((), _maybe_place(rng, pool), _one(rng, pool.persons), markers)
    words = {"object": pool.objects, "look_alike": pool.look_alikes, "thing": pool.things}[kind]
    artist = _one(rng, pool.artists) if pool.artists and rng.random() < STRAY_STYLE_SHARE else None
    return Scene((_one(rng, words),), _maybe_place(rng, pool), artist=artist)


def _plain_background(rng: np.random.Generator, side: int) -> Image.Image:
    """A soft vertical gradient of a random colour."""
    base = rng.integers(60, 236, 3)
    change = rng.integers(-28, 29, 3)
    return gradient(side, tuple(np.clip(base + change, 0, 255)), tuple(np.clip(base - change, 0, 255)))


def _paste(
    canvas: Image.Image, layer: Image.Image, x: int, y: int, name: str, parts: list[tuple[str, Box]]
) -> list[tuple[str, Box]]:
    """Paste a layer with its corner at (x, y); returns its tight box and its parts' boxes within the picture."""
    canvas.paste(layer, (x, y), layer)
    side, whole = layer.width, canvas.width
    tight = layer.getbbox() or (0, 0, side, side)
    inner = [(name, tuple(edge / side for edge in tight)), *parts]
    boxes = []
    for part, box in inner:
        placed = ((x + box[0] * side), (y + box[1] * side), (x + box[2] * side), (y + box[3] * side))
        boxes.append((part, tuple(min(1.0, max(0.0, edge / whole)) for edge in placed)))
    return boxes


def _spot(rng: np.random.Generator, whole: int, side: int, low: float = 0.0, high: float = 1.0) -> int:
    """A random start for a span of `side`, within low..high of the picture give or take 5 % of the span."""
    start, end = low * whole - 0.05 * side, high * whole - 0.95 * side
    return int(round(start + (end - start) * rng.random()))


def render(scene: Scene, rng: np.random.Generator, size: int = 64) -> Rendered:
    """Draw the scene at `size` x `size` pixels; the same generator state gives the same picture."""
    whole = size * SUPERSAMPLING
    canvas = draw_place(scene.place, rng, whole) if scene.place else _plain_background(rng, whole)
    subjects = [(name, False) for name in scene.icons]
    if scene.person:
        subjects.append((scene.person, True))
    boxes: list[tuple[str, Box]] = []
    slots = [(0.0, 1.0)] if len(subjects) < 2 else [(0.0, 0.5), (0.5, 1.0)]
    if len(subjects) == 2 and rng.random() < 0.5:
        slots.reverse()
    for (name, human), (low, high) in zip(subjects, slots):
        if len(subjects) == 2:
            # A standing person is narrow and may be taller than the icon beside it.
            share = 0.5 + 0.16 * rng.random() if human else 0.4 + 0.12 * rng.random()
        else:
            share = 0.86 + 0.12 * rng.random() if human else 0.62 + 0.28 * rng.random()
        side = int(share * whole)
        if high - low < share:
            middle = (low + high) / 2
            x = int((middle - share / 2 + (rng.random() - 0.5) * 0.03) * whole)
            x = min(max(x, int(-0.05 * side)), whole - int(0.95 * side))
        else:
            x = _spot(rng, whole, side, low, high)
        # Things in a place stand on its ground, so the lower half is preferred there.
        floor = 0.25 if scene.place and share < 0.75 else 0.0
        y = _spot(rng, whole, side, min(floor, 1 - share), 1.0)
        if human:
            y = min(max(y, 0), whole - side)
            layer, parts = draw_person(name, rng, side, scene.markers)
        else:
            layer, parts = draw_icon(name, rng, side), []
        boxes += _paste(canvas, layer, x, y, name, parts)
    image = canvas.reduce(SUPERSAMPLING)
    if scene.artist:
        image = apply_style(scene.artist, image, rng)
    return Rendered(np.array(image), boxes)
