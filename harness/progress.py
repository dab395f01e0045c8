"""How far long work is: a bar in a terminal, and a line in the log every few minutes, which a batch job has too."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from tqdm import tqdm

log = logging.getLogger(__name__)

SECONDS = 300


class Progress:
    """The progress of one piece of work; leaving its block takes the bar away."""

    def __init__(self, label: str, total: int, unit: str, start: int = 0) -> None:
        """Begin at `start` of `total` units, of which one is called `unit`; messages begin with `label`."""
        self._label, self._total, self._unit, self._done = label, total, unit, start
        self._said, self._done_then = time.monotonic(), start
        self._bar = tqdm(initial=start, total=total, desc=label, unit=unit, leave=False, disable=None)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` more units; `note`, such as a loss, goes into the bar and the log."""
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(n)
        self._done += n
        now = time.monotonic()
        if now - self._said >= SECONDS:
            # At the pace since the last line: what was found in the store at the beginning does not count for long.
            left = (now - self._said) / (self._done - self._done_then) * (self._total - self._done)
            log.info(
                "%s: %s %d of %d%s, about %s left", self._label, self._unit, self._done, self._total,
                note and f", {note}", timedelta(seconds=round(left)),
            )  # fmt: skip
            self._said, self._done_then = now, self._done
