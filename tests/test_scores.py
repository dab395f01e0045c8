"""Stored rows of metrics: what is found again, and what makes them anew."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from eval.classify import Agreement, Classify
from eval.clip import Clip
from eval.fid import Fid
from experiments import scores
from harness.generate import ImageSet
from harness.processes import ALONE
from harness.store import Store
from harness.task import PromptSet, Row, Task


class Means:
    """The mean colour as three features; counts the pictures that it saw."""

    features_id = "means"

    def __init__(self, fingerprint: str = "a") -> None:
        self.fingerprint, self.seen = fingerprint, 0

    def features(self, images) -> torch.Tensor:
        self.seen += len(images)
        return torch.tensor(np.stack([image.reshape(-1, 3).mean(0) for image in images]))


def noise(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), np.uint8)


def photos(n: int, split: str) -> np.ndarray:
    return noise(20, 7)[:n]


PROMPTS = PromptSet("quality", tuple(Row(f"test/{i:05d}", f"a road {i}", i) for i in range(10)))
TASK = Task("test", "object", "test", (), sets={"quality": PROMPTS})
BEFORE, AFTER = ({"quality": ImageSet(PROMPTS, list(noise(10, seed)), f"key {seed}", 10, 0)} for seed in (1, 2))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def parts(store: Store, *metrics: object, task: Task = TASK) -> SimpleNamespace:
    return SimpleNamespace(metrics=metrics, store=store, task=task, team=ALONE)


def score(store: Store, metric: object, after: dict = AFTER, before: dict = BEFORE) -> tuple:
    return scores.summed_up(TASK, [scores.score(parts(store, metric), before, after)])


def photo_metric(**changes: object) -> Fid:
    return Fid(**{"extractor": Means(), "photos": photos, "photos_name": "rendered", **changes})


def test_reference_features_are_computed_once_for_all_edits(store: Store) -> None:
    first = photo_metric()
    unedited, edited = score(store, first)
    assert first.extractor.seen == 30  # references, unedited and edited pictures
    again = photo_metric()
    assert score(store, again) == (unedited, edited) and again.extractor.seen == 0
    other_edit = photo_metric()
    score(store, other_edit, {"quality": ImageSet(PROMPTS, list(noise(10, 3)), "key 3", 10, 0)})
    assert other_edit.extractor.seen == 10


def one_changed(n: int, split: str) -> np.ndarray:
    changed = photos(n, split)
    changed[9, 0, 0, 0] ^= 255
    return changed


@pytest.mark.parametrize(
    "changes", [{"photos": one_changed}, {"extractor": Means("b")}], ids=["a pixel of the last", "extractor"]
)
def test_a_stale_reference_is_never_used(store: Store, changes: dict) -> None:
    score(store, photo_metric())
    metric = photo_metric(**changes)
    seen = metric.extractor.seen
    references = metric.references(PROMPTS)
    found = scores.stored_rows(SimpleNamespace(store=store), metric, references, None)
    assert metric.extractor.seen - seen == 10
    pd.testing.assert_frame_equal(found, metric.rows(references), check_dtype=False)


def test_captions_that_the_screen_dropped_do_not_shift_the_stored_references(store: Store) -> None:
    """The score of what is left is the score of the pictures with the same numbers, also after a run without drops."""
    score(store, photo_metric())
    left = [1, 2, 4, 5, 6, 7, 8, 9]
    prompts = PromptSet("quality", tuple(PROMPTS.rows[i] for i in left), screened=2)
    same = {"quality": ImageSet(prompts, [photos(10, "test")[i] for i in left], "as the photos", 8, 0)}
    (value, _), _ = score(store, photo_metric(), same, same)
    assert value.value == pytest.approx(0, abs=1e-6) and value.n == 8


def test_another_version_of_a_metric_makes_its_rows_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    score(store, photo_metric())
    monkeypatch.setattr(Fid, "version", Fid.version + 1)
    metric = photo_metric()
    score(store, metric)
    assert metric.extractor.seen == 30


@pytest.mark.parametrize("metric", [Agreement, Classify, Clip, Fid])
def test_every_metric_has_a_version(metric: type) -> None:
    assert isinstance(metric.version, int) and metric.version >= 1


def test_numbers_of_a_published_list_have_ids_of_their_own(store: Store) -> None:
    """Also for the unedited model; the stored rows are shared, because the pictures and prompts are the same."""
    own = score(store, photo_metric())
    listed = PromptSet("quality", PROMPTS.rows, source="fia480")
    before, after = (
        {"quality": ImageSet(listed, given["quality"].images, given["quality"].key, 10, 0)} for given in (BEFORE, AFTER)
    )
    metric = photo_metric()
    found = score(store, metric, after, before)
    ids, listed_ids = ([[value.id for value in side] for side in sides] for sides in (own, found))
    assert listed_ids == [[f"{name}/fia480" for name in side] for side in ids]
    assert len(ids[0]) == 2 and len(ids[1]) == 4 and metric.extractor.seen == 0
