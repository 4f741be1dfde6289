"""Waits between tries of what may come back: sources that are opened again, outputs that are connected again."""

from __future__ import annotations

import random
from typing import Final

BACKOFF_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
JITTER: Final = 0.25  # a wait is this much shorter or longer, so that many sources do not knock at the same moment


class Backoff:
    """How long to wait before the next try: longer after each failure, up to a minute, never twice the same."""

    def __init__(self, *, seed: int | None = None) -> None:
        self._random = random.Random(seed)  # noqa: S311  spreads attempts, hides nothing
        self._failures = 0
        self._last_s = 0.0

    def next_s(self, *, worked_s: float = 0.0) -> float:
        """The next wait, s.

        Args:
            worked_s: how long the connection before gave frames. Longer than the wait before it: it counts as good,
                and the waits start anew; so no server is asked more often than it works.
        """
        if worked_s > self._last_s:
            self._failures = 0
        step = BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
        self._failures += 1
        self._last_s = step * self._random.uniform(1.0 - JITTER, 1.0 + JITTER)
        return self._last_s
