"""Lanes are claimed under a lease, so a lane has at most one live owner.

Invariant: every statement of an owner says `WHERE epoch = mine`; a lapsed owner changes nothing. The lease's time only
says when another may try: what keeps the lapsed one out is the epoch, here and in the target's inbox.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.database import Database
from crosstie.orm.errors import LockTimeout
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox import measure
from crosstie.outbox.errors import LeaseLost
from crosstie.outbox.tables import lane as lanes
from crosstie.outbox.tables import outbox, parked

__all__ = [
    "DUE",
    "Candidate",
    "Lease",
    "back_off",
    "backoff_s",
    "claim",
    "hold",
    "lanes_with_work",
    "leased_lanes",
    "release",
    "renew",
    "reopen",
]

DUE: Final = ("failing", "undeployed", "skipped")
"""The states of parked events with which a lane's owner has something to do, once their time has come."""
FIRST_BACKOFF_S: Final = 0.2
LONGEST_BACKOFF_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A lane that was seen free and with work; `epoch` is what the claim compares.

    `owner` is empty where the last owner gave it back in order; else its lease has run out.
    """

    route: str
    lane: int
    origin: str
    epoch: int
    failures: int
    owner: str
    last_error: str | None = None
    parked: bool = False
    """Whether it has parked events that are due."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to drain a lane, until somebody raises its epoch again."""

    route: str
    lane: int
    origin: str
    epoch: int
    failures: int
    """How often in a row the lane has failed."""
    lease_s: float
    last_error: str | None = None


def lanes_with_work(source: Database, route: str | None = None) -> list[Candidate]:
    """Lanes that nobody owns, that neither back off nor are paused, and that hold events to be tried.

    Raises DatabaseUnavailable.
    """
    # One probe into the outbox's index per lane; EXISTS may be planned as a scan of the whole outbox instead.
    oldest = (
        sa.select(outbox.c.id)
        .where(outbox.c.route == lanes.c.route, outbox.c.lane == lanes.c.lane)
        .order_by(outbox.c.id)
        .limit(1)
        .correlate(lanes)
        .scalar_subquery()
    )
    due = (
        sa.select(parked.c.id)
        .where(
            parked.c.route == lanes.c.route,
            parked.c.lane == lanes.c.lane,
            parked.c.state.in_(DUE),
            parked.c.next_at_ms <= now_ms(),
        )
        .limit(1)
        .correlate(lanes)
        .scalar_subquery()
    )
    query = sa.select(
        lanes.c.route,
        lanes.c.lane,
        lanes.c.origin,
        lanes.c.epoch,
        lanes.c.failures,
        lanes.c.owner,
        lanes.c.last_error,
        due.is_not(None),
    ).where(_claimable(), sa.or_(oldest.is_not(None), due.is_not(None)))
    if route is not None:
        query = query.where(lanes.c.route == route)
    with source.mapped_errors(), source.autocommit.connect() as connection:
        return [Candidate(*row) for row in connection.execute(query)]


def claim(source: Database, candidate: Candidate, *, owner: str, lease_s: float) -> Lease | None:
    """Claim a lane for `lease_s` seconds of the database's clock, by compare-and-set of its epoch.

    Returns None where somebody else was first, or the lane backs off. Raises DatabaseUnavailable.
    """
    key = sa.and_(lanes.c.route == candidate.route, lanes.c.lane == candidate.lane, lanes.c.epoch == candidate.epoch)
    statement = (
        sa.update(lanes)
        .where(key, _claimable())
        .values(owner=owner[:120], epoch=lanes.c.epoch + 1, lease_until_ms=now_ms() + int(lease_s * 1000))
    )
    try:
        if candidate.owner:
            # Its owner may have been stopped, or cut off, inside its acknowledging transaction, whose lock on the lane
            # then lasts as long as the server believes in it. Nobody may wait for that.
            with detached_transaction(source.name) as tx:
                tx.mark_written()
                tx.connection.execute(sa.select(lanes.c.epoch).where(key).with_for_update(nowait=True)).all()
                claimed = tx.connection.execute(statement).rowcount
        else:
            with source.mapped_errors(), source.autocommit.connect() as connection:
                claimed = connection.execute(statement).rowcount
    except LockTimeout:
        return None
    if claimed != 1:
        return None
    if candidate.owner:
        measure.stolen(source.name, candidate.route)
    return Lease(
        candidate.route,
        candidate.lane,
        candidate.origin,
        candidate.epoch + 1,
        candidate.failures,
        float(lease_s),
        candidate.last_error,
    )


