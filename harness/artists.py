"""The task of forgetting artists' styles (FIA tables 4, 5 and 20) and its prompts for real models.

The prompts come from a provider that the suite's config names: any callable `source(artists, n, split)` that returns
`n` rows for each artist, with the artist's name as label, always the same for the same arguments and no prompt or seed
in both splits. `published` is the one for real models; the tiny world has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from . import sources
from .names import unknown
from .prompts import OBJECTS, article
from .task import PromptSet, Row, Task, class_seed, class_task, slug

ArtistSource = Callable[[Sequence[str], int, str], list[Row]]

# The released lists by the short names that the paper's concepts have; inside the prompts two names are longer
# ("Vincent van Gogh", "Claude Monet").
LISTS = {
    "Van Gogh": "artists_van_gogh",
    "Monet": "artists_monet",
    "Pablo Picasso": "artists_picasso",
    "Leonardo Da Vinci": "artists_da_vinci",
    "Salvador Dali": "artists_dali",
}


def artist_task(
    name: str,
    concepts: Sequence[str],
    source: ArtistSource | None,
    keep: Sequence[str] = (),
    n: int = 50,
    split: str = "test",
    artists: Sequence[str] | None = None,
    kind: str = "style",
    quality: PromptSet | None = None,
    metrics: Sequence[Any] = (),
) -> Task:
    """A task that forgets the styles of `concepts` and keeps those of `keep`; its pictures are in the set `artists`.

    From a config: `instantiate(config, _partial_=True)(quality=..., metrics=...)`, as for `class_task`.

    Args:
        name: of the task.
        concepts: artists to forget, all at once.
        source: gives the rows; see above.
        keep: artists whose styles must survive.
        n: rows an artist.
        split: tuning or test.
        artists: the names that exist, where they are known; a name is then matched regardless of case.
        kind: `style`; configurations of methods read it.
        quality: captions, from `quality_set`.
        metrics: kept for the pipeline.

    Raises:
        ValueError: one line that names the setting, what is wrong with it and what would be right.
    """
    if kind != "style":
        raise ValueError(f"task.kind={kind!r}: artists are forgotten as style")
    if source is None:
        raise ValueError(
            "task.source: this suite has no prompts of artists (suites sd and tiny have); to edit without pictures, "
            "say task=custom task.kind=style edit_only=true"
        )
    task = class_task(name, kind, concepts, keep, n, split, classes=artists, quality=quality, metrics=metrics)
    rows = source([*task.forget, *task.keep], n, split)
    return replace(task, sets={"artists": PromptSet.build("artists", rows), **task.sets})


def published(artists: Sequence[str], n: int, split: str) -> list[Row]:
    """The first `n` rows of each artist's list in the FIA release; for the tuning split, prompts of our own.

    The released lists have 50 rows an artist with 28 to 50 different prompts, such as "Almond Blossoms by Vincent van
    Gogh", and the guidance and seed of every row. ConceptPrune's are the same files, but its code draws with seed 0.

    The release has nothing to choose settings on. Tuning prompts name everyday things instead of titles, in another
    wording than the prompts that methods learn a style from (`prompts.contrast_pairs`).

    Raises:
        ValueError: an artist has no list, or `n` is more than its rows.
        SourceError: a list is not on this machine and cannot be downloaded.
    """
    return [row for name in artists for row in (_released if split == "test" else _tuning)(name, n)]


def _released(name: str, n: int) -> list[Row]:
    if name not in LISTS:
        raise unknown("artist of the released lists", name, LISTS)
    released = sources.rows(LISTS[name])
    if n > len(released):
        raise ValueError(f"task.n={n}: the released list of {name} has {len(released)} rows")
    return [
        Row(
            f"fia_art_50/{slug(name)}/{int(row['case_number']):04d}",
            row["prompt"],
            int(row["evaluation_seed"]),
            # float() also reads the one value that ends in a blank.
            guidance=float(row["evaluation_guidance"]),
            label=name,
        )
        for row in released[:n]
    ]


def _tuning(name: str, n: int) -> list[Row]:
    rows = []
    for index in range(n):
        thing = OBJECTS[index % len(OBJECTS)]
        prompt = f"a painting of {article(thing)} {thing} by {name}"
        rows.append(Row(f"tuning/{slug(name)}/{index:04d}", prompt, class_seed("tuning", name, index), label=name))
    return rows
