"""Exhaustive search of a protocol that is written down as a small state machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Result", "explore", "put"]

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Result(Generic[S]):
    """How many states were visited, and the first one that breaks a promise, with the way that led there."""

    states: int
    violation: str | None
    trace: tuple[S, ...]


def explore(start: S, steps: Callable[[S], Iterable[S]], violation: Callable[[S, bool], str | None]) -> Result[S]:
    """Visit every state that can be reached, the nearest first; `violation` is told whether a state is a last one."""
    came_from: dict[S, S | None] = {start: None}
    queue = deque([start])
    while queue:
        state = queue.popleft()
        following = {after for after in steps(state) if after != state}
        broken = violation(state, not following)
        if broken:
            return Result(len(came_from), broken, _trace(came_from, state))
        for after in following:
            if after not in came_from:
                came_from[after] = state
                queue.append(after)
    return Result(len(came_from), None, ())


def _trace(came_from: dict[S, S | None], last: S) -> tuple[S, ...]:
    states: list[S] = []
    state: S | None = last
    while state is not None:
        states.append(state)
        state = came_from[state]
    return tuple(reversed(states))


def put(values: tuple[T, ...], index: int, value: T) -> tuple[T, ...]:
    """The values, with another one at this place."""
    return (*values[:index], value, *values[index + 1 :])
