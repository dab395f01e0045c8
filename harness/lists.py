"""The published prompt lists that the protocols use: place, size, hash and shape of every file (`lists.csv`).

`sources` fetches and checks them; nothing of their content lies in this repository. Copies that are identical byte for
byte are listed once, under one of their places: ConceptPrune ships all eight files of the FIA release, ScaPre the same
Imagenette list, RECE and MACE the COCO list of UCE, and ESD, SalUn, MACE and Ring-A-Bell the I2P file of UCE.
"""

from __future__ import annotations

import csv
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("lists.csv")


@dataclass(frozen=True)
class Source:
    """One file at one commit of a public GitHub repository.

    Attributes:
        rows: of the table, or lines that are not blank; None where the file is neither.
        columns: with a name, in order; stray index columns (no name, or `Unnamed: 0`) are left out. Empty: no table.
        licence: of the repository.
    """

    repo: str
    commit: str
    path: str
    bytes: int
    sha256: str
    rows: int | None = None
    columns: tuple[str, ...] = ()
    licence: str = ""

    @property
    def relative(self) -> str:
        """Its place in a mirror folder or in the cache."""
        return f"{self.repo.replace('/', '__')}/{self.path}"

    @property
    def url(self) -> str:
        return f"https://raw.githubusercontent.com/{self.repo}/{self.commit}/{urllib.parse.quote(self.path)}"


@dataclass(frozen=True)
class ByHand:
    """Data that this program does not fetch.

    Attributes:
        state: gated (the owner grants access), unreleased, or by hand (large, or with terms to accept).
        how: where it is and what to do; one line.
    """

    state: str
    how: str


def read_table(path: Path = TABLE) -> dict[str, Source]:
    """The sources of a table with one row a file, by name."""
    with open(path, encoding="utf-8", newline="") as file:
        return {
            row["name"]: Source(
                repo=row["repo"],
                commit=row["commit"],
                path=row["path"],
                bytes=int(row["bytes"]),
                sha256=row["sha256"],
                rows=int(row["rows"]) if row["rows"] else None,
                columns=tuple(row["columns"].split(",")) if row["columns"] else (),
                licence=row["licence"],
            )
            for row in csv.DictReader(file)
        }


SOURCES = read_table()

_GATED = "ask for access with a Hub account; no other list takes its place"

BY_HAND = {
    "ring_a_bell": ByHand("gated", f"Hub data set Chia15/RingABell-Nudity (285 prompts): {_GATED}"),
    "mma_diffusion": ByHand(
        "gated", f"Hub data set YijunYang280/MMA-Diffusion-NSFW-adv-prompts-benchmark (2,000 prompts): {_GATED}"
    ),
    "p4d": ByHand("gated", f"Hub data set joycenerd/p4d: {_GATED}"),
    "fia_200_titles": ByHand("unreleased", "FIA's lists of 200 titles an artist were never published"),
    "i2p_official": ByHand(
        "by hand", "Hub data set AIML-TUDA/i2p (4,703 rows, open); `i2p` is the pinned CSV with the same rows"
    ),
    "unlearn_canvas": ByHand("by hand", "Hub data set OPTML-Group/UnlearnCanvas (153 parquet files of pictures)"),
    "coco_photos": ByHand("by hand", "images.cocodataset.org/zips/val2014.zip (6.2 GB, 40,504 photos)"),
    "coco_annotations": ByHand(
        "by hand", "images.cocodataset.org/annotations/annotations_trainval2014.zip (241 MB, all captions of val2014)"
    ),
    "imagenette_photos": ByHand(
        "by hand", "fastai's imagenette, or the Hub data set frgfm/imagenette (160px: SalUn's)"
    ),
    "stanford_dogs": ByHand("by hand", "vision.stanford.edu/aditya86/ImageNetDogs (20,580 photos, research only)"),
    "oxford_flowers": ByHand("by hand", "robots.ox.ac.uk/~vgg/data/flowers/102 (8,189 photos)"),
    "cub_200": ByHand("by hand", "data.caltech.edu: CUB-200-2011 (11,788 photos, non-commercial research)"),
}
