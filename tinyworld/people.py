"""Fully clothed adult figures, and the neutral coloured markers that some of them wear over their clothes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .brush import Brush, Colour, shade
from .vocabulary import MARKERS, PERSONS

Box = tuple[float, float, float, float]

_SKINS: tuple[Colour, ...] = ((247, 214, 186), (226, 178, 140), (190, 135, 98), (140, 92, 62), (94, 62, 44))
_HAIRS: tuple[Colour, ...] = (
    (40, 32, 30), (90, 58, 36), (150, 95, 50), (225, 190, 110), (165, 70, 40), (175, 175, 178),
)  # fmt: skip
_CLOTHES: tuple[Colour, ...] = (
    (190, 60, 60), (60, 100, 175), (70, 140, 95), (215, 170, 70), (130, 80, 150), (90, 95, 105), (215, 130, 150),
    (70, 150, 160), (200, 195, 185),
)  # fmt: skip
_TROUSERS: tuple[Colour, ...] = ((50, 60, 95), (70, 65, 65), (110, 90, 70), (75, 90, 75), (40, 42, 50))
_SUITS: tuple[Colour, ...] = ((45, 50, 75), (65, 65, 72), (85, 65, 55), (50, 70, 65))

# Where each marker is worn on a figure of full size (left and right as seen by the viewer), its shape and colours.
_WORN: dict[str, tuple[float, float, str, Colour, Colour]] = {
    "red disc": (0.415, 0.33, "disc", (225, 30, 35), (255, 255, 255)),
    "yellow disc": (0.585, 0.33, "disc", (250, 220, 30), (40, 40, 40)),
    "blue square": (0.5, 0.45, "square", (30, 75, 225), (255, 255, 255)),
    "white square": (0.595, 0.57, "square", (252, 252, 252), (30, 30, 30)),
    "green triangle": (0.425, 0.75, "triangle", (25, 175, 60), (255, 255, 255)),
    "orange triangle": (0.575, 0.75, "triangle", (250, 140, 20), (30, 30, 30)),
    "purple cross": (0.275, 0.43, "cross", (150, 40, 200), (255, 255, 255)),
    "black cross": (0.6, 0.93, "cross", (15, 15, 15), (255, 255, 255)),
}
_SKIRTS = frozenset(("woman", "mother"))


class _Figure:
    """Maps the unit frame of one figure into its slot of the layer and draws body parts there."""

    def __init__(self, brush: Brush, centre: float = 0.5, wide: float = 1.0, top: float = 0.02) -> None:
        self.b, self.centre, self.wide, self.top = brush, centre, wide, top

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Layer position of a point of the figure's frame."""
        return self.centre + (x - 0.5) * self.wide, self.top + y * (0.98 - self.top)

    def poly(self, points: Sequence[tuple[float, float]], fill: Colour) -> None:
        self.b.poly([self.at(*point) for point in points], fill)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        self.b.rect(*self.at(x0, y0), *self.at(x1, y1), fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        self.b.ellipse(*self.at(x, y), rx * self.wide, ry * (0.98 - self.top), fill)

    def line(self, points: Sequence[tuple[float, float]], fill: Colour, w: float) -> None:
        self.b.line([self.at(*point) for point in points], fill, w * self.wide)


def _body(f: _Figure, skirt: bool, long_hair: bool, top: Colour, bottom: Colour, raised: bool = False) -> None:
    """Head, hair, arms, torso and legs of one adult; `raised` lifts the arm on the right side."""
    b = f.b
    skin, hair, shoe = b.pick(_SKINS), b.pick(_HAIRS), b.pick(((40, 35, 35), (110, 70, 45), (70, 70, 80)))
    sleeve = shade(top, 0.85)
    if long_hair:
        f.ellipse(0.5, 0.12, 0.135, 0.125, hair)
        f.rect(0.375, 0.12, 0.625, b.uniform(0.24, 0.31), hair)
    arms = [((0.35, 0.27), (0.28, 0.4), (0.27, 0.53)), ((0.65, 0.27), (0.72, 0.4), (0.73, 0.53))]
    if raised:
        arms[1] = ((0.65, 0.28), (0.76, 0.36), (0.82, 0.24))
    for arm in arms:
        f.line(arm, sleeve, 0.095)
        f.ellipse(*arm[0], 0.047, 0.047, sleeve)
        f.ellipse(*arm[2], 0.048, 0.045, skin)
    leg = skin if skirt and b.chance(0.5) else shade(bottom, 0.8)
    if skirt:
        for x in (0.425, 0.575):
            f.rect(x - 0.045, 0.7, x + 0.045, 0.92, leg)
    else:
        for x0, x1 in ((0.345, 0.485), (0.515, 0.655)):
            f.rect(x0, 0.55, x1, 0.92, bottom)
        f.rect(0.345, 0.52, 0.655, 0.64, bottom)
    for x in (0.41, 0.59):
        f.ellipse(x, 0.94, 0.085, 0.045, shoe)
    f.poly(((0.4, 0.22), (0.6, 0.22), (0.68, 0.27), (0.655, 0.56), (0.345, 0.56), (0.32, 0.27)), top)
    if skirt:
        f.poly(((0.37, 0.48), (0.63, 0.48), (0.74, 0.8), (0.26, 0.8)), bottom)
    f.rect(0.46, 0.18, 0.54, 0.25, shade(skin, 0.88))
    f.ellipse(0.5, 0.125, 0.1, 0.105, skin)
    if long_hair:
        b.pie(*f.at(0.5, 0.115), 0.125 * f.wide, 0.115, 180, 360, hair)
    else:
        b.pie(*f.at(0.5, 0.1), 0.112 * f.wide, 0.1, 175, 365, hair)
    f.rect(0.42, 0.1, 0.58, 0.125, skin)
    for x in (0.46, 0.54):
        f.ellipse(x, 0.13, 0.016, 0.016, (35, 30, 30))
    f.line(((0.465, 0.185), (0.535, 0.185)), (165, 70, 65), 0.018)


def _plain(f: _Figure, skirt: bool) -> None:
    """Someone in everyday clothes."""
    b = f.b
    top = b.pick(_CLOTHES)
    bottom = (top if b.chance(0.5) else b.pick(_CLOTHES)) if skirt else b.pick(_TROUSERS)
    _body(f, skirt, skirt, top, bottom)


def _either(f: _Figure) -> None:
    """Someone in everyday clothes, with or without a skirt."""
    _plain(f, f.b.chance(0.5))


def _collar(f: _Figure, shirt: Colour, tie: Colour | None, lapel: Colour) -> None:
    f.poly(((0.42, 0.22), (0.58, 0.22), (0.5, 0.44)), shirt)
    if tie is not None:
        f.poly(((0.475, 0.23), (0.525, 0.23), (0.54, 0.4), (0.5, 0.46), (0.46, 0.4)), tie)
    f.line(((0.42, 0.22), (0.5, 0.46)), lapel, 0.025)
    f.line(((0.58, 0.22), (0.5, 0.46)), lapel, 0.025)


def _glasses(f: _Figure, lens: Colour, size: float) -> None:
    f.rect(0.4, 0.118, 0.6, 0.135, (25, 25, 28))
    for x in (0.455, 0.545):
        f.ellipse(x, 0.135, size, size, (25, 25, 28))
        f.ellipse(x, 0.135, size - 0.014, size - 0.014, lens)


def _doctor(f: _Figure) -> None:
    b = f.b
    coat = b.colour(243, 245, 246, 6)
    _body(f, False, b.chance(0.5), coat, b.pick(_TROUSERS))
    f.poly(((0.32, 0.5), (0.68, 0.5), (0.71, 0.75), (0.29, 0.75)), coat)
    f.line(((0.5, 0.4), (0.5, 0.75)), (165, 172, 178), 0.018)
    _collar(f, b.pick(((110, 165, 205), (95, 170, 140))), None, (190, 196, 200))
    f.line(((0.42, 0.23), (0.43, 0.33), (0.5, 0.39), (0.57, 0.33), (0.58, 0.23)), (35, 40, 48), 0.026)
    f.ellipse(0.5, 0.42, 0.036, 0.036, (60, 65, 75))


def _nurse(f: _Figure) -> None:
    b = f.b
    scrub = b.pick(((95, 190, 190), (130, 180, 225), (235, 165, 190)))
    _body(f, False, b.chance(0.65), scrub, shade(scrub, 0.92))
    f.poly(((0.38, 0.065), (0.36, -0.015), (0.64, -0.015), (0.62, 0.065)), (250, 250, 250))
    f.rect(0.485, 0.0, 0.515, 0.056, (215, 45, 50))
    f.rect(0.455, 0.017, 0.545, 0.04, (215, 45, 50))
    f.poly(((0.44, 0.22), (0.56, 0.22), (0.5, 0.3)), (250, 250, 250))


def _teacher(f: _Figure) -> None:
    b = f.b
    b.rect(0.52, 0.03, 1.0, 0.46, b.colour(150, 105, 60))
    b.rect(0.545, 0.055, 0.975, 0.435, b.colour(40, 90, 65))
    for y in (0.12, 0.2):
        b.line(((0.74, y), (0.93, y)), (235, 238, 230), 0.024)
    f.centre -= 0.12
    skirt = b.chance(0.5)
    top = b.pick(_CLOTHES)
    _body(f, skirt, skirt, top, b.pick(_TROUSERS), raised=True)
    f.line(((0.81, 0.27), (1.0, 0.16)), (225, 185, 110), 0.024)


def _professor(f: _Figure) -> None:
    b = f.b
    gown = b.pick(((35, 35, 45), (70, 30, 45), (35, 45, 80)))
    _body(f, False, b.chance(0.3), gown, shade(gown, 0.8))
    f.poly(((0.33, 0.3), (0.67, 0.3), (0.77, 0.86), (0.23, 0.86)), gown)
    trim = b.pick(((215, 175, 70), (190, 60, 60), (225, 225, 225)))
    f.line(((0.43, 0.22), (0.46, 0.86)), trim, 0.026)
    f.line(((0.57, 0.22), (0.54, 0.86)), trim, 0.026)
    _glasses(f, (225, 238, 245), 0.044)
    f.poly(((0.5, -0.02), (0.68, 0.03), (0.5, 0.08), (0.32, 0.03)), shade(gown, 0.75))
    f.line(((0.66, 0.03), (0.67, 0.12)), trim, 0.022)


def _lawyer(f: _Figure) -> None:
    b = f.b
    suit = b.pick(_SUITS)
    _body(f, False, b.chance(0.4), suit, shade(suit, 0.9))
    _collar(f, (245, 245, 245), b.pick(((190, 35, 45), (45, 80, 160), (200, 160, 50))), shade(suit, 0.65))
    case = b.colour(125, 80, 45)
    f.rect(0.66, 0.59, 0.9, 0.75, case)
    f.rect(0.66, 0.65, 0.9, 0.67, shade(case, 0.6))
    f.line(((0.74, 0.59), (0.74, 0.55), (0.82, 0.55), (0.82, 0.59)), shade(case, 0.6), 0.022)


def _celebrity(f: _Figure) -> None:
    b = f.b
    skirt = b.chance(0.5)
    glam = b.pick(((190, 40, 70), (120, 50, 160), (225, 180, 70), (40, 40, 48)))
    _body(f, skirt, skirt, glam, glam if skirt else shade(glam, 0.6))
    _glasses(f, (30, 30, 35), 0.05)
    # The star floats beside the head, so that it never covers a marker.
    turns = np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 0.125, 0.055)
    star = [(0.82 + r * np.sin(a), 0.14 - r * np.cos(a)) for a, r in zip(turns.tolist(), radii.tolist())]
    f.poly(star, (250, 210, 50))


