"""Classification accuracy by index, with hand-counted pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from eval.classify import Agreement, Classify, class_index, contained
from eval.resnet import ResNet50
from eval.stats import wilson
from eval.values import Metric
from harness.generate import ImageSet
from harness.task import Concept, PromptSet, Row, Task

NAMES = ("tench", "garbage truck", "gar", "church", "golf ball", "none", "crane", "crane")


class Painted:
    """A judge that reads the class index off the first pixel."""

    id, fingerprint = "painted", "f00"

    def __init__(self, labels: dict | None = None, shift: int = 0) -> None:
        self.labels = labels or {"icon": NAMES, "artist": ("Monet", "none")}
        self.shift = shift

    def logits(self, images) -> dict[str, torch.Tensor]:
        first = torch.tensor([int(image[0, 0, 0]) + self.shift for image in images])
        return {
            head: 4.0 * torch.nn.functional.one_hot(first % len(names), len(names))
            for head, names in self.labels.items()
        }


def pictures(*answers: tuple[str, int], seeds: list[int] | None = None) -> ImageSet:
    """One picture an answer: the label asked for, and the index that the judge will see."""
    rows = [
        Row(f"r{i}", f"an image of a {label}", seeds[i] if seeds else i, label=label)
        for i, (label, _) in enumerate(answers)
    ]
    images = [np.full((4, 4, 3), index, np.uint8) for _, index in answers]
    return ImageSet(PromptSet("classes", tuple(rows)), images, "key", len(rows), 0)


def composed(name: str):
    """A file of conf/task with one picture a class."""
    with initialize_config_dir(str(Path(__file__).resolve().parents[1] / "conf" / "task"), version_base="1.3"):
        return compose(name, overrides=["n=1"])


def task(forget: tuple[str, ...], keep: tuple[str, ...]) -> Task:
    return Task("test", "object", "test", tuple(Concept(name, "object") for name in forget), keep)


ANSWERS = (
    ("tench", 0), ("tench", 5), ("tench", 0), ("tench", 0),
    ("garbage truck", 2), ("garbage truck", 5),
    ("church", 3), ("church", 3),
    ("golf ball", 4), ("golf ball", 0), ("golf ball", 4), ("golf ball", 4),
)  # fmt: skip


def test_values_are_the_hand_count() -> None:
    metric: Metric = Classify(Painted())
    rows = metric.rows(pictures(*ANSWERS), None)
    values = metric.summarise(rows, task(("tench", "Garbage truck"), ("church", "golf ball")))
    found = {(value.id, value.subject): value for value in values}
    forget, preserve = "forget_accuracy/painted", "preserve_accuracy/painted"
    # A gar (index 2) is no garbage truck here; the containment rule would have counted it.
    assert {key: value.value for key, value in found.items()} == pytest.approx({
        (forget, "tench"): 0.75, (forget, "Garbage truck"): 0.0, (forget, "all"): 0.375,
        (preserve, "church"): 1.0, (preserve, "golf ball"): 0.75, (preserve, "all"): 0.875,
        ("overall_score/painted", "all"): 2 * 0.875 * 0.625 / 1.5,
    })  # fmt: skip
    assert found[forget, "tench"].n == 4 and found[forget, "all"].n == 6 and values[-1].n == 12
    assert (found[forget, "tench"].low, found[forget, "tench"].high) == wilson(3, 4)[1:]
    assert [value.higher_is_better for value in values] == [False] * 3 + [True] * 4
    assert all(value.low <= value.value <= value.high for value in values)


def test_rows_keep_what_other_rules_need_and_survive_a_csv(tmp_path) -> None:
    metric = Classify(Painted())
    rows = metric.rows(pictures(*ANSWERS), None)
    row = rows.loc["r4"]
    assert (row.label, row.predicted, row.predicted_name) == ("garbage truck", 2, "gar")
    assert row.top5.split()[0] == "2" and len(row.top5.split()) == 5
    assert row.probability == pytest.approx(np.exp(4) / (np.exp(4) + 7))
    rows.to_csv(tmp_path / "rows.csv")
    again = pd.read_csv(tmp_path / "rows.csv", index_col=0)
    one = task(("tench", "garbage truck"), ("church", "golf ball"))
    assert metric.summarise(again, one) == metric.summarise(rows, one)


def test_a_class_counts_by_every_label_that_the_task_accepts() -> None:
    metric = Classify(Painted())
    rows = metric.rows(pictures(("truck", 1), ("truck", 2), ("truck", 3), ("church", 3)), None)
    one = task(("truck",), ("church",))
    with pytest.raises(ValueError, match="no label 'truck'"):
        metric.check(one)
    one.accepted = {"truck": ("Garbage truck", "gar")}
    metric.check(one)
    found = {value.id: value.value for value in metric.summarise(rows, one) if value.subject == "all"}
    assert found["forget_accuracy/painted"] == pytest.approx(2 / 3) and found["preserve_accuracy/painted"] == 1
    one.accepted = {"truck": ("Garbage truck", "gas")}
    with pytest.raises(ValueError, match="no label 'gas' among its 8"):
        metric.check(one)


@pytest.mark.parametrize(
    ("name", "label", "counts"),
    [
        ("garbage truck", "gar", True), ("Golf ball", "golf ball", True), ("Bus", "colobus", True),
        ("ship", "hip", True), ("golf ball", "ballplayer", False), ("duck", "drake", False),
    ],
)  # fmt: skip
def test_the_released_rule_is_containment_either_way(name: str, label: str, counts: bool) -> None:
    assert contained(name, label) is counts


def test_the_released_rule_is_replayed_from_the_same_rows() -> None:
    index, released = Classify(Painted()), Classify(Painted(), rule="containment")
    # One set of rows for both rules: the id that they are stored under does not name a rule.
    assert (index.id, index.version, index.fingerprint) == (released.id, released.version, released.fingerprint)
    rows = index.rows(pictures(("garbage truck", 1), ("garbage truck", 2), ("garbage truck", 3), ("duck", 3)), None)
    one = task(("garbage truck", "duck"), ())
    found = {(value.id, value.subject): value.value for value in released.summarise(rows, one)}
    family = "forget_accuracy/painted/containment"
    # A gar counts, and a name without a label can never be counted.
    assert found == {
        (family, "garbage truck"): pytest.approx(2 / 3), (family, "duck"): 0.0, (family, "all"): pytest.approx(1 / 3)
    }  # fmt: skip
    released.check(one)


def test_the_released_rule_on_imagenet_accepts_what_the_protocol_lists() -> None:
    """The labels that the rule accepts wrongly for Imagenette's classes, and names of FIA's list without any."""
    labels = ResNet50().labels["object"]
    accepted = {
        name: {label for label in labels if contained(name, label)} - {name}
        for name in ("garbage truck", "cassette player", "chain saw", "tench", "church", "duck", "sofa", "handbag")
    }
    assert accepted == {
        "garbage truck": {"gar"}, "cassette player": {"cassette"}, "chain saw": {"chain"},
        "tench": set(), "church": set(), "duck": set(), "sofa": set(), "handbag": set(),
    }  # fmt: skip


def test_overall_score_needs_both_sides() -> None:
    metric = Classify(Painted())
    values = metric.summarise(metric.rows(pictures(("tench", 0)), None), task(("tench",), ()))
    assert [value.id for value in values] == ["forget_accuracy/painted"] * 2


def test_repeated_pictures_do_not_narrow_the_interval() -> None:
    metric, one = Classify(Painted()), task(("tench",), ())
    several = metric.rows(pictures(*[("tench", 0)] * 8, seeds=[1, 1, 2, 2, 3, 3, 4, 4]), None)
    value = metric.summarise(several, one)[0]
    assert (value.n, value.low) == (8, wilson(4, 4).low)


def test_what_is_missing_or_strange_is_said() -> None:
    metric = Classify(Painted())
    rows = metric.rows(pictures(("tench", 0)), None)
    with pytest.raises(ValueError, match="no picture of 'church'"):
        metric.summarise(rows, task(("tench",), ("church",)))
    with pytest.raises(ValueError, match="neither forgets nor keeps 'tench'"):
        metric.summarise(rows, task(("church",), ()))
    for call in (metric.check, lambda one: metric.summarise(metric.rows(pictures(("tensh", 0)), None), one)):
        with pytest.raises(ValueError, match="no label 'tensh' among its 8; near matches: tench"):
            call(task(("tensh",), ()))
    with pytest.raises(ValueError, match="rule='contains' of a classification is none of index, containment"):
        Classify(Painted(), rule="contains")
    with pytest.raises(ValueError, match="2 labels named 'crane'"):
        class_index("crane", NAMES, "painted")
    with pytest.raises(ValueError, match="head='icons' is none of them"):
        Classify(Painted(), head="icons")
    short = pictures(("tench", 0), ("tench", 0))
    short.images = short.images[:1]
    with pytest.raises(ValueError, match="2 rows but 1 images"):
        metric.rows(short, None)


def test_another_head_has_another_id() -> None:
    metric = Classify(Painted(), head="artist")
    assert (Classify(Painted()).id, metric.id) == ("classify/painted", "classify/painted/artist")
    value = metric.summarise(metric.rows(pictures(("Monet", 0), ("Monet", 1)), None), task(("Monet",), ()))[-1]
    assert (value.id, value.value) == ("forget_accuracy/painted/artist", 0.5)


def test_agreement_is_the_share_of_equal_verdicts() -> None:
    same, other = Painted({"icon": NAMES}), Painted({"icon": NAMES}, shift=1)
    one = task(("tench",), ())
    for second, share in ((same, 1.0), (other, 0.0)):
        metric = Agreement(Painted(), second)
        value = metric.summarise(metric.rows(pictures(*ANSWERS), None), one)[0]
        assert (value.value, value.n, value.higher_is_better) == (share, 12, None)
    with pytest.raises(ValueError, match="different labels"):
        Agreement(Painted(), Painted({"icon": ("a", "b")}))


def test_resnet_finds_the_imagenette_classes_by_their_published_index() -> None:
    published = {
        "tench": 0, "English springer": 217, "cassette player": 482, "chain saw": 491, "church": 497,
        "French horn": 566, "garbage truck": 569, "gas pump": 571, "golf ball": 574, "parachute": 701,
    }  # fmt: skip
    judge = ResNet50()
    assert {name: class_index(name, judge.labels["object"], judge.id) for name in published} == published
    assert judge.id != ResNet50("IMAGENET1K_V1").id
    with pytest.raises(ValueError, match="IMAGENET1K_V2 and IMAGENET1K_V1, not 'V2'"):
        ResNet50("V2")


@pytest.mark.parametrize("name", ["imagenette", "imagenette_5v5", "imagenette_xvy", "diversi50", "fia50"])
def test_resnet_knows_every_class_of_the_tasks_for_real_models(name: str) -> None:
    Classify(ResNet50()).check(instantiate(composed(name)))


def test_a_judge_that_lacks_a_class_says_so_before_any_picture() -> None:
    with pytest.raises(ValueError, match="painted has no label 'burrito' among its 8") as caught:
        Classify(Painted()).check(instantiate(composed("diversi50")))
    assert "\n" not in str(caught.value)


def test_resnet_uses_the_crop_of_its_weights(monkeypatch) -> None:
    """V2 resizes to 232 and V1 to 256 before the 224 crop; the same picture therefore looks different to them."""
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.zeros(len(x), 1000)

    picture = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    for weights in ("IMAGENET1K_V2", "IMAGENET1K_V1"):
        judge = ResNet50(weights, device="cpu", batch=1)
        judge.__dict__["_network"] = Spy()
        assert judge.logits([picture, picture])["object"].shape == (2, 1000)
    assert [tuple(x.shape) for x in seen] == [(1, 3, 224, 224)] * 4
    assert torch.equal(seen[0], seen[1]) and not torch.allclose(seen[0], seen[2])


def test_missing_published_weights_are_one_clear_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(ValueError, match=r"ResNet-50 IMAGENET1K_V2 .*no route to host.*put https://.*checkpoints"):
        ResNet50(device="cpu").logits([np.zeros((64, 64, 3), np.uint8)])
