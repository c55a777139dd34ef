"""The one place where tests wait by the clock: polling with a deadline. Prefer a signal where there is one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

__all__ = ["PATIENCE_S", "eventually"]

T = TypeVar("T")
PATIENCE_S: Final = 60.0
"""How long to wait for what is sure to come: it only bounds a hang, and a machine that stalls for seconds is none."""
FIRST_PAUSE_S = 0.005
LONGEST_PAUSE_S = 0.1


def eventually(predicate: Callable[[], T], *, within_s: float = PATIENCE_S, describe: str = "") -> T:
    """Call `predicate` until it returns something true, and return that.

    Asked once more after the deadline, so a slow predicate is not failed by its own slowness. Raises AssertionError
    that shows the last value. An exception in the predicate is not swallowed.
    """
    deadline = time.monotonic() + within_s
    pause_s = FIRST_PAUSE_S
    while True:
        late = time.monotonic() >= deadline
        value = predicate()
        if value:
            return value
        if late:
            what = describe or getattr(predicate, "__qualname__", repr(predicate))
            raise AssertionError(f"not within {within_s:g} s: {what}; the last value was {value!r}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
