"""Icons: one small drawing for every object, look-alike and everyday thing of the tiny world.

What an icon shows must be told from its shape and parts, since colours are drawn at random: a judge that learned
"green means garbage truck" would be useless. Each icon is one function that draws in unit coordinates (x to the
right, y down, both from 0 to 1) with a `Pen`, which adds the variation common to all icons: proportions, a small
turn and a mirror image. Pictures are averaged down four times later, so parts are large and have dark outlines.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]] | np.ndarray

INK: Colour = (24, 24, 30)
WHITE: Colour = (246, 246, 242)
GLASS: Colour = (190, 222, 238)
STEEL: Colour = (198, 202, 208)
RUBBER: Colour = (48, 48, 54)
CREAM: Colour = (245, 236, 212)

# Body colours of painted things: none so dark that inked parts would be lost on it.
PAINTS: tuple[Colour, ...] = (
    (208, 44, 44),
    (236, 122, 36),
    (240, 200, 48),
    (128, 184, 60),
    (40, 128, 72),
    (60, 186, 178),
    (82, 160, 226),
    (46, 78, 176),
    (128, 76, 178),
    (226, 110, 170),
    (146, 96, 58),
    (222, 200, 160),
    (236, 236, 230),
    (146, 150, 158),
    (92, 96, 106),
)
STONES: tuple[Colour, ...] = PAINTS[9:] + ((190, 96, 72), (240, 216, 120), (168, 190, 214), (176, 200, 160))
METALS: tuple[Colour, ...] = ((232, 188, 64), (214, 216, 222), (204, 128, 72), (240, 216, 132), (170, 140, 70))
FISH_COATS: tuple[Colour, ...] = (
    (122, 134, 62),
    (206, 166, 70),
    (140, 146, 150),
    (142, 104, 66),
    (64, 132, 128),
    (78, 104, 76),
    (228, 132, 52),
    (212, 92, 72),
)
GOLDFISH_COATS: tuple[Colour, ...] = FISH_COATS[1:5] + (
    (244, 130, 30),
    (226, 66, 44),
    (240, 232, 220),
    (84, 82, 92),
    (248, 196, 60),
)
DOG_COATS: tuple[Colour, ...] = (
    (110, 62, 36),
    (52, 46, 48),
    (164, 98, 50),
    (206, 156, 92),
    (120, 116, 120),
    (146, 54, 34),
)
CAT_COATS: tuple[Colour, ...] = DOG_COATS[2:5] + ((236, 230, 220), (232, 148, 68), (70, 68, 76))
BALL_TINTS: tuple[Colour, ...] = (
    WHITE,
    (250, 244, 190),
    (252, 212, 170),
    (216, 240, 176),
    (250, 204, 220),
    (192, 226, 250),
    (222, 220, 226),
)

_ANGLES = np.linspace(0.0, 2.0 * np.pi, 28, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


def _spline_basis(steps: int) -> np.ndarray:
    """Weights (steps, 4) of a Catmull-Rom segment over its four control points."""
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[:, None]
    powers = np.concatenate([np.ones_like(t), t, t**2, t**3], axis=1)
    matrix = 0.5 * np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]])
    return powers @ matrix


_SPLINE = _spline_basis(5)


def _rounded(points: Points) -> np.ndarray:
    """A smooth closed curve through the points."""
    p = np.asarray(points, dtype=float)
    neighbours = np.stack([np.roll(p, 1, axis=0), p, np.roll(p, -1, axis=0), np.roll(p, -2, axis=0)])
    return np.einsum("sk,knd->nsd", _SPLINE, neighbours).reshape(-1, 2)


def _bent(points: Points) -> np.ndarray:
    """A smooth open curve through the points."""
    p = np.asarray(points, dtype=float)
    ends = np.concatenate([p[:1], p, p[-1:]])
    neighbours = np.stack([ends[:-3], ends[1:-2], ends[2:-1], ends[3:]])
    return np.concatenate([np.einsum("sk,knd->nsd", _SPLINE, neighbours).reshape(-1, 2), p[-1:]])


def _arc(cx: float, cy: float, rx: float, ry: float, start: float, stop: float, count: int = 12) -> np.ndarray:
    """Points of an elliptic arc; angles in degrees, clockwise on the picture from the right."""
    a = np.radians(np.linspace(start, stop, count))
    return np.stack([cx + rx * np.cos(a), cy + ry * np.sin(a)], axis=1)


def _shade(colour: Colour, factor: float) -> Colour:
    """The colour darkened (factor below 1) or moved towards white (above 1)."""
    if factor <= 1.0:
        return tuple(int(c * factor) for c in colour)  # type: ignore[return-value]
    return tuple(int(c + (255 - c) * (factor - 1.0)) for c in colour)  # type: ignore[return-value]


def _lightness(colour: Colour) -> float:
    """Perceived lightness, 0 to 255."""
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


def _against(colour: Colour) -> Colour:
    """A neutral that stands out on the colour."""
    return INK if _lightness(colour) > 110 else WHITE


class Pen:
    """Draws in unit coordinates on a transparent square, through one randomly drawn affine map."""

    def __init__(self, rng: np.random.Generator, side: int, turn: float = 8.0, flip: bool = True) -> None:
        self.rng = rng
        self.side = side
        self.image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self.image)
        # Each axis shrinks by its own amount: that varies the proportions and leaves room for the turn.
        stretch = rng.uniform(0.82, 0.94, size=2)
        angle = np.radians(rng.uniform(-turn, turn))
        mirror = -1.0 if flip and rng.random() < 0.5 else 1.0
        rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self._map = (rotate @ np.diag([mirror * stretch[0], stretch[1]])).T * side

    # --- random choices

    def vary(self, value: float, share: float = 0.12) -> float:
        """The value changed by up to the share of it."""
        return value * self.rng.uniform(1.0 - share, 1.0 + share)

    def chance(self, probability: float = 0.5) -> bool:
        """True with the probability."""
        return bool(self.rng.random() < probability)

    def pick(self, colours: Sequence[Colour] = PAINTS, apart_from: Colour | None = None) -> Colour:
        """A jittered colour of the palette, if asked one clearly apart from a given colour."""
        if apart_from is not None:
            far = [c for c in colours if sum(abs(a - b) for a, b in zip(c, apart_from)) > 150]
            colours = far or [_against(apart_from)]
        red, green, blue = colours[self.rng.integers(len(colours))]
        hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
        d_hue, d_saturation, d_value = self.rng.uniform(-1.0, 1.0, size=3)
        saturation = min(1.0, saturation * (1.0 + 0.15 * d_saturation))
        value = min(1.0, value * (1.0 + 0.1 * d_value))
        rgb = colorsys.hsv_to_rgb((hue + 0.025 * d_hue) % 1.0, saturation, value)
        return tuple(int(255 * c) for c in rgb)  # type: ignore[return-value]

    # --- shapes

    def _pixels(self, points: Points) -> list[float]:
        centred = np.asarray(points, dtype=float) - 0.5
        return (centred @ self._map + self.side / 2).ravel().tolist()

    def shape(self, points: Points, fill: Colour, edge: Colour | None = INK, width: float = 0.026) -> None:
        """A filled polygon with an outline."""
        xy = self._pixels(points)
        self._draw.polygon(xy, fill=fill)
        if edge is not None:
            # Dense curves need no joints, and joints are the slow part of a line.
            joint = "curve" if len(xy) <= 24 else None
            self._draw.line(xy + xy[:4], fill=edge, width=self._width(width), joint=joint)

    def blob(self, points: Points, fill: Colour, edge: Colour | None = INK, width: float = 0.026) -> None:
        """A filled smooth closed curve through the points."""
        self.shape(_rounded(points), fill, edge, width)

    def oval(
        self, cx: float, cy: float, rx: float, ry: float, fill: Colour, edge: Colour | None = INK, width: float = 0.026
    ) -> None:
        """A filled ellipse."""
        self.shape(_CIRCLE * (rx, ry) + (cx, cy), fill, edge, width)

    def box(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        fill: Colour,
        radius: float = 0.0,
        edge: Colour | None = INK,
        width: float = 0.026,
    ) -> None:
        """A filled rectangle, with rounded corners if a radius is given."""
        corners: Points = [(left, top), (right, top), (right, bottom), (left, bottom)]
        if radius:
            centres = ((right, bottom), (left, bottom), (left, top), (right, top))
            inward = ((-1, -1), (1, -1), (1, 1), (-1, 1))
            corners = np.concatenate(
                [
                    _arc(x + radius * dx, y + radius * dy, radius, radius, 90 * k, 90 * k + 90, 4)
                    for k, ((x, y), (dx, dy)) in enumerate(zip(centres, inward))
                ]
            )
        self.shape(corners, fill, edge, width)

    def stroke(self, points: Points, colour: Colour, width: float, edge: Colour | None = None) -> None:
        """A line with round ends; with an edge colour it becomes an outlined tube."""
        xy = self._pixels(points)
        layers = [(colour, width)] if edge is None else [(edge, width + 0.05), (colour, width)]
        for paint, thickness in layers:
            pixels = self._width(thickness)
            self._draw.line(xy, fill=paint, width=pixels, joint="curve" if pixels > 4 else None)
            if pixels > 4:
                half = pixels / 2
                for x, y in (xy[:2], xy[-2:]):
                    self._draw.ellipse((x - half, y - half, x + half, y + half), fill=paint)

    def _width(self, width: float) -> int:
        return max(1, round(width * self.side * 0.95))


class _Recipe(NamedTuple):
    """How one icon is drawn and how far it may be turned (degrees) or mirrored."""

    paint: Callable[[Pen], None]
    turn: float
    flip: bool


_RECIPES: dict[str, _Recipe] = {}


def _icon(name: str, turn: float = 6.0, flip: bool = True) -> Callable[[Callable[[Pen], None]], Callable[[Pen], None]]:
    """Register a drawing function under an icon's name."""

    def register(paint: Callable[[Pen], None]) -> Callable[[Pen], None]:
        _RECIPES[name] = _Recipe(paint, turn, flip)
        return paint

    return register


