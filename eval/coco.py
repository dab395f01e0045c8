"""The photos of COCO's captions, from a folder of the user's: what published FIDs compare with.

    python run.py model=sd15 quality=30k suite.photos=DIR

DIR is val2014.zip of images.cocodataset.org, unpacked. A caption's photo is found by the list's `coco_id`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from PIL import Image

from harness import sources

if TYPE_CHECKING:
    from harness.task import PromptSet


@dataclass(frozen=True)
class PhotoFiles(Sequence[np.ndarray]):
    """Photos that are read when they are asked for: thirty thousand do not fit into memory.

    Attributes:
        paths: One file a photo.
        crop: Shorter side resized to this many pixels, then the square in the middle; None: the photo as it is.
    """

    paths: tuple[Path, ...]
    crop: int | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> PhotoFiles: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | PhotoFiles:
        """Photo `index` as uint8 [h, w, 3], or the files of a slice.

        Raises:
            ValueError: The file cannot be read as a picture.
        """
        if isinstance(index, slice):
            return PhotoFiles(self.paths[index], self.crop)
        try:
            with Image.open(self.paths[index]) as file:
                photo = file.convert("RGB")
        except OSError as error:
            raise ValueError(f"{self.paths[index]} cannot be read as a picture ({error})") from error
        return np.asarray(photo if self.crop is None else _cropped(photo, self.crop))

    def pick(self, numbers: Sequence[int]) -> PhotoFiles:
        """The photos with these numbers."""
        return PhotoFiles(tuple(self.paths[number] for number in numbers), self.crop)

    def content(self) -> str:
        """Hex sha256 of what decides the pixels: the files' bytes, in order, and the crop."""
        digest = hashlib.sha256(f"crop {self.crop}".encode())
        for path in self.paths:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def _cropped(photo: Image.Image, side: int) -> Image.Image:
    scale = side / min(photo.size)
    width, height = (max(side, round(scale * length)) for length in photo.size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = photo.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + side, top + side))


@dataclass(frozen=True)
class Val2014:
    """`photos` of a FID metric for the captions of `harness.sources.coco_captions`.

    Attributes:
        folder: Holds COCO_val2014_000000000042.jpg and so on, or a folder `val2014` that does.
        crop: As in `PhotoFiles`. Published FIDs let the extractor squash the whole photo, which is the default.
    """

    folder: Path
    crop: int | None = None

    def __post_init__(self) -> None:
        if self.crop is not None and (isinstance(self.crop, bool) or not isinstance(self.crop, int) or self.crop < 1):
            raise ValueError(f"suite.photos_crop={self.crop!r}: pixels a side, or null for the whole photo")
        if not self.folder.is_dir():
            raise ValueError(f"suite.photos={self.folder}: there is no such folder; name that of COCO's val2014 photos")

    @property
    def name(self) -> str:
        """What the metric's ids call these photos."""
        return "coco-val2014" if self.crop is None else f"coco-val2014-crop{self.crop}"

    def __call__(self, n: int, split: str) -> PhotoFiles:
        """The photos of `coco_captions(n, split)`, in that order.

        Raises:
            ValueError: Photos are missing; the message counts them and names the first.
        """
        inner = self.folder / "val2014"
        folder = inner if inner.is_dir() else self.folder
        paths = tuple(folder / f"COCO_val2014_{int(row['coco_id']):012d}.jpg" for row in sources.coco_rows(n, split))
        there = {path.name for path in folder.iterdir()}
        missing = [path.name for path in paths if path.name not in there]
        if missing:
            raise ValueError(
                f"suite.photos={self.folder} lacks {len(missing)} of the {n} photos, the first is {missing[0]}; "
                "unpack images.cocodataset.org/zips/val2014.zip there"
            )
        return PhotoFiles(paths, self.crop)

    def check(self, prompts: PromptSet, n: int, split: str, numbers: Sequence[int]) -> None:
        """Before anything is computed: these rows are captions of the list, and their photos are there.

        Raises:
            ValueError: A row is another text than the list's caption of its number, or photos are missing. In a dry run
                without the list nobody knows which photos are meant, and none is missed.
        """
        if sources.stands_in("coco_30k"):
            return
        pinned = sources.coco_rows(n, split)
        for row, number in zip(prompts.rows, numbers):
            # Blanks differ: a few captions of the list hold line breaks.
            if number >= n or row.prompt.split() != pinned[number]["prompt"].split():
                raise ValueError(
                    f"suite.photos: row {row.id!r} is not caption {number} of coco_30k, so its photo is not known; "
                    "photos go with the suite's own captions"
                )
        self(n, split)


def val2014(folder: str | None, crop: int | None = None) -> Val2014 | None:
    """The photos in a folder; None, which leaves the comparison with photos out, where no folder is named."""
    return None if folder is None else Val2014(Path(str(folder)).expanduser(), crop)
