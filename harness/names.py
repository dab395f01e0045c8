"""One way to say that a name is not known, or that it is nearly one that is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def unknown(what: str, name: object, known: Iterable[str]) -> ValueError:
    """The error to raise for a name that is not among the known ones: near matches first, then the whole list."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return ValueError(f"unknown {what} {str(name)!r}{hint} (known: {', '.join(known)})")


def check_spelling(what: str, table: Iterable[str], concepts: Sequence[str]) -> None:
    """Refuse a name in a map by concept that only nearly matches one: that concept would silently have the default.

    Names that resemble no concept are fine: one map serves several tasks, and a schedule that hands over one concept
    at a time.

    Args:
        what: the parameter's name with its method in front, such as `uce: guides`.
        table: lower-case names.
    """
    known = [concept.casefold() for concept in concepts]
    for key in table:
        swapped = [name for name in known if sorted(name) == sorted(key)]
        near = swapped or difflib.get_close_matches(key, known, n=1, cutoff=0.85)
        if near and key not in known and near[0] not in table:
            raise ValueError(f"{what} names {key!r}, which is no concept of this run; did you mean {near[0]!r}?")