def draw_icon(name: str, rng: np.random.Generator, side: int) -> Image.Image:
    """Draw one icon on a transparent square of the given side; the same generator state gives the same icon."""
    recipe = _RECIPES.get(name)
    if recipe is None:
        raise ValueError(f"no icon is called {name!r}; there are {', '.join(_RECIPES)}")
    pen = Pen(rng, side, turn=recipe.turn, flip=recipe.flip)
    recipe.paint(pen)
    return pen.image


# --- parts shared by several icons


def _eye(pen: Pen, x: float, y: float, radius: float) -> None:
    """A white eye with a dark pupil."""
    pen.oval(x, y, radius, radius, WHITE)
    pen.oval(x, y, 0.5 * radius, 0.5 * radius, INK, edge=None)


def _wheel(pen: Pen, x: float, y: float, radius: float) -> None:
    """A tyre with a light hub."""
    pen.oval(x, y, radius, radius, RUBBER)
    pen.oval(x, y, 0.45 * radius, 0.45 * radius, STEEL, edge=None)


def _arch(pen: Pen, x: float, top: float, bottom: float, half: float, fill: Colour) -> None:
    """A door or window with a round top."""
    outline = np.concatenate([_arc(x, top + half, half, half, 180, 360, 9), [(x + half, bottom), (x - half, bottom)]])
    pen.shape(outline, fill)


def _canopy(pen: Pen, rim: float, height: float, half: float, gores: int, colours: tuple[Colour, Colour]) -> np.ndarray:
    """A dome of gores with a scalloped lower edge; returns the points where gores meet at the rim."""
    feet = 0.5 + half * np.sin(np.linspace(-0.5 * np.pi, 0.5 * np.pi, gores + 1))
    feet = 0.5 * feet + 0.5 * np.linspace(0.5 - half, 0.5 + half, gores + 1)
    t = np.linspace(0.0, 0.5 * np.pi, 7)
    seams = [np.stack([0.5 + (x - 0.5) * np.sin(t), rim - height * np.cos(t)], axis=1) for x in feet]
    for k in range(gores):
        middle, span = 0.5 * (feet[k] + feet[k + 1]), 0.5 * (feet[k + 1] - feet[k])
        scallop = _arc(middle, rim, span, 0.055, 180, 360, 7)
        pen.shape(np.concatenate([seams[k], scallop, seams[k + 1][::-1]]), colours[k % 2])
    return np.stack([feet, np.full_like(feet, rim)], axis=1)


# --- objects


