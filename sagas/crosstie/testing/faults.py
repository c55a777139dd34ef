"""Failing on purpose at one of crosstie's named places."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from crosstie.orm.faults import FaultInjected, armed

__all__ = ["Reached", "crash_at"]


@dataclass
class Reached:
    """How often an armed place has made the code fail."""

    times: int = 0


@contextmanager
def crash_at(name: str, *, nth: int = 1) -> Iterator[Reached]:
    """Raise FaultInjected where this process reaches the place for the `nth` time inside the block.

    Raises AssertionError at the end of a block that never reached it, since such a test would prove nothing, and
    ValueError for a name that is not in `crosstie.orm.faults.FAULT_POINTS`.
    """
    reached = Reached()

    def fail() -> None:
        reached.times += 1
        raise FaultInjected(name)

    with armed(name, fail, nth=nth):
        yield reached
    if not reached.times:
        raise AssertionError(f"the fault point {name!r} was not reached {nth} times")
