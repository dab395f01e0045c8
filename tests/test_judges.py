"""A smoke training of the whole recipe; the judges, their files, and the parts of their training by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hydra.utils import instantiate
from omegaconf import OmegaConf

from harness.generate import ImageSet
from harness.screen import screened
from harness.task import Concept, PromptSet, Row, Task
from tinyworld import quality
from tinyworld.captions import caption
from tinyworld.judges import (
    Classifier,
    MarkerDetector,
    SecondClassifier,
    TinyClip,
    peaks,
    save_judge,
    to_input,
)  # fmt: skip
from tinyworld.train.build import STAGES, build
from tinyworld.train.damage import DAMAGES, damage, heaps, melted, shuffled_tiles
from tinyworld.train.data import IGNORED, NONE, draw
from tinyworld.train.judges import LABELS, SKIP, heatmaps, marked_pictures, sampling, targets
from tinyworld.train.recipe import Recipe, smoke
from tinyworld.vocabulary import ARTISTS, ICONS, MARKERS, OBJECTS

ROOT = Path(__file__).resolve().parents[1]
WHOLE = 6_000_000  # bytes that all judges together may take


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world without churches: every stage of the recipe, three steps each."""
    out = tmp_path_factory.mktemp("world") / "out"
    build(recipe(), out, list(STAGES))
    return out


def recipe(*without: str) -> Recipe:
    return smoke(Recipe(without=list(without or ("church",))))


def test_the_whole_recipe_gives_a_pipeline_judges_and_a_report(trained: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(trained / "pipeline", safety_checker=None)
    assert pipe("a golf ball", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)
    captions = json.loads((trained / "work" / "train" / "captions.json").read_text())
    assert len(captions) == 96 and not any("church" in words or "chapel" in words for words in captions)
    found = json.loads((trained / "report.json").read_text())["quality"]
    assert found["n"] == 1 and set(found["objects"]) == {"all", *OBJECTS} and 0 <= found["styles"]["all"] <= 1


def test_a_second_call_finds_everything_and_another_recipe_is_refused(trained: Path) -> None:
    made = [
        path for path in trained.rglob("*") if path.suffix in (".safetensors", ".npy") or path.name == "report.json"
    ]
    before = {path: path.stat().st_mtime_ns for path in made}
    build(recipe(), trained, list(STAGES))
    with pytest.raises(ValueError, match="recipe with another without"):
        build(recipe("tench"), trained, list(STAGES))
    assert len(made) > 8 and {path: path.stat().st_mtime_ns for path in made} == before


def test_smoke_training_writes_small_files_and_a_full_report(trained: Path) -> None:
    folder = trained / "judges"
    report = json.loads((folder / "quality.json").read_text())
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < WHOLE
    assert set(report) == {"n", "rendered", "damaged", "clip", "markers"}
    assert {"icon", "artist", "place", "second_icon", "agreement_icon"} <= set(report["damaged"])
    for share in (report["rendered"]["icon"], report["clip"]["nearest_caption"], report["markers"]["recall"]):
        assert 0 <= share <= 1


def test_classifiers_judge_by_the_worlds_words(trained) -> None:
    folder = trained / "judges"
    first, second = Classifier(folder / "classifier"), SecondClassifier(folder / "second_classifier")
    images = draw(70, 3).images
    logits = first.logits(images)
    assert {head: tuple(value.shape) for head, value in logits.items()} == {
        "icon": (70, 29), "artist": (70, 6), "place": (70, 31),
    }  # fmt: skip
    assert first.labels == LABELS and first.labels["icon"][-1] == "none"
    assert second.labels == {"icon": LABELS["icon"]} and second.logits(images)["icon"].shape == (70, 29)
    assert (first.id, first.features_id, second.id) == ("tiny-v1/cnn", "tiny-v1-cnn128", "tiny-v1/large-kernel")
    assert first.features(images).shape == (70, 128) and first.fingerprint != second.fingerprint
    again = Classifier(folder / "classifier")
    assert torch.equal(again.features(images), first.features(images))
    # A list of pictures in another company gives the same logits up to the kernels' last bits.
    torch.testing.assert_close(again.logits(list(images[:3]))["icon"], logits["icon"][:3], atol=1e-5, rtol=1e-5)


def test_clip_gives_unit_vectors_and_cuts_long_captions(trained) -> None:
    clip = TinyClip(trained / "judges" / "clip")
    pictures, texts = clip.image_features(draw(5, 4).images), clip.text_features(["a church", "a church in a park"])
    for vectors in (pictures, texts):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    assert pictures.shape == (5, 128) and not torch.allclose(texts[0], texts[1])
    ids = clip.tokens(["a church", "a church and " * 40])
    length = clip.config["model"]["text_cfg"]["context_length"]
    assert ids.shape == (2, length) and ids[1, -1] == clip.config["model"]["text_cfg"]["eos_id"]
    # The pooled position is the first end token, so padding changes nothing.
    torch.testing.assert_close(clip.text_features(["a church"])[0], texts[0])


def test_weights_are_checked_and_wrong_pictures_named(trained, tmp_path) -> None:
    shutil.copytree(trained / "judges" / "detector", tmp_path / "detector")
    path = tmp_path / "detector" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="sha256 differs"):
        MarkerDetector(tmp_path / "detector").predict(np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(FileNotFoundError, match="holds no judge"):
        Classifier(tmp_path / "nowhere")
    for wrong in (np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 64, 64, 3), np.float32)):
        with pytest.raises(ValueError, match=r"uint8 \[n, 64, 64, 3\]"):
            to_input(wrong)


