"""Arming of crosstie's fault points: in a child process by its environment, in this one by a context manager."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["HANGING", "Reached", "crash_at", "crash_env", "hang_env"]

HANGING: Final = "crosstie: fault point reached"
"""The line by which a child armed with `hang_env` signals that it has stopped at the place."""


@dataclass
class Reached:
    """How often an armed place has made the code fail."""

    times: int = 0


def crash_env(name: str, nth: int = 1) -> dict[str, str]:
    """The environment of a child that kills itself by SIGKILL the `nth` time it reaches the place."""
    return _environment(name, "kill", nth)


def hang_env(name: str, nth: int = 1) -> dict[str, str]:
    """The environment of a child that stops at the place for ever, after writing the line `HANGING`."""
    return _environment(name, "hang", nth)


@contextmanager
def crash_at(name: str, *, nth: int = 1) -> Iterator[Reached]:
    """Raise FaultInjected where this process reaches the place for the `nth` time inside the block.

    Raises AssertionError at the end of a block that never reached it: such a test would prove nothing.
    """
    from crosstie.orm.faults import FaultInjected, armed

    reached = Reached()

    def fail() -> None:
        reached.times += 1
        raise FaultInjected(name)

    with armed(name, fail, nth=nth):
        yield reached
    if not reached.times:
        raise AssertionError(f"the fault point {name!r} was not reached {nth} times")


def _environment(name: str, action: Literal["kill", "hang"], nth: int) -> dict[str, str]:
    from crosstie.orm.faults import FAULT_POINTS

    if name not in FAULT_POINTS:
        raise ValueError(f"no fault point is called {name!r}; expected one of {', '.join(sorted(FAULT_POINTS))}")
    return {"CROSSTIE_FAULTS": f"{name}={action}:{nth}"}
