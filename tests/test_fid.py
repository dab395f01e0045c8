"""FID and KID against torchmetrics, closed forms and their own unbiasedness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from eval import fid as module
from eval.fid import Fid, fid, frechet, kid, moments
from eval.inception import Inception
from harness.generate import ImageSet
from harness.task import PromptSet, Row, Task


class Flatten(torch.nn.Module):
    """Eight numbers of each picture as features, for us and for torchmetrics."""

    features_id, fingerprint, num_features = "eight", "", 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.double().reshape(len(x), 3, -1)[:, :, :3].flatten(1)[:, :8] / 50

    def features(self, images) -> torch.Tensor:
        return self(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))


def noise(n: int, seed: int, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (n, 4, 4, 3), np.uint8)


def test_fid_is_torchmetrics() -> None:
    one, other = noise(60, 0), noise(80, 1, 40, 200)
    theirs = FrechetInceptionDistance(feature=Flatten(), input_img_size=(3, 4, 4)).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(one).permute(0, 3, 1, 2), real=True)
    theirs.update(torch.from_numpy(other).permute(0, 3, 1, 2), real=False)
    net = Flatten()
    ours = fid(net.features(other).numpy(), net.features(one).numpy())
    assert ours.value == pytest.approx(float(theirs.compute()), rel=1e-6)
    assert ours.low < ours.value < ours.high


def test_kid_is_torchmetrics() -> None:
    one, other = noise(60, 0), noise(60, 1, 40, 200)
    theirs = KernelInceptionDistance(feature=Flatten(), subsets=1, subset_size=60)
    theirs.update(torch.from_numpy(one).permute(0, 3, 1, 2), real=True)
    theirs.update(torch.from_numpy(other).permute(0, 3, 1, 2), real=False)
    net = Flatten()
    ours = kid(net.features(other).numpy(), net.features(one).numpy())
    assert ours.value == pytest.approx(float(theirs.compute()[0]), rel=1e-4)
    assert ours.low < ours.value < ours.high


def test_frechet_closed_forms() -> None:
    mean = np.array([1.0, -2.0])
    a, b = np.diag([4.0, 9.0]), np.diag([1.0, 16.0])
    assert frechet((mean, a), (np.zeros(2), b)) == pytest.approx(5 + 1 + 1)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    assert frechet((mean, turn @ a @ turn.T), (mean, turn @ a @ turn.T)) == pytest.approx(0, abs=1e-12)
    singular = np.diag([4.0, 0.0])
    assert frechet((mean, singular), (mean, b)) == pytest.approx(1 + 16)


def test_counts_are_copies() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3))
    counts = np.array([0, 2, 1, 3, 1])
    for ours, expected in zip(moments(x, counts), moments(np.repeat(x, counts, axis=0))):
        np.testing.assert_allclose(ours, expected, atol=1e-12)
    with pytest.raises(ValueError, match="at least 2 pictures"):
        moments(x[:1])


def test_kid_is_unbiased_and_its_interval_covers() -> None:
    """Samples of one distribution: the mean KID is zero, and nearly all intervals hold zero."""
    rng = np.random.default_rng(0)
    found = [kid(rng.normal(size=(40, 4)), rng.normal(size=(40, 4))) for _ in range(60)]
    values = np.array([one.value for one in found])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    assert np.mean([one.low <= 0 <= one.high for one in found]) >= 0.85


def test_kid_in_blocks_agrees_with_all_pairs(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 4)), rng.normal(0.4, 1, size=(400, 4))
    whole = kid(x, y)
    monkeypatch.setattr(module, "KID_BLOCK", 50)
    blocks = kid(x, y)
    assert blocks.low < whole.value < blocks.high and blocks.value != whole.value


def test_wide_features_have_no_fid_interval(monkeypatch) -> None:
    monkeypatch.setattr(module, "WIDEST_RESAMPLED", 4)
    x = np.random.default_rng(0).normal(size=(10, 5))
    assert fid(x, x + 1)[1:] == (None, None)
    assert fid(x, x + 1).value == pytest.approx(5)


def image_set(images: np.ndarray) -> ImageSet:
    rows = tuple(Row(f"test/{i}", f"a road {i % 20}", i) for i in range(len(images)))
    return ImageSet(PromptSet("quality", rows), list(images), "key", len(images), 0)


TASK = Task("test", "object", "tuning", ())


def test_metric_compares_with_photos_and_with_the_unedited_model() -> None:
    asked = []

    def photos(n: int, split: str) -> np.ndarray:
        asked.append((n, split))
        return noise(n, 5)

    metric = Fid(Flatten(), photos=photos, photos_name="rendered")
    before, after = metric.rows(image_set(noise(30, 1)), None), metric.rows(image_set(noise(30, 2, 60)), None)
    assert (after.dtypes.iloc[1:] == np.float32).all()
    values = metric.summarise(after, TASK, before)
    assert [value.id for value in values] == [
        "fid/eight/rendered-n30", "kid/eight/rendered-n30", "fid_vs_base/eight/n30", "kid_vs_base/eight/n30",
    ]  # fmt: skip
    assert asked == [(30, "tuning")]
    assert all(value.n == 30 and value.higher_is_better is False for value in values)
    assert [value.id for value in metric.summarise(before, TASK, before)] == [value.id for value in values[:2]]
    assert metric.summarise(before.copy(), TASK, before)[2].value == pytest.approx(0, abs=1e-6)


def test_photos_and_their_name_go_together() -> None:
    with pytest.raises(ValueError, match="photos and photos_name"):
        Fid(Flatten(), photos_name="rendered")


def test_missing_inception_weights_are_one_clear_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(ValueError, match="torch-fidelity's Inception are not in the local cache"):
        Inception(device="cpu").features([np.zeros((8, 8, 3), np.uint8)])
