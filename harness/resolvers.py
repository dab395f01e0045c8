"""Interpolations for configurations, known as soon as anything of `harness` is imported.

    r2_per_concept: ${while_default:r2,paper}                         a value that stands and falls with another one
    r2: "${by_kind:{object: 0.007, style: 0.02, explicit: 0.01}}"     a value for each kind of task
    prompts: ${published:A,neutral}                                   a published list, or what a world has instead
    cleanfid: ${given:suite.photos}                                   whether another setting has a value
    keep: ${all_but_first:${.x},${.classes}}                          a list without its beginning

All give way to whatever the command line, a preset or an experiment file says instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import Container, OmegaConf


def by_kind(table: Mapping[str, Any], *, _root_: Container) -> Any:
    """The entry of the task's kind (`object` where there is no task); null for a kind that the table leaves out."""
    return table.get(OmegaConf.select(_root_, "task.kind", default="object"))


def while_default(key: str, value: Any, *, _parent_: Container) -> Any:
    """`value` as long as `key`, further down beside it, is the interpolation that its file gives; null once it is set.

    Resolving in place goes from top to bottom and leaves a plain number behind, so it has to stand above `key`.
    """
    return value if OmegaConf.is_interpolation(_parent_, key) else None


def published(value: Any, instead: Any, *, _root_: Container) -> Any:
    """`value` on real models; `instead` in an embedded world, whose prompts are its own."""
    return instead if OmegaConf.select(_root_, "suite.world") else value


def given(key: str, *, _root_: Container) -> bool:
    """Whether the setting is there and not null."""
    return OmegaConf.select(_root_, key) is not None


def all_but_first(n: Any, items: Sequence[Any]) -> list[Any]:
    """`items` without the first `n`; all of them where `n` is no number, which is for its own setting to refuse."""
    return list(items)[n if isinstance(n, int) else 0 :]


for resolver in (by_kind, while_default, published, given, all_but_first):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
