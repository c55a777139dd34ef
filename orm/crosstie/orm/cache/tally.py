"""How often the cache has helped this process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

__all__ = ["CacheCounters", "counters", "tally"]

logger = logging.getLogger(__name__)


@dataclass
class CacheCounters:
    """Counts since the process began.

    `hits`: parents found in the cache, `request_hits` of them in that of the request; `misses`: keys that the database
    was asked for; `fills`: rows put into Redis; `refused`: rows that Redis did not take, because they had changed
    meanwhile; `errors`: failures of Redis, and entries that could not be read.
    """

    hits: int = 0
    request_hits: int = 0
    misses: int = 0
    fills: int = 0
    refused: int = 0
    errors: int = 0


class _Tally:
    """`listeners` are called with each count, by name, in the thread that counts; they must be quick."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = CacheCounters()
        self.listeners: list[Callable[[Mapping[str, int]], None]] = []

    def add(self, **counts: int) -> None:
        """Count these."""
        with self._lock:
            for name, count in counts.items():
                setattr(self.now, name, getattr(self.now, name) + count)
        for listener in self.listeners:
            try:
                listener(counts)
            except Exception:
                logger.exception("a meter of the cache failed; the lookup goes on")


tally: Final = _Tally()


def counters() -> CacheCounters:
    """A copy of what has been counted."""
    return replace(tally.now)
