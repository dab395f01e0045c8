"""Seeds of our own, for rows whose source has none and for repeated runs."""

from __future__ import annotations

import hashlib


def own_seed(*words: str) -> int:
    """63 bits of a sha256 over the words: always the same, and no two different lists of words are likely to meet."""
    return int.from_bytes(hashlib.sha256("\n".join(words).encode()).digest()[:8], "big") >> 1


def repeat_seed(seed: int, repeat: int) -> int:
    """The seed that takes a row's place in a run's repeat; that of repeat 0 is the row's own."""
    return own_seed("repeat", str(seed), str(repeat)) if repeat else seed
