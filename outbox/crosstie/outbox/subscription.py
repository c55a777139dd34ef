"""Subscribers: functions that take an event inside the local transaction of the database they are declared for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from crosstie.outbox.envelope import Envelope
from crosstie.outbox.errors import EventDefinitionError
from crosstie.outbox.event import Event, require_complete_upcasters
from crosstie.outbox.trace_context import trace_of

__all__ = ["Subscription", "handlers", "subscribe_with", "subscriber", "subscriptions"]

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True)
class Subscription:
    """One function that one type of event reaches in one database; the database's name is the route's."""

    event: type[Event]
    route: str
    function: Callable[..., object]
    takes_envelope: bool
    batch: bool = False

    @property
    def name(self) -> str:
        """Module and qualified name of the function."""
        return _name(self.function)

    def __call__(self, event: Event, envelope: Envelope) -> None:
        """Hand the event to the function, in the trace of its publisher."""
        with trace_of(envelope.headers):
            if self.takes_envelope:
                self.function(event, envelope)
            else:
                self.function(event)

    def take(self, events: Sequence[Event], envelopes: Sequence[Envelope]) -> None:
        """Hand several events to a function that takes them together; they may belong to several traces."""
        if self.takes_envelope:
            self.function(list(events), list(envelopes))
        else:
            self.function(list(events))


_subscriptions: dict[tuple[str, str], dict[str, Subscription]] = {}
_declarers: list[Callable[[], None]] = []


def subscriber(event: type[Event], *, database: str, batch: bool = False) -> Callable[[F], F]:
    """Call the function for every event of this class, once, inside a local transaction of `database`.

    It takes the event, and as a second argument, if it has one, its `Envelope` (uid, key, headers). What it writes to
    `database` becomes durable exactly once, together with the record that it has; writing to another one raises
    ForeignWrite. If it raises, its transaction is rolled back and the event comes again later.

    With `batch`, it takes a list of events, as many as the relay has read, in their order, and a list of envelopes. If
    it raises, the relay finds the event that is to blame by trying with fewer.

    Raises EventDefinitionError for a coroutine function or another number of parameters.
    """

    def register(function: F) -> F:
        found = Subscription(event, database, function, _takes_envelope(function), batch)
        # By name: a module that is loaded again replaces its subscribers instead of doubling them.
        _subscriptions.setdefault((database, event.__event_type__), {})[found.name] = found
        return function

    return register


def subscribe_with(declare: Callable[[], None]) -> None:
    """Have `declare` call `subscriber` for what is declared elsewhere, whenever subscriptions are asked for.

    It is called again and again: what it subscribes may become more with every module that is imported.
    """
    _declarers.append(declare)


def _declare() -> None:
    for declare in _declarers:
        declare()


def handlers(route: str, event_type: str) -> tuple[Subscription, ...]:
    """This process's subscribers to the type in the route's database, in the order of their declaration."""
    if (route, event_type) not in _subscriptions:
        _declare()
    return tuple(_subscriptions.get((route, event_type), {}).values())


def subscriptions() -> list[tuple[str, type[Event]]]:
    """Every (route, event class) with a subscriber in this process.

    Raises EventDefinitionError where the upcasters of an event class lead nowhere.
    """
    _declare()
    require_complete_upcasters()
    return [(route, next(iter(found.values())).event) for (route, _), found in list(_subscriptions.items()) if found]


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _takes_envelope(function: Callable[..., Any]) -> bool:
    if inspect.iscoroutinefunction(function):
        raise EventDefinitionError(
            f"subscriber {_name(function)} is a coroutine function; the relay runs plain functions, in the transaction "
            "of its thread."
        )
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    accepted = [one for one in parameters if one.kind in kinds]
    required = [one for one in accepted if one.default is inspect.Parameter.empty]
    if not accepted or len(required) > 2:
        raise EventDefinitionError(
            f"subscriber {_name(function)}: expected the parameters (event) or (event, envelope), found "
            f"{inspect.signature(function)}."
        )
    return len(required) == 2
