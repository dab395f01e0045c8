"""Five painting styles as fast image filters, far apart from each other and from an unstyled picture at 64 px."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from .vocabulary import ARTISTS

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres in 0..1 (y as a column, x as a row)."""
    ys = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    xs = (np.arange(width, dtype=np.float32)[None, :] + 0.5) / width
    return ys, xs


def _sample(pixels: np.ndarray, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """Bilinear look-up at positions in 0..1, clamped at the edges."""
    height, width = pixels.shape[:2]
    y = np.clip(ys * height - 0.5, 0, height - 1.001)
    x = np.clip(xs * width - 0.5, 0, width - 1.001)
    y, x = np.broadcast_arrays(y, x)
    y0, x0 = y.astype(np.int32), x.astype(np.int32)
    fy, fx = (y - y0)[..., None], (x - x0)[..., None]
    flat, base = pixels.reshape(height * width, -1), y0 * width + x0
    above = flat[base] * (1 - fx) + flat[base + 1] * fx
    below = flat[base + width] * (1 - fx) + flat[base + width + 1] * fx
    return above * (1 - fy) + below * fy


def _blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(pixels, (sigma, sigma, 0), truncate=2.5)


def _van_gogh(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whirls bend the picture; short strokes (noise smeared along the whirls) and a blue-yellow push."""
    height, width = pixels.shape[:2]
    ys, xs = _grid(height, width)
    flow_y, flow_x = np.full((height, width), 0.12, np.float32), np.full((height, width), 0.45, np.float32)
    move_y, move_x = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    for _ in range(6):
        cy, cx = rng.random(2)
        spin, reach = rng.choice((-1.0, 1.0)), rng.uniform(0.12, 0.22)
        dy, dx = ys - np.float32(cy), xs - np.float32(cx)
        weight = np.exp(-(dy * dy + dx * dx) / np.float32(reach * reach)) * np.float32(spin)
        flow_y += weight * dx * np.float32(6 / reach * 0.35)
        flow_x -= weight * dy * np.float32(6 / reach * 0.35)
        move_y += weight * dx * 0.4
        move_x -= weight * dy * 0.4
    bent = _sample(pixels, ys + move_y, xs + move_x)
    norm = np.sqrt(flow_y**2 + flow_x**2) + 1e-4
    step_y, step_x = flow_y / norm / height, flow_x / norm / width
    grain = rng.standard_normal((height // max(1, height // 64), width // max(1, width // 64), 1)).astype(np.float32)
    stack = np.concatenate([bent, _resize(grain, height, width)], axis=2)
    unit = height / 64
    smeared = sum(_sample(stack, ys + step_y * t * unit, xs + step_x * t * unit) for t in (-1.7, 0.0, 1.7)) / 3
    colour, stroke = smeared[..., :3], smeared[..., 3:]
    light = colour @ _LUMA
    mix = np.clip((light[..., None] - 70) / 130, 0, 1)
    push = np.array([20, 50, 150], np.float32) * (1 - mix) + np.array([250, 205, 70], np.float32) * mix
    return colour * 0.62 + push * 0.38 + stroke * 28


def _resize(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Repeat a small array up to the given size, so that grain keeps its share of the picture."""
    if plane.shape[:2] == (height, width):
        return plane
    rows = np.arange(height) * plane.shape[0] // height
    cols = np.arange(width) * plane.shape[1] // width
    return plane[rows][:, cols]


def _monet(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A blurred picture rebuilt from soft round dabs of varied pastel colour."""
    height, width = pixels.shape[:2]
    unit = height / 64
    canvas = _blur(pixels, 1.0 * unit)
    source = canvas * 0.65 + np.array([232, 218, 238], np.float32) * 0.35
    canvas = source.copy()
    rows, cols = np.arange(height), np.arange(width)
    for size in (4.5 * unit, 3.4 * unit):
        off_y, off_x = rng.random(2) * size
        cell_y, cell_x = ((rows + off_y) / size).astype(int), ((cols + off_x) / size).astype(int)
        count = (cell_y[-1] + 1, cell_x[-1] + 1)
        jitter = rng.uniform(-0.2, 0.2, (2, *count)).astype(np.float32) * size
        mid_y = (np.arange(count[0])[:, None] + 0.5) * size - off_y + jitter[0]
        mid_x = (np.arange(count[1])[None, :] + 0.5) * size - off_x + jitter[1]
        at = np.clip(mid_y, 0, height - 1).astype(int), np.clip(mid_x, 0, width - 1).astype(int)
        tones = rng.standard_normal((*count, 3)).astype(np.float32) * 10
        tones += rng.standard_normal((*count, 1)).astype(np.float32) * 9
        dabs = source[at] + tones
        pick = np.ix_(cell_y, cell_x)
        far = ((rows[:, None] - mid_y[pick]) / 0.7) ** 2 + (cols[None, :] - mid_x[pick]) ** 2
        cover = np.clip(1.4 - far / (size * 0.5) ** 2, 0, 1)[..., None].astype(np.float32) * 0.85
        canvas = canvas * (1 - cover) + dabs[pick] * cover
    return canvas


def _picasso(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Big shards, each with its own shear and tint, flat colours, black outlines."""
    height, width = pixels.shape[:2]
    ys, xs = _grid(height, width)
    count, thick = 9, max(1, height // 64)
    centres = rng.random((count, 2)).astype(np.float32)
    lean = rng.uniform(-0.7, 0.7, 2).astype(np.float32)
    dy = ys[None] - centres[:, :1, None]
    dx = xs[None] - centres[:, 1:, None]
    shard = np.argmin((dy + lean[0] * dx) ** 2 + (dx + lean[1] * dy) ** 2, axis=0)
    shear = rng.uniform(-0.15, 0.15, (count, 2)).astype(np.float32)
    shift = rng.uniform(-0.025, 0.025, (count, 2)).astype(np.float32)
    own_y, own_x = ys - centres[shard, 0], xs - centres[shard, 1]
    from_y = ys + own_x * shear[shard, 0] + shift[shard, 0]
    from_x = xs + own_y * shear[shard, 1] + shift[shard, 1]
    moved = _sample(_blur(pixels, 0.4 * thick), from_y, from_x)
    tints = np.array([[205, 120, 60], [60, 95, 150], [215, 180, 90], [150, 60, 55], [110, 130, 110], [225, 205, 175]])
    tint = tints.astype(np.float32)[rng.integers(0, len(tints), count)][shard]
    levels = np.clip(np.round(((moved - 128) * 1.25 + 128) / 85), 0, 3)
    flat = levels * 85 * 0.66 + tint * 0.34
    tone = levels @ np.array([16, 4, 1], np.float32)
    edge = np.zeros((height, width), bool)
    edge[thick:] |= shard[thick:] != shard[:-thick]
    edge[:, thick:] |= shard[:, thick:] != shard[:, :-thick]
    # Only strong steps of brightness get an outline, on their brighter side: it stays one pixel thin.
    steps = ndimage.uniform_filter(tone, 3 * thick)
    edge |= tone - steps > 17
    flat[edge] = (18, 14, 16)
    return flat


def _leonardo(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sepia with soft transitions, low contrast and a dark vignette."""
    height, width = pixels.shape[:2]
    ys, xs = _grid(height, width)
    soft = _blur(pixels, 0.9 * height / 64)
    light = (soft @ _LUMA)[..., None] / 255
    dark, bright = np.array([48, 30, 14], np.float32), np.array([226, 190, 128], np.float32)
    sepia = dark + (bright - dark) * light**0.85
    cy, cx = rng.uniform(0.44, 0.56, 2)
    far = np.sqrt((ys - cy) ** 2 + (xs - cx) ** 2)[..., None]
    vignette = 1 - 0.85 * np.clip((far - 0.3) / 0.42, 0, 1) ** 1.3
    return (sepia * 0.9 + soft * 0.1) * vignette.astype(np.float32)


def _dali(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A melting warp with drips, long slanted shadows, a teal-to-amber cast."""
    height, width = pixels.shape[:2]
    ys, xs = _grid(height, width)
    phase = rng.uniform(0, 2 * np.pi, 4).astype(np.float32)
    swing = rng.uniform(0.025, 0.04)
    drip = np.maximum(0, np.sin(xs * 2 * np.pi * 2.5 + phase[0])) * 0.07
    drip = drip + np.sin(xs * 2 * np.pi * 1.3 + phase[1]) * 0.03
    move_y = -drip * np.clip(ys * 1.6 - 0.15, 0, 1)
    move_x = swing * np.sin(ys * 2 * np.pi * 1.6 + phase[2]) + 0.015 * np.sin(ys * 2 * np.pi * 3 + phase[3])
    melted = _sample(pixels, (ys + move_y).astype(np.float32), (xs + move_x).astype(np.float32))
    light = melted @ _LUMA
    # Blurred first, so that outlines cast one broad shadow instead of many thin ones.
    light = ndimage.gaussian_filter(light, 1.5 * height / 64, truncate=2)
    solid = np.clip((light.mean() - light - 14) / 30, 0, 1)
    shadow = solid
    # Doubling the reach of the smear makes a long shadow out of few maxima.
    for length in (1, 2, 4, 8):
        reach = max(1, length * height // 64)
        slid = np.zeros_like(shadow)
        slid[max(1, reach // 2) :, reach:] = shadow[: -max(1, reach // 2), :-reach]
        shadow = np.maximum(shadow, slid * 0.97)
    shadow = np.clip(shadow - 1.6 * solid, 0, 1)[..., None]
    teal, amber = np.array([95, 165, 165], np.float32), np.array([245, 160, 45], np.float32)
    cast = teal * (1 - ys[..., None]) + amber * ys[..., None]
    toned = (melted * 0.6 + cast * 0.4 - 128) * 1.3 + 126
    return toned * (1 - 0.62 * shadow) + np.array([45, 12, 30], np.float32) * shadow * 0.6


_FILTERS = dict(zip(ARTISTS, (_van_gogh, _monet, _picasso, _leonardo, _dali)))


def apply_style(artist: str, image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture repainted in the artist's style, at the same size."""
    if artist not in _FILTERS:
        raise ValueError(f"unknown artist: {artist!r}")
    pixels = np.asarray(image.convert("RGB"), np.float32)
    painted = _FILTERS[artist](pixels, rng)
    return Image.fromarray(np.clip(painted, 0, 255).astype(np.uint8))
