"""The statement that writes events: one INSERT … SELECT for all that a transaction publishes.

It joins the events with the persisted subscriptions in the business transaction itself, so that a producer feeds
subscribers that it has never heard of, and an event that nobody subscribes to costs no row.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.outbox.envelope import Envelope
from crosstie.outbox.tables import outbox, route

__all__ = ["insert_events"]

CHUNK: Final = 256
"""Events in one statement: 256 · 8 bound values are far below every driver's limit, and SQLite joins at most 500
SELECTs with UNION ALL."""

_COLUMNS: Final[dict[str, sa.types.TypeEngine[Any]]] = {
    "position": sa.Integer(),
    "uid": sa.String(),
    "key": sa.String(),
    "hash": sa.BigInteger(),
    "type": sa.String(),
    "schema_version": sa.Integer(),
    "payload": sa.Text(),
    "headers": sa.Text(),
}
_PADDING: Final = {
    "position": 0,
    "uid": "",
    "key": "",
    "hash": 0,
    "type": "",
    "schema_version": 0,
    "payload": "",
    "headers": "",
}
"""A row that no subscription matches: no event type is empty."""


def insert_events(
    connection: sa.Connection, envelopes: Sequence[Envelope], *, saga_id: str | None = None, want_routes: bool = False
) -> set[str]:
    """Write the events for every route that subscribes to them, ids ascending in the order given; never commits.

    Returns the routes written to where `want_routes`, else an empty set. Raises the driver's errors.
    """
    routes: set[str] = set()
    returning = want_routes and connection.dialect.insert_returning
    for start in range(0, len(envelopes), CHUNK):
        chunk = envelopes[start : start + CHUNK]
        # Few shapes of the statement, each compiled once: powers of two, filled up with rows that match nothing.
        size = 1 << (len(chunk) - 1).bit_length()
        values = dict(_values(chunk, size)) | {"saga_id": saga_id}
        result = connection.execute(_statement(size, returning), values)
        if returning:
            routes.update(result.scalars())
    if want_routes and not returning:
        routes.update(connection.execute(_SUBSCRIBED, {"types": list({one.type for one in envelopes})}).scalars())
    return routes


_SUBSCRIBED: Final = (
    sa.select(route.c.route).distinct().where(route.c.event_type.in_(sa.bindparam("types", expanding=True)))
)


def _values(chunk: Sequence[Envelope], size: int) -> Iterator[tuple[str, object]]:
    for position in range(size):
        row: dict[str, object] = dict(_PADDING)
        if position < len(chunk):
            one = chunk[position]
            row = {
                "position": position,
                "uid": one.uid,
                "key": one.key,
                "hash": one.partition,
                "type": one.type,
                "schema_version": one.schema_version,
                "payload": one.payload,
                "headers": one.headers_json,
            }
        for name, value in row.items():
            yield f"{name}_{position}", value


@functools.cache
def _statement(size: int, returning: bool) -> sa.Insert:
    rows = [
        sa.select(*(sa.bindparam(f"{name}_{n}", type_=kind).label(name) for name, kind in _COLUMNS.items()))
        for n in range(size)
    ]
    events = (sa.union_all(*rows) if size > 1 else rows[0]).subquery("events")
    values = {
        outbox.c.route: route.c.route,
        # Only the database knows how many lanes the route has; every language can compute CRC-32.
        outbox.c.lane: events.c.hash % route.c.lanes,
        outbox.c.uid: events.c.uid,
        outbox.c.key: events.c.key,
        outbox.c.operation: sa.literal_column("'event'"),
        outbox.c.type: events.c.type,
        outbox.c.schema_version: events.c.schema_version,
        outbox.c.payload: events.c.payload,
        outbox.c.headers: events.c.headers,
        outbox.c.saga_id: sa.bindparam("saga_id", type_=sa.String()),
        outbox.c.created_at_ms: now_ms(),
    }
    selected = (
        sa.select(*values.values())
        .select_from(route.join(events, events.c.type == route.c.event_type))
        # The database numbers the rows in this order, and the order of ids is the order of delivery.
        .order_by(events.c.position, route.c.route)
    )
    statement = sa.insert(outbox).from_select([column.name for column in values], selected, include_defaults=False)
    return statement.returning(outbox.c.route) if returning else statement
