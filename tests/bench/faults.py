"""Arming of crosstie's fault points: in a child process by its environment, in this one by a context manager."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from crosstie.testing import Reached

__all__ = ["HANGING", "crash_at", "crash_env", "hang_env"]

HANGING: Final = "crosstie: fault point reached"
"""The line by which a child armed with `hang_env` signals that it has stopped at the place."""


def crash_env(name: str, nth: int = 1) -> dict[str, str]:
    """The environment of a child that kills itself by SIGKILL the `nth` time it reaches the place."""
    return _environment(name, "kill", nth)


def hang_env(name: str, nth: int = 1) -> dict[str, str]:
    """The environment of a child that stops at the place for ever, after writing the line `HANGING`."""
    return _environment(name, "hang", nth)


@contextmanager
def crash_at(name: str, *, nth: int = 1) -> Iterator[Reached]:
    """`crosstie.testing.crash_at`, imported late: tests without crosstie do not pay for it."""
    from crosstie.testing.faults import crash_at as failing_at

    with failing_at(name, nth=nth) as reached:
        yield reached


def _environment(name: str, action: Literal["kill", "hang"], nth: int) -> dict[str, str]:
    from crosstie.orm.faults import FAULT_POINTS

    if name not in FAULT_POINTS:
        raise ValueError(f"no fault point is called {name!r}; expected one of {', '.join(sorted(FAULT_POINTS))}")
    return {"CROSSTIE_FAULTS": f"{name}={action}:{nth}"}
