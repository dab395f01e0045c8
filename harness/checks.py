"""Checks of a method's parameters: one line that says which parameter is wrong and what would be right.

`what` is the parameter's name with its method in front, such as `uce: erase_scale`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

from .names import unknown

if TYPE_CHECKING:
    from torch import Tensor

    from .model import DiffusionModel
    from .task import Concept


def is_number(value: object) -> TypeGuard[float]:
    """A finite int or float; true and false are none."""
    most = sys.float_info.max  # an int may be beyond it
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -most <= value <= most


def fraction(what: str, value: object, *, zero: bool = False) -> float:
    """A number in (0, 1], or in [0, 1) with `zero`; a percentage given by mistake is refused."""
    if not is_number(value) or not (0 <= value < 1 if zero else 0 < value <= 1):
        hint = f"; {value:g} % is written {value / 100:g}" if is_number(value) and 1 < value <= 100 else ""
        raise ValueError(f"{what} is a fraction in {'[0, 1)' if zero else '(0, 1]'}, got {value!r}{hint}")
    return float(value)


def number(what: str, value: object, *, zero: bool = True) -> float:
    """A finite number of at least 0, or above 0 without `zero`."""
    if not is_number(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{what} is a number {'>=' if zero else '>'} 0, got {value!r}")
    return float(value)


def whole(what: str, value: object, *, least: int = 1, optional: bool = False) -> int | None:
    """A whole number of at least `least`, or None where that has a meaning."""
    if optional and value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{what} is a whole number >= {least}{' or null' if optional else ''}, got {value!r}")
    return value


def flag(what: str, value: object) -> bool:
    """True or false; "no" in quotes would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"{what} is true or false, got {value!r}")
    return value


def one_of(what: str, value: object, options: Sequence[str]) -> str:
    """`value`, if it is one of the options."""
    if not isinstance(value, str) or value not in options:
        raise unknown(f"value of {what}:", value, options)
    return value


def texts(what: str, value: object) -> tuple[str, ...]:
    """A list of texts; a text alone would be taken letter by letter."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{what} is a list of texts such as [cat,dog], got {value!r}")
    for text in value:
        if not isinstance(text, str):
            raise ValueError(f"{what} is a list of texts; {text!r} is none (quote it?)")
    return tuple(value)


def pixels(what: str, size: object) -> tuple[int, int] | None:
    """`null | pixels | [width, height]` as (width, height)."""
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, Sequence) else ()
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(f"{what} is null, a number of pixels or [width, height], got {size!r}")
    return sides


def to_forget(method: str, model: DiffusionModel, concepts: Sequence[Concept]) -> list[Concept]:
    """The concepts, if a method can forget them: at least one, none of them twice, each with a token.

    Methods would take a repeated one differently, as one or with twice the weight. A task refuses it before.
    """
    if not concepts:
        raise ValueError(f"{method}: name at least one concept to forget")
    seen = set()
    names = [concept.name for concept in concepts]
    for name, tokens in zip(names, model.subject_tokens(names), strict=True):
        if tokens < 1:
            raise ValueError(f"{method}: the tokenizer finds no token in the concept {name!r}; name it otherwise")
        if name.casefold() in seen:
            raise ValueError(f"{method}: the concept {name!r} is named twice (case does not matter)")
        seen.add(name.casefold())
    return list(concepts)


def finite(what: str, tensor: Tensor) -> Tensor:
    """`tensor`, or a FloatingPointError if it holds NaN or infinity."""
    if not tensor.isfinite().all():
        raise FloatingPointError(f"{what}: NaN or infinity ({tensor.dtype})")
    return tensor
