"""One way to say that a name is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(what: str, name: object, known: Iterable[str]) -> ValueError:
    """The error to raise for a name that is not among the known ones: near matches first, then the whole list."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return ValueError(f"unknown {what} {str(name)!r}{hint} (known: {', '.join(known)})")
