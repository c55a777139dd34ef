"""The statement that writes events: one INSERT … SELECT for all that a transaction publishes.

It joins the events with the persisted subscriptions in the business transaction itself, so that a producer feeds
subscribers that it has never heard of, and an event that nobody subscribes to costs no row.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.final_statement import FinalStatement
from crosstie.orm.prepared import Prepared
from crosstie.outbox.audience import subscribed_routes
from crosstie.outbox.envelope import Envelope
from crosstie.outbox.tables import outbox, route

__all__ = ["CHUNK", "Place", "Written", "insert_events", "last_insertion"]

CHUNK: Final = 500
"""Events in one statement, whose text is always the same: they travel as one value, in JSON."""

_COLUMNS: Final[dict[str, sa.types.TypeEngine[Any]]] = {
    "uid": sa.Text(),
    "key": sa.Text(),
    "hash": sa.BigInteger(),
    "type": sa.Text(),
    "schema_version": sa.Integer(),
    "payload": sa.Text(),
    "headers": sa.Text(),
}


class Place(NamedTuple):
    """The key of an event in the outbox."""

    route: str
    lane: int
    id: int


class Written(NamedTuple):
    """The routes that events were written for, if they were wanted, and the places, where the server tells them."""

    routes: set[str]
    places: list[Place] | None


def last_insertion(
    connection: sa.Connection,
    envelopes: Sequence[Envelope],
    *,
    want_routes: bool,
    then: Callable[[set[str]], object],
) -> FinalStatement:
    """The statement that writes up to `CHUNK` events as the last of their transaction, which is crosstie's own.

    `then` is called with the routes that they were written for, none unless `want_routes`. Raises the driver's errors.
    """
    # MariaDB returns rows at a price, and not together with a COMMIT.
    returning = want_routes and connection.dialect.name in {"postgresql", "sqlite"}
    subscribed = _subscribed(connection, envelopes) if want_routes and not returning else set()
    statement, values = _filled(connection, envelopes, None, returning=returning)
    return FinalStatement(
        statement, values, returning, lambda answer: then(subscribed | {row[0] for row in answer.rows})
    )


def insert_events(
    connection: sa.Connection,
    envelopes: Sequence[Envelope],
    *,
    saga_id: str | None = None,
    want_routes: bool = False,
    own: bool = False,
) -> Written:
    """Write the events for every route that subscribes to them, ids ascending in the order given; never commits.

    Tells the routes where `want_routes`, and of events of a saga the places. `own` says that crosstie has begun the
    connection's transaction; SQLAlchemy begins others with their first statement. Raises the driver's errors.
    """
    places: list[Place] = []
    returning = (want_routes or saga_id is not None) and connection.dialect.insert_returning
    for start in range(0, len(envelopes), CHUNK):
        statement, values = _filled(connection, envelopes[start : start + CHUNK], saga_id, returning=returning)
        if not own:
            result = connection.execute(statement.statement, values)
            places += map(Place._make, result if returning else ())
        elif returning:
            places += map(Place._make, statement.fetch(connection, values).rows)
        else:
            statement.run(connection, values)
    if want_routes and not returning:
        return Written(_subscribed(connection, envelopes), None)
    return Written({place.route for place in places}, places if returning else None)


def _subscribed(connection: sa.Connection, envelopes: Sequence[Envelope]) -> set[str]:
    return subscribed_routes(connection, {one.type for one in envelopes})


def _filled(
    connection: sa.Connection, envelopes: Sequence[Envelope], saga_id: str | None, *, returning: bool
) -> tuple[Prepared, dict[str, object]]:
    rows = [_row(one) for one in envelopes]
    single = len(rows) == 1
    told = dict(zip(_COLUMNS, rows[0], strict=True)) if single else _as_json(rows)
    return _statement(connection.dialect.name, returning, single), {"saga_id": saga_id} | told


def _row(one: Envelope) -> tuple[object, ...]:
    return one.uid, one.key, one.partition, one.type, one.schema_version, one.payload, one.headers_json


def _as_json(rows: Sequence[tuple[object, ...]]) -> dict[str, object]:
    return {"events": json.dumps(rows, ensure_ascii=False, separators=(",", ":"))}


@functools.cache
def _statement(dialect: str, returning: bool, single: bool) -> Prepared:
    """For a single event the values are parameters of their own, and no table has to be made of them."""
    told: dict[str, sa.ColumnElement[Any]]
    if single:
        told = {name: sa.bindparam(name, type_=kind) for name, kind in _COLUMNS.items()}
        source, position = sa.select().select_from(route).where(route.c.event_type == told["type"]), []
    else:
        events = _events(dialect)
        told, position = {column.key: column for column in events.c}, [events.c.position]
        source = sa.select().select_from(route.join(events, events.c.type == route.c.event_type))
    values = {
        outbox.c.route: route.c.route,
        # Only the database knows how many lanes the route has; every language can compute CRC-32.
        outbox.c.lane: told["hash"] % route.c.lanes,
        outbox.c.uid: told["uid"],
        outbox.c.key: told["key"],
        outbox.c.operation: sa.literal_column("'event'"),
        outbox.c.type: told["type"],
        outbox.c.schema_version: told["schema_version"],
        outbox.c.payload: told["payload"],
        outbox.c.headers: told["headers"],
        outbox.c.saga_id: sa.bindparam("saga_id", type_=sa.String()),
        outbox.c.created_at_ms: now_ms(),
    }
    # The database numbers the rows in this order, and within a route the order of ids is the order of delivery.
    selected = source.add_columns(*values.values()).order_by(*position)
    statement = sa.insert(outbox).from_select([column.name for column in values], selected, include_defaults=False)
    return Prepared(statement.returning(outbox.c.route, outbox.c.lane, outbox.c.id) if returning else statement)


def _events(dialect: str) -> sa.FromClause:
    """The JSON as a table: an array of arrays, numbered from wherever the dialect begins."""
    query = sa.text(_TABLE.get(dialect, _json_table)())
    columns = [sa.column("position", sa.Integer()), *(sa.column(name, kind) for name, kind in _COLUMNS.items())]
    return query.bindparams(sa.bindparam("events", type_=sa.Text())).columns(*columns).subquery("events")


def _json_array_elements() -> str:
    """PostgreSQL."""
    kinds = {"hash": "bigint", "schema_version": "int"}
    cells = (f"CAST(value ->> {n} AS {kinds.get(name, 'text')}) AS {name}" for n, name in enumerate(_COLUMNS))
    source = "json_array_elements(CAST(:events AS json)) WITH ORDINALITY AS told (value, position)"
    return f"SELECT position, {', '.join(cells)} FROM {source}"  # noqa: S608 - of the names above


def _json_each() -> str:
    """SQLite."""
    cells = (f"json_extract(value, '$[{n}]') AS {name}" for n, name in enumerate(_COLUMNS))
    return f"SELECT key AS position, {', '.join(cells)} FROM json_each(:events)"  # noqa: S608 - of the names above


def _json_table() -> str:
    """MySQL and MariaDB; the type is compared by bytes, as the tables do, and not as the connection would."""
    text = "LONGTEXT CHARACTER SET utf8mb4"
    kinds = {"hash": "BIGINT", "schema_version": "INT", "type": "VARCHAR(200) CHARACTER SET utf8mb4"}
    cells = ", ".join(f"`{name}` {kinds.get(name, text)} PATH '$[{n}]'" for n, name in enumerate(_COLUMNS))
    names = ", ".join(f"`{name}`{' COLLATE utf8mb4_bin AS `type`' * (name == 'type')}" for name in _COLUMNS)
    source = f"JSON_TABLE(:events, '$[*]' COLUMNS (position FOR ORDINALITY, {cells})) AS told"
    return f"SELECT position, {names} FROM {source}"  # noqa: S608 - of the names above


_TABLE: Final = {"postgresql": _json_array_elements, "sqlite": _json_each}