def leased_lanes(source: Database, route: str) -> int:
    """How many lanes of the route are owned now. Raises DatabaseUnavailable."""
    query = sa.select(sa.func.count()).where(lanes.c.route == route, lanes.c.lease_until_ms >= now_ms())
    with source.mapped_errors(), source.autocommit.connect() as connection:
        return int(connection.execute(query).scalar_one())


def renew(connection: sa.Connection, lease: Lease, *, progress: bool) -> Lease:
    """Prolong the lease, as the first statement of an acknowledging transaction.

    `progress` says that the lane has got further, and forgets its failures; acknowledging once more what an earlier
    owner had applied is none. Raises LeaseLost where another worker owns the lane by now; the caller must roll back.
    """
    values: dict[str, Any] = {"lease_until_ms": now_ms() + int(lease.lease_s * 1000)}
    if progress:
        values |= {"failures": 0, "last_error": None}
    if connection.execute(_mine(lease, values)).rowcount != 1:
        raise LeaseLost(
            f"lane {lease.lane} of route {lease.route!r} is no longer owned under epoch {lease.epoch}: another worker "
            "took it after the lease had run out. It goes on from what this one has applied; nothing is to be done."
        )
    return replace(lease, failures=0, last_error=None) if progress else lease


def release(source: Database, lease: Lease) -> bool:
    """Give the lane back; False where it was already somebody else's."""
    return _end(source, lease, {})


def hold(source: Database, lease: Lease, *, delay_s: float) -> bool:
    """Give the lane back, to be tried again after `delay_s`: its next event waits for a saga."""
    return _end(source, lease, {"ready_at_ms": now_ms() + int(delay_s * 1000)})


def back_off(source: Database, lease: Lease, *, delay_s: float, error: str, whole_route: bool = False) -> bool:
    """Give the lane back after a failure, to be tried again after `delay_s`; False where it was somebody else's.

    `whole_route` lets the route's other free lanes wait twice as long, in one statement: with a target that is down,
    each of them would cost another connection attempt. This one is the probe, and `reopen` lets them go again.
    """
    delay_ms = int(delay_s * 1000)
    values: dict[str, Any] = {"failures": lease.failures + 1, "last_error": error}
    mine = _end(source, lease, values | {"ready_at_ms": now_ms() + delay_ms})
    if mine and whole_route:
        others = (
            sa.update(lanes)
            .where(lanes.c.route == lease.route, lanes.c.owner == "", lanes.c.failures <= lease.failures)
            .where(lanes.c.lane != lease.lane)
            .values(values | {"ready_at_ms": now_ms() + 2 * delay_ms})
        )
        with source.mapped_errors(), source.autocommit.connect() as connection:
            connection.execute(others)
    return mine


def reopen(source: Database, lease: Lease) -> None:
    """The target serves again: let the lanes go that wait for the same reason for which this one had waited."""
    waiting = sa.and_(lanes.c.route == lease.route, lanes.c.owner == "", lanes.c.last_error == lease.last_error)
    with source.mapped_errors(), source.autocommit.connect() as connection:
        connection.execute(
            sa.update(lanes)
            .where(waiting, lanes.c.ready_at_ms > now_ms())
            .values(ready_at_ms=0, failures=0, last_error=None)
        )


def backoff_s(failures: int, *, jitter: float) -> float:
    """Seconds until a lane that has failed `failures` times before is tried again: 0.2 · 2ⁿ, at most 60.

    `jitter` in [0, 1) takes up to half of it away, so that lanes that failed together do not return together.
    """
    return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures, 16)) * (1 - jitter / 2)


def _end(source: Database, lease: Lease, values: Mapping[str, Any]) -> bool:
    statement = _mine(lease, {"lease_until_ms": 0, "owner": "", **values})
    with source.mapped_errors(), source.autocommit.connect() as connection:
        return connection.execute(statement).rowcount == 1


def _claimable() -> sa.ColumnElement[bool]:
    return sa.and_(lanes.c.lease_until_ms < now_ms(), lanes.c.ready_at_ms <= now_ms(), lanes.c.paused_at_ms.is_(None))


def _mine(lease: Lease, values: Mapping[str, Any]) -> sa.Update:
    owned = sa.and_(lanes.c.route == lease.route, lanes.c.lane == lease.lane, lanes.c.epoch == lease.epoch)
    return sa.update(lanes).where(owned).values(**values)
