"""FID (Heusel et al. 2017) and KID (Binkowski et al. 2018) between generated pictures and a reference.

Two references: pictures that show what the captions say (photos, or renderings in the tiny world), and the unedited
model's pictures of the same prompts and noise (`..._vs_base`), which is small, sensitive and cheap.

FID is biased upwards by about d (d + 1) / n at n pictures and d features, by an amount that depends on the pictures,
so FIDs of different n are never compared: n stands in the id. KID has no such bias and is always given beside FID. The
intervals show the spread over captions (pictures and reference of a caption are drawn together), not the bias: they are
about the FID that n pictures have on average. FID's come from a bootstrap, of wide features from a jackknife.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd
from scipy.linalg import LinAlgError, cholesky, eigh, eigvalsh
from scipy.special import stdtrit

from .coco import PhotoFiles
from .stats import LEVEL, SEED, Interval, resampled
from .values import ALL, Extractor, Value, check_images, paired

if TYPE_CHECKING:
    from harness.generate import ImageSet
    from harness.task import PromptSet, Task

Photos = Callable[[int, str], Sequence[np.ndarray]]

FID_RESAMPLES = 100
KID_RESAMPLES = 1_000
# A resample costs two eigenvalue problems of the features' width; wider features have fewer replicates (`jackknifed`).
WIDEST_RESAMPLED = 512
JACKKNIFE_BLOCKS = 20
# From twice this many pictures on, KID is averaged over disjoint blocks of this size (the kernel is quadratic in n).
KID_BLOCK = 1_000


def moments(features: np.ndarray, counts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and unbiased covariance [d, d] of features [n, d], row i counted `counts[i]` times."""
    mean, root = factors(features, counts)
    return mean, root.T @ root