@_icon("tench", turn=8.0)
def _tench(pen: Pen) -> None:
    """A long fish from the side: fan tail, spined back fin, small eye, pale belly."""
    coat = pen.pick(FISH_COATS)
    fin = _shade(coat, 0.62)
    deep = pen.vary(0.19, 0.1)
    pen.blob([(0.2, 0.5), (0.07, 0.3), (0.03, 0.4), (0.02, 0.5), (0.03, 0.6), (0.07, 0.7)], fin)
    spines = [(0.34, 0.5 - deep + 0.06)]
    for k in range(5):
        x = 0.36 + 0.07 * k
        spines += [(x, 0.5 - deep - 0.17 + 0.018 * k), (x + 0.05, 0.5 - deep - 0.04)]
    pen.shape([*spines, (0.7, 0.5 - deep + 0.06)], fin)
    pen.shape([(0.3, 0.6), (0.24, 0.78), (0.42, 0.66)], fin)
    pen.shape([(0.56, 0.62), (0.5, 0.82), (0.68, 0.64)], fin)
    pen.blob(
        [(0.97, 0.53), (0.84, 0.5 - 0.8 * deep), (0.58, 0.5 - deep), (0.32, 0.5 - 0.7 * deep), (0.14, 0.46)]
        + [(0.14, 0.54), (0.32, 0.5 + 0.7 * deep), (0.58, 0.5 + deep), (0.84, 0.5 + 0.8 * deep)],
        coat,
    )
    pen.blob([(0.28, 0.57), (0.55, 0.59), (0.74, 0.57), (0.58, 0.48 + deep)], _shade(coat, 1.5), edge=None)
    pen.stroke(_arc(0.7, 0.5, 0.05, 0.7 * deep, -75, 75, 8), INK, 0.028)
    pen.stroke([(0.22, 0.49), (0.66, 0.47)], fin, 0.03)
    pen.oval(0.84, 0.46, 0.032, 0.032, WHITE)
    pen.oval(0.84, 0.46, 0.014, 0.014, INK, edge=None)


@_icon("English springer")
def _springer(pen: Pen) -> None:
    """A two-tone spaniel, standing or sitting: long wavy ear, feathered legs and belly, docked tail."""
    patch = pen.pick(DOG_COATS)
    coat = pen.pick((WHITE, CREAM, (232, 224, 216)))
    ear_end = pen.vary(0.64, 0.06)
    if pen.chance(0.6):
        pen.stroke([(0.12, 0.42), (0.05, 0.36)], patch, 0.06, INK)
        for x, colour in ((0.2, coat), (0.3, coat), (0.56, coat), (0.66, coat)):
            # Feathering: a ragged trouser that widens backwards.
            pen.shape(
                [(x - 0.06, 0.6), (x + 0.06, 0.6), (x + 0.05, 0.94), (x - 0.05, 0.94), (x - 0.1, 0.86)]
                + [(x - 0.05, 0.82), (x - 0.11, 0.74)],
                colour,
            )
        belly = [(0.64, 0.72), (0.58, 0.66), (0.51, 0.76), (0.45, 0.68), (0.38, 0.75), (0.3, 0.66), (0.16, 0.68)]
        pen.shape([(0.08, 0.5), (0.14, 0.4), (0.4, 0.4), (0.6, 0.36), (0.74, 0.44), (0.74, 0.64), *belly], coat)
        pen.blob([(0.1, 0.5), (0.16, 0.43), (0.32, 0.43), (0.36, 0.52), (0.26, 0.6), (0.14, 0.6)], patch, edge=None)
        pen.oval(0.51, 0.5, 0.07, 0.08, patch, edge=None)
    else:
        pen.stroke([(0.22, 0.86), (0.12, 0.8)], patch, 0.06, INK)
        pen.blob([(0.54, 0.4), (0.36, 0.48), (0.2, 0.72), (0.22, 0.93), (0.5, 0.94), (0.72, 0.7), (0.74, 0.46)], coat)
        pen.blob([(0.44, 0.48), (0.28, 0.64), (0.24, 0.8), (0.38, 0.84), (0.48, 0.66)], patch, edge=None)
        pen.shape([(0.58, 0.6), (0.76, 0.56), (0.74, 0.94), (0.62, 0.94), (0.54, 0.86), (0.6, 0.8), (0.53, 0.72)], coat)
        pen.shape([(0.34, 0.8), (0.5, 0.8), (0.56, 0.94), (0.24, 0.94)], coat)
    pen.blob([(0.58, 0.2), (0.7, 0.08), (0.82, 0.16), (0.96, 0.28), (0.95, 0.39), (0.78, 0.44), (0.6, 0.4)], coat)
    pen.blob([(0.6, 0.2), (0.7, 0.1), (0.8, 0.17), (0.8, 0.27), (0.66, 0.34)], patch, edge=None)
    # The ear is the mark of the breed, so it is drawn last, long and wavy.
    pen.blob(
        [(0.62, 0.13), (0.7, 0.2), (0.71, 0.34), (0.76, 0.44), (0.71, 0.52), (0.74, ear_end), (0.64, ear_end + 0.03)]
        + [(0.54, ear_end - 0.02), (0.56, 0.52), (0.5, 0.44), (0.54, 0.34), (0.53, 0.22)],
        _shade(patch, 0.85),
    )
    pen.oval(0.8, 0.22, 0.026, 0.03, INK, edge=None)
    pen.oval(0.945, 0.3, 0.04, 0.036, INK, edge=None)


@_icon("cassette player", flip=False)
def _cassette_player(pen: Pen) -> None:
    """A box with two reels behind a window, a row of buttons, and a handle or headphones."""
    body = pen.pick()
    trim = pen.pick(apart_from=body)
    top = pen.vary(0.32, 0.06)
    if pen.chance():
        pen.stroke([(0.2, top + 0.02), (0.2, 0.15), (0.8, 0.15), (0.8, top + 0.02)], _shade(body, 0.6), 0.05, INK)
    else:
        pen.stroke(_arc(0.5, top, 0.34, 0.23, 180, 360, 14), INK, 0.05)
        for x in (0.15, 0.85):
            pen.box(x - 0.09, top - 0.13, x + 0.09, top + 0.07, trim, 0.05)
    pen.box(0.05, top, 0.95, 0.9, body, 0.06)
    low = pen.vary(0.66, 0.02)
    pen.box(0.13, top + 0.07, 0.87, low, CREAM, 0.04)
    middle = 0.5 * (top + 0.07 + low)
    pen.box(0.3, middle - 0.05, 0.7, middle + 0.05, trim, edge=None)
    for x in (0.31, 0.69):
        pen.oval(x, middle, 0.115, 0.115, INK)
        pen.oval(x, middle, 0.05, 0.05, WHITE, edge=None)
    for k in range(5):
        pen.box(0.13 + 0.15 * k, 0.73, 0.25 + 0.15 * k, 0.84, trim if k else WHITE)


