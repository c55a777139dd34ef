"""Whether the tables of an outbox agree with each other, with their targets, and with the sagas that they wait for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError
from crosstie.outbox.batch import BLOCK_STEP, home_states
from crosstie.outbox.parking import BLOCKING
from crosstie.outbox.tables import inbox, outbox, parked
from crosstie.outbox.tables import lane as lanes
from crosstie.outbox.tables import route as routes
from crosstie.outbox.tables import saga as records
from crosstie.outbox.target import DatabaseTarget, target_of

__all__ = ["Problem", "verify"]

LONG_EXPIRED_MS: Final = 600_000
SAGAS_AT_ONCE: Final = 1000


@dataclass(frozen=True)
class Problem:
    """Something that should not be so. `checked` is False where a part could not be looked at."""

    source: str
    kind: str
    message: str
    checked: bool = True


def verify(source: str) -> list[Problem]:
    """Check one database's outbox; an empty list where all is well. Raises DatabaseUnavailable, NoSuchTable.

    Workers may go on meanwhile. A target or a home that cannot be asked is a problem with `checked=False`.
    """
    return [*_of_tables(source), *_of_targets(source), *_of_sagas(source)]


def _of_tables(source: str) -> Iterator[Problem]:
    for row in ConnectionManager.get(source).rows(_LANES_MISSING):
        message = (
            f"route {row.route!r} has {row.present} of its {row.lanes} lanes: events of the others are never found"
        )
        yield Problem(source, "lanes-missing", f"{message}. Run `crosstie init`.")
    for table in (outbox, parked):
        for row in ConnectionManager.get(source).rows(_without_lane(table)):
            message = f"events in {table.name} belong to lane {row.lane} of route {row.route!r}, which does not exist"
            yield Problem(source, "no-lane", f"{message}: nobody delivers them. Run `crosstie init`.")
    for row in ConnectionManager.get(source).rows(_TWICE):
        message = f"event {row.id} of route {row.route!r} is parked and in the outbox"
        yield Problem(source, "parked-and-waiting", f"{message}: somebody else wrote to one of the tables.")
    for row in ConnectionManager.get(source).rows(_HEADLESS):
        message = f"the parked event {row.first} of route {row.route!r} stands behind another, which is gone"
        yield Problem(
            source, "no-head", f"{message}: nobody tries it. `crosstie outbox redrive --id {row.first}` does."
        )
    for row in ConnectionManager.get(source).rows(_EXPIRED):
        message = f"the lease of {row.owner!r} on lane {row.lane} of route {row.route!r}, which has events, ran out"
        ago_s = int(row.expired_ms) // 1000
        yield Problem(source, "lease-expired", f"{message} {ago_s} s ago: no worker sweeps this database.")


def _of_targets(source: str) -> Iterator[Problem]:
    known: dict[str, dict[tuple[str, int], int]] = {}
    query = sa.select(lanes.c.route, lanes.c.lane, lanes.c.origin, lanes.c.epoch)
    for row in ConnectionManager.get(source).rows(query):
        known.setdefault(row.route, {})[(row.origin, row.lane)] = row.epoch
    for route, epochs in known.items():
        if not isinstance(target_of(route), DatabaseTarget):
            continue
        query = sa.select(inbox.c.origin, inbox.c.lane, inbox.c.epoch).where(
            inbox.c.route == route, inbox.c.origin.in_({origin for origin, _ in epochs})
        )
        try:
            found = ConnectionManager.get(route).rows(query)
        except CrosstieError as error:
            yield Problem(source, "target-unchecked", f"route {route!r}: {error}", checked=False)
            continue
        for row in found:
            if row.epoch <= epochs.get((row.origin, row.lane), row.epoch):
                continue
            yield Problem(
                source,
                "inbox-ahead",
                f"lane {row.lane} of route {route!r}: the target has seen epoch {row.epoch}, and the source is at "
                f"{epochs[row.origin, row.lane]}: it was restored from a backup older than what has been delivered.",
            )


def _of_sagas(source: str) -> Iterator[Problem]:
    undecided: dict[str, set[str]] = {}
    for row in ConnectionManager.get(source).rows(_UNDECIDED):
        undecided.setdefault(row.home, set()).add(row.saga_id)
    for home, saga_ids in undecided.items():
        try:
            decided = home_states(ConnectionManager.get(home), saga_ids)
        except CrosstieError as error:
            yield Problem(source, "home-unchecked", f"events wait for sagas of home {home!r}: {error}", checked=False)
            continue
        for saga_id in sorted(saga_ids - decided.keys()):
            yield Problem(
                source,
                "saga-vanished",
                f"events wait for saga {saga_id}, whose home {home!r} has no record of it though it expired long ago: "
                "no worker finishes sagas, or the record was deleted.",
            )


def _without_lane(table: sa.Table) -> sa.Select[Any]:
    mine = sa.and_(lanes.c.route == table.c.route, lanes.c.lane == table.c.lane)
    return sa.select(table.c.route, table.c.lane).distinct().where(~sa.exists().where(mine))


def _any_event(table: sa.Table) -> sa.ColumnElement[bool]:
    return sa.exists().where(table.c.route == lanes.c.route, table.c.lane == lanes.c.lane)


_PRESENT: Final = sa.select(sa.func.count()).select_from(lanes).where(lanes.c.route == routes.c.route).correlate(routes)
_LANES_MISSING: Final = (
    sa.select(routes.c.route, routes.c.lanes, _PRESENT.scalar_subquery().label("present"))
    .distinct()
    .where(_PRESENT.scalar_subquery() < routes.c.lanes)
)
_TWICE: Final = sa.select(parked.c.route, parked.c.id).join_from(
    parked,
    outbox,
    sa.and_(outbox.c.route == parked.c.route, outbox.c.lane == parked.c.lane, outbox.c.id == parked.c.id),
)
_HEADLESS: Final = (
    sa.select(parked.c.route, parked.c.lane, sa.func.min(parked.c.id).label("first"))
    .group_by(parked.c.route, parked.c.lane, parked.c.key)
    .having(sa.func.sum(sa.case((parked.c.state.in_(BLOCKING), 1), else_=0)) == 0)
)
_EXPIRED: Final = sa.select(
    lanes.c.route, lanes.c.lane, lanes.c.owner, (now_ms() - lanes.c.lease_until_ms).label("expired_ms")
).where(
    lanes.c.owner != "",
    lanes.c.lease_until_ms < now_ms() - LONG_EXPIRED_MS,
    lanes.c.paused_at_ms.is_(None),
    _any_event(outbox),
)
_UNDECIDED: Final = (
    sa.select(records.c.home, records.c.saga_id)
    .distinct()
    .join_from(outbox, records, records.c.saga_id == outbox.c.saga_id)
    .where(
        records.c.step == BLOCK_STEP,
        records.c.role == "branch",
        records.c.state == "applied",
        records.c.expires_at_ms < now_ms() - LONG_EXPIRED_MS,
    )
    .limit(SAGAS_AT_ONCE)
)
