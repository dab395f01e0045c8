"""Similarity of pictures to an artist: CLIP_a, and the forget success rate FSR (FIA tables 4, 5 and 20).

CLIP_a compares a picture with the artist's name as the concept is called (FIA's code), or with the full prompt, title
and name (the code of ConceptPrune and ScaPre). These are different numbers: both are given, under different ids.

FSR is the share of pictures that are less similar than the unedited model's picture of the same prompt and seed. Its
threshold is zero: an edit that leaves the style alone and changes the noise scores about 50 %. The share of pictures
that fall by more than a margin, and the mean paired difference, do not have this weakness.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

from harness.checks import number

from .clip import SCALE, similarities
from .compare import matched
from .repeats import MEAN, PROMPT_SHARE, Rule
from .stats import Interval, macro_mean_interval, macro_share_interval
from .values import ALL, Differences, Encoder, Value, by_class, check_images, paired

if TYPE_CHECKING:
    from harness.generate import ImageSet
    from harness.task import Task

TEXTS = ("name", "prompt")


@dataclass
class StyleSimilarity:
    """CLIP_a, FSR and paired differences by one encoder.

    Attributes:
        encoder: Pictures and texts to unit vectors.
        set: The prompt set that is scored; its rows' `label` is the artist.
        margin: In units of 100 x cosine; a picture counts for `fsr_margin` if it falls by more.
    """

    encoder: Encoder
    set: str = "artists"
    margin: float = 1.0
    version: ClassVar[int] = 1
    repeated: ClassVar[Mapping[str, Rule]] = dict.fromkeys(
        ("clip_a", "clip_a_kept", "clip_a_difference", "clip_a_kept_difference"), MEAN
    ) | {"fsr": PROMPT_SHARE, "fsr_margin": PROMPT_SHARE}

    def __post_init__(self) -> None:
        number(f"margin of {self.id}", self.margin, zero=False)

    @property
    def id(self) -> str:
        return f"clip_a/{self.encoder.id}/x{SCALE}"

    @property
    def fingerprint(self) -> str:
        return self.encoder.fingerprint

    def rows(self, images: ImageSet, reference: ImageSet | None = None) -> pd.DataFrame:
        """Columns: label, prompt, to_name and to_prompt (100 x cosine with the artist's name and with the prompt)."""
        check_images(images)
        rows = images.prompts.rows
        labels, prompts = [row.label for row in rows], [row.prompt for row in rows]
        return pd.DataFrame(
            {
                "label": labels,
                "prompt": prompts,
                **similarities(self.encoder, images.images, {"to_name": labels, "to_prompt": prompts}),
            },
            index=pd.Index([row.id for row in rows], name="id"),
        )

    def summarise(self, rows: pd.DataFrame, task: Task, reference_rows: pd.DataFrame | None = None) -> list[Value]:
        """CLIP_a of forgotten and of kept artists; where other rows are given for the unedited model, differences and
        FSR too.

        Forgotten and kept artists have ids of their own and are never averaged together. Intervals draw whole prompts:
        the released lists ask for one work with several seeds.

        Raises:
            ValueError: An artist of the task has no picture, a picture's artist belongs to no side of the task, or the
                unedited model lacks a row.
        """
        artists = by_class(rows, task, self.set)
        compared = reference_rows is not None and reference_rows is not rows
        before = paired(rows, reference_rows) if compared else None
        values = []
        for text in TEXTS:
            score, cosine = rows[f"to_{text}"], f"{self.encoder.id}/x{SCALE}/{text}"
            measured = [
                (f"clip_a/{cosine}", score, task.forget, False),
                (f"clip_a_kept/{cosine}", score, task.keep, True),
            ]
            if before is not None:
                change = score - before[f"to_{text}"]
                measured += [
                    (f"clip_a_difference/{cosine}", change, task.forget, False),
                    (f"clip_a_kept_difference/{cosine}", change, task.keep, True),
                    (f"fsr/{self.encoder.id}/{text}", change < 0, task.forget, True),
                    (f"fsr_margin/{self.encoder.id}/m{self.margin:g}/{text}", change < -self.margin, task.forget, True),
                ]
            for id, column, names, better in measured:
                parts = {name: (column[artists[name].index], artists[name]["prompt"]) for name in names}
                values += _by_artist(id, parts, better)
        return values

    def differences(self, rows: pd.DataFrame, other: pd.DataFrame, task: Task) -> Differences:
        """Of CLIP_a, to another model's rows of the same prompts and noise; FSR is a comparison itself."""
        artists, there, found = by_class(rows, task, self.set), matched(rows, other, ("label", "prompt")), {}
        for text in TEXTS:
            change = rows[f"to_{text}"] - there[f"to_{text}"]
            for family, names in (("clip_a", task.forget), ("clip_a_kept", task.keep)):
                parts = {name: (change[artists[name].index], artists[name]["prompt"]) for name in names}
                for value in _by_artist(f"{family}/{self.encoder.id}/x{SCALE}/{text}", parts, True):
                    found[value.id, value.subject] = Interval(value.value, value.low, value.high)
        return found


def _by_artist(id: str, parts: Mapping[str, tuple[pd.Series, pd.Series]], better: bool) -> list[Value]:
    """The mean of each artist and over artists, of (values, prompts) by artist; booleans are shares."""
    subjects = {name: [part] for name, part in parts.items()}
    if parts:
        subjects[ALL] = [*parts.values()]
    values = []
    for subject, chosen in subjects.items():
        share = all(column.dtype == bool for column, _ in chosen)
        mean = (macro_share_interval if share else macro_mean_interval)(chosen)
        n = sum(len(column) for column, _ in chosen)
        values.append(Value(id, subject, mean.value, n, mean.low, mean.high, better))
    return values