@_icon("chain saw", turn=8.0)
def _chain_saw(pen: Pen) -> None:
    """A motor body with handles and a long bar under a toothed chain."""
    body = pen.pick()
    middle, half = 0.6, pen.vary(0.075)
    teeth = []
    for k in range(8):
        x = 0.44 + 0.06 * k
        teeth += [(x, middle - half - 0.02), (x + 0.035, middle - half - 0.085)]
    teeth += [(0.93, middle - half), (0.97, middle - 0.03), (0.97, middle + 0.03), (0.94, middle + half)]
    for k in reversed(range(8)):
        x = 0.44 + 0.06 * k
        teeth += [(x + 0.025, middle + half + 0.085), (x, middle + half + 0.02)]
    # Pale teeth with a dark edge show on any ground; the dark groove parts them from the bar.
    pen.shape(teeth, (240, 240, 236), width=0.03)
    pen.box(0.4, middle - half + 0.01, 0.93, middle + half - 0.01, pen.pick((STEEL, (150, 156, 166), GLASS)), 0.055)
    pen.stroke(_bent([(0.2, 0.45), (0.03, 0.5), (0.04, 0.74), (0.2, 0.78)]), _shade(body, 0.6), 0.055, INK)
    pen.stroke(_bent([(0.2, 0.46), (0.2, 0.26), (0.36, 0.2), (0.47, 0.28), (0.46, 0.5)]), RUBBER, 0.055, INK)
    pen.shape([(0.12, 0.46), (0.24, 0.38), (0.46, 0.38), (0.52, 0.48), (0.52, 0.8), (0.12, 0.8)], body)
    pen.oval(0.3, 0.6, 0.11, 0.11, _shade(body, 1.55))
    pen.oval(0.3, 0.6, 0.045, 0.045, INK, edge=None)


@_icon("church", turn=3.0)
def _church(pen: Pen) -> None:
    """A nave with a pitched roof beside a steeple that carries a cross."""
    wall = pen.pick(STONES)
    roof = pen.pick(apart_from=wall)
    glass = pen.pick((GLASS, (250, 216, 110), (92, 130, 190)), apart_from=wall)
    eaves, tower = pen.vary(0.56, 0.06), pen.vary(0.44, 0.06)
    pen.box(0.36, eaves, 0.95, 0.94, wall)
    pen.shape([(0.36, eaves - 0.2), (0.86, eaves - 0.2), (0.99, eaves + 0.02), (0.36, eaves + 0.02)], roof)
    for x in (0.56, 0.8):
        _arch(pen, x, eaves + 0.09, 0.84, 0.065, glass)
    pen.box(0.09, tower, 0.41, 0.94, wall)
    pen.shape([(0.04, tower + 0.02), (0.25, 0.18), (0.46, tower + 0.02)], roof)
    for colour, width in ((INK, 0.085), (WHITE, 0.04)):
        pen.stroke([(0.25, 0.05), (0.25, 0.22)], colour, width)
        pen.stroke([(0.18, 0.105), (0.32, 0.105)], colour, width)
    pen.oval(0.25, tower + 0.1, 0.055, 0.055, glass)
    _arch(pen, 0.25, 0.66, 0.94, 0.085, _shade(roof, 0.5))


@_icon("French horn", turn=8.0)
def _french_horn(pen: Pen) -> None:
    """Coiled tubing around three keys, with a wide flared bell below."""
    metal = pen.pick(METALS + PAINTS[:10])
    x, y, radius = 0.47, 0.43, pen.vary(0.28, 0.08)
    pen.stroke(_bent([(x, y - radius), (0.2, 0.1), (0.08, 0.1)]), metal, 0.045, INK)
    pen.shape(
        np.concatenate(
            [_bent([(x + 0.12, y + 0.05), (0.62, 0.66), (0.5, 0.8)]), _bent([(0.86, 0.95), (0.82, 0.72), (x + 0.3, y)])]
        ),
        metal,
    )
    pen.stroke(_arc(x, y, radius, radius, 0, 360, 22), metal, 0.06, INK)
    pen.stroke(_arc(x, y, 0.56 * radius, 0.56 * radius, 40, 330, 16), _shade(metal, 0.8), 0.05, INK)
    bell = _CIRCLE * (0.24, 0.09) @ np.array([[0.9, 0.42], [-0.42, 0.9]]) + (0.69, 0.85)
    pen.shape(bell, _shade(metal, 0.45))
    for k in range(3):
        pen.oval(x - 0.12 + 0.11 * k, y + 0.02 * k - 0.02, 0.05, 0.05, WHITE)


@_icon("garbage truck", turn=4.0)
def _garbage_truck(pen: Pen) -> None:
    """A cab in front of a tall ribbed hopper with a slanted, open rear; three wheels."""
    hopper = pen.pick()
    cab = pen.pick() if pen.chance() else hopper
    top = pen.vary(0.2, 0.15)
    pen.box(0.1, 0.7, 0.94, 0.78, RUBBER)
    pen.shape([(0.24, top), (0.66, top), (0.66, 0.72), (0.04, 0.72), (0.04, 0.56)], hopper)
    pen.shape([(0.04, 0.58), (0.14, 0.41), (0.25, 0.6), (0.22, 0.72), (0.04, 0.72)], INK, edge=None)
    pen.stroke([(0.24, top + 0.02), (0.29, 0.7)], INK, 0.028)
    for k in range(3):
        x = 0.38 + 0.1 * k
        pen.stroke([(x, top + 0.07), (x, 0.65)], _shade(hopper, 0.55), 0.04)
    pen.shape([(0.7, 0.34), (0.88, 0.34), (0.96, 0.54), (0.96, 0.74), (0.7, 0.74)], cab)
    pen.shape([(0.75, 0.39), (0.86, 0.39), (0.92, 0.54), (0.75, 0.54)], GLASS)
    for x in (0.2, 0.42, 0.83):
        _wheel(pen, x, 0.8, 0.1)


@_icon("gas pump", turn=4.0)
def _gas_pump(pen: Pen) -> None:
    """An upright cabinet with a display, and a hose looping to a nozzle at its side."""
    body = pen.pick()
    top = pen.vary(0.09, 0.3)
    hose = _bent([(0.56, 0.62), (0.72, 0.66), (0.74, 0.86), (0.88, 0.86), (0.92, 0.6), (0.86, 0.36)])
    pen.stroke(hose, pen.pick(((112, 112, 122), (200, 60, 50), (226, 190, 70), STEEL)), 0.04, INK)
    pen.shape([(0.68, 0.24), (0.82, 0.2), (0.93, 0.28), (0.91, 0.46), (0.81, 0.46), (0.8, 0.34), (0.7, 0.33)], STEEL)
    pen.stroke([(0.6, 0.37), (0.7, 0.3)], STEEL, 0.035, INK)
    pen.box(0.12, top, 0.62, 0.9, body, 0.07)
    pen.box(0.06, 0.86, 0.68, 0.95, _shade(body, 0.5))
    pen.box(0.19, top + 0.09, 0.55, 0.4, pen.pick((WHITE, GLASS, CREAM)))
    for k in range(2):
        y = top + 0.15 + 0.085 * k
        pen.box(0.26, y, 0.48 - 0.06 * k, y + 0.04, INK, edge=None)
    if pen.chance():
        # A fuel drop as the maker's mark.
        pen.blob([(0.37, 0.49), (0.46, 0.66), (0.37, 0.75), (0.28, 0.66)], pen.pick(apart_from=body))
    else:
        pen.box(0.19, 0.52, 0.55, 0.68, pen.pick(apart_from=body))


