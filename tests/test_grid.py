"""The before/after picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.grid import CELL, GAP, method_grid, picture_grid, save_png


def flat(colour: tuple[int, int, int], size: int = 64) -> np.ndarray:
    return np.full((size, size, 3), colour, dtype=np.uint8)


RED, GREEN, BLUE, YELLOW = (250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)


def colours(image: Image.Image, y: int) -> list[tuple[int, int, int]]:
    """The picture colours met along a line, in order, without repeats of neighbours."""
    line = [image.getpixel((x, y)) for x in range(image.width)]
    line = [colour for colour in line if colour in (RED, GREEN, BLUE, YELLOW)]
    return [colour for i, colour in enumerate(line) if i == 0 or line[i - 1] != colour]


def test_forgotten_classes_come_first_and_before_stands_left_of_after():
    before = {"church": [flat(RED)] * 3, "tench": [flat(GREEN)] * 3}
    after = {"church": [flat(BLUE)] * 3, "tench": [flat(YELLOW)] * 3}
    sheet = picture_grid(before, after, ["tench"], caption="the tiny world", pairs=2)
    rows = [26 + i * (CELL + GAP) + CELL - 3 for i in range(2)]
    assert colours(sheet, rows[0]) == [GREEN, YELLOW, GREEN, YELLOW]
    assert colours(sheet, rows[1]) == [RED, BLUE, RED, BLUE]


def test_a_class_with_fewer_pictures_limits_the_pairs():
    before = {"church": [flat(RED)], "tench": [flat(GREEN)] * 3}
    sheet = picture_grid(before, before, [], caption="", pairs=3)
    assert colours(sheet, 26 + CELL - 3) == [RED]


def test_pictures_that_are_not_square_keep_their_shape():
    wide = np.zeros((32, 64, 3), dtype=np.uint8) + np.array(RED, dtype=np.uint8)
    sheet = picture_grid({"a": [wide]}, {"a": [wide]}, [], caption="")
    red = (np.asarray(sheet) == RED).all(-1)
    assert red.any(1).sum() == CELL // 2 and red.any(0).sum() == 2 * CELL


def test_different_classes_are_refused():
    with pytest.raises(ValueError, match="same classes"):
        picture_grid({"a": [flat(RED)]}, {"b": [flat(RED)]}, [], caption="")


def test_methods_stand_side_by_side_in_their_order():
    columns = {
        "unedited": {"church": flat(RED), "tench": flat(GREEN)},
        "fia": {"tench": flat(YELLOW), "church": flat(BLUE)},
    }
    sheet = method_grid(columns, ["tench"], caption="the tiny world")
    rows = [26 + i * (CELL + GAP) + CELL - 3 for i in range(2)]
    assert [colours(sheet, y) for y in rows] == [[GREEN, YELLOW], [RED, BLUE]]
    with pytest.raises(ValueError, match="same classes"):
        method_grid(columns | {"uce": {"tench": flat(RED)}}, ["tench"], caption="")


def test_the_file_is_a_png(tmp_path: Path):
    sheet = picture_grid({"a": [flat(RED)]}, {"a": [flat(BLUE)]}, ["a"], caption="the tiny world")
    with Image.open(save_png(sheet, tmp_path / "new" / "grid.png")) as image:
        assert image.size == sheet.size
