"""Routes: the subscriptions as each source database knows them, so that producers need not import subscribers."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import ConfigurationError, CrosstieError, DeadlockDetected
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox.audience import forget_audience
from crosstie.outbox.brokers.forwarding import forwards, require_brokers
from crosstie.outbox.invalidation import ROUTE as CACHE
from crosstie.outbox.invalidation import wanted_types
from crosstie.outbox.subscription import subscriptions
from crosstie.outbox.tables import lane as lanes
from crosstie.outbox.tables import route as routes
from crosstie.outbox.upsert import insert_if_absent

__all__ = ["SyncReport", "sync_routes"]

logger = logging.getLogger(__name__)

ATTEMPTS: Final = 5

Row = tuple[str, str]
"""(route, event type), as in the key of crosstie_route."""


@dataclass(frozen=True)
class SyncReport:
    """What `sync_routes` did, by source database; a pair is (route, event type).

    `stale`: subscriptions stored there that this process does not have; they stay unless their removal was asked for.
    `failed`: databases that could not be reached or lack crosstie's tables, with the error.
    """

    added: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    removed: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    stale: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    failed: Mapping[str, CrosstieError] = field(default_factory=dict)


def sync_routes(source: str | None = None, *, remove_stale: bool = False) -> SyncReport:
    """Write this process's subscriptions, and the lanes of their routes, into every writable database or one.

    Safe to repeat, and for several processes at once. An event class with `__connection__` is subscribed to there only.
    A database that fails is reported, and the others are served.

    `remove_stale` also deletes subscriptions that this process does not have: ask for it only where every subscriber
    has been imported. Events that were written before stay, and still need their subscriber.

    Raises UnknownConnection and ConfigurationError for a subscriber whose database is not configured or is read-only,
    and for events that are forwarded to a broker that is not configured.
    """
    require_brokers()
    for route, event in subscriptions():
        if ConnectionManager.get(route).settings.read_only:
            raise ConfigurationError(
                f"a subscriber to {event.__event_type__!r} is declared for database {route!r}, which is read-only; "
                "what it does and the record that it was done are written there. Declare it for another database."
            )
    added: dict[str, tuple[Row, ...]] = {}
    removed: dict[str, tuple[Row, ...]] = {}
    stale: dict[str, tuple[Row, ...]] = {}
    failed: dict[str, CrosstieError] = {}
    for name in ConnectionManager.names(writable=True) if source is None else [source]:
        wanted = {
            (route, event.__event_type__)
            for route, event in (*subscriptions(), *forwards())
            if event.__connection__ in (None, name)
        }
        wanted |= {(CACHE, event_type) for event_type in wanted_types(name)}
        try:
            found = _stored(ConnectionManager.get(name))
            added[name] = tuple(sorted(wanted - found.keys()))
            stale[name] = tuple(sorted(found.keys() - wanted))
            removed[name] = stale[name] if remove_stale else ()
            _bring_up_to_date(name, wanted, found, removed[name])
            forget_audience()
        except CrosstieError as error:
            logger.warning("the subscriptions could not be written into database %r: %s", name, error)
            failed[name] = error
            for done in (added, removed, stale):
                done.pop(name, None)
    return SyncReport(added, removed, stale, failed)


def _stored(database: Database) -> dict[Row, bool]:
    """The stored subscriptions, each with whether all lanes of its route exist."""
    present = (
        sa.select(sa.func.count()).select_from(lanes).where(lanes.c.route == routes.c.route).correlate(routes)
    ).scalar_subquery()
    query = sa.select(routes.c.route, routes.c.event_type, routes.c.lanes, present.label("present"))
    with database.mapped_errors(), database.autocommit.connect() as connection:
        return {(row.route, row.event_type): row.present >= row.lanes for row in connection.execute(query)}


def _bring_up_to_date(name: str, wanted: set[Row], found: Mapping[Row, bool], remove: Iterable[Row]) -> None:
    # The common case, every start of a worker, takes no lock at all.
    if not remove and all(found.get(row, False) for row in wanted):
        return
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with detached_transaction(name) as tx:
                _write(tx, wanted, remove)
        except DeadlockDetected:
            if attempt == ATTEMPTS:
                raise
        else:
            return


def _write(tx: LocalTransaction, wanted: set[Row], remove: Iterable[Row]) -> None:
    tx.mark_written()
    for route in sorted({route for route, _ in wanted}):
        count = _lock(tx, route)
        existing = set(tx.connection.execute(sa.select(lanes.c.lane).where(lanes.c.route == route)).scalars())
        missing = [number for number in range(count) if number not in existing]
        if missing:
            origin = _new_origin(tx.database.name)
            rows = [{"route": route, "lane": number, "origin": origin} for number in missing]
            tx.connection.execute(sa.insert(lanes), rows)
        for event_type in sorted(type_ for wanted_route, type_ in wanted if wanted_route == route):
            insert_if_absent(tx.connection, routes, {"route": route, "event_type": event_type, "lanes": count})
    for route, event_type in remove:
        tx.connection.execute(sa.delete(routes).where(routes.c.route == route, routes.c.event_type == event_type))


def _lock(tx: LocalTransaction, route: str) -> int:
    """Lock the route's first lane, so that one process at a time adds to the route; returns how many lanes it has.

    The number that was stored first stands, whatever the settings say by now: with another one, a key's new events
    would go to another lane than its old ones and overtake them.
    """
    first = {"route": route, "lane": 0, "origin": _new_origin(tx.database.name)}
    insert_if_absent(tx.connection, lanes, first)
    tx.connection.execute(
        sa.select(lanes.c.lane).where(lanes.c.route == route, lanes.c.lane == 0).with_for_update()
    ).one()
    stored = tx.connection.execute(sa.select(sa.func.max(routes.c.lanes)).where(routes.c.route == route)).scalar_one()
    settings = ConnectionManager.settings().outbox
    few = tx.database.kind == "sqlite" or route == CACHE  # whose events are in no order, and quickly taken
    return int(stored or (settings.sqlite_lanes if few else settings.lanes))


def _new_origin(name: str) -> str:
    return f"{name}:{secrets.token_hex(8)}"
