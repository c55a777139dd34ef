"""The steps of a declared saga and their order, checked when the class is made.

Steps run in the order in which the class names them; neighbours with the same `group` run in parallel. The *pivot* is
the step after which there is no way back: what comes before it must have a compensation, what comes after it is tried
until it succeeds. Without one, every step can be taken back, and the last needs no compensation if it stands alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Final, Self, TypeVar, overload

from crosstie.sagas.errors import SagaError

__all__ = ["Plan", "SagaDefinitionError", "Step", "planned", "step"]

F = TypeVar("F", bound=Callable[..., object])

RETRIES: Final = 3
TIMEOUT_S: Final = 60.0


class SagaDefinitionError(SagaError):
    """A declared saga could get stuck half-way, or says something that cannot be meant."""

    code = "saga.definition"


class Step:
    """A method of a saga that is run as one block; `@compensation` of it names the method that takes it back."""

    def __init__(
        self,
        function: Callable[..., object],
        *,
        retries: int,
        timeout_s: float,
        delay_s: float,
        group: str | None,
        pivot: bool,
        waits_for: str | None,
        wait_s: float | None,
        nothing_to_undo: bool,
    ) -> None:
        self.function = function
        self.name = function.__name__
        self.retries = retries
        self.timeout_s = timeout_s
        self.delay_s = delay_s
        self.group = group
        self.pivot = pivot
        self.waits_for = waits_for
        self.wait_s = wait_s
        self.nothing_to_undo = nothing_to_undo
        self.undo: Callable[..., object] | None = None
        self.takes_signal = len(inspect.signature(function).parameters) == 2
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Callable[..., object]: ...
    def __get__(self, instance: object, owner: type) -> Self | Callable[..., object]:
        """The step itself on the class; on an instance its method, for tests that call it."""
        if instance is None:
            return self
        bound: Callable[..., object] = self.function.__get__(instance, owner)
        return bound

    def compensation(self, function: F) -> F:
        """Name the method that takes this step back. Raises SagaDefinitionError for a second one."""
        if self.undo is not None:
            raise SagaDefinitionError(
                f"step {self.name!r} has two compensations: {self.undo.__name__} and {function.__name__}"
            )
        self.undo = function
        return function


@overload
def step(function: Callable[..., object], /) -> Step: ...
@overload
def step(
    *,
    retries: int = RETRIES,
    timeout_s: float = TIMEOUT_S,
    delay_s: float = 0.0,
    group: str | None = None,
    pivot: bool = False,
    waits_for: str | None = None,
    wait_s: float | None = None,
    nothing_to_undo: bool = False,
) -> Callable[[Callable[..., object]], Step]: ...
def step(
    function: Callable[..., object] | None = None,
    /,
    *,
    retries: int = RETRIES,
    timeout_s: float = TIMEOUT_S,
    delay_s: float = 0.0,
    group: str | None = None,
    pivot: bool = False,
    waits_for: str | None = None,
    wait_s: float | None = None,
    nothing_to_undo: bool = False,
) -> Step | Callable[[Callable[..., object]], Step]:
    """Make a method a step of its saga.

    It is tried again `retries` times, with growing pauses, before the run turns round; after the pivot, until it
    succeeds. Another worker may take it over once it has run for `timeout_s` seconds. It begins `delay_s` seconds after
    the step before it. With `waits_for`, it begins when a signal of this name has come, whose payload it takes as a
    second argument if it has one; after `wait_s` seconds without it the step has failed. `nothing_to_undo` says that it
    needs no compensation.
    """

    def declare(function: Callable[..., object]) -> Step:
        return Step(
            function,
            retries=retries,
            timeout_s=timeout_s,
            delay_s=delay_s,
            group=group,
            pivot=pivot,
            waits_for=waits_for,
            wait_s=wait_s,
            nothing_to_undo=nothing_to_undo,
        )

    return declare if function is None else declare(function)


@dataclass(frozen=True)
class Plan:
    """The steps of a saga, in groups that follow each other."""

    groups: tuple[tuple[Step, ...], ...]
    pivot: int
    """The index of the group after which there is no way back; -1 where every step can be taken back."""

    @property
    def steps(self) -> Mapping[str, Step]:
        """By name, in order."""
        return MappingProxyType({one.name: one for group in self.groups for one in group})

    def group_of(self, name: str) -> int:
        """The index of a step's group."""
        return next(index for index, group in enumerate(self.groups) if any(one.name == name for one in group))

    def is_past_the_pivot(self, name: str) -> bool:
        """Whether this step has no way back before it."""
        return 0 <= self.pivot < self.group_of(name)


