"""What an operator can do about parked events and routes: mark rows, upon which the owner of the lane acts.

Nothing is moved or deleted here: that needs the lane's lease. A mark that comes while the owner is trying the event
holds for the next attempt; the one under way may still succeed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.configuration import nearest
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox.envelope import Envelope
from crosstie.outbox.errors import EventUnreadable, OperationRefused
from crosstie.outbox.event import known_class
from crosstie.outbox.lane import leased_lanes
from crosstie.outbox.tables import lane as lanes
from crosstie.outbox.tables import parked

__all__ = ["Selection", "owned_lanes", "pause", "redrive", "replace", "resume", "routes_of", "skip"]

_HEADS: Final = ("failing", "undeployed", "dead")


@dataclass(frozen=True)
class Selection:
    """Which parked events: of a route, of a key, with an id; each that is given narrows it.

    `dead`: only those that nobody tries any more.
    """

    route: str | None = None
    key: str | None = None
    id: int | None = None
    dead: bool = False

    def clause(self) -> sa.ColumnElement[bool]:
        """The condition on the rows of crosstie_parked."""
        wanted = [(parked.c.route, self.route), (parked.c.key, self.key), (parked.c.id, self.id)]
        clauses = [column == value for column, value in wanted if value is not None]
        if self.dead:
            clauses.append(parked.c.state == "dead")
        return sa.and_(sa.true(), *clauses)


def redrive(source: str, selection: Selection) -> int:
    """Have the first event of each selected key tried again now, with all its attempts before it; returns how many.

    Those behind follow by themselves. Raises DatabaseUnavailable.
    """
    return _mark(source, selection, _states(selection), {"state": "failing", "attempts": 0, "next_at_ms": 0})


def skip(source: str, selection: Selection, *, behind: bool = False) -> int:
    """Have the first event of each selected key deleted unseen, so that the key goes on; returns how many.

    `behind`: also the events that wait behind it. Raises DatabaseUnavailable.
    """
    return _mark(source, selection, _states(selection, behind=behind), {"state": "skipped", "next_at_ms": 0})


def replace(source: str, event_id: int, payload: str) -> str:
    """Give a parked event another payload, and have it tried again; returns its type.

    The payload is checked and stored as the event's class has it, where this process knows the class; the key must stay
    as it is. Raises OperationRefused, DatabaseUnavailable.
    """
    with detached_transaction(source) as tx:
        tx.mark_written()
        query = sa.select(parked.c.type, parked.c.key, parked.c.schema_version).where(parked.c.id == event_id)
        row = tx.connection.execute(query.with_for_update()).first()
        if row is None:
            raise OperationRefused(
                f"expected a parked event with the id {event_id} in database {source!r} and found none: it may have "
                "been applied meanwhile. `crosstie outbox parked` lists those that there are."
            )
        stored, version = _checked(payload, row.type, row.key, row.schema_version)
        values = {
            "payload": stored,
            "schema_version": version,
            "attempts": 0,
            "next_at_ms": 0,
            "state": sa.case((parked.c.state == "behind", "behind"), else_="failing"),
        }
        tx.connection.execute(sa.update(parked).where(parked.c.id == event_id).values(values))
        return str(row.type)


def pause(source: str, route: str) -> int:
    """Keep every worker from carrying events over this route, until `resume`; returns how many lanes are still owned.

    Those owners stop after the batch in hand. Raises OperationRefused for a route without lanes, DatabaseUnavailable.
    """
    _set_paused(source, route, now_ms())
    return owned_lanes(source, route)


def owned_lanes(source: str, route: str) -> int:
    """How many lanes of the route workers have in hand now. Raises DatabaseUnavailable."""
    return leased_lanes(ConnectionManager.get(source), route)


def routes_of(source: str) -> list[str]:
    """The routes that have lanes here, by name. Raises DatabaseUnavailable, NoSuchTable."""
    return sorted(row.route for row in ConnectionManager.get(source).rows(sa.select(lanes.c.route).distinct()))


def resume(source: str, route: str) -> None:
    """End a pause, for all workers. Raises OperationRefused for a route without lanes, DatabaseUnavailable."""
    _set_paused(source, route, sa.null())


def _states(selection: Selection, *, behind: bool = False) -> tuple[str, ...]:
    """An event named by its id is meant even if it is behind another; the owner keeps the order of the key anyway."""
    return (*_HEADS, "behind") if behind or selection.id is not None else _HEADS


def _set_paused(source: str, route: str, value: sa.ColumnElement[Any]) -> None:
    with detached_transaction(source) as tx:
        tx.mark_written()
        if tx.connection.execute(sa.update(lanes).where(lanes.c.route == route).values(paused_at_ms=value)).rowcount:
            return
    hint = nearest(route, routes_of(source)) or " It has none yet: run `crosstie init`."
    raise OperationRefused(f"expected a route of database {source!r} and found {route!r}.{hint}")


def _mark(source: str, selection: Selection, states: tuple[str, ...], values: dict[str, object]) -> int:
    with detached_transaction(source) as tx:
        tx.mark_written()
        statement = sa.update(parked).where(selection.clause(), parked.c.state.in_(states)).values(values)
        return tx.connection.execute(statement).rowcount


def _checked(payload: str, event_type: str, key: str, version: int) -> tuple[str, int]:
    try:
        json.loads(payload)
    except json.JSONDecodeError as error:
        raise OperationRefused(f"payload: expected JSON, and found something else at character {error.pos}.") from None
    cls = known_class(event_type)
    if cls is None:
        return payload, version
    try:
        event = Envelope("", key, event_type, cls.__schema_version__, payload, {}).open()
    except EventUnreadable as error:
        raise OperationRefused(f"payload: {error}") from None
    new = Envelope.of(event)
    if cls.__key__ is not None and new.key != key:
        raise OperationRefused(
            f"payload: expected {cls.__key__} to stay the key that the event is parked under, and found another. Skip "
            "the event and publish a new one instead."
        )
    return new.payload, new.schema_version
