"""Checks of FIA's parameters and the paper's per-concept table (Table 8)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from harness.names import unknown

# Table 8: what deviates from r1 = 5 % and from the task's r2 (0.7 % objects, 1 % explicit, 2 % styles).
PAPER_R1 = {"sexual": 0.06}
PAPER_R2 = {"parachute": 0.03, "golf ball": 0.03, "gas pump": 0.03, "van gogh": 0.03}

# The tasks that the table was made for; elsewhere `paper` means the task's own r1 and r2.
PAPER_TASKS = ("imagenette", "imagenette_5v5", "artists", "i2p")


def share(name: str, value: float) -> float:
    """A fraction in (0, 1]; a percentage given by mistake is refused in one line."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        hint = f"; {value:g} % is written {value / 100:g}" if _is_number(value) and 1 < value <= 100 else ""
        raise ValueError(f"fia: {name} is a fraction in (0, 1], got {value!r}{hint}")
    return float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def one_of(name: str, value: str, options: Sequence[str]) -> str:
    """`value`, if it is one of the options."""
    if value not in options:
        raise unknown(f"value of fia's {name}", value, options)
    return value


def whole(name: str, value: int | None, *, optional: bool = False) -> int | None:
    """A whole number of at least one, or None where that has a meaning."""
    if optional and value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"fia: {name} is a whole number >= 1{' or null' if optional else ''}, got {value!r}")
    return value


def pixels(size: object) -> tuple[int, int] | None:
    """`null | pixels | [width, height]` as (width, height)."""
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, Sequence) else ()
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(f"fia: size is null, a number of pixels or [width, height], got {size!r}")
    return sides


def flag(name: str, value: bool) -> bool:
    """`value`, if it is true or false; "no" in quotes would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"fia: {name} is true or false, got {value!r}")
    return value


def per_concept_table(name: str, table: object, paper: Mapping[str, float], task: str | None) -> dict[str, float]:
    """`null | "paper" | a map` as a map from lower-case concept names to fractions.

    `paper` is empty in a task of another name than the paper's; without any task name it is the table.
    """
    if table is None or (table == "paper" and task not in (None, *PAPER_TASKS)):
        return {}
    if table == "paper":
        return dict(paper)
    if not isinstance(table, Mapping):
        raise ValueError(f"fia: {name} is null, paper or a map from concept names to fractions, got {table!r}")
    return {str(key).casefold(): share(f"{name}[{key}]", value) for key, value in table.items()}


def check_spelling(name: str, table: Iterable[str], concepts: Sequence[str]) -> None:
    """Refuse a name in the map that only nearly matches a concept: it would silently fall back to the default.

    Names that resemble no concept are fine, so that one map can serve several tasks.
    """
    known = [concept.casefold() for concept in concepts]
    for key in table:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
        if near and key not in known and near[0] not in table:
            raise ValueError(f"fia: {name} names {key!r}, which is no concept of this run; did you mean {near[0]!r}?")