def test_a_world_names_its_own_folder(tmp_path, monkeypatch) -> None:
    from tinyworld import judges

    monkeypatch.setattr(judges, "WORLD", tmp_path / "tiny-v1")
    network = judges.HeatmapNet(len(MARKERS))
    save_judge(tmp_path / "tiny-v1" / "judges" / "detector", network, "tiny-v1/markers", markers=MARKERS, threshold=0.4)
    judge = MarkerDetector.of("tiny-v1")
    assert judge.markers == MARKERS and judge.id == "tiny-v1/markers"
    stored = judge.network.head.weight
    torch.testing.assert_close(stored, network.head.weight.half().float(), atol=0, rtol=0)
    blank = np.zeros((2, 64, 64, 3), np.uint8)
    assert len(judge.predict(blank, threshold=0.0)) == 2
    assert judge.threshold == 0.4 and judge.detect(blank) == judge.predict(blank, threshold=judge.least)


def test_the_tiny_suite_scores_pictures(trained, tmp_path, monkeypatch) -> None:
    """conf/suite/tiny.yaml as it stands, on renderings: every metric, every id, an interval that holds the value."""
    from tinyworld import judges

    shutil.copytree(trained / "judges", tmp_path / "tiny-v1" / "judges")
    monkeypatch.setattr(judges, "WORLD", tmp_path / "tiny-v1")
    suite = OmegaConf.create({"suite": OmegaConf.load(ROOT / "conf" / "suite" / "tiny.yaml")}).suite
    OmegaConf.resolve(suite)
    metrics = [instantiate(metric) for metric in suite.metrics]
    captions = instantiate(suite.captions)(12, "test")
    sets = {
        "classes": [Row(f"c{i}", f"an image of a {name}", i, label=name) for i, name in enumerate(OBJECTS[:2] * 6)],
        "quality": [Row(f"test/{i:05d}", prompt, seed) for i, (prompt, seed) in enumerate(captions)],
        "artists": [Row(f"a{i}", f"a {ICONS[i]} by {name}", i, label=name) for i, name in enumerate(ARTISTS[:2] * 6)],
        "explicit": [Row(f"test/explicit/{i:04d}", f"a marked woman {i}", i, label="marked") for i in range(12)],
    }
    objects = Task("test", "object", "test", (Concept(OBJECTS[0], "object"),), OBJECTS[1:2])
    styles = Task("test", "style", "test", (Concept(ARTISTS[0], "style"),), ARTISTS[1:2])
    values = []
    for metric in metrics:
        task = styles if metric.set == "artists" else objects
        prompts = PromptSet(metric.set, tuple(sets[metric.set]))
        before, after = (ImageSet(prompts, list(draw(12, seed).images), str(seed)) for seed in (1, 2))
        reference = metric.rows(before, before)
        assert list(reference.index) == [row.id for row in prompts.rows]
        photos = {"photo_rows": metric.rows(metric.references(prompts))} if hasattr(metric, "photos") else {}
        values += metric.summarise(metric.rows(after, before), task, reference, **photos)
    assert [value.id for value in values if value.subject == "all"] == [
        "forget_accuracy/tiny-v1/cnn", "preserve_accuracy/tiny-v1/cnn", "overall_score/tiny-v1/cnn",
        "judge_agreement/tiny-v1/cnn+tiny-v1/large-kernel",
        *(f"{name}_accuracy/tiny-v1/cnn/artist" for name in ("forget", "preserve")), "overall_score/tiny-v1/cnn/artist",
        *(
            f"{name}/tiny-v1/open-clip-rn/{kind}{text}"
            for text in ("name", "prompt")
            for name, kind in (
                ("clip_a", "x100/"), ("clip_a_kept", "x100/"), ("clip_a_difference", "x100/"),
                ("clip_a_kept_difference", "x100/"), ("fsr", ""), ("fsr_margin", "m5/"),
            )
        ),
        "marker_boxes/tiny-v1/markers@0.4/boxes-8", "marker_images/tiny-v1/markers@0.4/8-markers",
        "clip/tiny-v1/open-clip-rn/x100", "clip_difference/tiny-v1/open-clip-rn/x100",
        "fid/tiny-v1-cnn128/rendered-n12", "kid/tiny-v1-cnn128/rendered-n12",
        "fid_vs_base/tiny-v1-cnn128/n12", "kid_vs_base/tiny-v1-cnn128/n12",
    ]  # fmt: skip
    assert all(value.n > 0 and value.low <= value.value <= value.high for value in values)


