"""What still waits in the outboxes: the figures behind `crosstie status`."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.outbox.tables import lane as lanes
from crosstie.outbox.tables import outbox
from crosstie.outbox.tables import route as routes

__all__ = ["RouteBacklog", "pending"]


@dataclass(frozen=True)
class RouteBacklog:
    """One route of one source database.

    `depth`: events that are not acknowledged. `oldest_s`: how long the oldest has waited, by the database's clock; None
    where none waits. `failing_lanes`: lanes with events whose last attempt failed; `last_error`: of one of them.
    """

    source: str
    route: str
    depth: int
    oldest_s: float | None
    failing_lanes: int
    last_error: str | None


def pending(source: str) -> list[RouteBacklog]:
    """Every route of the database, by name. Counts all rows of the outbox. Raises DatabaseUnavailable, NoSuchTable."""
    database = ConnectionManager.get(source)
    waiting = sa.select(
        outbox.c.route,
        sa.func.count().label("depth"),
        (now_ms() - sa.func.min(outbox.c.created_at_ms)).label("age_ms"),
    ).group_by(outbox.c.route)
    has_work = sa.exists().where(outbox.c.route == lanes.c.route, outbox.c.lane == lanes.c.lane)
    failing = (
        sa.select(lanes.c.route, sa.func.count().label("lanes"), sa.func.max(lanes.c.last_error).label("last_error"))
        # A lane that succeeds forgets its failures; one that has nothing left to deliver never gets to do so.
        .where(lanes.c.failures > 0, has_work)
        .group_by(lanes.c.route)
    )
    with database.mapped_errors(), database.autocommit.connect() as connection:
        names = set(connection.execute(sa.select(routes.c.route).distinct()).scalars())
        depths = {row.route: row for row in connection.execute(waiting)}
        failures = {row.route: row for row in connection.execute(failing)}
    return [
        RouteBacklog(
            source=source,
            route=name,
            depth=depths[name].depth if name in depths else 0,
            oldest_s=max(0, depths[name].age_ms) / 1000 if name in depths else None,
            failing_lanes=failures[name].lanes if name in failures else 0,
            last_error=failures[name].last_error if name in failures else None,
        )
        for name in sorted(names | depths.keys())
    ]
