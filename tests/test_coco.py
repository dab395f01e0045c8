"""COCO's photos from a folder: which photo belongs to which caption, and what is said where one is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from eval.coco import PhotoFiles, Val2014, val2014
from eval.fid import Fid
from harness import sources
from harness.generate import ImageSet
from harness.task import PromptSet, Task, quality_set

CONF = Path(__file__).resolve().parents[1] / "conf"
IDS = (42, 7, 581929, 300)
SIZES = ((64, 48), (48, 64), (50, 50), (48, 64))  # width, height


class Means:
    """The mean colour of a picture as its features."""

    id = features_id = "means"
    fingerprint = ""

    def features(self, images) -> torch.Tensor:
        return torch.tensor(np.stack([np.asarray(image).reshape(-1, 3).mean(0) for image in images]))


@pytest.fixture(autouse=True)
def captions(monkeypatch) -> None:
    """A list of four captions in place of the pinned 30,000; one has a stray line break, as some of the real ones."""
    rows = [{"prompt": f"a road\n {i}", "evaluation_seed": str(10 + i), "coco_id": str(id)} for i, id in enumerate(IDS)]
    monkeypatch.setattr(sources, "rows", lambda name: {"coco_30k": rows}[name])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos of one colour each, (20 i, 0, 0) for caption i; JPEG keeps such a colour to a step or two."""
    for i, (number, size) in enumerate(zip(IDS, SIZES)):
        Image.new("RGB", size, (20 * i, 0, 0)).save(tmp_path / f"COCO_val2014_{number:012d}.jpg", quality=100)
    return tmp_path


def prompts(n: int, split: str = "test") -> PromptSet:
    return quality_set(sources.coco_captions, n, split)


def task(captions: PromptSet) -> Task:
    return Task("test", "object", "test", (), sets={"quality": captions})


def reds(images) -> list[int]:
    return [round(float(image[..., 0].mean()) / 20) for image in images]


def test_photos_follow_the_captions(folder: Path) -> None:
    photos = val2014(str(folder))
    assert reds(photos(3, "test")) == [0, 1, 2] and reds(photos(3, "tuning")) == [3, 2, 1]
    first = photos(4, "test")[0]
    assert first.shape == (48, 64, 3) and first.dtype == np.uint8
    assert reds(photos(4, "test")[1:3]) == [1, 2] and len(photos(4, "test")[1:]) == 3
    assert photos.name == "coco-val2014" and val2014(None) is None


def test_an_unpacked_archive_is_found_by_the_folder_around_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "val2014").symlink_to(folder, target_is_directory=True)
    assert reds(val2014(str(tmp_path / "outer"))(2, "test")) == [0, 1]


def test_grey_photos_have_three_channels(folder: Path) -> None:
    Image.new("L", (9, 7), 200).save(folder / "COCO_val2014_000000000042.jpg")
    assert val2014(str(folder))(1, "test")[0].shape == (7, 9, 3)


def test_a_crop_is_a_square_from_the_middle_under_a_name_of_its_own(folder: Path) -> None:
    picture = np.zeros((60, 120, 3), np.uint8)
    picture[:, 30:90] = 255
    Image.fromarray(picture).save(folder / "COCO_val2014_000000000042.jpg", quality=100)
    photos = val2014(str(folder), crop=30)
    square = photos(1, "test")[0]
    assert square.shape == (30, 30, 3) and square[:, 2:-2].min() > 240
    assert photos.name == "coco-val2014-crop30" and photos(4, "test")[3].shape == (30, 30, 3)
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match="photos_crop"):
            val2014(str(folder), crop=wrong)


def test_the_key_is_that_of_the_files_and_the_crop(folder: Path) -> None:
    def key(numbers=(0, 1, 2), crop=None) -> str:
        return val2014(str(folder), crop)(3, "test").pick(numbers).content()

    first, others = key(), key((0, 2))
    assert key() == first and len({first, key((1, 0, 2)), key((0, 1)), key(crop=8)}) == 4
    path = folder / "COCO_val2014_000000000007.jpg"
    data = path.read_bytes()
    path.write_bytes(data + b"\0")
    assert key() != first and key((0, 2)) == others


def test_photos_are_read_one_by_one(folder: Path, monkeypatch) -> None:
    opened = []
    plain = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(Path(path).name) or plain(path))
    photos = val2014(str(folder))(4, "test").pick([2, 0])
    assert photos.content() and not opened
    assert reds(photos[1:]) == [0] and opened == ["COCO_val2014_000000000042.jpg"]


