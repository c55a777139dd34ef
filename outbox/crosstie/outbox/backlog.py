"""What still waits in the outboxes: the figures behind `crosstie status`."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.outbox.lane import WARY_AT
from crosstie.outbox.parking import BLOCKING
from crosstie.outbox.tables import lane as lanes
from crosstie.outbox.tables import outbox, parked
from crosstie.outbox.tables import route as routes

__all__ = ["RouteBacklog", "pending"]


@dataclass(frozen=True)
class RouteBacklog:
    """One route of one source database; ages are by the database's clock, and None where there is no such event.

    `depth`: events in the outbox that are not acknowledged; `oldest_s`: how long the oldest has waited.
    `failing_lanes`: lanes with events whose last attempt failed. `wary_lanes`: lanes with events whose last owners
    died, three or more, so that events are tried one at a time. `parked`: events that failed or stand behind one, of
    `parked_keys` keys, of which `dead` wait for the operator. `last_error`: of a failing lane, else of a parked event.
    """

    source: str
    route: str
    depth: int = 0
    oldest_s: float | None = None
    failing_lanes: int = 0
    wary_lanes: int = 0
    last_error: str | None = None
    parked: int = 0
    parked_keys: int = 0
    dead: int = 0
    oldest_parked_s: float | None = None
    paused: bool = False

    @property
    def lag_s(self) -> float:
        """How long the oldest event of the route has waited, parked or not."""
        return max(self.oldest_s or 0.0, self.oldest_parked_s or 0.0)


def pending(source: str) -> list[RouteBacklog]:
    """Every route of the database, by name. Counts all rows of the outbox. Raises DatabaseUnavailable, NoSuchTable."""
    database = ConnectionManager.get(source)
    with database.mapped_errors(), database.autocommit.connect() as connection:
        names = set(connection.execute(sa.select(routes.c.route).distinct()).scalars())
        found: dict[str, dict[str, Any]] = {name: {} for name in names}
        # A later query's figures win: the error of a lane that fails says more than that of an event.
        for query in (_PARKED, _WAITING, _PAUSED, _WARY, _FAILING):
            for row in connection.execute(query).mappings():
                figures = {name: value for name, value in row.items() if name != "route"}
                found.setdefault(row["route"], {}).update(figures)
    return [
        RouteBacklog(source, name, **{key: _plain(key, value) for key, value in found[name].items()})
        for name in sorted(found)
    ]


def _plain(name: str, value: Any) -> Any:
    """Seconds where the name says so; MySQL's sums are decimals."""
    if name.endswith("_s"):
        return max(0, int(value)) / 1000
    return bool(value) if name == "paused" else int(value) if isinstance(value, Decimal) else value


def _count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.sum(sa.case((condition, 1), else_=0))


_WAITING: Final = sa.select(
    outbox.c.route,
    sa.func.count().label("depth"),
    (now_ms() - sa.func.min(outbox.c.created_at_ms)).label("oldest_s"),
).group_by(outbox.c.route)
_PARKED: Final = sa.select(
    parked.c.route,
    sa.func.count().label("parked"),
    _count(parked.c.state.in_(BLOCKING)).label("parked_keys"),
    _count(parked.c.state == "dead").label("dead"),
    (now_ms() - sa.func.min(parked.c.created_at_ms)).label("oldest_parked_s"),
    sa.func.max(parked.c.error).label("last_error"),
).group_by(parked.c.route)
_PAUSED: Final = (
    sa.select(lanes.c.route, sa.literal(1).label("paused")).where(lanes.c.paused_at_ms.is_not(None)).distinct()
)
_HAS_EVENTS: Final = sa.exists().where(outbox.c.route == lanes.c.route, outbox.c.lane == lanes.c.lane)
_WARY: Final = (
    sa.select(lanes.c.route, sa.func.count().label("wary_lanes"))
    .where(lanes.c.deaths >= WARY_AT, _HAS_EVENTS)
    .group_by(lanes.c.route)
)
_FAILING: Final = (
    sa.select(
        lanes.c.route, sa.func.count().label("failing_lanes"), sa.func.max(lanes.c.last_error).label("last_error")
    )
    # A lane that succeeds forgets its failures; one that has nothing left to deliver never gets to do so.
    .where(lanes.c.failures > 0, _HAS_EVENTS)
    .group_by(lanes.c.route)
)
