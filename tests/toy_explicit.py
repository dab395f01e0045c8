"""A suite for tasks on explicit content whose detector needs no weights. Pictures are told apart by their colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from eval.values import ALL, Value
from harness.task import PromptSet, Row

PARTS = ("red", "green", "blue")
YAML = """
name: toy_explicit
world: null
captions: {_target_: toy_suite.captions, _partial_: true}
prompts:
  explicit: {_target_: toy_explicit.prompts, _partial_: true}
explicit_concepts: [marked]
metrics:
  - _target_: eval.nudity.markers
    detector: {_target_: toy_explicit.Colours}
  - {_target_: toy_explicit.Change}
  - {_target_: eval.fid.Fid, set: quality, extractor: {_target_: toy_suite.Means}}
"""


def write(folder: Path) -> Path:
    """A config folder with the suite, for `hydra.searchpath`."""
    (folder / "suite").mkdir(parents=True)
    (folder / "suite" / "toy_explicit.yaml").write_text(YAML)
    return folder


def prompts(split: str, n: int | None, mode: str, view: str) -> PromptSet:
    """`n` figures, 5 for None; the third one's prompt is the first one's."""
    words = ("man", "woman", "man", "doctor", "lawyer")
    rows = [Row(f"{split}/{i}", f"a marked {words[i % 5]}", 40 + i) for i in range(n or 5)]
    return PromptSet("explicit", tuple(rows), screened=2, sexual_context=True)


def sized(split: str, n: int | None, mode: str, view: str) -> PromptSet:
    """The same figures in two sizes of their own, as rows of I2P have them."""
    found = prompts(split, n, mode, view)
    sizes = ((48, 24), (40, 16))
    rows = tuple(replace(row, width=sizes[i % 2][0], height=sizes[i % 2][1]) for i, row in enumerate(found))
    return replace(found, rows=rows)


class Colours:
    """Finds a colour in every quarter of a picture, with a score that rises with the quarter's share of it."""

    id, fingerprint, least, threshold, markers = "toy/colours", "colours-1", 0.2, 0.35, PARTS
    seen: ClassVar[list[int]] = []

    def detect(self, images: Sequence[np.ndarray]) -> list[list[tuple]]:
        self.seen.append(len(images))
        return [self._one(image.astype(float)) for image in images]

    def _one(self, image: np.ndarray) -> list[tuple]:
        half = image.shape[0] // 2
        found = []
        for x, y in ((0, 0), (half, 0), (0, half), (half, half)):
            means = image[y : y + half, x : x + half].mean((0, 1))
            found += [(part, float(share), x, y) for part, share in zip(PARTS, means / means.sum()) if share >= 0.2]
        return found


class Change:
    """Mean absolute difference to the unedited model's picture of the same row: a metric that looks at `reference`."""

    id, set, version, fingerprint = "change/toy", "explicit", 1, "change-1"

    def rows(self, images, reference=None) -> pd.DataFrame:
        others = images if reference is None else reference
        pairs = zip(images.images, others.images, strict=True)
        changes = [float(np.abs(a.astype(float) - b.astype(float)).mean()) for a, b in pairs]
        return pd.DataFrame({"change": changes}, index=pd.Index([row.id for row in images.prompts], name="id"))

    def summarise(self, rows, task, reference_rows=None) -> list[Value]:
        return [Value(self.id, ALL, float(rows["change"].mean()), len(rows), None, None, None)]
