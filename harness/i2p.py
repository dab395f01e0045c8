"""The task of forgetting explicit content, and the I2P prompts that measure it on real models (FIA tables 3 and 16).

I2P (Schramowski et al. 2023, arXiv 2211.05105): 4,703 prompts of users, with the seed, guidance and size of the picture
that each was written for. Protocols differ in which of these columns they follow; `MODES` names three. They do not
choose the sampler: MACE's protocol is `mace` with `sampler=ddim50`.

**Never rendered, in any mode**: rows labelled sexual, or with a share of nude pictures above zero, whose prompt has a
word that denotes or may denote a minor; and, whatever the labels, rows whose own words say both. The record holds how
many there were.

The task takes its prompts from a source that the suite's config names: any callable `source(split, n, mode, view)` that
returns a `PromptSet`, always the same for the same arguments and with no prompt or seed in both splits. `published` is
the one for real models; the tiny world has its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import sources
from .names import unknown
from .screen import screened
from .task import PromptSet, Row, Task, class_task

ExplicitSource = Callable[[str, int | None, str, str], PromptSet]

SET = "explicit"
# What each mode takes from a row, and the view that belongs to it. columns: I2P's own seed, guidance and size; mace:
# the seed, otherwise 7.5 and 512 x 512; fia: the row's number as its seed.
MODES = {"columns": "all", "mace": "all", "fia": "first300"}
VIEWS = ("all", "first300", "nudity_gt0")
GUIDANCE, SIDE = 7.5, 512


def explicit_task(
    name: str,
    concepts: Sequence[str],
    source: ExplicitSource | None,
    mode: str = "columns",
    view: str | None = None,
    n: int | None = None,
    split: str = "test",
    keep_pictures: bool = False,
    kind: str = "explicit",
    quality: PromptSet | None = None,
    metrics: Sequence[Any] = (),
) -> Task:
    """A task that forgets explicit content; its pictures are in the set `explicit`.

    From a config: `instantiate(config, _partial_=True)(quality=..., metrics=...)`, as for `class_task`.

    Args:
        name: of the task.
        concepts: what to forget, as adjectives that stand before a person ("a photo of a {concept} woman").
        source: gives the rows; see above.
        mode: which columns of a row count, see `MODES`.
        view: all, first300 (what FIA's code scores) or nudity_gt0; None is the mode's own.
        n: the first `n` rows of the view, before screening; None takes the source's own number.
        split: tuning or test.
        keep_pictures: store the pictures; without, they are scored in memory and only the scores are stored.
        kind: `explicit`; configurations of methods read it.
        quality: captions, from `quality_set`.
        metrics: kept for the pipeline.

    Raises:
        ValueError: one line that names the setting, what is wrong with it and what would be right.
    """
    if kind != "explicit":
        raise ValueError(f"task.kind={kind!r}: this task forgets explicit content, so its kind is explicit")
    if source is None:
        raise ValueError("task.source: this suite has no prompts of explicit content; the suites sd and tiny have")
    if mode not in MODES:
        raise unknown("task.mode", mode, MODES)
    view = MODES[mode] if view is None else view
    if view not in VIEWS:
        raise unknown("task.view", view, VIEWS)
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
        raise ValueError(f"task.n={n!r}: the number of rows is a whole number of at least 1, or null")
    if not isinstance(keep_pictures, bool):
        raise ValueError(f"task.keep_pictures={keep_pictures!r}: say true or false")
    task = class_task(name, kind, concepts, split=split, quality=quality, metrics=metrics)
    return dataclasses.replace(
        task,
        sets={SET: source(split, n, mode, view), **task.sets},
        unkept=() if keep_pictures else (SET,),
    )


def published(split: str, n: int | None, mode: str, view: str) -> PromptSet:
    """The I2P rows of a view that may be rendered; a row keeps its number in the list, in its id and as `fia`'s seed.

    Raises:
        ValueError: the tuning split is asked for, which I2P does not have, or more rows than there are.
        SourceError: the list is not on this machine and cannot be downloaded.
    """
    if split != "test":
        raise ValueError(f"task.split={split}: I2P is a published test list; choose settings on the tiny world")
    numbered = [(i, row) for i, row in enumerate(sources.rows("i2p")) if _in_view(i, row, view)]
    if n is not None and n > len(numbered):
        raise ValueError(f"task.n={n}: the view {view} of I2P has {len(numbered)} rows")
    numbered = numbered[:n]
    kept = [(i, row) for i, row in numbered if screened(row["prompt"], sexual_context=_is_labelled(row)) is None]
    # Ids end in this: a total over other rows, or drawn otherwise, is another number.
    source = "-".join(["i2p", view, mode, *([] if n is None else [f"n{n}"])])
    rows = [_row(i, row, mode) for i, row in kept]
    return PromptSet.build(SET, rows, already_screened=len(numbered) - len(kept), source=source)


def _in_view(number: int, row: Mapping[str, str], view: str) -> bool:
    if view == "first300":
        return number < 300
    return view == "all" or float(row["nudity_percentage"]) > 0


def _is_labelled(row: Mapping[str, str]) -> bool:
    """Labelled sexual, or nude in some of the pictures that I2P's authors made of it."""
    labels = {label.strip() for label in row["categories"].split(",")}
    return "sexual" in labels or float(row["nudity_percentage"]) > 0


def _row(number: int, row: Mapping[str, str], mode: str) -> Row:
    id, prompt, seed = f"i2p/{number:04d}", row["prompt"], int(row["evaluation_seed"])
    if mode == "columns":
        size = int(row["sd_image_width"]), int(row["sd_image_height"])
        return Row(id, prompt, seed, float(row["evaluation_guidance"]), *size)
    return Row(id, prompt, number if mode == "fia" else seed, GUIDANCE, SIDE, SIDE)
