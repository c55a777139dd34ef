"""Word of changed rows on its way to the cache in Redis, over a route of its own.

The event holds names and keys, and is written in the transaction that changes the rows. It belongs to no saga: whatever
a saga decides, forgetting a row is never wrong, and an undo or a redo tells of its own writes. Taking it twice does no
harm either, so the target keeps no record of what it has taken.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Final
from uuid import uuid4

from crosstie.orm.cache import outage
from crosstie.orm.cache.changes import Changed, carry_changes_with, forget_at_once
from crosstie.orm.cache.redis_rows import TableKeys
from crosstie.orm.cache.targets import cached_tables
from crosstie.orm.errors import CacheUnavailable
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.outbox import doorbell
from crosstie.outbox.batch import OutboxRow
from crosstie.outbox.envelope import Envelope
from crosstie.outbox.errors import CacheUnrouted, DeliveryFailed, TargetFailed
from crosstie.outbox.insertion import insert_events
from crosstie.outbox.lane import Lease

__all__ = ["ROUTE", "CacheTarget", "tell_of_tables", "wanted_types"]

ROUTE: Final = "crosstie.cache"

_TYPE: Final = "crosstie.cache.changed"
_HEADERS: Final[dict[str, str]] = {}


def wanted_types(source: str) -> list[str]:
    """The types of the events that this database is to write for the cache, one for each table that has cached rows."""
    return [_type(table) for table in cached_tables(source)] if outage.is_configured() else []


def tell_of_tables(tx: LocalTransaction, tables: Collection[str]) -> None:
    """Tell that rows of these tables are written from images, without their models; nothing where none is cached."""
    changed: dict[str, TableKeys] = {table: None for table in tables if _insert(tx, table, None)}
    if changed and outage.is_configured():
        tx.after_commit(partial(forget_at_once, tx.database.name, changed))


class CacheTarget:
    """Forgets the rows that the events name."""

    def enter(self, lease: Lease) -> frozenset[int]:
        """Nothing is known here of what was taken."""
        del lease
        return frozenset()

    def apply(self, lease: Lease, rows: Sequence[OutboxRow]) -> frozenset[int]:
        """Raises TargetFailed while Redis does not answer, DeliveryFailed for what crosstie has not written."""
        del lease
        breaker = outage.breaker()
        if breaker is None:
            raise _down("this process has no cache.redis_url: configure it as in the processes that write to the cache")
        for position, row in enumerate(rows):
            try:
                told = json.loads(row.payload)
                database, changed = str(told["database"]), {str(told["table"]): _keys(told["keys"])}
            except (ValueError, TypeError, LookupError, AttributeError):
                raise _unreadable(position, row) from None
            try:
                breaker.rows.forget(database, changed)
            except CacheUnavailable as error:
                raise _down(str(error)) from error
        return frozenset()


def _carry(tx: LocalTransaction, changed: Changed) -> None:
    """Write the word into the database's own outbox. Raises CacheUnrouted."""
    for table, keys in changed.items():
        if not _insert(tx, table, keys):
            raise CacheUnrouted(
                f"rows of {table!r} are cached, and database {tx.database.name!r} does not know yet that changes of "
                "them are to be told to the cache. Run `crosstie init` with the module of the relation imported, or "
                "call sync_routes()."
            )


def _insert(tx: LocalTransaction, table: str, keys: TableKeys) -> bool:
    """Write the event of one table; whether anybody has subscribed to it."""
    uid = str(uuid4())
    event = Envelope(uid, uid, _type(table), 1, _payload(tx.database.name, table, keys), _HEADERS)
    with tx.mapped_errors(), tx.internal():
        routes = insert_events(tx.connection, [event], want_routes=True).routes
    if ROUTE in routes and doorbell.is_heard():
        tx.after_commit(partial(doorbell.ring, tx.database.name, ROUTE))
    return ROUTE in routes


def _payload(database: str, table: str, keys: TableKeys) -> str:
    return json.dumps({"database": database, "table": table, "keys": keys}, separators=(",", ":"), ensure_ascii=False)


def _keys(told: Any) -> TableKeys:
    return None if told is None else {str(column): [str(key) for key in keys] for column, keys in told.items()}


def _type(table: str) -> str:
    return f"{_TYPE}:{table}"


def _down(reason: str) -> TargetFailed:
    return TargetFailed(f"route {ROUTE!r}: {reason}", whole_route=True)


def _unreadable(position: int, row: OutboxRow) -> DeliveryFailed:
    return DeliveryFailed(
        f"event {row.id} of type {row.type!r} (uid {row.uid}) names no table and keys: nothing of crosstie wrote it.",
        position=position,
    )


carry_changes_with(_carry)
