"""Seeds of our own, for rows whose source has none."""

from __future__ import annotations

import hashlib


def own_seed(*words: str) -> int:
    """63 bits of a sha256 over the words: always the same, and no two different lists of words are likely to meet."""
    return int.from_bytes(hashlib.sha256("\n".join(words).encode()).digest()[:8], "big") >> 1
