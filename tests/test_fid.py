"""FID and KID against torchmetrics, closed forms and their own unbiasedness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import stdtrit
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from eval import fid as module
from eval.fid import Fid, factors, fid, frechet, frechet_of_factors, jackknifed, kid, moments
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


@pytest.mark.parametrize(("n", "m", "d"), [(12, 12, 40), (12, 9, 40), (50, 30, 8)])
def test_the_distance_from_factors_is_that_from_covariances(n: int, m: int, d: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)), rng.normal(size=(m, d)) + 0.3
    counts = rng.multinomial(n, np.full(n, 1 / n))
    for c in (None, counts):
        # Singular covariances: the root of an eigenvalue that is zero but for rounding adds up to 1e-8 of the largest.
        expected = frechet(moments(x, c), moments(y))
        assert frechet_of_factors(factors(x, c), factors(y)) == pytest.approx(expected, rel=1e-6)
    assert frechet_of_factors(factors(x), factors(x)) == pytest.approx(0, abs=1e-9 * moments(x)[1].trace())


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


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_of_wide_features_holds_the_known_distance(monkeypatch, paired: bool) -> None:
    """Two Gaussians a distance of 4 apart, with a bias of about a hundredth of that; or a fixed reference, which counts
    as known."""
    monkeypatch.setattr(module, "WIDEST_RESAMPLED", 3)
    rng = np.random.default_rng(0)
    fixed = rng.normal(size=(900, 4))
    truth = 4 if paired else frechet((np.ones(4), np.eye(4)), moments(fixed))
    found = []
    for _ in range(100):
        x = rng.normal(1, 1, size=(300, 4))
        found.append(fid(x, rng.normal(size=(300, 4)) if paired else fixed))
    values = np.array([one.value for one in found])
    assert values.mean() == pytest.approx(truth, rel=0.03)
    # Three binomial standard deviations around 95 %.
    assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 100)
    # Widths are those of the values; 2.093 is Student's factor of 19 degrees of freedom.
    widths = np.array([one.high - one.low for one in found]) / 2 / 2.093
    assert np.sqrt((widths**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.2)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 200, 6), (200, 90, 6), (12, 12, 20)])
def test_jackknife_replicates_are_fids_without_a_block(n: int, m: int, d: int) -> None:
    """The first feature is the same in all pictures, so the covariances are singular."""
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, d)) + 50, rng.normal(size=(m, d)) + 50.3
    x[:, 0] = y[:, 0] = 7
    groups = np.arange(n) // 2
    blocks = min(module.JACKKNIFE_BLOCKS, n // 2)
    left = np.random.default_rng(module.SEED).permutation(n // 2) % blocks
    found = [
        frechet(moments(x[left[groups] != b]), moments(y[left[groups] != b] if m == n else y)) for b in range(blocks)
    ]
    expected = stdtrit(blocks - 1, 0.975) * np.sqrt((blocks - 1) * np.var(found))
    assert jackknifed(x, y, groups) == pytest.approx(expected, rel=1e-5)


def test_one_group_alone_says_nothing_about_the_spread(monkeypatch) -> None:
    monkeypatch.setattr(module, "WIDEST_RESAMPLED", 4)
    x = np.random.default_rng(0).normal(size=(10, 5))
    one = fid(x, x + 1, np.zeros(10, int))
    assert one.value == pytest.approx(5) and one[1:] == (None, None)


def image_set(images: np.ndarray) -> ImageSet:
    rows = tuple(Row(f"test/{i}", f"a road {i % 20}", i) for i in range(len(images)))
    return ImageSet(PromptSet("quality", rows), list(images), "key", len(images), 0)


TASK = Task("test", "object", "tuning", ())


def photos(n: int, split: str) -> np.ndarray:
    """Pictures in which number and split can be read off the features."""
    start = {"test": 0, "tuning": 100}[split]
    return np.stack([np.full((4, 4, 3), start + i, np.uint8) for i in range(n)])


def test_metric_compares_with_photos_and_with_the_unedited_model() -> None:
    metric = Fid(Flatten(), photos=lambda n, split: noise(n, 5), photos_name="rendered")
    before, after = metric.rows(image_set(noise(30, 1)), None), metric.rows(image_set(noise(30, 2, 60)), None)
    assert (after.dtypes.iloc[1:] == np.float32).all()
    there = metric.rows(metric.references(image_set(noise(30, 2)).prompts))
    values = metric.summarise(after, TASK, before, there.iloc[::-1])
    assert [value.id for value in values] == [
        "fid/eight/rendered-n30", "kid/eight/rendered-n30", "fid_vs_base/eight/n30", "kid_vs_base/eight/n30",
    ]  # fmt: skip
    net = Flatten()
    expected = fid(net.features(noise(30, 2, 60)).numpy(), net.features(noise(30, 5)).numpy(), np.arange(30) % 20)
    assert values[0].value == pytest.approx(expected.value, rel=1e-4)
    assert all(value.n == 30 and value.higher_is_better is False for value in values)
    alone = metric.summarise(before, TASK, before, there)
    assert [value.id for value in alone] == [value.id for value in values[:2]]
    assert metric.summarise(before.copy(), TASK, before, there)[2].value == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="give their rows as photo_rows"):
        metric.summarise(after, TASK, before)
    with pytest.raises(ValueError, match="the rendered pictures lack 1 rows, the first is 'test/29'"):
        metric.summarise(after, TASK, before, there.iloc[:29])


@pytest.mark.parametrize("split", ["test", "tuning"])
def test_a_dropped_caption_takes_its_reference_picture_with_it(split: str) -> None:
    """The screen dropped captions 0, 3 and 9 of ten: the others keep the pictures of their own numbers."""
    left = [1, 2, 4, 5, 6, 7, 8]
    rows = tuple(Row(f"{split}/{i:05d}", f"a road {i}", i) for i in left)
    metric = Fid(Flatten(), photos=photos, photos_name="rendered")
    prompts = PromptSet("quality", rows, screened=3)
    there = metric.rows(metric.references(prompts))
    start = 100 if split == "tuning" else 0
    assert list(there.index) == [row.id for row in rows]
    assert (50 * there["f0"]).tolist() == pytest.approx([start + i for i in left], rel=1e-6)
    same = metric.rows(ImageSet(prompts, list(photos(10, split)[left]), "key", 7, 0), None)
    assert metric.summarise(same, TASK, None, there)[0].value == pytest.approx(0, abs=1e-6)


def test_the_suite_is_asked_for_as_many_photos_as_captions() -> None:
    """A source may answer another n with other pictures, as COCO's tuning split does: its last n."""
    asked = []

    def last(n: int, split: str) -> np.ndarray:
        asked.append((n, split))
        return photos(20, split)[-n:]

    metric = Fid(Flatten(), photos=last, photos_name="rendered")
    prompts = PromptSet("quality", (Row("test/00001", "a road", 1), Row("test/00002", "a tree", 2)), screened=8)
    assert [int(picture[0, 0, 0]) for picture in metric.references(prompts).images] == [11, 12]
    assert asked == [(10, "test")]


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (["a", "b"], "row 'a' is unknown"),
        (["test/1", "test/x2"], "row 'test/x2' is unknown"),
        (["test/1", "tuning/2"], "of one split"),
        (["test/0", "test/7"], "2 reference pictures, none for row number 7"),
    ],
)
def test_rows_without_a_reference_picture_are_refused(ids: list[str], words: str) -> None:
    prompts = PromptSet("quality", tuple(Row(id, "a road", i) for i, id in enumerate(ids)))
    with pytest.raises(ValueError, match=words):
        Fid(Flatten(), photos=photos, photos_name="rendered").references(prompts)


def test_photos_and_their_name_go_together() -> None:
    with pytest.raises(ValueError, match="photos and photos_name"):
        Fid(Flatten(), photos_name="rendered")
    with pytest.raises(ValueError, match="features/eight has no photos"):
        Fid(Flatten()).references(image_set(noise(2, 1)).prompts)


def test_missing_inception_weights_are_one_clear_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(ValueError, match="torch-fidelity's Inception are not in the local cache"):
        Inception(device="cpu").features([np.zeros((8, 8, 3), np.uint8)])


def test_tables_show_kid_beside_fid_and_no_two_n_in_one_column() -> None:
    from experiments import values as tables

    metric = Fid(Flatten(), photos=photos, photos_name="rendered")
    found = []
    for n in (10, 20):
        pictures = image_set(noise(n, 1))
        found += metric.summarise(metric.rows(pictures), TASK, None, metric.rows(metric.references(pictures.prompts)))
    ids = [value.id for value in found]
    assert tables.groups(ids) == {"quality": ids} and sum(i.startswith("kid/") for i in ids) == 2
    assert len({tables.title(i, ids) for i in ids}) == len(ids) == 4
