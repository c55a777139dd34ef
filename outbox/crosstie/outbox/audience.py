"""Which routes subscribe to events, as the source's database has lately said: whose doors to ring at, and no more.

Events are written for the subscriptions that are stored at that moment, whatever is remembered here. A route that was
added by another process a moment ago gets its first events from a sweep, as if their doorbells had been lost.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from crosstie.outbox.tables import route

__all__ = ["REMEMBERED_S", "forget_audience", "subscribed_routes"]

REMEMBERED_S: Final = 2.0
_SUBSCRIBED: Final = sa.select(route.c.event_type, route.c.route).where(
    route.c.event_type.in_(sa.bindparam("types", expanding=True))
)
_remembered: WeakKeyDictionary[sa.Engine, dict[str, tuple[float, frozenset[str]]]] = WeakKeyDictionary()


def subscribed_routes(connection: sa.Connection, types: Collection[str]) -> set[str]:
    """The routes that subscribe to any of these types of events. Raises the driver's errors."""
    known = _remembered.setdefault(connection.engine, {})
    now_s = time.monotonic()
    unknown = [one for one in types if one not in known or known[one][0] < now_s]
    if unknown:
        routes: dict[str, set[str]] = {one: set() for one in unknown}
        for event_type, name in connection.execute(_SUBSCRIBED, {"types": unknown}):
            routes[event_type].add(name)
        for event_type, names in routes.items():
            known[event_type] = now_s + REMEMBERED_S, frozenset(names)
    return set().union(*(known[one][1] for one in types))


def forget_audience() -> None:
    """This process has changed what is stored."""
    _remembered.clear()
