"""CLIP_a, FSR and their intervals, with hand-made unit vectors; the classifier's head for artists."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from eval.classify import Classify
from eval.stats import macro_mean, macro_mean_interval, macro_share_interval, mean_interval, wilson
from eval.style import StyleSimilarity
from eval.values import Metric, Value
from experiments import values as shown
from experiments.scores import read_rows, write_rows
from harness.generate import ImageSet
from harness.task import Concept, PromptSet, Row, Task

# Where a text points, in degrees; a picture points where its first pixel says.
NAMES = {"Monet": 0.0, "Van Gogh": 90.0, "Salvador Dali": 45.0}
TITLE = 30.0


def unit(degrees: list[float]) -> torch.Tensor:
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angle.cos(), angle.sin()], 1)


class Compass:
    """Remembers which texts it was asked for; a prompt points TITLE degrees from its artist."""

    fingerprint = ""

    def __init__(self, id: str = "compass") -> None:
        self.id, self.asked, self.pictures = id, [], 0

    def image_features(self, images) -> torch.Tensor:
        self.pictures += len(images)
        return unit([float(image[0, 0, 0]) for image in images])

    def text_features(self, texts) -> torch.Tensor:
        self.asked += texts
        artist = [text.rpartition(" by ")[2] for text in texts]
        return unit([NAMES[name] + TITLE * (name != text) for name, text in zip(artist, texts)])


# Artist, title, direction of the unedited picture in degrees.
PICTURES = (
    ("Monet", "Lilies", 10), ("Monet", "Lilies", 20), ("Monet", "Sunrise", 10), ("Monet", "Sunrise", 15),
    ("Van Gogh", "Bedroom", 80), ("Van Gogh", "Irises", 70),
    ("Salvador Dali", "Elephants", 50), ("Salvador Dali", "Swans", 45),
)  # fmt: skip


def pictures(directions: list[int] | None = None, entries=PICTURES) -> ImageSet:
    rows = [Row(f"test/{i}", f"{title} by {artist}", i, label=artist) for i, (artist, title, _) in enumerate(entries)]
    directions = directions or [direction for *_, direction in entries]
    images = [np.full((2, 2, 3), direction, np.uint8) for direction in directions]
    return ImageSet(PromptSet("artists", tuple(rows)), images, "key", len(rows), 0)


def task(forget: tuple[str, ...] = ("Monet", "Van Gogh"), keep: tuple[str, ...] = ("Salvador Dali",)) -> Task:
    return Task("artists", "style", "test", tuple(Concept(name, "style") for name in forget), keep)


def found(values: list[Value]) -> dict[tuple[str, str], Value]:
    assert len({(value.id, value.subject) for value in values}) == len(values)
    return {(value.id, value.subject): value for value in values}


def scored(directions: list[int], metric: StyleSimilarity | None = None, **sides) -> dict[tuple[str, str], Value]:
    """Values of edited pictures that point into these directions."""
    metric = metric or StyleSimilarity(Compass())
    before, after = metric.rows(pictures()), metric.rows(pictures(directions))
    return found(metric.summarise(after, task(**sides), before))


def cosine(degrees: float) -> float:
    return 100 * float(np.cos(np.deg2rad(degrees)))


def test_both_texts_are_compared_and_embedded_once() -> None:
    encoder = Compass()
    metric: Metric = StyleSimilarity(encoder)
    rows = metric.rows(pictures(), None)
    assert rows.loc["test/1", "to_name"] == pytest.approx(cosine(20))
    assert rows.loc["test/1", "to_prompt"] == pytest.approx(cosine(10))  # the prompt points to 30 degrees
    assert rows.loc["test/4", "to_name"] == pytest.approx(cosine(10))
    assert len(encoder.asked) == len(set(encoder.asked)) == 3 + 6 and encoder.pictures == len(PICTURES)


def test_differences_between_two_models_are_those_of_clip_a() -> None:
    metric = StyleSimilarity(Compass())
    one, other = metric.rows(pictures()), metric.rows(pictures([40] * len(PICTURES)))
    here, there = (found(metric.summarise(rows, task())) for rows in (one, other))
    changes = metric.differences(one, other.iloc[::-1], task())
    assert changes.keys() == here.keys()
    for key, change in changes.items():
        assert change.value == pytest.approx(here[key].value - there[key].value), key
        assert change.low <= change.value <= change.high


def test_the_unedited_model_has_similarities_only() -> None:
    metric = StyleSimilarity(Compass())
    rows = metric.rows(pictures())
    values = found(metric.summarise(rows, task()))
    assert {id for id, _ in values} == {
        f"{family}/compass/x100/{text}" for family in ("clip_a", "clip_a_kept") for text in ("name", "prompt")
    }
    assert found(metric.summarise(rows, task(), rows)).keys() == values.keys()
    monet, gogh = np.mean([cosine(d) for d in (10, 20, 10, 15)]), np.mean([cosine(10), cosine(20)])
    id = "clip_a/compass/x100/name"
    assert values[id, "Monet"].value == pytest.approx(monet) and values[id, "Monet"].n == 4
    # Artists count the same, however many pictures they have.
    assert values[id, "all"].value == pytest.approx((monet + gogh) / 2) and values[id, "all"].n == 6
    kept = values["clip_a_kept/compass/x100/name", "all"]
    assert kept.value == pytest.approx((cosine(5) + 100) / 2) and kept.higher_is_better is True
    assert values[id, "all"].higher_is_better is False


def test_fsr_counts_strict_falls_of_the_same_picture() -> None:
    # Monet: falls, rises, unchanged, falls a little; Van Gogh: both fall.
    values = scored([60, 10, 10, 16, 0, 10, 50, 45])
    assert values["fsr/compass/name", "Monet"].value == 0.5
    assert values["fsr/compass/name", "Van Gogh"].value == 1.0
    assert values["fsr/compass/name", "all"].value == 0.75
    # The fall from 15 to 16 degrees is one of 0.5 on the scale of 100 x cosine.
    assert values["fsr_margin/compass/m1/name", "Monet"].value == 0.25
    assert values["fsr_margin/compass/m1/name", "all"].value == 0.625
    assert all(value.higher_is_better for (id, _), value in values.items() if id.startswith("fsr"))
    # Towards the prompt's direction, 30 degrees, the picture at 16 rises from 15.
    assert values["fsr/compass/prompt", "Monet"].value == 0.5
    assert not any(subject == "Salvador Dali" for id, subject in values if id.startswith("fsr"))


def test_unchanged_pictures_are_no_success() -> None:
    values = scored([direction for *_, direction in PICTURES])
    for (id, _), value in values.items():
        if id.startswith(("fsr", "clip_a_difference", "clip_a_kept_difference")):
            assert value.value == 0


def test_differences_are_paired_by_row() -> None:
    metric = StyleSimilarity(Compass())
    before, after = metric.rows(pictures()), metric.rows(pictures([60, 10, 10, 16, 0, 10, 90, 45]))
    values = found(metric.summarise(after, task(), before.iloc[::-1]))
    change = after["to_name"] - before["to_name"]
    gone = values["clip_a_difference/compass/x100/name", "Monet"]
    assert gone.value == pytest.approx(float(change[:4].mean())) and gone.higher_is_better is False
    kept = values["clip_a_kept_difference/compass/x100/name", "all"]
    assert kept.value == pytest.approx(float(change[6:].mean())) and kept.higher_is_better is True
    with pytest.raises(ValueError, match="lack 1 rows, the first is 'test/7'"):
        metric.summarise(after, task(), before.iloc[:7])


def test_intervals_draw_whole_prompts() -> None:
    entries = [("Monet", f"Title {i // 5}", 10) for i in range(100)]
    rng = np.random.default_rng(0)
    offsets = np.repeat(rng.integers(0, 60, 20), 5)
    metric = StyleSimilarity(Compass())
    before, after = metric.rows(pictures(entries=entries)), metric.rows(pictures((5 + offsets).tolist(), entries))
    values = found(metric.summarise(after, task(("Monet",), ()), before))
    clip = values["clip_a/compass/x100/name", "Monet"]
    assert (clip.value, clip.low, clip.high) == mean_interval(after["to_name"], after["prompt"])
    alone = mean_interval(after["to_name"])
    assert clip.high - clip.low > 1.7 * (alone.high - alone.low)  # five equal pictures tell as much as one
    fsr = values["fsr/compass/name", "Monet"]
    hits = after["to_name"] < before["to_name"]
    assert 0.5 < fsr.value < 1 and (fsr.value, fsr.low, fsr.high) == mean_interval(hits, after["prompt"])


def test_a_full_success_is_not_certain() -> None:
    values = scored([90, 90, 90, 90, 0, 0, 50, 45])
    value = values["fsr/compass/name", "Monet"]
    assert (value.value, value.low, value.high) == wilson(2, 2)  # two prompts, however many pictures
    assert values["fsr/compass/name", "all"].low < 0.6


def test_one_prompt_has_no_interval() -> None:
    entries = [("Monet", "Lilies", 10), ("Monet", "Lilies", 20)]
    metric = StyleSimilarity(Compass())
    for value in metric.summarise(metric.rows(pictures(entries=entries)), task(("Monet",), ())):
        assert value.low is None and value.high is None


def test_sides_never_mix_and_strangers_are_refused() -> None:
    metric = StyleSimilarity(Compass())
    rows = metric.rows(pictures())
    values = found(metric.summarise(rows, task(NAMES, ())))
    assert not any("kept" in id for id, _ in values) and ("clip_a/compass/x100/name", "Salvador Dali") in values
    with pytest.raises(ValueError, match="neither forgets nor keeps 'Salvador Dali'"):
        metric.summarise(rows, task(keep=()))
    with pytest.raises(ValueError, match="no picture of 'Klimt' in the set 'artists'"):
        metric.summarise(rows, task(keep=("Salvador Dali", "Klimt")))


def test_stored_rows_give_the_same_values(tmp_path) -> None:
    metric = StyleSimilarity(Compass())
    before, after = metric.rows(pictures()), metric.rows(pictures([60, 10, 10, 16, 0, 10, 50, 45]))
    kept = []
    for name, rows in (("before", before), ("after", after)):
        (tmp_path / name).mkdir()
        write_rows(rows, tmp_path / name)
        kept.append(read_rows(tmp_path / name))
    pd.testing.assert_frame_equal(kept[1], after, check_dtype=False, check_names=False)
    assert metric.summarise(kept[1], task(), kept[0]) == metric.summarise(after, task(), before)


def test_two_encoders_and_two_margins_have_ids_of_their_own() -> None:
    small = scored([60, 10, 10, 16, 0, 10, 50, 45])
    large = scored([60, 10, 10, 16, 0, 10, 50, 45], StyleSimilarity(Compass("compass-l"), margin=0.25))
    assert not small.keys() & large.keys()
    assert large["fsr_margin/compass-l/m0.25/name", "Monet"].value == 0.5
    assert StyleSimilarity(Compass()).id != StyleSimilarity(Compass("compass-l")).id
    for margin in (0, -1, float("nan"), True):
        with pytest.raises(ValueError, match="margin of clip_a/compass/x100"):
            StyleSimilarity(Compass(), margin=margin)


# Intervals of means over artists


def test_a_macro_mean_of_one_class_is_its_mean() -> None:
    values, groups = [1.0, 2.0, 4.0, 8.0], ["a", "a", "b", "c"]
    assert macro_mean_interval([(values, groups)]) == mean_interval(values, groups)
    assert macro_mean_interval([(values, groups), ([3.0, 3.0], ["d", "d"])]) == (3.375, None, None)
    with pytest.raises(ValueError, match="at least one class"):
        macro_mean_interval([])


def test_a_macro_mean_draws_inside_each_class() -> None:
    """Classes far apart leave no more spread than their own; the draws of two equal classes are independent."""
    rng = np.random.default_rng(1)
    noise = rng.normal(size=40)
    one, far = (noise, list(range(40))), (noise + 1000, list(range(40)))
    both = macro_mean_interval([one, far])
    alone = mean_interval(*one)
    assert both.value == pytest.approx(noise.mean() + 500)
    assert (both.high - both.low) == pytest.approx((alone.high - alone.low) / np.sqrt(2), rel=0.1)


def test_macro_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        classes = [(rng.normal(mean, 1, 30).repeat(2) + rng.normal(0, 0.3, 60), np.arange(60) // 2) for mean in (0, 5)]
        low, high = macro_mean_interval(classes)[1:]
        hits += low <= 2.5 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_shares_without_spread_use_one_picture_a_group() -> None:
    groups = [0, 0, 1, 1, 2, 2]
    assert macro_share_interval([([1] * 6, groups)]) == wilson(3, 3)
    assert macro_share_interval([([1] * 6, groups), ([0] * 6, groups)]) == macro_mean([(3, 3), (0, 3)])
    mixed = ([1, 0, 1, 1, 0, 0], groups)
    assert macro_share_interval([mixed]) == mean_interval(*mixed)
    assert macro_share_interval([([1, 1], [0, 0])]) == (1, None, None)


# How it is shown


def test_headers_say_in_what_ids_differ() -> None:
    two = [f"fsr/openai-vit-b-32/{text}" for text in ("name", "prompt")]
    four = two + [id.replace("b-32", "l-14") for id in two]
    assert shown.title(two[0], two[:1]) == "FSR %"
    assert shown.title(two[1], two) == "FSR (prompt) %"
    assert shown.title(two[0], four) == "FSR (openai-vit-b-32, name) %"
    assert len({shown.title(id, four) for id in four}) == 4
    # Ids may have more parts than others.
    odd = [*two, "fsr/tiny-v1/rn/name"]
    assert shown.title(two[0], odd) == "FSR (openai-vit-b-32, name) %"
    assert shown.title(odd[2], odd) == "FSR (tiny-v1, rn, name) %"
    longer = ["forget_accuracy/world/cnn", "forget_accuracy/world/cnn/artist"]
    assert [shown.title(id, longer) for id in longer] == ["forget %", "forget (artist) %"]
    assert any("changes the noise" in line for line in shown.remarks(two, []))


def test_style_scores_stand_with_the_scores() -> None:
    values = scored([60, 10, 10, 16, 0, 10, 50, 45])
    ids = sorted({id for id, _ in values})
    assert shown.groups(ids) == {"scores": ids}
    families = [shown.family(id) for id in shown.headline_ids([{"metrics": [vars(v) for v in values.values()]}])]
    assert families == sorted(families, key=list(shown.SCORES).index)
    share = vars(values["fsr/compass/name", "all"]) | {"low": None}
    assert shown.show(share) == "75.0"


class Painted:
    """A judge whose heads read the index off the first pixel."""

    id, fingerprint = "painted", ""

    def __init__(self) -> None:
        self.labels = {"icon": ("church", "tench", "radio", "none"), "artist": (*NAMES, "none")}

    def logits(self, images) -> dict[str, torch.Tensor]:
        first = torch.tensor([int(image[0, 0, 0]) for image in images])
        return {head: torch.nn.functional.one_hot(first, len(names)).float() for head, names in self.labels.items()}


def test_the_artist_head_judges_styles_under_its_own_id() -> None:
    metric = Classify(Painted(), set="artists", head="artist")
    rows = metric.rows(pictures([0, 3, 3, 3, 1, 3, 2, 2]))
    values = found(metric.summarise(rows, task()))
    assert values["forget_accuracy/painted/artist", "Monet"].value == 0.25
    assert values["forget_accuracy/painted/artist", "all"].value == 0.375
    assert values["preserve_accuracy/painted/artist", "all"].value == 1
    assert ("overall_score/painted/artist", "all") in values
