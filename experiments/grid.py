"""Picture grids: the same prompts and seeds before and after an edit, or by several methods."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from harness.store import write_atomic

# Both in pixels; small pictures (the tiny world's 64) are enlarged by whole factors to about CELL.
CELL, GAP = 128, 6
TOP, BOTTOM = 26, 26
# Pixels that are left of a blurred picture's longer side.
BLURRED = 8
BLACK, WHITE, GREY, RED, GREEN = (20, 20, 20), (255, 255, 255), (110, 110, 110), (176, 36, 24), (24, 112, 52)


def picture_grid(
    before: Mapping[str, Sequence[np.ndarray]],
    after: Mapping[str, Sequence[np.ndarray]],
    forget: Sequence[str],
    *,
    caption: str,
    pairs: int = 3,
) -> Image.Image:
    """Rows are classes, forgotten ones first; columns are pairs of one prompt and seed, before and after.

    Args:
        before, after: class name -> pictures, uint8 [height, width, 3], in the same order of rows.
        forget: the names among the classes that were to be forgotten (red); the others were to be kept (green).
        caption: one line below the grid, which says what model this is.
        pairs: pairs a row, fewer where a class has fewer pictures.
    """
    names = _forgotten_first(before, forget)
    if not names or set(before) != set(after):
        raise ValueError(f"the grid needs the same classes before and after, got {list(before)} and {list(after)}")
    columns = min(pairs, *(len(before[name]) for name in names))
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    label = max(int(font.getlength(name)) for name in names) + 2 * GAP
    width = label + columns * (2 * CELL + GAP + 2 * GAP)
    width = max(width, int(small.getlength(caption)) + 2 * GAP)
    sheet = Image.new("RGB", (width, TOP + len(names) * (CELL + GAP) + BOTTOM), WHITE)
    draw = ImageDraw.Draw(sheet)
    for column in range(columns):
        left = label + column * (2 * CELL + 3 * GAP)
        draw.text((left + CELL / 2, TOP / 2), "before", GREY, small, anchor="mm")
        draw.text((left + CELL + GAP / 2 + CELL / 2, TOP / 2), "after", GREY, small, anchor="mm")
    for row, name in enumerate(names):
        y = TOP + row * (CELL + GAP)
        _label(draw, y, name, name in set(forget), font, small)
        for column in range(columns):
            left = label + column * (2 * CELL + 3 * GAP)
            sheet.paste(_cell(before[name][column]), (left, y))
            sheet.paste(_cell(after[name][column]), (left + CELL + GAP // 2, y))
    draw.text((GAP, sheet.height - BOTTOM / 2), caption, BLACK, small, anchor="lm")
    return sheet


def method_grid(columns: Mapping[str, Mapping[str, np.ndarray]], forget: Sequence[str], *, caption: str) -> Image.Image:
    """Rows are classes, forgotten ones first; columns are models: the unedited one, and one a method.

    Args:
        columns: by the column's name, class name -> one picture, uint8 [height, width, 3]; the same classes everywhere.
        forget, caption: as in `picture_grid`.
    """
    classes = list(next(iter(columns.values())))
    if any(set(column) != set(classes) for column in columns.values()):
        raise ValueError("the grid needs the same classes in every column")
    names = _forgotten_first(classes, forget)
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    label = max(int(font.getlength(name)) for name in names) + 2 * GAP
    column_width = max(CELL, *(int(small.getlength(name)) for name in columns)) + GAP
    width = max(label + len(columns) * column_width, int(small.getlength(caption)) + 2 * GAP)
    sheet = Image.new("RGB", (width, TOP + len(names) * (CELL + GAP) + BOTTOM), WHITE)
    draw = ImageDraw.Draw(sheet)
    for number, title in enumerate(columns):
        draw.text((label + number * column_width + CELL / 2, TOP / 2), title, GREY, small, anchor="mm")
    for row, name in enumerate(names):
        y = TOP + row * (CELL + GAP)
        _label(draw, y, name, name in set(forget), font, small)
        for number, column in enumerate(columns.values()):
            sheet.paste(_cell(column[name]), (label + number * column_width, y))
    draw.text((GAP, sheet.height - BOTTOM / 2), caption, BLACK, small, anchor="lm")
    return sheet


def _forgotten_first(names: Iterable[str], forget: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: name not in set(forget))


def _label(draw: ImageDraw.ImageDraw, y: int, name: str, forgotten: bool, font: Any, small: Any) -> None:
    """The name of a row, and what was to happen to it."""
    draw.text((GAP, y + CELL / 2 - 9), name, RED if forgotten else GREEN, font, anchor="lm")
    draw.text((GAP, y + CELL / 2 + 9), "forget" if forgotten else "keep", GREY, small, anchor="lm")


def blurred(picture: np.ndarray) -> np.ndarray:
    """The picture without its details, in its own size."""
    image = Image.fromarray(picture)
    scale = BLURRED / max(image.size)
    few = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BOX)
    return np.asarray(few.resize(image.size, Image.Resampling.BICUBIC))


def save_png(image: Image.Image, path: Path) -> Path:
    """Write a picture atomically."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    write_atomic(path, buffer.getvalue())
    return path


def _cell(picture: np.ndarray) -> Image.Image:
    """The picture in a CELL x CELL square; pixels stay visible where it is enlarged."""
    image = Image.fromarray(picture)
    scale = CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    square = Image.new("RGB", (CELL, CELL), WHITE)
    square.paste(image, ((CELL - image.width) // 2, (CELL - image.height) // 2))
    return square