def factors(features: np.ndarray, counts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d], and R [n, d] with R^T R the unbiased covariance, of features [n, d] counted as in `moments`."""
    weights = np.ones(len(features)) if counts is None else counts.astype(float)
    total = weights.sum()
    if total < 2:
        raise ValueError(f"FID needs at least 2 pictures, got {int(total)}")
    mean = weights @ features / total
    return mean, (features - mean) * np.sqrt(weights / (total - 1))[:, None]


def frechet(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """Squared Frechet distance of two Gaussians: |m - n|^2 + tr(A + B - 2 (A B)^(1/2)), in float64.

    The trace of the root is taken from the symmetric A^(1/2) B A^(1/2), whose eigenvalues are those of A B: real and
    stable also where there are fewer pictures than features and both covariances are singular.
    """
    (m, cov_a), (n, cov_b) = a, b
    values, vectors = eigh(cov_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    product = eigh(root @ cov_b @ root, eigvals_only=True)
    distance = ((m - n) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(np.clip(product, 0, None)).sum()
    # Equal inputs leave a rounding error of either sign; a squared distance has none.
    return float(max(distance, 0.0))


def frechet_of_factors(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """`frechet` of Gaussians that `factors` gives: tr (A B)^(1/2) is the sum of the singular values of R S^T [n, m].

    With fewer pictures than features that is the smaller problem, and no root of a rounding error enters.
    """
    (m, r), (n, s) = a, b
    shared = np.linalg.svd(r @ s.T, compute_uv=False).sum()
    return float(max(((m - n) ** 2).sum() + (r**2).sum() + (s**2).sum() - 2 * shared, 0.0))


def fid(features: np.ndarray, reference: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """FID with an interval of 1.96 bootstrap standard deviations; by `jackknifed` where features are wider than
    WIDEST_RESAMPLED.

    The ends are placed around the value itself: resamples repeat pictures and therefore have a larger FID throughout,
    so their quantiles would lie beside it.

    Args:
        features: [n, d].
        reference: [m, d]; where m = n, row i belongs to the same caption as the picture i and is drawn with it.
        groups: Group index of each picture; groups are drawn as a whole. None: each picture by itself.
    """
    x, y = np.asarray(features, np.float64), np.asarray(reference, np.float64)
    few = max(len(x), len(y)) <= x.shape[1]
    spread, distance = (factors, frechet_of_factors) if few else (moments, frechet)
    value = distance(spread(x), spread(y))
    groups = np.arange(len(x)) if groups is None else groups
    if groups.max() == 0:
        return Interval(value, None, None)
    if x.shape[1] > WIDEST_RESAMPLED:
        half = jackknifed(x, y, groups)
    else:
        draws = resampled(groups, FID_RESAMPLES, SEED)[:, groups]
        fixed = None if len(y) == len(x) else spread(y)
        found = [distance(spread(x, c), spread(y, c) if fixed is None else fixed) for c in draws]
        half = 1.96 * float(np.std(found, ddof=1))
    return Interval(value, max(0.0, value - half), value + half)


def jackknifed(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> float:
    """Half the width of FID's 95 % interval, from a delete-a-group jackknife (Quenouille 1956, Tukey 1958).

    The groups are dealt out at random to JACKKNIFE_BLOCKS blocks. A replicate is the FID of everything but one block.
    Of B replicates f_b with the mean f the variance is (B - 1) / B times the sum of (f_b - f)^2, and the half width is
    Student's factor of B - 1 degrees of freedom times its root. 20 blocks know a standard deviation to about a sixth;
    the factor, 2.09, makes up for that. A replicate costs one eigenvalue problem of the features' width.

    A replicate has fewer pictures, so its FID is larger, by about 5 % of FID's bias. That is common to all of them and
    falls out of the spread; it is not used to take the bias away. The width itself errs to the large side (Efron and
    Stein 1981): on Gaussians of 64 features it was 1.7 times too large at 40 pictures and 1.2 times at 100 and 200 (60
    samples each); of 96 features at 1,500 pictures, about as many a feature as published, right (25 samples).

    Args:
        x, y: features [n, d] and reference [m, d] in float64, as in `fid`.
        groups: at least two.
    """
    count = int(groups.max()) + 1
    blocks = min(JACKKNIFE_BLOCKS, count)
    block = (np.random.default_rng(SEED).permutation(count) % blocks)[groups]
    paired_rows = len(x) == len(y)
    if max(len(x), len(y)) <= x.shape[1]:
        whole = factors(y)
        found = [
            frechet_of_factors(factors(x[block != b]), factors(y[block != b]) if paired_rows else whole)
            for b in range(blocks)
        ]
    else:
        mine, other = _Sums(x), _Sums(y)
        found = [
            _frechet_by_root(mine.without(block == b), other.without(block == b) if paired_rows else other.without())
            for b in range(blocks)
        ]
    variance = (blocks - 1) * float(np.var(found))
    return float(stdtrit(blocks - 1, (1 + LEVEL) / 2) * np.sqrt(variance))


class _Sums:
    """Sums of features [n, d] and of their products, about their mean: what is left without some rows costs those rows
    only."""

    def __init__(self, features: np.ndarray) -> None:
        self._features, self._centre = features, features.mean(0)
        width = features.shape[1]
        self._total, self._products = np.zeros(width), np.zeros((width, width))
        # In parts: the centred features would take as much memory as the features.
        for part in np.array_split(np.arange(len(features)), JACKKNIFE_BLOCKS):
            total, products = self._of(part)
            self._total += total
            self._products += products

    def _of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centred = self._features[rows] - self._centre
        return centred.sum(0), centred.T @ centred

    def without(self, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and unbiased covariance of all rows but these (a mask), as `moments`."""
        total, products, n = self._total, self._products, len(self._features)
        if rows is not None:
            own_total, own_products = self._of(rows)
            total, products, n = total - own_total, products - own_products, n - int(rows.sum())
        if n < 2:
            raise ValueError(f"FID needs at least 2 pictures, got {n}")
        return self._centre + total / n, (products - np.outer(total, total) / n) / (n - 1)