@_icon("golf ball", turn=25.0)
def _golf_ball(pen: Pen) -> None:
    """A pale ball full of large dimples, sometimes on a tee."""
    ball = pen.pick(BALL_TINTS)
    y, radius = 0.5, 0.43
    if pen.chance():
        y, radius = 0.4, 0.35
        pen.shape([(0.34, 0.7), (0.66, 0.7), (0.55, 0.8), (0.53, 0.98), (0.47, 0.98), (0.45, 0.8)], pen.pick())
    pen.oval(0.5, y, radius, radius, ball)
    pit, glint = _shade(ball, 0.45), _shade(ball, 0.8)
    angle = pen.rng.uniform(0.0, 2.0 * np.pi)
    # Rings of dimples, flattened towards the rim as on a sphere.
    for count, distance, size in ((1, 0.0, 0.15), (6, 0.42, 0.14), (10, 0.78, 0.11)):
        for k in range(count):
            a = angle + 2.0 * np.pi * k / count
            cx, cy = 0.5 + radius * distance * np.cos(a), y + radius * distance * np.sin(a)
            pen.oval(cx, cy, radius * size, radius * size, pit, edge=None)
            pen.oval(cx + 0.012, cy + 0.014, 0.55 * radius * size, 0.55 * radius * size, glint, edge=None)


@_icon("parachute", turn=8.0)
def _parachute(pen: Pen) -> None:
    """A wide gored canopy whose lines meet at a small figure or a crate."""
    first = pen.pick()
    colours = (first, pen.pick(apart_from=first))
    rim = pen.vary(0.43, 0.05)
    feet = 0.5 + 0.45 * np.linspace(-1.0, 1.0, 6)
    # Dark and pale together, so that the lines show on any ground.
    for colour, width in ((INK, 0.046), (WHITE, 0.02)):
        for x in feet:
            pen.stroke([(x, rim), (0.5, 0.8)], colour, width)
    _canopy(pen, rim, rim - 0.05, 0.46, 5, colours)
    load = pen.pick(apart_from=first)
    if pen.chance(0.7):
        pen.stroke([(0.46, 0.86), (0.43, 0.96)], load, 0.04, INK)
        pen.stroke([(0.54, 0.86), (0.57, 0.96)], load, 0.04, INK)
        pen.box(0.43, 0.76, 0.57, 0.88, load, 0.03)
        pen.oval(0.5, 0.72, 0.055, 0.055, pen.pick(((244, 204, 170), (150, 100, 70), (96, 64, 48))))
    else:
        pen.box(0.39, 0.75, 0.61, 0.95, load)
        pen.stroke([(0.5, 0.77), (0.5, 0.93)], INK, 0.03)


# --- look-alikes


@_icon("goldfish", turn=8.0)
def _goldfish(pen: Pen) -> None:
    """A round fish with a big eye and a flowing twin tail."""
    coat = pen.pick(GOLDFISH_COATS)
    fin = _shade(coat, 1.45)
    big = pen.vary(0.25, 0.08)
    pen.blob([(0.45, 0.46), (0.34, 0.26), (0.14, 0.06), (0.03, 0.12), (0.08, 0.28), (0.04, 0.42), (0.28, 0.53)], fin)
    pen.blob([(0.45, 0.54), (0.34, 0.76), (0.14, 0.95), (0.02, 0.88), (0.08, 0.72), (0.03, 0.58), (0.28, 0.49)], fin)
    pen.blob([(0.46, 0.36), (0.5, 0.1), (0.62, 0.06), (0.7, 0.14), (0.76, 0.34)], fin)
    pen.blob([(0.52, 0.66), (0.42, 0.9), (0.56, 0.94), (0.68, 0.72)], fin)
    pen.oval(0.65, 0.52, 0.3, big, coat)
    if pen.chance():
        pen.oval(0.58, 0.44, 0.11, 0.08, pen.pick((WHITE, INK, (230, 90, 40)), apart_from=coat), edge=None)
    pen.blob([(0.6, 0.56), (0.48, 0.62), (0.46, 0.72), (0.6, 0.68)], fin)
    _eye(pen, 0.8, 0.45, 0.085)
    pen.stroke([(0.88, 0.6), (0.93, 0.58)], INK, 0.03)


@_icon("beagle")
def _beagle(pen: Pen) -> None:
    """A smooth hound with a saddle, white legs, a short ear and an upright tail with a white tip."""
    coat = pen.pick(((196, 130, 74), (222, 180, 120), (170, 104, 58), (206, 196, 186)))
    saddle = pen.pick(((46, 42, 44), (92, 54, 32), (104, 104, 112), (150, 70, 40)), apart_from=coat)
    tall = pen.vary(0.09, 0.4)
    pen.stroke(_bent([(0.14, 0.46), (0.08, 0.32), (0.11, tall + 0.06)]), coat, 0.055, INK)
    pen.stroke([(0.1, tall + 0.12), (0.115, tall + 0.04)], WHITE, 0.06, INK)
    for x in (0.17, 0.29, 0.58, 0.69):
        pen.box(x - 0.045, 0.58, x + 0.045, 0.95, WHITE, 0.03)
    pen.blob(
        [(0.1, 0.48), (0.2, 0.4), (0.5, 0.4), (0.7, 0.36), (0.78, 0.5), (0.68, 0.68), (0.4, 0.66), (0.15, 0.64)], coat
    )
    back = [(0.14, 0.47), (0.22, 0.42), (0.42, 0.42), (0.58, 0.42), (0.54, 0.56), (0.36, 0.6), (0.2, 0.56)]
    pen.blob(back, saddle, edge=None)
    pen.blob([(0.68, 0.5), (0.77, 0.48), (0.74, 0.64), (0.66, 0.66)], WHITE, edge=None)
    pen.blob([(0.6, 0.26), (0.7, 0.13), (0.82, 0.2), (0.97, 0.31), (0.95, 0.41), (0.78, 0.45), (0.62, 0.42)], coat)
    pen.blob([(0.84, 0.3), (0.95, 0.32), (0.94, 0.4), (0.84, 0.42)], WHITE, edge=None)
    pen.blob([(0.62, 0.18), (0.7, 0.22), (0.7, 0.38), (0.62, 0.44), (0.56, 0.34)], _shade(coat, 0.7))
    pen.oval(0.8, 0.25, 0.026, 0.03, INK, edge=None)
    pen.oval(0.95, 0.33, 0.036, 0.034, INK, edge=None)


