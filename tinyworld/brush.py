"""A small drawing helper shared by places and people: shapes in unit coordinates (0..1), colours with jitter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker (factor < 1) or lighter (factor > 1)."""
    return tuple(max(0, min(255, int(channel * factor))) for channel in colour)


class Brush:
    """Draws filled shapes on a square image; all positions and widths are fractions of its side."""

    def __init__(self, image: Image.Image, rng: np.random.Generator, tint: Sequence[float] = (1.0, 1.0, 1.0)) -> None:
        self.image = image
        self.rng = rng
        self.side = image.width
        self.tint = tint
        self._draw = ImageDraw.Draw(image)

    def colour(self, red: int, green: int, blue: int, spread: float = 18.0) -> Colour:
        """The given colour under the scene's light, jittered by up to `spread` per channel."""
        # Plain floats: numpy scalars would make this, the most frequent call, several times slower.
        channels = zip((red, green, blue), self.rng.random(3).tolist(), self.tint)
        return tuple(max(0, min(255, int((value + (2 * u - 1) * spread) * factor))) for value, u, factor in channels)

    def pick(self, colours: Sequence[Colour], spread: float = 14.0) -> Colour:
        """One of the colours, jittered."""
        return self.colour(*colours[int(self.rng.integers(len(colours)))], spread)

    def uniform(self, low: float, high: float) -> float:
        """A uniform number as a plain float (faster to compute with than a numpy scalar)."""
        return low + (high - low) * self.rng.random()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return bool(self.rng.random() < probability)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        """A filled rectangle."""
        s = self.side
        self._draw.rectangle((x0 * s, y0 * s, max(x0, x1) * s, max(y0, y1) * s), fill=fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        """A filled ellipse around (x, y)."""
        s = self.side
        self._draw.ellipse(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), fill=fill)

    def pie(self, x: float, y: float, rx: float, ry: float, start: float, end: float, fill: Colour) -> None:
        """A filled sector; angles in degrees, clockwise from three o'clock."""
        s = self.side
        self._draw.pieslice(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), start, end, fill=fill)

    def arc(self, x: float, y: float, rx: float, ry: float, start: float, end: float, fill: Colour, w: float) -> None:
        """An open arc of width w; angles as in `pie`."""
        s = self.side
        box = ((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s)
        self._draw.arc(box, start, end, fill=fill, width=max(1, round(w * s)))

    def poly(self, points: Sequence[Point], fill: Colour) -> None:
        """A filled polygon."""
        s = self.side
        self._draw.polygon([(x * s, y * s) for x, y in points], fill=fill)

    def line(self, points: Sequence[Point], fill: Colour, w: float) -> None:
        """A polyline of width w."""
        s = self.side
        self._draw.line([(x * s, y * s) for x, y in points], fill=fill, width=max(1, round(w * s)), joint="curve")


def gradient(side: int, top: Colour, bottom: Colour) -> Image.Image:
    """A square RGB image graded softly from top to bottom."""
    ramp = np.linspace(0.0, 1.0, side)[:, None]
    column = np.asarray(top) * (1 - ramp) + np.asarray(bottom) * ramp
    return Image.fromarray(np.repeat(column.astype(np.uint8)[:, None], side, axis=1))