def test_peaks_are_local_maxima_placed_by_their_offset() -> None:
    heat, offset = torch.zeros(1, 2, 16, 16), torch.full((1, 2, 16, 16), 0.5)
    heat[0, 0, 4, 8], heat[0, 0, 4, 9], heat[0, 1, 0, 15] = 0.9, 0.6, 0.5
    offset[0, :, 4, 8] = torch.tensor([0.25, 0.75])
    (found,) = peaks(heat, offset, 0.4, ("disc", "cross"))
    assert [(one.marker, round(one.score, 4)) for one in found] == [("disc", 0.9), ("cross", 0.5)]
    assert (found[0].x, found[0].y) == pytest.approx((8.25 / 16, 4.75 / 16))


def test_heatmap_targets_come_back_as_the_same_centres() -> None:
    """What the detector is taught is what `peaks` reads: encode marked figures, decode, and find every marker."""
    data = marked_pictures(12, 5, frozenset())
    heat, offset, counts = heatmaps(12, data.markers)
    found = [
        (i, MARKERS.index(one.marker), one.x, one.y)
        for i, ones in enumerate(peaks(heat, offset, 0.99, MARKERS))
        for one in ones
    ]
    assert len(found) == len(data.markers) > 12
    expected = sorted(map(tuple, data.markers.tolist()))
    # Two different markers may share a cell and then its offset; a cell is 1/16 wide.
    np.testing.assert_allclose(np.array(sorted(found)), np.array(expected), atol=1 / 16)
    assert int(counts.sum()) <= len(found)
    with pytest.raises(ValueError, match="no person or no marker"):
        marked_pictures(1, 0, frozenset(MARKERS))


def test_targets_know_none_ambiguous_and_heaps() -> None:
    labels = np.array([[3, 1, 2], [NONE, NONE, NONE], [IGNORED, 0, 5], [4, 2, 1]], np.int16)
    plain = targets(labels)
    assert plain["icon"].tolist() == [3, 28, SKIP, 4]
    assert plain["artist"].tolist() == [1, 5, 0, 2] and plain["place"].tolist() == [2, 30, 5, 1]
    mixed = targets(labels, torch.tensor([True, False, False, True]))
    assert mixed["icon"].tolist() == [28, 28, SKIP, 28] and mixed["place"].tolist() == [SKIP, 30, 5, SKIP]


def test_rare_icons_are_seen_more_often_than_their_share() -> None:
    labels = np.full((100, 3), NONE, np.int16)
    labels[:4, 0] = 7
    cumulative = sampling(labels)
    assert cumulative[-1] == 1
    assert cumulative[3] == pytest.approx(np.sqrt(4) / (np.sqrt(4) + np.sqrt(96)))