@_icon("radio")
def _radio(pen: Pen) -> None:
    """A box with one big round speaker, a dial strip, a knob and a long antenna."""
    body = pen.pick()
    trim = pen.pick(apart_from=body)
    top = pen.vary(0.38, 0.06)
    pen.stroke([(0.84, top + 0.02), (pen.vary(0.4, 0.3), 0.05)], STEEL, 0.025, INK)
    pen.box(0.05, top, 0.95, 0.9, body, 0.07)
    middle, radius = 0.5 * (top + 0.9), 0.5 * (0.9 - top) - 0.045
    pen.oval(0.09 + radius + 0.02, middle, radius, radius, trim)
    for share, colour in ((0.68, INK), (0.46, trim), (0.24, INK)):
        pen.oval(0.09 + radius + 0.02, middle, share * radius, share * radius, colour, edge=None)
    pen.box(0.6, top + 0.08, 0.88, top + 0.21, CREAM)
    needle = pen.rng.uniform(0.66, 0.82)
    pen.stroke([(needle, top + 0.1), (needle, top + 0.19)], (206, 40, 36), 0.035)
    pen.oval(0.74, 0.76, 0.075, 0.075, trim)


@_icon("power drill", turn=8.0)
def _power_drill(pen: Pen) -> None:
    """A pistol shape: barrel, grip on a battery, chuck and a thin bit."""
    body = pen.pick()
    dark = _shade(body, 0.5)
    pen.stroke([(0.72, 0.3), (0.97, 0.3)], STEEL, 0.03, INK)
    pen.shape([(0.24, 0.4), (0.46, 0.4), (0.4, 0.8), (0.18, 0.8)], body)
    pen.shape([(0.46, 0.44), (0.55, 0.44), (0.52, 0.56), (0.44, 0.58)], pen.pick(apart_from=body))
    width = pen.vary(0.2)
    pen.box(0.29 - width, 0.76, 0.29 + width, 0.94, RUBBER, 0.04)
    pen.box(0.06, 0.15, 0.62, 0.46, body, 0.08)
    pen.shape([(0.62, 0.18), (0.7, 0.2), (0.8, 0.26), (0.8, 0.34), (0.7, 0.4), (0.62, 0.42)], RUBBER)
    for k in range(3):
        pen.stroke([(0.16 + 0.08 * k, 0.23), (0.16 + 0.08 * k, 0.36)], dark, 0.035)


@_icon("castle", turn=3.0)
def _castle(pen: Pen) -> None:
    """Two crenellated towers, a lower wall with a gate between them, and a flag."""
    wall = pen.pick(STONES)
    top, low = pen.vary(0.34, 0.08), pen.vary(0.52, 0.06)

    def battlement(left: float, right: float, height: float, merlons: int) -> None:
        step = (right - left) / (2 * merlons - 1)
        edge = []
        for k in range(merlons):
            x = left + 2 * k * step
            edge += [(x, height + 0.1), (x, height), (x + step, height), (x + step, height + 0.1)]
        pen.shape([(left, 0.94), *edge, (right, 0.94)], wall)

    pen.stroke([(0.2, top + 0.02), (0.2, 0.06)], INK, 0.035)
    pen.shape([(0.2, 0.06), (0.46, 0.13), (0.2, 0.21)], pen.pick(apart_from=wall))
    battlement(0.3, 0.7, low, 3)
    battlement(0.05, 0.36, top, 3)
    battlement(0.64, 0.95, top, 3)
    _arch(pen, 0.5, 0.66, 0.94, 0.1, _shade(wall, 0.25))
    for x in (0.205, 0.795):
        pen.box(x - 0.035, top + 0.2, x + 0.035, top + 0.36, INK, edge=None)


@_icon("trumpet", turn=8.0)
def _trumpet(pen: Pen) -> None:
    """A long straight tube with three valves and a bell at the end."""
    metal = pen.pick(METALS + PAINTS[:10])
    y = 0.44
    pen.stroke([(0.03, y), (0.7, y)], metal, 0.045, INK)
    pen.shape([(0.0, y - 0.075), (0.09, y - 0.03), (0.09, y + 0.03), (0.0, y + 0.075)], metal)
    pen.stroke(_bent([(0.3, y + 0.2), (0.2, y + 0.15), (0.2, y + 0.04), (0.26, y)]), metal, 0.045, INK)
    pen.stroke(_bent([(0.28, y + 0.2), (0.6, y + 0.2), (0.7, y + 0.15), (0.7, y + 0.04), (0.62, y)]), metal, 0.045, INK)
    flare = pen.vary(0.19)
    upper = _bent([(0.66, y - 0.035), (0.82, y - 0.06), (0.96, y - flare)])
    pen.shape(np.concatenate([upper, _bent([(0.96, y + flare), (0.82, y + 0.06), (0.66, y + 0.035)])]), metal)
    pen.oval(0.95, y, 0.035, flare, _shade(metal, 0.5))
    for k in range(3):
        x = 0.36 + 0.105 * k
        pen.stroke([(x, y - 0.17), (x, y - 0.08)], STEEL, 0.02, INK)
        pen.box(x - 0.036, y - 0.08, x + 0.036, y + 0.26, _shade(metal, 1.35))
        pen.oval(x, y - 0.18, 0.042, 0.03, WHITE)


@_icon("school bus", turn=4.0)
def _school_bus(pen: Pen) -> None:
    """A long box with a short bonnet, a row of windows, a stripe and two wheels."""
    body = pen.pick()
    top = pen.vary(0.27, 0.1)
    pen.box(0.78, 0.54, 0.98, 0.76, body, 0.04)
    pen.box(0.03, top, 0.86, 0.76, body, 0.06)
    for k in range(5):
        x = 0.08 + 0.15 * k
        pen.box(x, top + 0.07, x + 0.12, 0.5, GLASS)
    pen.box(0.04, 0.57, 0.96, 0.64, _against(body), edge=None)
    for x in (0.23, 0.76):
        _wheel(pen, x, 0.78, 0.11)


