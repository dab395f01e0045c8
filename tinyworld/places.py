"""The thirty places: backgrounds told apart by layout and parts, with the middle-lower area kept rather calm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from .brush import Brush, Colour, gradient, shade

# Kinds of daylight: top of the sky, bottom of the sky, factors on everything below it.
_LIGHTS = (
    ((80, 150, 225), (190, 222, 245), (1.0, 1.0, 1.0)),
    ((110, 175, 230), (225, 235, 240), (1.03, 1.03, 1.0)),
    ((140, 155, 175), (205, 212, 218), (0.88, 0.9, 0.93)),
    ((88, 80, 140), (240, 165, 120), (0.9, 0.76, 0.74)),
)
_WALLS: tuple[Colour, ...] = ((222, 205, 175), (190, 205, 215), (215, 180, 165), (200, 215, 185), (225, 220, 215))
_BRIGHT: tuple[Colour, ...] = (
    (214, 60, 55), (240, 185, 50), (60, 130, 200), (70, 160, 90), (160, 80, 170), (235, 130, 50),
)  # fmt: skip
_LEAVES: tuple[Colour, ...] = ((50, 120, 50), (75, 140, 55), (40, 100, 60), (105, 140, 50))
_FACADES: tuple[Colour, ...] = ((165, 95, 75), (200, 180, 150), (140, 150, 165), (185, 140, 110), (120, 110, 115))
_PETALS: tuple[Colour, ...] = ((235, 70, 90), (250, 215, 70), (200, 100, 210), (250, 250, 250))
_WHITE: Colour = (238, 238, 234)


def _clouds(b: Brush, low: float = 0.22) -> None:
    for _ in range(int(b.rng.integers(0, 3))):
        x, y, w = b.uniform(0.1, 0.9), b.uniform(0.06, low), b.uniform(0.08, 0.14)
        tone = b.colour(245, 245, 248, 6)
        b.ellipse(x, y, w, w * 0.35, tone)
        b.ellipse(x + w * 0.3, y - w * 0.2, w * 0.55, w * 0.4, tone)


def _ground(b: Brush, y: float, red: int, green: int, blue: int) -> Colour:
    tone = b.colour(red, green, blue, 20)
    b.rect(0, y, 1, 1, tone)
    return tone


def _tree(b: Brush, x: float, base: float, h: float) -> None:
    leaf = b.pick(_LEAVES)
    b.rect(x - h * 0.07, base - h * 0.5, x + h * 0.07, base, b.colour(100, 70, 45))
    b.ellipse(x, base - h * 0.68, h * 0.32, h * 0.33, leaf)
    b.ellipse(x - h * 0.08, base - h * 0.76, h * 0.17, h * 0.16, shade(leaf, 1.2))


def _window(b: Brush, x0: float, y0: float, x1: float, y1: float) -> None:
    b.rect(x0, y0, x1, y1, b.colour(245, 245, 240, 5))
    b.rect(x0 + 0.02, y0 + 0.02, x1 - 0.02, y1 - 0.02, b.colour(150, 200, 230))
    b.rect((x0 + x1) / 2 - 0.01, y0, (x0 + x1) / 2 + 0.01, y1, _WHITE)


def _interior(b: Brush, floor: float, wall: Colour, ground: Colour) -> None:
    b.rect(0, 0, 1, 1, wall)
    b.rect(0, floor, 1, 1, ground)
    b.rect(0, floor - 0.025, 1, floor, shade(wall, 0.75))


def _house(b: Brush, x0: float, x1: float, base: float, h: float) -> None:
    wall, mid = b.pick(_WALLS), (x0 + x1) / 2
    b.rect(x0, base - h, x1, base, wall)
    roof = b.pick(((150, 60, 50), (90, 70, 70), (120, 85, 60)))
    b.poly(((x0 - 0.03, base - h), (mid, base - h * 1.75), (x1 + 0.03, base - h)), roof)
    b.rect(mid - 0.03, base - h * 0.6, mid + 0.03, base, shade(roof, 0.7))
    b.rect(x0 + 0.03, base - h * 0.75, x0 + 0.075, base - h * 0.4, (245, 230, 150))
    b.rect(x1 - 0.075, base - h * 0.75, x1 - 0.03, base - h * 0.4, (245, 230, 150))


def _stripes(b: Brush, x0: float, x1: float, y0: float, y1: float, parts: int, tone: Colour) -> None:
    """A striped awning with a scalloped lower edge."""
    w = (x1 - x0) / parts
    for i in range(parts):
        fill = tone if i % 2 == 0 else _WHITE
        b.rect(x0 + i * w, y0, x0 + (i + 1) * w, y1, fill)
        b.ellipse(x0 + (i + 0.5) * w, y1, w / 2, w / 2, fill)


def _road(b: Brush) -> None:
    _clouds(b)
    h, vx = b.uniform(0.36, 0.44), b.uniform(0.42, 0.58)
    _ground(b, h, *((95, 150, 70), (175, 150, 100), (120, 140, 80))[int(b.rng.integers(3))])
    b.poly(((vx - 0.03, h), (vx + 0.03, h), (1.0, 1), (0.0, 1)), b.colour(92, 92, 98, 14))
    for side in (0.03, 0.97):
        b.poly(((vx - 0.005, h), (vx + 0.005, h), (side + 0.03, 1), (side - 0.03, 1)), _WHITE)
    dash = b.pick(((240, 240, 235), (245, 205, 60)), 5)
    for y0, y1 in ((0.46, 0.52), (0.58, 0.68), (0.78, 0.95)):
        xa, xb = (vx + (0.5 - vx) * (y - h) / (1 - h) for y in (y0, y1))
        wa, wb = 0.04 * (y0 - h) + 0.008, 0.05 * (y1 - h) + 0.01
        b.poly(((xa - wa, y0), (xa + wa, y0), (xb + wb, y1), (xb - wb, y1)), dash)


def _one_tree(b: Brush) -> None:
    _clouds(b)
    _ground(b, b.uniform(0.7, 0.8), 110, 160, 70)
    x, leaf, bark = b.uniform(0.35, 0.65), b.pick(_LEAVES), b.colour(105, 72, 45)
    trunk = (x - 0.06, 0.4), (x + 0.06, 0.4), (x + 0.08, 0.82), (x + 0.16, 0.9), (x - 0.16, 0.9), (x - 0.08, 0.82)
    b.poly(trunk, bark)
    b.line(((x, 0.58), (x - 0.2, 0.36)), bark, 0.045)
    b.line(((x, 0.58), (x + 0.2, 0.36)), bark, 0.045)
    for dx, dy, r in ((-0.26, 0.3, 0.18), (0.26, 0.3, 0.18), (0, 0.25, 0.24), (-0.14, 0.15, 0.15), (0.15, 0.15, 0.15)):
        b.ellipse(x + dx, dy, r, r * 0.85, shade(leaf, b.uniform(0.85, 1.15)))


def _forest(b: Brush) -> None:
    b.rect(0, 0, 1, 1, b.colour(80, 115, 80))
    _ground(b, 0.68, 70, 80, 40)
    for row, (count, base, w, dark) in enumerate(((9, 0.7, 0.03, 0.65), (6, 0.79, 0.055, 0.9))):
        for i in range(count):
            x = (i + b.uniform(0.2, 0.8)) / count
            b.rect(x - w / 2, 0.1, x + w / 2, base, shade(b.colour(88, 64, 44, 10), dark))
            leaf, top, half = shade(b.pick(_LEAVES, 8), dark * 0.85), b.uniform(-0.05, 0.1), 0.1 + row * 0.03
            b.poly(((x, top), (x + half, top + 0.3), (x - half, top + 0.3)), leaf)
            b.poly(((x, top + 0.15), (x + half * 1.2, top + 0.48), (x - half * 1.2, top + 0.48)), shade(leaf, 0.85))


def _lawn(b: Brush) -> None:
    _clouds(b, 0.15)
    h, vx = b.uniform(0.24, 0.32), b.uniform(0.4, 0.6)
    grass = _ground(b, h, 105, 185, 70)
    light, count = shade(grass, 1.22), 7
    for i in range(-2, count + 2, 2):
        near0, near1 = (i / count - 0.5) * 2.2 + 0.5, ((i + 1) / count - 0.5) * 2.2 + 0.5
        far0, far1 = vx + (near0 - 0.5) * 0.45, vx + (near1 - 0.5) * 0.45
        b.poly(((far0, h), (far1, h), (near1, 1), (near0, 1)), light)
    b.rect(0, h - 0.07, 1, h + 0.01, b.colour(50, 105, 50))


def _clubhouse(b: Brush) -> None:
    _clouds(b, 0.12)
    _ground(b, 0.66, 100, 165, 70)
    wall, roof = b.colour(240, 230, 205), b.pick(((165, 60, 45), (60, 95, 85), (95, 75, 110)))
    b.rect(0.08, 0.36, 0.92, 0.68, wall)
    b.poly(((0.02, 0.38), (0.16, 0.2), (0.84, 0.2), (0.98, 0.38)), roof)
    b.poly(((0.34, 0.38), (0.5, 0.13), (0.66, 0.38)), shade(roof, 0.8))
    for x in (0.12, 0.24, 0.36, 0.6, 0.72, 0.84):
        b.rect(x, 0.38, x + 0.035, 0.68, (250, 250, 248))
        b.rect(x + 0.045, 0.44, x + 0.075, 0.62, b.colour(90, 120, 145))
    b.rect(0.44, 0.45, 0.56, 0.68, shade(roof, 0.6))
    b.line(((0.9, 0.02), (0.9, 0.22)), (120, 120, 120), 0.024)
    b.poly(((0.9, 0.02), (0.9, 0.12), (0.76, 0.07)), b.pick(_BRIGHT))
    b.poly(((0.45, 0.68), (0.55, 0.68), (0.75, 1), (0.25, 1)), b.colour(215, 200, 170))


def _courtyard(b: Brush) -> None:
    wall = b.pick(_WALLS)
    b.poly(((0, 0.02), (0.2, 0.16), (0.2, 0.6), (0, 0.86)), shade(wall, 0.8))
    b.poly(((1, 0.02), (0.8, 0.16), (0.8, 0.6), (1, 0.86)), shade(wall, 0.85))
    b.rect(0.2, 0.16, 0.8, 0.6, wall)
    stone = b.colour(190, 165, 140)
    b.poly(((0.2, 0.6), (0.8, 0.6), (1, 0.86), (1, 1), (0, 1), (0, 0.86)), stone)
    dark = shade(wall, 0.4)
    for x in (0.3, 0.5, 0.7):
        b.rect(x - 0.06, 0.38, x + 0.06, 0.6, dark)
        b.ellipse(x, 0.38, 0.06, 0.08, dark)
    for x in (0.04, 0.96):
        b.rect(x - 0.05, 0.42, x + 0.05, 0.72, dark)
        b.ellipse(x, 0.42, 0.05, 0.08, dark)
    seam = shade(stone, 0.75)
    for y in (0.67, 0.76, 0.88):
        b.line(((0, y), (1, y)), seam, 0.016)
    for x in (-0.5, -0.1, 0.3, 0.7, 1.1, 1.5):
        b.line(((0.5 + (x - 0.5) * 0.6, 0.6), (x, 1)), seam, 0.016)
    b.rect(0.18, 0.13, 0.82, 0.17, shade(wall, 0.65))


def _backyard(b: Brush) -> None:
    _clouds(b, 0.15)
    _ground(b, 0.56, 100, 160, 65)
    if b.chance(0.6):
        _tree(b, b.uniform(0.1, 0.3), 0.6, 0.6)
    fence = b.pick(((240, 238, 230), (170, 120, 75), (140, 100, 70)))
    dark = shade(fence, 0.8)
    b.rect(0, 0.38, 1, 0.42, dark)
    b.rect(0, 0.52, 1, 0.56, dark)
    for i in range(10):
        x = i / 10 + 0.012
        b.poly(((x, 0.62), (x, 0.34), (x + 0.037, 0.28), (x + 0.074, 0.34), (x + 0.074, 0.62)), fence)
    x = b.uniform(0.72, 0.82)
    b.rect(x, 0.3, x + 0.2, 0.66, b.colour(165, 70, 55))
    b.poly(((x - 0.03, 0.31), (x + 0.1, 0.17), (x + 0.23, 0.31)), b.colour(85, 70, 65))
    b.rect(x + 0.06, 0.42, x + 0.14, 0.66, (240, 235, 225))


def _cityscape(b: Brush) -> None:
    tone = b.pick(((95, 110, 140), (75, 80, 105), (130, 125, 135)))
    lit = b.pick(((250, 225, 130), (200, 220, 235)), 8)
    for i in range(8):
        top, x = b.uniform(0.12, 0.4), i / 8
        b.rect(x, top + 0.02, x + 0.13, 0.9, shade(tone, 1.35))
    for i in range(6):
        x, top = i / 6 + b.uniform(-0.02, 0.02), b.uniform(0.2, 0.55)
        fill = shade(tone, b.uniform(0.6, 1.0))
        b.rect(x, top, x + 0.145, 0.92, fill)
        if b.chance(0.3):
            b.rect(x + 0.06, top - 0.12, x + 0.085, top, fill)
        for row in range(int((0.88 - top) / 0.09)):
            for col in (0.03, 0.085):
                if b.rng.random() < 0.75:
                    b.rect(x + col, top + 0.04 + row * 0.09, x + col + 0.03, top + 0.085 + row * 0.09, lit)
    b.rect(0, 0.88, 1, 1, shade(tone, 0.5))


def _suburb(b: Brush) -> None:
    _clouds(b, 0.12)
    _ground(b, 0.5, 110, 170, 75)
    for x in (0.04, 0.37, 0.7):
        _house(b, x, x + 0.26, 0.58, 0.22)
    b.rect(0, 0.7, 1, 0.76, b.colour(205, 200, 195))
    b.rect(0, 0.76, 1, 1, b.colour(105, 105, 112))
    for x in (0.33, 0.67):
        b.ellipse(x, 0.55, 0.05, 0.07, b.pick(_LEAVES))


def _mall(b: Brush) -> None:
    b.rect(0, 0, 1, 1, b.colour(240, 235, 228))
    b.poly(((0.36, 0.52), (0.64, 0.52), (1, 0.9), (1, 1), (0, 1), (0, 0.9)), b.colour(205, 200, 205))
    for x in (0.3, 0.44, 0.58):
        near = x + (x - 0.44) * 1.5
        b.poly(((x + 0.03, 0.2), (x + 0.09, 0.2), (near + 0.12, 0), (near, 0)), (255, 252, 205))
    b.rect(0.36, 0.22, 0.64, 0.52, b.colour(165, 195, 215))

    def y_at(x: float, far_y: float, near_y: float) -> float:
        return far_y + (near_y - far_y) * (0.36 - x) / 0.36

    for left in (True, False):
        for far, near in ((0.36, 0.2), (0.2, 0.0)):
            sign = b.pick(_BRIGHT)
            xf, xn = (far - 0.015, near) if left else (1 - far + 0.015, 1 - near)
            inset = 0.03 if left else -0.03
            parts = ((0.2, -0.02, 0.3, 0.16, sign), (0.3, 0.16, 0.52, 0.9, shade(sign, 1.6)))
            for ft, nt, fb, nb, fill in parts:
                b.poly(
                    (
                        (xf, y_at(far, ft, nt)),
                        (xn, y_at(near, ft, nt)),
                        (xn, y_at(near, fb, nb)),
                        (xf, y_at(far, fb, nb)),
                    ),
                    fill,
                )
            b.poly(
                (
                    (xf - inset, y_at(far, 0.35, 0.28)),
                    (xn + inset, y_at(near, 0.35, 0.28)),
                    (xn + inset, y_at(near, 0.5, 0.8)),
                    (xf - inset, y_at(far, 0.5, 0.8)),
                ),
                b.colour(90, 100, 120),
            )
    b.line(((0.36, 0.37), (0.64, 0.37)), (90, 95, 105), 0.03)


def _cafe(b: Brush) -> None:
    wall = b.pick(((185, 135, 95), (120, 85, 70), (200, 165, 125)))
    _interior(b, 0.66, wall, b.colour(110, 75, 55))
    _stripes(b, 0, 1, 0, 0.13, 8, b.pick(((190, 50, 50), (45, 120, 90), (60, 80, 130))))
    b.rect(0.08, 0.24, 0.4, 0.5, b.colour(45, 55, 50))
    for y in (0.3, 0.37, 0.44):
        b.line(((0.13, y), (b.uniform(0.22, 0.36), y)), (225, 225, 215), 0.022)
    b.rect(0.56, 0.26, 0.94, 0.48, b.colour(245, 220, 150))
    b.line(((0.75, 0.26), (0.75, 0.48)), shade(wall, 0.6), 0.025)
    top = b.colour(235, 225, 210)
    for x in (0.14, 0.86):
        b.rect(x - 0.02, 0.72, x + 0.02, 0.92, (60, 50, 45))
        b.ellipse(x, 0.72, 0.15, 0.045, top)
        b.ellipse(x, 0.93, 0.08, 0.025, (60, 50, 45))
        b.rect(x - 0.04, 0.63, x + 0.03, 0.71, (250, 250, 250))
        b.arc(x + 0.035, 0.665, 0.03, 0.028, 0, 360, (250, 250, 250), 0.014)


def _office(b: Brush) -> None:
    _interior(b, 0.74, b.colour(205, 212, 218), b.colour(115, 125, 140))
    for x in (0.12, 0.55):
        b.rect(x, 0.03, x + 0.33, 0.08, (255, 255, 240))
    b.rect(0.06, 0.16, 0.94, 0.42, b.colour(150, 190, 220))
    for i in range(4):
        b.rect(0.06, 0.18 + i * 0.065, 0.94, 0.2 + i * 0.065, (232, 235, 238))
    desk = b.pick(((175, 130, 85), (225, 220, 210), (120, 90, 70)))
    b.rect(0.0, 0.62, 1, 0.69, desk)
    for x in (0.04, 0.46, 0.9):
        b.rect(x, 0.69, x + 0.06, 0.92, shade(desk, 0.65))
    for x in (0.08, 0.4, 0.72):
        b.rect(x, 0.42, x + 0.22, 0.58, (40, 42, 48))
        b.rect(x + 0.02, 0.44, x + 0.2, 0.56, b.colour(80, 150, 210))
        b.rect(x + 0.09, 0.58, x + 0.13, 0.62, (40, 42, 48))


def _library(b: Brush) -> None:
    wood = b.pick(((110, 70, 40), (85, 55, 40), (145, 100, 60)))
    b.rect(0, 0, 1, 1, shade(wood, 0.6))
    for row in range(4):
        y0, x = 0.02 + row * 0.2, 0.02
        while x < 0.98:
            w, h = b.uniform(0.035, 0.07), b.uniform(0.11, 0.16)
            b.rect(x, y0 + 0.165 - h, x + w - 0.008, y0 + 0.165, b.pick(_BRIGHT, 40))
            x += w
        b.rect(0, y0 + 0.165, 1, y0 + 0.2, wood)
    for x in (0.0, 0.48, 0.96):
        b.rect(x, 0, x + 0.04, 0.82, wood)
    b.rect(0, 0.82, 1, 1, b.colour(150, 110, 75))


def _market(b: Brush) -> None:
    b.rect(0, 0.3, 1, 0.7, b.colour(120, 100, 90))
    _ground(b, 0.72, 180, 165, 145)
    for x in (0.0, 0.35, 0.7):
        b.rect(x + 0.01, 0.24, x + 0.035, 0.74, (120, 85, 55))
        b.rect(x + 0.265, 0.24, x + 0.29, 0.74, (120, 85, 55))
        b.rect(x, 0.56, x + 0.3, 0.74, b.colour(160, 110, 65))
        fruit = b.pick(_BRIGHT, 20), b.pick(_BRIGHT, 20)
        for i in range(5):
            b.ellipse(x + 0.035 + i * 0.058, 0.545, 0.033, 0.033, fruit[i > 2])
        _stripes(b, x - 0.01, x + 0.31, 0.14, 0.28, 6, b.pick(_BRIGHT))


def _bridge(b: Brush) -> None:
    _clouds(b, 0.14)
    water = _ground(b, 0.55, 70, 125, 170)
    b.poly(((0, 0.56), (0, 0.47), (0.25, 0.52), (0.5, 0.48), (0.8, 0.52), (1, 0.46), (1, 0.56)), b.colour(95, 130, 95))
    steel, y = b.pick(((195, 70, 45), (120, 125, 135), (90, 110, 100))), b.uniform(0.54, 0.58)
    for x in (0.2, 0.8):
        b.rect(x - 0.035, 0.1, x + 0.035, 0.78, steel)
    for x0, x1 in ((-0.4, 0.2), (0.2, 0.8), (0.8, 1.4)):
        mid, half = (x0 + x1) / 2, (x1 - x0) / 2
        curve = [(mid + half * t, 0.12 + 0.34 * (1 - t * t)) for t in (-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1)]
        b.line(curve, steel, 0.028)
        for px, py in curve[1:-1]:
            b.line(((px, py), (px, y)), steel, 0.014)
    b.rect(0, y, 1, y + 0.07, shade(steel, 0.75))
    for i in range(3):
        x = b.uniform(0.1, 0.8)
        b.rect(x, 0.8 + i * 0.06, x + 0.16, 0.82 + i * 0.06, shade(water, 1.25))


def _harbor(b: Brush) -> None:
    _clouds(b, 0.12)
    water = _ground(b, 0.46, 60, 115, 155)
    b.rect(0, 0.4, 1, 0.47, b.colour(110, 120, 115))
    x = b.uniform(0.1, 0.8)
    crane = b.colour(225, 150, 50)
    b.rect(x, 0.12, x + 0.03, 0.46, crane)
    b.line(((x - 0.12, 0.17), (x + 0.2, 0.13)), crane, 0.028)
    for i in range(4):
        cx, y = 0.12 + i * 0.25 + b.uniform(-0.04, 0.04), b.uniform(0.54, 0.62)
        b.rect(cx - 0.008, y - 0.36, cx + 0.012, y, (235, 230, 220))
        b.line(((cx, y - 0.34), (cx + 0.09, y - 0.04)), (235, 230, 220), 0.01)
        hull = b.pick(_BRIGHT + (_WHITE, _WHITE))
        b.poly(((cx - 0.11, y - 0.03), (cx + 0.11, y - 0.03), (cx + 0.07, y + 0.05), (cx - 0.07, y + 0.05)), hull)
    for i in range(3):
        wx = b.uniform(0, 0.8)
        b.rect(wx, 0.7 + i * 0.05, wx + 0.18, 0.72 + i * 0.05, shade(water, 1.25))
    plank = b.colour(150, 110, 75)
    b.rect(0, 0.88, 1, 1, plank)
    for i in range(5):
        b.rect(0.08 + i * 0.2, 0.82, 0.12 + i * 0.2, 1, shade(plank, 0.65))


def _garden(b: Brush) -> None:
    _clouds(b, 0.1)
    grass = _ground(b, 0.4, 95, 160, 70)
    b.rect(0, 0.26, 1, 0.44, b.colour(45, 100, 50))
    b.poly(((0.46, 0.44), (0.54, 0.44), (0.74, 1), (0.26, 1)), b.colour(215, 195, 160))
    for left in (True, False):
        bed = ((0.4, 0.46), (0.0, 0.52), (0.0, 0.96), (0.16, 1.0))
        b.poly(bed if left else [(1 - x, y) for x, y in bed], shade(grass, 0.6))
        for _ in range(15):
            t, u = b.rng.random(), b.rng.random()
            x, y, r = (0.36 - 0.22 * t) * u, 0.5 + 0.45 * t, 0.018 + 0.022 * t
            b.ellipse(x if left else 1 - x, y, r, r, b.pick(_PETALS))
    for i in range(9):
        b.ellipse(0.06 + i * 0.11, b.uniform(0.29, 0.39), 0.026, 0.026, b.pick(((240, 120, 160), (250, 240, 240))))


def _beach(b: Brush) -> None:
    _clouds(b, 0.16)
    b.rect(0, 0.34, 1, 0.6, b.colour(35, 130, 185))
    b.rect(0, 0.48, 1, 0.6, b.colour(75, 180, 200))
    sand = b.colour(236, 212, 150)
    shore = [(x, 0.57 + b.uniform(-0.025, 0.025)) for x in (0, 0.25, 0.5, 0.75, 1)]
    b.poly([(0, 1)] + shore + [(1, 1)], sand)
    b.line(shore, (250, 250, 250), 0.03)
    x, lean = b.uniform(0.12, 0.2), b.uniform(0.02, 0.1)
    flip = b.chance(0.5)

    def at(px: float) -> float:
        return 1 - px if flip else px

    b.line(((at(x), 0.82), (at(x + lean / 3), 0.5), (at(x + lean), 0.22)), b.colour(130, 95, 60), 0.05)
    leaf = b.colour(50, 130, 60)
    for dx, dy in ((-0.2, -0.02), (-0.16, 0.12), (0.2, -0.03), (0.18, 0.12), (0.03, -0.16)):
        bend, tip = (at(x + lean + dx * 0.6), 0.17 + dy * 0.3), (at(x + lean + dx), 0.22 + dy)
        b.line(((at(x + lean), 0.21), bend, tip), leaf, 0.045)


def _room(b: Brush) -> None:
    wall = b.pick(_WALLS + ((170, 140, 190), (240, 215, 130)))
    _interior(b, 0.68, wall, b.colour(165, 115, 70))
    b.poly(((0, 0), (0.14, 0.0), (0.14, 0.66), (0, 0.82)), shade(wall, 0.8))
    b.poly(((0, 0.82), (0.14, 0.66), (0.2, 0.68), (0, 0.9)), shade(wall, 0.6))
    _window(b, 0.26, 0.12, 0.58, 0.46)
    curtain = b.pick(_BRIGHT)
    b.rect(0.21, 0.08, 0.31, 0.56, curtain)
    b.rect(0.53, 0.08, 0.63, 0.56, curtain)
    b.rect(0.19, 0.06, 0.65, 0.09, (110, 80, 55))
    b.rect(0.72, 0.16, 0.92, 0.36, (110, 80, 55))
    b.rect(0.745, 0.185, 0.895, 0.335, b.pick(_BRIGHT))
    b.ellipse(0.52, 0.88, 0.36, 0.08, b.pick(_BRIGHT))
    b.ellipse(0.52, 0.88, 0.27, 0.055, b.pick(_WALLS))


def _park(b: Brush) -> None:
    _clouds(b, 0.12)
    _ground(b, 0.46, 105, 170, 75)
    for x in (0.08, 0.32, 0.9):
        _tree(b, x + b.uniform(-0.04, 0.04), b.uniform(0.5, 0.56), b.uniform(0.42, 0.52))
    b.poly(
        ((0.6, 0.46), (0.66, 0.46), (0.52, 0.62), (0.8, 0.8), (0.75, 1), (0.3, 1), (0.45, 0.8), (0.36, 0.62)),
        b.colour(220, 200, 160),
    )
    x, wood = b.uniform(0.62, 0.68), b.colour(150, 90, 50)
    b.rect(x, 0.44, x + 0.28, 0.475, wood)
    b.rect(x, 0.495, x + 0.28, 0.53, wood)
    b.rect(x - 0.02, 0.56, x + 0.3, 0.6, shade(wood, 0.8))
    for leg in (x + 0.01, x + 0.24):
        b.rect(leg, 0.44, leg + 0.03, 0.68, (50, 50, 55))
    b.ellipse(0.14, 0.8, 0.13, 0.06, b.colour(95, 160, 205))


def _street(b: Brush) -> None:
    b.poly(((0.4, 0.52), (0.6, 0.52), (1, 0.86), (1, 1), (0, 1), (0, 0.86)), b.colour(95, 95, 102))
    for left in (True, False):
        for far, near, top_far, top_near in ((0.42, 0.3, 0.3, 0.22), (0.3, 0.16, 0.16, 0.06), (0.16, 0.0, 0.0, -0.15)):
            fill = b.pick(_FACADES)
            base = [0.52 + (0.42 - x) / 0.42 * 0.3 for x in (far, near)]
            pts = ((far, top_far), (near, top_near), (near, base[1]), (far, base[0]))
            b.poly(pts if left else [(1 - x, y) for x, y in pts], fill)
            for row in range(3):
                y = top_far + 0.05 + row * (base[0] - top_far) * 0.3
                x0, x1 = (near + 0.035, far - 0.03) if left else (1 - far + 0.03, 1 - near - 0.035)
                b.rect(x0, y, x1, y + 0.07, (245, 225, 150) if row % 2 else (200, 215, 225))
        walk = ((0.42, 0.52), (0, 0.82), (0, 0.92), (0.43, 0.53))
        b.poly(walk if left else [(1 - x, y) for x, y in walk], (200, 196, 190))
    for i in range(5):
        x = 0.1 + i * 0.18
        b.poly(((x + 0.01, 0.84), (x + 0.09, 0.84), (x + 0.09, 0.95), (x - 0.01, 0.95)), _WHITE)


def _shelter(b: Brush) -> None:
    _clouds(b, 0.1)
    _ground(b, 0.74, *((110, 150, 75), (150, 145, 140))[int(b.rng.integers(2))])
    wood = b.pick(((140, 95, 55), (110, 85, 65), (120, 125, 130)))
    b.rect(0.12, 0.3, 0.88, 0.76, shade(wood, 0.45))
    for y in (0.4, 0.5, 0.6):
        b.rect(0.12, y, 0.88, y + 0.016, shade(wood, 0.6))
    b.rect(0.2, 0.62, 0.8, 0.67, shade(wood, 1.1))
    for x in (0.08, 0.84):
        b.rect(x, 0.26, x + 0.08, 0.86, wood)
    slope, roof = b.uniform(-0.08, 0.08), b.pick(((150, 60, 50), (70, 110, 90), (190, 165, 90)))
    b.poly(((-0.02, 0.3 - slope), (0.12, 0.12 - slope), (0.88, 0.12 + slope), (1.02, 0.3 + slope)), roof)
    b.line(((-0.02, 0.3 - slope), (1.02, 0.3 + slope)), shade(roof, 0.6), 0.04)


def _chair(b: Brush) -> None:
    _interior(b, 0.7, b.pick(_WALLS), b.colour(150, 115, 85))
    tone, x = b.pick(_BRIGHT + ((130, 85, 50), (90, 90, 95))), b.uniform(0.44, 0.56)
    dark = shade(tone, 0.7)
    for dx in (-0.3, 0.24):
        b.rect(x + dx, 0.06, x + dx + 0.06, 0.94, dark)
    b.rect(x - 0.3, 0.06, x + 0.3, 0.14, tone)
    for dx in (-0.17, -0.03, 0.11):
        b.rect(x + dx, 0.12, x + dx + 0.06, 0.56, tone)
    b.poly(((x - 0.3, 0.54), (x + 0.3, 0.54), (x + 0.37, 0.66), (x - 0.37, 0.66)), tone)
    b.rect(x - 0.37, 0.66, x + 0.37, 0.7, dark)
    for dx in (-0.36, 0.3):
        b.rect(x + dx, 0.7, x + dx + 0.06, 0.98, dark)


def _table(b: Brush) -> None:
    _interior(b, 0.6, b.pick(_WALLS), b.colour(125, 105, 95))
    wood = b.pick(((170, 110, 60), (120, 75, 45), (210, 170, 115), (235, 230, 222)))
    for x0, x1 in ((0.05, 0.13), (0.87, 0.95)):
        b.rect(x0, 0.56, x1, 0.98, shade(wood, 0.65))
    for x0, x1 in ((0.2, 0.25), (0.75, 0.8)):
        b.rect(x0, 0.56, x1, 0.82, shade(wood, 0.5))
    b.poly(((0.16, 0.38), (0.84, 0.38), (1.0, 0.54), (0.0, 0.54)), wood)
    b.rect(0, 0.54, 1, 0.61, shade(wood, 0.75))
    b.ellipse(b.uniform(0.25, 0.75), 0.46, 0.1, 0.035, (245, 245, 245))


def _bag(b: Brush) -> None:
    _interior(b, 0.78, b.pick(_WALLS), b.colour(140, 120, 105))
    tone, x = b.pick(_BRIGHT + ((140, 90, 55), (70, 75, 95))), b.uniform(0.46, 0.54)
    dark = shade(tone, 0.6)
    b.arc(x, 0.32, 0.2, 0.26, 180, 360, dark, 0.06)
    b.poly(((x - 0.34, 0.3), (x + 0.34, 0.3), (x + 0.43, 0.94), (x - 0.43, 0.94)), tone)
    b.poly(((x - 0.35, 0.3), (x + 0.35, 0.3), (x + 0.37, 0.4), (x - 0.37, 0.4)), dark)
    for dx in (-0.2, 0.2):
        b.rect(x + dx - 0.03, 0.28, x + dx + 0.03, 0.52, shade(tone, 0.75))
    b.rect(x - 0.05, 0.36, x + 0.05, 0.45, (235, 200, 90))
    b.rect(x - 0.42, 0.88, x + 0.42, 0.95, dark)


def _mountain(b: Brush) -> None:
    _clouds(b, 0.12)
    rock = b.pick(((110, 115, 130), (125, 105, 95), (90, 100, 125)))
    for x, top, half in ((0.15, 0.3, 0.4), (0.88, 0.26, 0.42), (b.uniform(0.42, 0.58), 0.08, 0.48)):
        tone, slope = shade(rock, b.uniform(0.85, 1.1)), half / 0.7
        b.poly(((x, top), (x + half, top + 0.7), (x - half, top + 0.7)), tone)
        b.poly(((x, top), (x + half, top + 0.7), (x + 0.04, top + 0.7)), shade(tone, 0.75))
        d = 0.18 * slope
        b.poly(
            (
                (x, top),
                (x + d, top + 0.18),
                (x + d * 0.4, top + 0.13),
                (x, top + 0.2),
                (x - d * 0.4, top + 0.13),
                (x - d, top + 0.18),
            ),
            (250, 250, 252),
        )
    _ground(b, 0.78, 85, 130, 75)


def _valley(b: Brush) -> None:
    b.ellipse(b.uniform(0.42, 0.58), 0.26, 0.09, 0.09, (255, 235, 150))
    b.poly(((0.1, 0.55), (0.5, 0.36), (0.9, 0.55)), b.colour(125, 145, 165))
    green = _ground(b, 0.5, 130, 180, 80)
    b.poly(((-0.1, 0.08), (0.16, 0.2), (0.34, 0.42), (0.5, 0.56), (0.1, 0.8), (-0.1, 0.9)), shade(green, 0.7))
    b.poly(((1.1, 0.04), (0.84, 0.2), (0.68, 0.4), (0.5, 0.56), (0.9, 0.8), (1.1, 0.9)), shade(green, 0.58))
    river = b.colour(80, 150, 205)
    bends = (0.49, 0.55), (0.52, 0.55), (0.6, 0.64), (0.5, 0.75), (0.72, 1), (0.36, 1), (0.38, 0.76), (0.5, 0.64)
    b.poly(bends, river)


def _waterfall(b: Brush) -> None:
    rock = b.pick(((95, 90, 85), (85, 95, 80), (110, 90, 75)))
    x = b.uniform(0.42, 0.58)
    b.rect(0, 0.14, 1, 0.82, rock)
    b.rect(0, 0.08, 1, 0.2, b.colour(60, 120, 60))
    for _ in range(9):
        rx, ry, r = b.uniform(0, 1), b.uniform(0.25, 0.75), b.uniform(0.06, 0.13)
        corners = ((-1, 0), (0, -0.7), (1, -0.1), (0.5, 0.8), (-0.6, 1))
        b.poly([(rx + r * dx, ry + r * dy) for dx, dy in corners], shade(rock, b.uniform(0.65, 1.25)))
    b.rect(0, 0.78, 1, 1, b.colour(60, 135, 165))
    b.poly(((x - 0.13, 0.08), (x + 0.13, 0.08), (x + 0.18, 0.82), (x - 0.18, 0.82)), (235, 244, 250))
    for dx in (-0.07, 0.02, 0.1):
        b.rect(x + dx, b.uniform(0.1, 0.3), x + dx + 0.025, b.uniform(0.5, 0.76), (180, 212, 232))
    for dx in (-0.2, -0.08, 0.06, 0.19):
        b.ellipse(x + dx, 0.82, 0.1, 0.05, (245, 249, 252))


def _desert(b: Brush) -> None:
    b.ellipse(b.uniform(0.15, 0.85), b.uniform(0.1, 0.2), 0.08, 0.08, (255, 245, 190))
    sand = _ground(b, 0.52, 230, 180, 105)
    b.poly(((0, 0.54), (0.3, 0.4), (0.62, 0.54)), shade(sand, 0.85))
    b.poly(((0.4, 0.55), (0.75, 0.36), (1.1, 0.55)), shade(sand, 0.93))
    b.poly(((0, 0.72), (0.35, 0.6), (1, 0.78), (1, 1), (0, 1)), shade(sand, 1.08))
    x = b.uniform(0.1, 0.2) if b.chance(0.5) else b.uniform(0.8, 0.9)
    y, green = b.uniform(0.6, 0.7), b.colour(60, 120, 70)
    b.rect(x - 0.03, y - 0.36, x + 0.03, y, green)
    b.ellipse(x, y - 0.36, 0.03, 0.03, green)
    for dx, dy in ((-0.1, 0.16), (0.1, 0.22)):
        b.line(((x, y - dy + 0.04), (x + dx, y - dy + 0.04), (x + dx, y - dy - 0.1)), green, 0.04)


def _sunrise(b: Brush) -> None:
    b.image.paste(gradient(b.side, b.colour(120, 70, 130), b.colour(255, 170, 60)))
    h, x = b.uniform(0.56, 0.64), b.uniform(0.4, 0.6)
    for i in range(9):
        a, w = np.pi * (i + 0.5) / 9, 0.07
        edges = [(x - np.cos(angle), h - np.sin(angle)) for angle in (a - w, a + w)]
        b.poly([(x, h), *edges], b.colour(255, 205, 110, 8))
    b.ellipse(x, h, 0.25, 0.25, b.colour(255, 230, 110, 8))
    ground = b.pick(((45, 70, 110), (70, 55, 70), (60, 75, 50)))
    b.rect(0, h, 1, 1, ground)
    for i, w in enumerate((0.2, 0.14, 0.09)):
        b.rect(x - w, h + 0.06 + i * 0.09, x + w, h + 0.085 + i * 0.09, (250, 180, 90))


_DRAW: dict[str, Callable[[Brush], None]] = {
    "road": _road, "tree": _one_tree, "forest": _forest, "lawn": _lawn, "clubhouse": _clubhouse,
    "courtyard": _courtyard, "backyard": _backyard, "cityscape": _cityscape, "suburb": _suburb, "mall": _mall,
    "cafe": _cafe, "office": _office, "library": _library, "market": _market, "bridge": _bridge, "harbor": _harbor,
    "garden": _garden, "beach": _beach, "room": _room, "park": _park, "street": _street, "shelter": _shelter,
    "chair": _chair, "table": _table, "bag": _bag, "mountain": _mountain, "valley": _valley,
    "waterfall": _waterfall, "desert": _desert, "sunrise": _sunrise,
}  # fmt: skip


def draw_place(name: str, rng: np.random.Generator, side: int = 256) -> Image.Image:
    """Draw one place with random light, colours and small layout changes; RGB, side x side."""
    if name not in _DRAW:
        raise ValueError(f"unknown place: {name!r}")
    top, bottom, tint = _LIGHTS[int(rng.choice(4, p=(0.4, 0.25, 0.15, 0.2)))]
    shifts = rng.integers(-14, 15, 3)
    sky = [tuple(np.clip(np.asarray(end) + shifts, 0, 255)) for end in (top, bottom)]
    image = gradient(side, *sky)
    _DRAW[name](Brush(image, rng, tint))
    return image