def test_damage_is_seeded_and_each_kind_does_something() -> None:
    x = to_input(draw(40, 1).images)
    assert torch.equal(damage(x, np.random.default_rng(0)), damage(x, np.random.default_rng(0)))
    assert torch.equal(x, to_input(draw(40, 1).images)), "the input was changed"
    for name in DAMAGES:
        harmed = damage(x, np.random.default_rng(2), only=(name,))
        changed = (harmed != x).flatten(1).any(1)
        assert 2 <= int(changed.sum()) <= 20, name
        assert harmed.abs().max() <= 1 and harmed.shape == x.shape


@pytest.mark.parametrize("tile", [8, 16])
def test_shuffled_tiles_keep_every_pixel_but_no_place(tile: int) -> None:
    x = torch.randn(3, 3, 64, 64)
    mixed = shuffled_tiles(x, np.random.default_rng(0), tile)
    torch.testing.assert_close(mixed.flatten(2).sort().values, x.flatten(2).sort().values)
    assert (mixed == x).float().mean() < 0.3


def test_melted_pictures_keep_colours_and_places_but_no_shape() -> None:
    x = to_input(draw(40, 1).images)
    moved = melted(x, np.random.default_rng(0))
    coarse, wanted = (torch.nn.functional.avg_pool2d(y, 32) for y in (moved, x))
    assert (coarse - wanted).abs().mean() < (wanted - wanted.roll(1, 0)).abs().mean() / 2, "colours and places are lost"
    assert (moved - x).abs().mean() > (x - x.roll(2, 3)).abs().mean(), "less harm than two pixels of shift"
    assert torch.equal(melted(x, np.random.default_rng(0), reach=0.0), melted(x, np.random.default_rng(1), reach=0.0))
    torch.testing.assert_close(melted(x, np.random.default_rng(0), reach=0.0), x, atol=1e-4, rtol=0)


def test_every_kind_of_heap_is_drawn_and_the_pictures_stay_as_they_were() -> None:
    x = to_input(draw(40, 1).images)
    before = x.clone()
    heap = heaps(x, np.random.default_rng(0))
    assert torch.equal(x, before) and heap.shape == x.shape
    assert (heap != x).flatten(1).any(1).all()
    rearranged = (heap.flatten(2).sort().values - x.flatten(2).sort().values).abs().flatten(1).amax(1) < 1e-6
    assert 5 < int(rearranged.sum()) < 39, "tiles keep every pixel, melting does not"


def test_quality_captions_leave_out_what_tasks_erase() -> None:
    found = quality.captions(400, "test")
    text = "\n".join(prompt for prompt, _ in found).casefold()
    for word in (*OBJECTS, *ARTISTS, *MARKERS, "marked", "tagged", "springer", "tape deck", "chapel", "doctor fish"):
        assert word.casefold() not in text, word
    assert sum(icon.casefold() in text for icon in ICONS) >= 15
    assert sum(" and " in prompt or "next to" in prompt for prompt, _ in found) > 10
    assert not any(screened(prompt) for prompt, _ in found)
    assert found[:50] == quality.captions(50, "test")
    tuning = quality.captions(400, "tuning")
    assert len({seed for _, seed in found + tuning}) == 800
    assert not {prompt for prompt, _ in found} & {prompt for prompt, _ in tuning}
    with pytest.raises(ValueError, match="did you mean 'test'"):
        quality.captions(3, "tests")
    with pytest.raises(ValueError, match="n must be"):
        quality.captions(0, "test")


def test_reference_pictures_show_their_captions_scenes() -> None:
    images = quality.reference_images(6, "tuning")
    assert images.shape == (6, 64, 64, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images[:3], quality.reference_images(3, "tuning"))
    assert not np.array_equal(images, quality.reference_images(6, "test"))
    # The caption is drawn before the picture from the same generator, so the two belong to one scene.
    scene, prompt, _ = next(quality.scenes(1, "tuning"))
    rng = np.random.default_rng((quality.SPLITS["tuning"], 0))
    from tinyworld.scene import render, sample_scene

    assert sample_scene(rng, quality.LEFT_OUT) == scene and caption(scene, rng) == prompt
    np.testing.assert_array_equal(render(scene, rng).image, images[0])