def planned(where: str, steps: Sequence[Step]) -> Plan:
    """The plan of a class, called `where` in messages, with these steps. Raises SagaDefinitionError."""
    if not steps:
        raise SagaDefinitionError(f"{where}: expected at least one method with @step, found none")
    for one in steps:
        _check(where, one)
    groups = tuple(
        tuple(found) for _, found in groupby(steps, key=lambda one: (one.group, "" if one.group else one.name))
    )
    names = [group[0].group for group in groups if group[0].group]
    torn = sorted({name for name in names if names.count(name) > 1})
    if torn:
        raise SagaDefinitionError(f"{where}: the steps of group {torn[0]!r} do not stand side by side")
    return Plan(groups, _checked_pivot(where, groups))


def _check(where: str, one: Step) -> None:
    for function in filter(None, (one.function, one.undo)):
        if inspect.iscoroutinefunction(function):
            raise SagaDefinitionError(
                f"{where}.{function.__name__} is a coroutine function; workers run plain functions"
            )
    takes = len(inspect.signature(one.function).parameters)
    if takes not in ({1, 2} if one.waits_for else {1}):
        expected = "(self) or (self, signal)" if one.waits_for else "(self)"
        raise SagaDefinitionError(
            f"{where}.{one.name}: expected the parameters {expected}, found {inspect.signature(one.function)}. What a "
            "step needs to know is kept in the fields of the saga."
        )
    for field, value, least in (
        ("retries", one.retries, 0),
        ("timeout_s", one.timeout_s, 1),
        ("delay_s", one.delay_s, 0),
        ("wait_s", one.wait_s, 0),
    ):
        if value is not None and value < least:
            raise SagaDefinitionError(f"{where}.{one.name}: expected {field} to be at least {least}, found {value}")
    if one.wait_s is not None and one.waits_for is None:
        raise SagaDefinitionError(f"{where}.{one.name}: wait_s says how long, and no waits_for says for what")


def _checked_pivot(where: str, groups: tuple[tuple[Step, ...], ...]) -> int:
    pivots = [index for index, group in enumerate(groups) if any(one.pivot for one in group)]
    if len(pivots) > 1:
        raise SagaDefinitionError(f"{where}: expected one pivot at most, found {len(pivots)}")
    if pivots and len(groups[pivots[0]]) > 1:
        raise SagaDefinitionError(f"{where}: the pivot {groups[pivots[0]][0].name!r} must stand alone, not in a group")
    pivot = pivots[0] if pivots else -1
    before = pivot if pivots else len(groups) - (len(groups[-1]) == 1)
    for index, group in enumerate(groups):
        for one in group:
            if index < before and one.undo is None and not one.nothing_to_undo:
                raise SagaDefinitionError(
                    f"{where}.{one.name}: a later step may fail, and nothing takes this one back. Declare a method "
                    f"with @{one.name}.compensation, or @step(nothing_to_undo=True), or make an earlier step the pivot."
                )
            if pivots and index > pivot and one.wait_s is not None:
                raise SagaDefinitionError(
                    f"{where}.{one.name}: comes after the pivot, so there is no way back when {one.waits_for!r} has "
                    "not come in time. Leave wait_s out."
                )
            if pivots and index > pivot and one.undo is not None:
                raise SagaDefinitionError(
                    f"{where}.{one.name}: comes after the pivot, so {one.undo.__name__} would never run. Remove it, or "
                    "make a later step the pivot."
                )
    return pivot