@_icon("mailbox", turn=4.0)
def _mailbox(pen: Pen) -> None:
    """A box with a round top on a post, its flag raised."""
    body = pen.pick()
    flag = pen.pick(apart_from=body)
    top = pen.vary(0.22, 0.1)
    pen.box(0.43, 0.5, 0.57, 0.97, pen.pick(((146, 96, 58), (108, 72, 48), STEEL, WHITE)))
    front = _arc(0.26, top + 0.18, 0.18, 0.18, 180, 360, 9)
    back = _arc(0.76, top + 0.18, 0.18, 0.18, 270, 360, 6)
    pen.shape(np.concatenate([front[:5], back, [(0.94, 0.6), (0.08, 0.6)]]), body)
    pen.stroke([(0.72, 0.46), (0.72, 0.1)], INK, 0.045)
    pen.box(0.7, 0.05, 0.93, 0.18, flag)
    pen.shape(np.concatenate([front, [(0.44, 0.6), (0.08, 0.6)]]), _shade(body, 0.65))
    pen.stroke([(0.2, top + 0.2), (0.32, top + 0.2)], WHITE, 0.05)


@_icon("soccer ball", turn=180.0)
def _soccer_ball(pen: Pen) -> None:
    """A pale ball with dark pentagons joined by seams."""
    dark = pen.pick((INK, (40, 40, 80), (90, 30, 40), (30, 70, 50)))
    radius = 0.43

    def at(degrees: float, distance: float) -> tuple[float, float]:
        a = np.radians(degrees)
        return 0.5 + radius * distance * np.cos(a), 0.5 + radius * distance * np.sin(a)

    pen.oval(0.5, 0.5, radius, radius, pen.pick(BALL_TINTS))
    for k in range(5):
        a = 72 * k
        pen.stroke([at(a, 0.3), at(a, 0.7)], dark, 0.032)
        pen.stroke([at(a + 14, 0.75), at(a + 36, 0.68), at(a + 58, 0.75)], dark, 0.032)
        cut = [at(a, 0.62), at(a + 16, 0.76), at(a + 20, 1.0), at(a, 1.0), at(a - 20, 1.0), at(a - 16, 0.76)]
        pen.shape(cut, dark, edge=None)
    pen.shape([at(72 * k, 0.36) for k in range(5)], dark)
    pen.stroke(_arc(0.5, 0.5, radius, radius, 0, 360, 28), INK, 0.026)


@_icon("umbrella", turn=8.0)
def _umbrella(pen: Pen) -> None:
    """A scalloped canopy with a tip, on a single shaft that ends in a hook."""
    first = pen.pick()
    second = pen.pick(apart_from=first) if pen.chance(0.4) else _shade(first, 0.8)
    handle = pen.pick(((120, 74, 44), RUBBER, STEEL, (200, 150, 90)))
    rim = pen.vary(0.48, 0.05)
    hook = _arc(0.6, 0.84, 0.1, 0.1, 180, 10, 9)
    pen.stroke([(0.5, 0.05), (0.5, 0.2)], INK, 0.05)
    pen.stroke(np.concatenate([[(0.5, rim - 0.1)], hook]), handle, 0.05, INK)
    _canopy(pen, rim, rim - 0.12, 0.46, 4, (first, second))


# --- everyday things


@_icon("cat", turn=4.0)
def _cat(pen: Pen) -> None:
    """A sitting cat from the front: pointed ears, whiskers, a curled tail."""
    coat = pen.pick(CAT_COATS)
    stripe = _shade(coat, 0.6)
    pen.stroke(_bent([(0.64, 0.86), (0.88, 0.84), (0.92, 0.64), (0.82, 0.52)]), coat, 0.07, INK)
    pen.blob([(0.5, 0.42), (0.32, 0.56), (0.24, 0.86), (0.34, 0.95), (0.66, 0.95), (0.76, 0.86), (0.68, 0.56)], coat)
    pen.blob([(0.5, 0.56), (0.42, 0.66), (0.44, 0.82), (0.56, 0.82), (0.58, 0.66)], _shade(coat, 1.55), edge=None)
    pen.stroke([(0.5, 0.78), (0.5, 0.93)], INK, 0.028)
    for sign in (-1, 1):
        pen.shape([(0.5 + 0.26 * sign, 0.3), (0.5 + 0.25 * sign, 0.03), (0.5 + 0.04 * sign, 0.17)], coat)
        pen.shape([(0.5 + 0.2 * sign, 0.2), (0.5 + 0.21 * sign, 0.1), (0.5 + 0.12 * sign, 0.17)], (236, 150, 150), None)
    pen.oval(0.5, 0.33, pen.vary(0.27, 0.06), 0.2, coat)
    if pen.chance(0.6):
        for x in (0.43, 0.5, 0.57):
            pen.stroke([(x, 0.16), (x, 0.22)], stripe, 0.035)
    eye = pen.pick(((140, 200, 70), (240, 200, 70), (110, 180, 230)))
    for sign in (-1, 1):
        pen.oval(0.5 + 0.12 * sign, 0.31, 0.052, 0.052, eye)
        pen.oval(0.5 + 0.12 * sign, 0.31, 0.016, 0.036, INK, edge=None)
        for y in (0.37, 0.44):
            pen.stroke([(0.5 + 0.1 * sign, 0.4), (0.5 + 0.38 * sign, y)], WHITE, 0.02)
    pen.shape([(0.45, 0.38), (0.55, 0.38), (0.5, 0.43)], (220, 110, 120))


@_icon("car", turn=4.0)
def _car(pen: Pen) -> None:
    """A low saloon from the side."""
    body = pen.pick()
    roof = pen.vary(0.27, 0.1)
    pen.shape([(0.16, 0.52), (0.3, roof), (0.62, roof), (0.78, 0.52)], body)
    pen.shape([(0.25, 0.51), (0.34, roof + 0.06), (0.44, roof + 0.06), (0.44, 0.51)], GLASS)
    pen.shape([(0.5, 0.51), (0.5, roof + 0.06), (0.59, roof + 0.06), (0.69, 0.51)], GLASS)
    pen.blob([(0.04, 0.54), (0.3, 0.49), (0.76, 0.49), (0.95, 0.56), (0.96, 0.74), (0.5, 0.76), (0.04, 0.74)], body)
    pen.oval(0.91, 0.6, 0.04, 0.04, (252, 232, 140))
    pen.stroke([(0.47, 0.52), (0.47, 0.72)], INK, 0.022)
    for x in (0.24, 0.75):
        _wheel(pen, x, 0.76, 0.125)


