"""CLIP score against hand-made unit vectors, and the paired difference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eval.clip import Clip, OpenClip, StoredTexts
from eval.stats import paired_difference
from harness.generate import ImageSet
from harness.store import Store
from harness.task import PromptSet, Row, Task

ANGLES = {"a road": 0.0, "a tree": 90.0}


def unit(degrees) -> torch.Tensor:
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angle.cos(), angle.sin()], 1)


class Compass:
    """Texts point where ANGLES says, pictures where their first pixel says (degrees)."""

    id, fingerprint = "compass", ""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def image_features(self, images) -> torch.Tensor:
        return unit([float(image[0, 0, 0]) for image in images])

    def text_features(self, prompts) -> torch.Tensor:
        self.asked += prompts
        return unit([ANGLES[prompt] for prompt in prompts])


def pictures(*items: tuple[str, int]) -> ImageSet:
    rows = tuple(Row(f"test/{i}", prompt, i) for i, (prompt, _) in enumerate(items))
    images = [np.full((2, 2, 3), degrees, np.uint8) for _, degrees in items]
    return ImageSet(PromptSet("quality", rows), images, "key", len(rows), 0)


TASK = Task("test", "object", "test", ())


def test_score_is_100_cosines() -> None:
    encoder = Compass()
    metric = Clip(encoder)
    rows = metric.rows(pictures(("a road", 60), ("a tree", 60), ("a road", 0)), None)
    assert rows["score"].tolist() == pytest.approx([50.0, 86.60254, 100.0])
    assert encoder.asked == ["a road", "a tree"]
    value = metric.summarise(rows, TASK)[0]
    assert (value.id, value.subject, value.n, value.higher_is_better) == ("clip/compass/x100", "all", 3, True)
    assert value.value == pytest.approx(78.86751) and value.low <= value.value <= value.high


def test_difference_is_paired_by_row_id() -> None:
    metric = Clip(Compass())
    items = [("a road", 10), ("a tree", 70), ("a road", 30), ("a tree", 100)]
    before = metric.rows(pictures(*items), None)
    after = metric.rows(pictures(*[(prompt, degrees + 5) for prompt, degrees in items]), None)
    values = metric.summarise(after, TASK, before.iloc[::-1])
    assert [value.id for value in values] == ["clip/compass/x100", "clip_difference/compass/x100"]
    expected = paired_difference(after["score"], before["score"], after["prompt"])
    assert (values[1].value, values[1].low, values[1].high) == expected
    assert metric.differences(after, before.iloc[::-1], TASK) == {("clip/compass/x100", "all"): expected}
    assert values[1].value == pytest.approx(float((after["score"] - before["score"]).mean()))


def test_a_model_is_not_compared_with_itself_or_with_other_rows() -> None:
    metric = Clip(Compass())
    rows = metric.rows(pictures(("a road", 10), ("a tree", 20)), None)
    assert len(metric.summarise(rows, TASK, rows)) == 1
    with pytest.raises(ValueError, match="lack 1 rows, the first is 'test/1'"):
        metric.summarise(rows, TASK, rows.iloc[:1])


def test_captions_are_embedded_once_for_all_jobs_of_a_sweep(tmp_path) -> None:
    """Every job has its own encoder and pictures; another judge's vectors are not used."""
    images = pictures(("a road", 60), ("a tree", 60), ("a road", 0))
    plain, encoders = Clip(Compass()).rows(images), [Compass() for _ in range(3)]
    encoders[2].fingerprint = "another"
    for encoder in encoders:
        metric = Clip(StoredTexts(encoder, Store(tmp_path)))
        assert (metric.id, metric.fingerprint) == ("clip/compass/x100", encoder.fingerprint)
        assert metric.rows(images).equals(plain)
    assert [encoder.asked for encoder in encoders] == [["a road", "a tree"], [], ["a road", "a tree"]]


def test_open_clip_ids_and_names() -> None:
    assert OpenClip().id == "openai-vit-b-32"
    assert OpenClip("ViT-L-14-quickgelu").id == "openai-vit-l-14"
    with pytest.raises(ValueError, match=r"its tags are .*openai"):
        OpenClip(pretrained="opnai")


def test_missing_clip_weights_are_one_clear_line(monkeypatch) -> None:
    import open_clip

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", offline)
    monkeypatch.setattr("open_clip.factory.download_pretrained", offline)
    for asked in (lambda: OpenClip().text_features(["a road"]), lambda: OpenClip().fingerprint):
        with pytest.raises(ValueError, match=r"ViT-B-32-quickgelu/openai are not in the local cache.*no route to host"):
            asked()
