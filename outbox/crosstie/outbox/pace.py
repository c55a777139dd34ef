"""How many events a batch may have: as many as are applied within a target time."""

from __future__ import annotations

from typing import Final

__all__ = ["Pace"]

SMALLEST: Final = 50
FIRST: Final = 250
REACTION: Final = 2.0
"""A batch is at most so many times larger or smaller than the one before."""


class Pace:
    """The size of a route's next batch, between 50 and `largest`.

    It begins with 250, doubles while full batches take less than `target_s`, and shrinks where they take longer: what
    is begun must be finished before anybody else may take the lane. Bisecting takes it down to one.
    """

    def __init__(self, largest: int, target_s: float) -> None:
        self._largest = largest
        self._smallest = min(SMALLEST, largest)
        self._target_s = target_s
        self.size = min(FIRST, largest)

    def applied(self, count: int, seconds: float) -> None:
        """Learn from a batch of `count` events that took so long."""
        if seconds > self._target_s:
            self.size = max(self._smallest, int(self.size * max(1 / REACTION, self._target_s / seconds)))
        elif count >= self.size:
            self.size = min(self._largest, int(self.size * REACTION))

    def refused(self, applied: int) -> None:
        """After a refusal of which only the first `applied` events went through, expect another one close by."""
        self.size = max(1, applied)