@_icon("bird")
def _bird(pen: Pen) -> None:
    """A songbird on two legs: pointed tail, folded wing, beak."""
    coat = pen.pick()
    wing = pen.pick(apart_from=coat) if pen.chance(0.4) else _shade(coat, 0.65)
    for x in (0.48, 0.6):
        pen.stroke([(x, 0.7), (x, 0.92), (x + 0.09, 0.93)], (206, 116, 40), 0.035)
    pen.shape([(0.34, 0.56), (0.02, 0.62), (0.06, 0.72), (0.02, 0.8), (0.38, 0.7)], wing)
    pen.shape([(0.84, 0.24), (0.98, 0.32), (0.84, 0.38)], (240, 170, 40))
    head, belly = [(0.72, 0.12), (0.86, 0.22), (0.84, 0.4)], [(0.8, 0.62), (0.6, 0.78), (0.38, 0.76), (0.24, 0.62)]
    pen.blob([*head, *belly, (0.54, 0.36)], coat)
    pen.blob([(0.64, 0.5), (0.7, 0.66), (0.58, 0.73), (0.6, 0.6)], _shade(coat, 1.6), edge=None)
    pen.blob([(0.62, 0.44), (0.62, pen.vary(0.6, 0.06)), (0.46, 0.66), (0.18, 0.68), (0.4, 0.5)], wing)
    _eye(pen, 0.75, 0.26, 0.048)


@_icon("flower", turn=10.0)
def _flower(pen: Pen) -> None:
    """Round petals about a disc, on a stem with two leaves."""
    petal = pen.pick()
    centre = pen.pick(((250, 210, 60), (110, 66, 36), WHITE, (226, 90, 50)), apart_from=petal)
    leaf = pen.pick(((62, 150, 66), (110, 170, 60), (36, 110, 70)))
    pen.stroke([(0.5, 0.4), (0.5, 0.95)], leaf, 0.045, INK)
    pen.blob([(0.51, 0.84), (0.62, 0.68), (0.84, 0.64), (0.74, 0.8)], leaf)
    pen.blob([(0.49, 0.9), (0.38, 0.74), (0.16, 0.7), (0.26, 0.86)], leaf)
    count = int(pen.rng.integers(5, 8))
    start, reach = pen.rng.uniform(0.0, 2.0 * np.pi), pen.vary(0.2, 0.06)
    for k in range(count):
        a = start + 2.0 * np.pi * k / count
        pen.oval(0.5 + reach * np.cos(a), 0.34 + reach * np.sin(a), 0.115, 0.115, petal)
    pen.oval(0.5, 0.34, 0.115, 0.115, centre)


@_icon("bottle", turn=8.0)
def _bottle(pen: Pen) -> None:
    """A tall bottle with a neck, a cap and a label."""
    body = pen.pick()
    half, shoulder = pen.vary(0.19), pen.vary(0.4, 0.08)
    outline = [(0.5 - half, 0.93), (0.5 - half, shoulder + 0.07), (0.43, shoulder - 0.06), (0.43, 0.12)]
    pen.shape(outline + [(1.0 - x, y) for x, y in reversed(outline)], body)
    pen.box(0.4, 0.04, 0.6, 0.15, pen.pick(apart_from=body))
    pen.box(0.5 - half, shoulder + 0.17, 0.5 + half, 0.8, pen.pick((WHITE, CREAM, (250, 220, 130)), apart_from=body))
    pen.oval(0.5, 0.5 * (shoulder + 0.97), 0.075, 0.075, pen.pick(), edge=None)
    pen.stroke([(0.5 - 0.55 * half, shoulder + 0.08), (0.47, shoulder - 0.03)], _shade(body, 1.6), 0.035)


@_icon("clock", flip=False)
def _clock(pen: Pen) -> None:
    """An alarm clock: two bells, two feet, a pale face with hands."""
    rim = pen.pick()
    for sign in (-1, 1):
        pen.stroke([(0.5 + 0.2 * sign, 0.82), (0.5 + 0.3 * sign, 0.94)], rim, 0.05, INK)
        pen.oval(0.5 + 0.25 * sign, 0.17, 0.14, 0.11, _shade(rim, 1.3))
    radius = pen.vary(0.37, 0.05)
    pen.oval(0.5, 0.53, radius, radius, rim)
    pen.oval(0.5, 0.53, radius - 0.085, radius - 0.085, pen.pick((WHITE, CREAM, GLASS)))
    for k in range(4):
        x, y = np.cos(0.5 * np.pi * k), np.sin(0.5 * np.pi * k)
        inner, outer = radius - 0.16, radius - 0.13
        pen.stroke([(0.5 + inner * x, 0.53 + inner * y), (0.5 + outer * x, 0.53 + outer * y)], INK, 0.035)
    for length, width in ((0.13, 0.055), (0.2, 0.035)):
        a = pen.rng.uniform(0.0, 2.0 * np.pi)
        pen.stroke([(0.5, 0.53), (0.5 + length * np.cos(a), 0.53 + length * np.sin(a))], INK, width)


@_icon("sailboat")
def _sailboat(pen: Pen) -> None:
    """A hull with a mast between two triangular sails."""
    hull, sail = pen.pick(), pen.pick()
    jib = _shade(sail, 1.6) if pen.chance() else WHITE
    boom = pen.vary(0.64, 0.04)
    pen.stroke([(0.46, 0.04), (0.46, 0.78)], (110, 72, 44), 0.04)
    pen.shape([(0.5, 0.06), (0.9, boom), (0.5, boom)], sail)
    pen.shape([(0.42, 0.14), (0.42, boom), (0.14, boom)], jib)
    pen.shape([(0.04, 0.72), (0.97, 0.72), (0.8, 0.94), (0.2, 0.94)], hull)
    pen.stroke([(0.13, 0.8), (0.88, 0.8)], _against(hull), 0.035)


@_icon("laptop", turn=5.0)
def _laptop(pen: Pen) -> None:
    """An open laptop: a lit screen above a keyboard."""
    body = pen.pick()
    top = pen.vary(0.14, 0.2)
    pen.box(0.15, top, 0.85, 0.64, body, 0.04)
    screen = pen.pick()
    pen.box(0.21, top + 0.06, 0.79, 0.58, screen)
    pen.box(0.27, top + 0.12, 0.5, 0.44, _shade(screen, 1.6), edge=None)
    pen.shape([(0.15, 0.64), (0.85, 0.64), (0.98, 0.9), (0.02, 0.9)], _shade(body, 1.3))
    keys = INK if _lightness(body) > 60 else WHITE
    for k in range(3):
        y, half = 0.685 + 0.055 * k, 0.29 + 0.035 * k
        pen.stroke([(0.5 - half, y), (0.5 + half, y)], keys, 0.026)
    pen.box(0.41, 0.83, 0.59, 0.88, keys, edge=None)