def _frechet_by_root(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """`frechet` with any L of A = L L^T for the symmetric root, which saves an eigenvalue problem: L^T B L has the
    eigenvalues of A B too."""
    (m, cov_a), (n, cov_b) = a, b
    try:
        root = cholesky(cov_a, lower=True)
    except LinAlgError:  # a feature that is the same in all pictures
        values, vectors = eigh(cov_a)
        root = vectors * np.sqrt(np.clip(values, 0, None))
    shared = np.sqrt(np.clip(eigvalsh(root.T @ cov_b @ root), 0, None)).sum()
    return float(max(((m - n) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * shared, 0.0))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The polynomial kernel of degree 3 of KID."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mmd(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray, w: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Unbiased squared MMD of kernel matrices under row counts w [b, n] and v [b, m]; equal rows are never paired."""

    def within(kernel: np.ndarray, counts: np.ndarray) -> np.ndarray:
        pairs = counts.sum(1) ** 2 - (counts**2).sum(1)
        return (np.einsum("bi,bi->b", counts @ kernel, counts) - counts**2 @ np.diag(kernel)) / pairs

    across = np.einsum("bi,bi->b", w @ xy, v) / (w.sum(1) * v.sum(1))
    return within(xx, w) + within(yy, v) - 2 * across


def kid(features: np.ndarray, reference: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """KID: unbiased squared MMD with the kernel (x.y / d + 1)^3, with its interval.

    Below two blocks of KID_BLOCK pictures all pairs are used and captions are resampled; above, the value is the mean
    over disjoint blocks with Student's interval over the blocks. It may be below zero: it is unbiased.
    """
    x, y = np.asarray(features, np.float64), np.asarray(reference, np.float64)
    if min(len(x), len(y)) < 2:
        raise ValueError(f"KID needs at least 2 pictures on each side, got {len(x)} and {len(y)}")
    blocks = min(len(x), len(y)) // KID_BLOCK
    if blocks >= 2:
        return _kid_blocks(x, y, blocks)
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    value = float(_mmd(xx, yy, xy, np.ones((1, len(x))), np.ones((1, len(y))))[0])
    groups = np.arange(len(x)) if groups is None else groups
    if groups.max() == 0:
        return Interval(value, None, None)
    w = resampled(groups, KID_RESAMPLES, SEED)[:, groups].astype(float)
    # A resample of one single caption has no pair of different rows; it is as good as never drawn.
    w = w[(w > 0).sum(1) > 1]
    v = w if len(y) == len(x) else np.ones((len(w), len(y)))
    half = 1.96 * float(np.std(_mmd(xx, yy, xy, w, v), ddof=1))
    return Interval(value, value - half, value + half)


def _kid_blocks(x: np.ndarray, y: np.ndarray, blocks: int) -> Interval:
    rng = np.random.default_rng(SEED)
    ones = np.ones((1, KID_BLOCK))
    found = []
    sides = zip(np.split(rng.permutation(len(x))[: blocks * KID_BLOCK], blocks),
                np.split(rng.permutation(len(y))[: blocks * KID_BLOCK], blocks))  # fmt: skip
    for i, j in sides:
        a, b = x[i], y[j]
        found.append(float(_mmd(_kernel(a, a), _kernel(b, b), _kernel(a, b), ones, ones)[0]))
    value = float(np.mean(found))
    half = float(stdtrit(blocks - 1, (1 + LEVEL) / 2) * np.std(found, ddof=1) / np.sqrt(blocks))
    return Interval(value, value - half, value + half)


@dataclass
class Fid:
    """FID and KID from one extractor's features, which are stored once for both.

    Attributes:
        extractor: Pictures to features.
        set: The prompt set that is scored.
        photos: `photos(n, split)` returns the reference pictures of the n captions that the suite gives for (n, split),
            in the captions' order; None leaves only the comparison with the unedited model.
        photos_name: How ids name that reference, e.g. `rendered`; other pictures need another name. Left out, it is the
            name of the photos themselves.
    """

    extractor: Extractor
    set: str = "quality"
    photos: Photos | None = None
    photos_name: str = ""
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self.photos_name = self.photos_name or getattr(self.photos, "name", "")
        if (self.photos is None) != (not self.photos_name):
            raise ValueError(
                "photos and photos_name of a FID metric are given together: the name becomes part of its id"
            )

    @property
    def id(self) -> str:
        return f"features/{self.extractor.features_id}"

    @property
    def fingerprint(self) -> str:
        return self.extractor.fingerprint

    @property
    def sha256(self) -> str:
        """Of the extractor's weights, for the record."""
        return self.fingerprint or getattr(self.extractor, "sha256", "")

    def rows(self, images: ImageSet, reference: ImageSet | None = None) -> pd.DataFrame:
        """Columns: prompt, and the features f0, f1, ... in float32."""
        check_images(images)
        features = self.extractor.features(images.images).numpy().astype(np.float32)
        index = pd.Index([row.id for row in images.prompts.rows], name="id")
        frame = pd.DataFrame(features, index=index, columns=[f"f{i}" for i in range(features.shape[1])])
        frame.insert(0, "prompt", [row.prompt for row in images.prompts.rows])
        return frame

    def check(self, task: Task) -> None:
        """Raise ValueError where photos of the task's captions are missing, long before they are needed."""
        check = getattr(self.photos, "check", None)
        if check is not None:
            prompts = task.prompts(self.set)
            split, numbers = _places(prompts)
            check(prompts, len(prompts.rows) + prompts.screened, split, numbers)

    def references(self, prompts: PromptSet) -> ImageSet:
        """The photos of a set of captions, for `rows`; their key is the hash of their pixels, or of their files.

        A caption's picture is found by the number in its row id (`test/00007` is caption 7), because the prompt screen
        may have dropped captions before it.

        Raises:
            ValueError: There are no photos, a row id has no number, or there is no picture of that number.
        """
        from harness.generate import ImageSet

        if self.photos is None:
            raise ValueError(f"{self.id} has no photos")
        split, numbers = _places(prompts)
        photos = self.photos(len(prompts.rows) + prompts.screened, split)
        if max(numbers) >= len(photos):
            raise ValueError(
                f"{self.photos_name}: {len(photos)} reference pictures, none for row number {max(numbers)}"
            )
        if isinstance(photos, PhotoFiles):
            chosen = photos.pick(numbers)
            return ImageSet(prompts, chosen, chosen.content())
        pictures = [photos[number] for number in numbers]
        digest = hashlib.sha256()
        for picture in pictures:
            digest.update(repr(picture.shape).encode() + np.ascontiguousarray(picture).tobytes())
        return ImageSet(prompts, pictures, digest.hexdigest())

    def summarise(
        self,
        rows: pd.DataFrame,
        task: Task,
        reference_rows: pd.DataFrame | None = None,
        photo_rows: pd.DataFrame | None = None,
    ) -> list[Value]:
        """Against the photos, and against the unedited model where other rows are given for it.

        Args:
            photo_rows: Rows of the `references` of the same captions; needed where there are photos.
        """
        mine, groups = _features(rows), np.unique(rows["prompt"].astype(str), return_inverse=True)[1]
        values = []
        if self.photos is not None:
            if photo_rows is None:
                raise ValueError(f"{self.id} compares with {self.photos_name} pictures: give their rows as photo_rows")
            photos = _features(paired(rows, photo_rows, f"the {self.photos_name} pictures"))
            values += self._values("", f"{self.photos_name}-n{len(rows)}", mine, photos, groups)
        if reference_rows is not None and reference_rows is not rows:
            base = _features(paired(rows, reference_rows))
            values += self._values("_vs_base", f"n{len(rows)}", mine, base, groups)
        return values

    def _values(
        self, suffix: str, reference: str, mine: np.ndarray, other: np.ndarray, groups: np.ndarray
    ) -> list[Value]:
        distances = {"fid": fid(mine, other, groups), "kid": kid(mine, other, groups)}
        return [
            Value(
                f"{name}{suffix}/{self.extractor.features_id}/{reference}",
                ALL,
                *found[:1],
                len(mine),
                *found[1:],
                False,
            )
            for name, found in distances.items()
        ]


def _places(prompts: PromptSet) -> tuple[str, list[int]]:
    """The split and the captions' numbers, from row ids `SPLIT/NUMBER` (harness.task.quality_set)."""
    splits, numbers = set(), []
    for row in prompts.rows:
        split, _, number = row.id.rpartition("/")
        if not split or not re.fullmatch("[0-9]+", number):
            raise ValueError(f"the reference picture of row {row.id!r} is unknown: its id is not like test/00007")
        splits.add(split)
        numbers.append(int(number))
    if len(splits) != 1:
        raise ValueError(f"reference pictures are of one split, prompt set {prompts.name} has {sorted(splits)}")
    return splits.pop(), numbers


def _features(rows: pd.DataFrame) -> np.ndarray:
    return rows[[name for name in rows.columns if name != "prompt"]].to_numpy(np.float64)
