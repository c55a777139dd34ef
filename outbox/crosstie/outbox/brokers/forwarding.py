"""Which events go to which broker, and the names of the routes that take them there."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from crosstie.orm.configuration import nearest
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import ConfigurationError
from crosstie.outbox.brokers.kinds import kind_of
from crosstie.outbox.errors import EventDefinitionError
from crosstie.outbox.event import Event

__all__ = ["Destination", "destination_of", "forward", "forwards", "require_brokers"]

PREFIX: Final = "broker:"
_BROKER: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")
_DESTINATION: Final = re.compile(r"[!-~]{1,70}")


class Destination(NamedTuple):
    """A stream, queue or routing key of a configured broker."""

    broker: str
    name: str

    @property
    def route(self) -> str:
        """The route that leads there."""
        return f"{PREFIX}{self.broker}:{self.name}"


_forwards: dict[tuple[str, str], tuple[Destination, type[Event]]] = {}


def forward(*events: type[Event], broker: str, to: str) -> None:
    """Publish the events of these classes to `to`, a stream, queue or routing key, of a configured broker.

    Raises EventDefinitionError for names that a route cannot hold.
    """
    if not _BROKER.fullmatch(broker) or not _DESTINATION.fullmatch(to):
        raise EventDefinitionError(
            f"forward(broker={broker!r}, to={to!r}): expected a broker's name of up to 40 letters, digits, - and _, "
            "and a destination of up to 70 visible ASCII characters."
        )
    destination = Destination(broker, to)
    for event in events:
        _forwards[destination.route, event.__event_type__] = destination, event


def forwards() -> list[tuple[str, type[Event]]]:
    """Every (route, event class) that this process declares to be forwarded."""
    return [(route, event) for (route, _), (_, event) in list(_forwards.items())]


def destination_of(route: str) -> Destination | None:
    """Where the route leads to; None for one that leads to no broker."""
    if not route.startswith(PREFIX):
        return None
    broker, _, name = route.removeprefix(PREFIX).partition(":")
    return Destination(broker, name)


def require_brokers() -> None:
    """Raise ConfigurationError where events are forwarded to a broker that is not configured, or of unknown kind."""
    known = ConnectionManager.settings().brokers
    for destination, event in list(_forwards.values()):
        if destination.broker not in known:
            raise ConfigurationError(
                f"{event.__qualname__} is forwarded to broker {destination.broker!r}, which is not configured: give it "
                f"a URL in brokers.{destination.broker}.{nearest(destination.broker, list(known))}"
            )
        kind_of(known[destination.broker])
