"""Lanes, parked events and new events, as the tables have them now: for people and programs that look on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.outbox.operation import Selection
from crosstie.outbox.parking import BLOCKING
from crosstie.outbox.tables import lane as lanes
from crosstie.outbox.tables import outbox, parked

__all__ = ["LaneState", "ParkedEvent", "WaitingEvent", "lane_states", "parked_events", "waiting_events"]


@dataclass(frozen=True)
class LaneState:
    """One lane; times are by the database's clock. `lease_left_s` is negative where an owner's lease has run out."""

    source: str
    route: str
    lane: int
    epoch: int
    owner: str | None
    lease_left_s: float | None
    ready_in_s: float
    failures: int
    last_error: str | None
    paused: bool
    depth: int
    oldest_s: float | None
    parked: int
    deaths: int
    """How many owners in a row have died, or have let the lease run out, and nothing was acknowledged."""
    trying: int | None
    """The event that an owner tries alone, or has tried last, because others have died."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to say about it."""
        return not (self.owner or self.failures or self.paused or self.depth or self.parked or self.deaths)


def lane_states(source: str, route: str | None = None) -> list[LaneState]:
    """Every lane, by route and number. Counts all rows of the outbox. Raises DatabaseUnavailable, NoSuchTable."""
    database = ConnectionManager.get(source)
    waiting = {(row.route, row.lane): row for row in database.rows(_PER_LANE)}
    behind = {(row.route, row.lane): row.number for row in database.rows(_PARKED_PER_LANE)}
    found = []
    for row in database.rows(_LANES):
        if route is not None and row.route != route:
            continue
        events = waiting.get((row.route, row.lane))
        found.append(
            LaneState(
                source=source,
                route=row.route,
                lane=row.lane,
                epoch=row.epoch,
                owner=row.owner or None,
                lease_left_s=int(row.lease_left_ms) / 1000 if row.owner else None,
                ready_in_s=max(0, int(row.ready_in_ms)) / 1000,
                failures=row.failures,
                last_error=row.last_error if row.failures else None,
                paused=row.paused_at_ms is not None,
                depth=events.number if events else 0,
                oldest_s=max(0, int(events.age_ms)) / 1000 if events else None,
                parked=behind.get((row.route, row.lane), 0),
                deaths=row.deaths,
                trying=row.trying,
            )
        )
    return found


_LANES: Final = sa.select(
    lanes.c.route,
    lanes.c.lane,
    lanes.c.epoch,
    lanes.c.owner,
    (lanes.c.lease_until_ms - now_ms()).label("lease_left_ms"),
    (lanes.c.ready_at_ms - now_ms()).label("ready_in_ms"),
    lanes.c.failures,
    lanes.c.last_error,
    lanes.c.paused_at_ms,
    lanes.c.deaths,
    lanes.c.trying,
).order_by(lanes.c.route, lanes.c.lane)
_PER_LANE: Final = sa.select(
    outbox.c.route,
    outbox.c.lane,
    sa.func.count().label("number"),
    (now_ms() - sa.func.min(outbox.c.created_at_ms)).label("age_ms"),
).group_by(outbox.c.route, outbox.c.lane)
_PARKED_PER_LANE: Final = sa.select(parked.c.route, parked.c.lane, sa.func.count().label("number")).group_by(
    parked.c.route, parked.c.lane
)


@dataclass(frozen=True)
class WaitingEvent:
    """An event of the outbox. The payload and the headers may hold personal data."""

    source: str
    route: str
    lane: int
    id: int
    uid: str
    key: str
    type: str
    schema_version: int
    age_s: float
    payload: str = field(repr=False)
    headers: str = field(repr=False)


@dataclass(frozen=True)
class ParkedEvent(WaitingEvent):
    """An event that is parked: `failing`, `undeployed` (code is missing), `dead`, `skipped`, or `behind` such a one."""

    state: str
    attempts: int
    deaths: int
    """How many workers have died while they applied it."""
    next_in_s: float | None
    parked_s: float
    error: str


def waiting_events(source: str, route: str | None = None, *, limit: int) -> list[WaitingEvent]:
    """The last events of the outbox, the oldest first. Raises DatabaseUnavailable, NoSuchTable."""
    query = sa.select(*_event(outbox)).order_by(outbox.c.id.desc()).limit(limit)
    if route is not None:
        query = query.where(outbox.c.route == route)
    return [WaitingEvent(**_plain(source, row)) for row in reversed(ConnectionManager.get(source).rows(query))]


def parked_events(
    source: str, selection: Selection, *, behind: bool = False, limit: int | None = None
) -> list[ParkedEvent]:
    """Parked events in the order of their ids; those behind others only if asked for. Raises DatabaseUnavailable."""
    query = (
        sa.select(
            *_event(parked),
            parked.c.state,
            parked.c.attempts,
            parked.c.deaths,
            (parked.c.next_at_ms - now_ms()).label("next_in_ms"),
            (now_ms() - parked.c.parked_at_ms).label("parked_ms"),
            parked.c.error,
        )
        .where(selection.clause())
        .order_by(parked.c.id)
    )
    if not behind:
        query = query.where(parked.c.state.in_(BLOCKING))
    if limit is not None:
        query = query.limit(limit)
    return [
        ParkedEvent(
            **_plain(source, row),
            state=row.state,
            attempts=row.attempts,
            deaths=row.deaths,
            next_in_s=max(0, int(row.next_in_ms)) / 1000 if row.state in {"failing", "undeployed"} else None,
            parked_s=max(0, int(row.parked_ms)) / 1000,
            error=row.error,
        )
        for row in ConnectionManager.get(source).rows(query)
    ]


def _event(table: sa.Table) -> list[sa.ColumnElement[Any]]:
    return [*(table.c[name] for name in _NAMES), (now_ms() - table.c.created_at_ms).label("age_ms")]


def _plain(source: str, row: sa.Row[Any]) -> dict[str, Any]:
    return {"source": source, "age_s": max(0, int(row.age_ms)) / 1000} | {name: getattr(row, name) for name in _NAMES}


_NAMES: Final = ("route", "lane", "id", "uid", "key", "type", "schema_version", "payload", "headers")