def test_missing_and_damaged_photos_are_one_clear_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"suite\.photos=.*nowhere: there is no such folder"):
        val2014(str(tmp_path / "nowhere"))
    (folder / "COCO_val2014_000000000007.jpg").unlink()
    (folder / "COCO_val2014_000000000300.jpg").write_bytes(b"no picture")
    photos = val2014(str(folder))
    words = r"lacks 1 of the 3 photos, the first is COCO_val2014_000000000007\.jpg; unpack .*val2014\.zip"
    with pytest.raises(ValueError, match=words):
        photos(3, "test")
    with pytest.raises(ValueError, match=words):
        Fid(Means(), photos=photos).check(task(prompts(3)))
    with pytest.raises(ValueError, match=r"000000000300\.jpg cannot be read as a picture"):
        photos(1, "tuning")[0]


def test_captions_of_another_list_have_no_photos(folder: Path) -> None:
    metric = Fid(Means(), photos=val2014(str(folder)))
    metric.check(task(prompts(3)))
    metric.check(task(prompts(3, "tuning")))
    other = quality_set(lambda n, split: [("a tree", i) for i in range(n)], 2, "test")
    with pytest.raises(ValueError, match=r"row 'test/00000' is not caption 0 of coco_30k.*suite's own captions"):
        metric.check(task(other))


def test_fid_names_the_photos_and_counts_dropped_captions(folder: Path) -> None:
    metric = Fid(Means(), photos=val2014(str(folder)))
    whole = prompts(4)
    left = PromptSet("quality", (whole.rows[0], whole.rows[2], whole.rows[3]), screened=1)
    metric.check(task(left))
    references = metric.references(left)
    assert reds(references.images) == [0, 2, 3] and isinstance(references.images, PhotoFiles)
    there = metric.rows(references)
    same = metric.rows(ImageSet(left, [np.asarray(image) for image in references.images], "key"))
    values = metric.summarise(same, task(left), None, there)
    assert [value.id for value in values] == ["fid/means/coco-val2014-n3", "kid/means/coco-val2014-n3"]
    assert values[0].value == pytest.approx(0, abs=1e-6)


def suite_metrics(*overrides: str) -> dict[str, object]:
    """The SD suite's metrics by id, as a run has them."""
    from hydra import compose, initialize_config_dir

    from experiments.setup import _task

    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["model=sd15", "quality.n=3", *overrides])
    task = _task(OmegaConf.to_container(config, resolve=True))
    return {metric.id: metric for metric in task.metrics}


def test_the_sd_suite_measures_more_where_it_is_asked_to(folder: Path) -> None:
    plain = suite_metrics()
    more = suite_metrics(f"suite.photos={folder}", "suite.photos_crop=32", "suite.cleanfid=true", "suite.clip_l14=true")
    assert {"clip/openai-vit-b-32/x100", "features/torch-fidelity-inception2048"} <= set(plain)
    assert set(more) - set(plain) == {"clip/openai-vit-l-14/x100", "features/cleanfid-clean-inception2048"}
    assert {metric.photos_name for metric in plain.values() if isinstance(metric, Fid)} == {""}
    assert {metric.photos_name for metric in more.values() if isinstance(metric, Fid)} == {"coco-val2014-crop32"}


def test_the_sd_suites_classifier_is_chosen_by_its_weights(folder: Path) -> None:
    for weights, others in (("IMAGENET1K_V2", []), ("IMAGENET1K_V1", ["suite.classifier_weights=IMAGENET1K_V1"])):
        found = [metric for metric in suite_metrics(*others) if metric.startswith("classify/")]
        assert found == [f"classify/torchvision-resnet50-{weights.lower()}"]
    with pytest.raises(Exception, match="has the weights IMAGENET1K_V2 and IMAGENET1K_V1, not 'V3'"):
        suite_metrics("suite.classifier_weights=V3")


def test_a_run_looks_for_its_photos_first(folder: Path) -> None:
    (folder / "COCO_val2014_000000000007.jpg").unlink()
    with pytest.raises(ValueError, match="lacks 1 of the 3 photos"):
        suite_metrics(f"suite.photos={folder}")


def test_a_metric_without_photos_of_the_users_checks_nothing() -> None:
    Fid(Means()).check(task(prompts(3)))
    Fid(Means(), photos=lambda n, split: [], photos_name="rendered").check(task(prompts(3)))


def test_photos_know_their_own_name(folder: Path) -> None:
    assert Fid(Means(), photos=Val2014(folder, 32)).photos_name == "coco-val2014-crop32"