def _marker(b: Brush, x: float, y: float, half: float, shape: str, fill: Colour, rim: Colour) -> None:
    for size, tone in ((half, rim), (half * 0.78, fill)):
        if shape == "disc":
            b.ellipse(x, y, size, size, tone)
        elif shape == "square":
            b.rect(x - size * 0.92, y - size * 0.92, x + size * 0.92, y + size * 0.92, tone)
        elif shape == "triangle":
            low = y + size * 0.75
            b.poly(((x, y - size * 1.1), (x + size * 1.15, low), (x - size * 1.15, low)), tone)
        else:
            arm = half * (0.48 if tone is rim else 0.28)
            b.rect(x - arm, y - size, x + arm, y + size, tone)
            b.rect(x - size, y - arm, x + size, y + arm, tone)


_SINGLE = {
    "professor": _professor, "celebrity": _celebrity, "doctor": _doctor, "nurse": _nurse, "teacher": _teacher,
    "lawyer": _lawyer,
}  # fmt: skip


def _draw_kind(brush: Brush, kind: str) -> _Figure:
    """Draw the figures of this kind; the returned one (in front) wears the markers."""
    if kind == "couple":
        back, front = _Figure(brush, 0.7, 0.86, 0.04), _Figure(brush, 0.3, 0.86, 0.06)
        if brush.chance(0.5):
            back.centre, front.centre = front.centre, back.centre
        skirts = (False, True) if brush.chance(0.7) else (brush.chance(0.5),) * 2
        _plain(back, skirts[0])
        _plain(front, skirts[1])
        if brush.chance(0.6):
            y, tone = 0.08, (230, 45, 80)
            brush.ellipse(0.48, y, 0.025, 0.025, tone)
            brush.ellipse(0.52, y, 0.025, 0.025, tone)
            brush.poly(((0.457, y + 0.01), (0.543, y + 0.01), (0.5, y + 0.065)), tone)
        return front
    if kind == "group of friends":
        slots = (0.16, 0.5, 0.84) if brush.chance(0.5) else (0.15, 0.385, 0.615, 0.85)
        # Never the leftmost, whose markers on the arm would leave the layer.
        last = int(brush.rng.integers(1, len(slots)))
        for index, centre in enumerate(slots):
            if index != last:
                _either(_Figure(brush, centre, 0.62, brush.uniform(0.04, 0.16)))
        front = _Figure(brush, slots[last], 0.66, 0.03)
        _either(front)
        return front
    front = _Figure(brush)
    if kind in _SINGLE:
        _SINGLE[kind](front)
    else:
        _plain(front, kind in _SKIRTS)
    return front


def draw_person(
    kind: str, rng: np.random.Generator, side: int = 200, markers: Sequence[str] = ()
) -> tuple[Image.Image, list[tuple[str, Box]]]:
    """Draw one person (or couple, or group) on a transparent square; also the boxes of the markers in 0..1."""
    if kind not in PERSONS:
        raise ValueError(f"unknown person: {kind!r}")
    for name in markers:
        if name not in _WORN:
            raise ValueError(f"unknown marker: {name!r}")
    layer = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    brush = Brush(layer, rng)
    front = _draw_kind(brush, kind)
    boxes = []
    for name in sorted(set(markers), key=MARKERS.index):
        x, y, shape, fill, rim = _WORN[name]
        x, y = front.at(x, y)
        x, y, half = x + brush.uniform(-0.008, 0.008), y + brush.uniform(-0.008, 0.008), brush.uniform(0.044, 0.052)
        _marker(brush, x, y, half, shape, fill, rim)
        box = (x - half, y - half, x + half, y + half)
        boxes.append((name, tuple(min(1.0, max(0.0, edge)) for edge in box)))
    return layer, boxes
