"""Lanes are claimed under a lease, so a lane has at most one live owner.

Invariant: every statement of an owner says `WHERE epoch = mine`; a lapsed owner changes nothing. The lease's time only
says when another may try: what keeps the lapsed one out is the epoch, here and in the target's inbox.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.database import Database
from crosstie.orm.errors import LockTimeout
from crosstie.orm.prepared import Prepared
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox import measure
from crosstie.outbox.errors import LeaseLost
from crosstie.outbox.tables import lane as lanes
from crosstie.outbox.tables import outbox, parked

__all__ = [
    "DUE",
    "WARY_AT",
    "Candidate",
    "Lease",
    "Suspects",
    "back_off",
    "backoff_s",
    "claim",
    "give_back",
    "lanes_with_work",
    "leased_lanes",
    "reassure",
    "release",
    "renew",
    "reopen",
    "survived",
    "suspect",
    "suspects",
]

DUE: Final = ("failing", "undeployed", "skipped")
"""The states of parked events with which a lane's owner has something to do, once their time has come."""
FIRST_BACKOFF_S: Final = 0.2
WARY_AT: Final = 3
"""After so many owners in a row that died, the next tries one event at a time, and writes down which (suspicion.py)."""
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
    settled: int
    last_error: str | None = None
    parked: bool = False
    """Whether it has parked events that are due."""
    deaths: int = 0
    """How many owners in a row have let their lease run out, and nothing was acknowledged."""
    emptied_to: int = 0
    """It is known to hold no event with this id or a smaller one."""


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
    owner: str
    settled: bool
    """The owner before gave the lane back with everything acknowledged that it had applied."""
    last_error: str | None = None
    deaths: int = 0
    """How many owners before in a row have let their lease run out, and nothing was acknowledged."""
    emptied_to: int = 0
    """As of the candidate."""

    @property
    def lock_wait_s(self) -> float:
        """No longer than this may a transaction wait for a row: who waits shall not be taken for dead."""
        return self.lease_s / 2

    def values(self, **more: Any) -> dict[str, Any]:
        """The parameters of a statement that only the lane's owner may succeed with."""
        return {"of_route": self.route, "of_lane": self.lane, "mine": self.epoch, **more}


def lanes_with_work(source: Database, route: str | None = None) -> list[Candidate]:
    """Lanes that nobody owns, that neither back off nor are paused, and that hold events to be tried.

    Raises DatabaseUnavailable.
    """
    if route is None:
        found = source.prepared(_WITH_WORK, {})
    else:
        found = source.prepared(_WITH_WORK_OF_ROUTE, {"of_route": route})
    return [Candidate(*row) for row in found.rows]


def _claimable() -> sa.ColumnElement[bool]:
    return sa.and_(lanes.c.lease_until_ms < now_ms(), lanes.c.ready_at_ms <= now_ms(), lanes.c.paused_at_ms.is_(None))


def _with_work() -> sa.Select[Any]:
    # One probe into the outbox's index per lane; EXISTS may be planned as a scan of the whole outbox instead.
    oldest = (
        sa.select(outbox.c.id)
        .where(outbox.c.route == lanes.c.route, outbox.c.lane == lanes.c.lane, outbox.c.id > lanes.c.emptied_to)
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
            sa.or_(*(parked.c.state == state for state in DUE)),
            parked.c.next_at_ms <= now_ms(),
        )
        .limit(1)
        .correlate(lanes)
        .scalar_subquery()
    )
    return sa.select(
        lanes.c.route,
        lanes.c.lane,
        lanes.c.origin,
        lanes.c.epoch,
        lanes.c.failures,
        lanes.c.owner,
        lanes.c.settled,
        lanes.c.last_error,
        due.is_not(None),
        lanes.c.deaths,
        lanes.c.emptied_to,
    ).where(_claimable(), sa.or_(oldest.is_not(None), due.is_not(None)))


_WITH_WORK: Final = Prepared(_with_work())
_WITH_WORK_OF_ROUTE: Final = Prepared(_with_work().where(lanes.c.route == sa.bindparam("of_route")))


def claim(source: Database, candidate: Candidate, *, owner: str, lease_s: float) -> Lease | None:
    """Claim a lane for `lease_s` seconds of the database's clock, by compare-and-set of its epoch.

    Returns None where somebody else was first, or the lane backs off. Raises DatabaseUnavailable.
    """
    seen = {
        "of_route": candidate.route,
        "of_lane": candidate.lane,
        "seen_epoch": candidate.epoch,
        "seen_settled": candidate.settled,
    }
    values = seen | {"new_owner": owner[:120], "lease_ms": int(lease_s * 1000)}
    try:
        if candidate.owner:
            # Its owner may have been stopped, or cut off, inside its acknowledging transaction, whose lock on the lane
            # then lasts as long as the server believes in it. Nobody may wait for that.
            with detached_transaction(source.name) as tx:
                tx.mark_written()
                _LOCK.fetch(tx.bare, seen)
                claimed = _STEAL.run(tx.bare, values).rowcount
        else:
            claimed = source.prepared(_CLAIM, values, returns=False).rowcount
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
        owner[:120],
        bool(candidate.settled),
        candidate.last_error,
        candidate.deaths + bool(candidate.owner),
        candidate.emptied_to,
    )


# An owner that never heard that its giving back was committed may have taken the lane up again since the look at it.
_SEEN: Final = sa.and_(
    lanes.c.route == sa.bindparam("of_route"),
    lanes.c.lane == sa.bindparam("of_lane"),
    lanes.c.epoch == sa.bindparam("seen_epoch"),
    lanes.c.settled == sa.bindparam("seen_settled"),
)
_LEASED: Final[dict[str, Any]] = {
    "owner": sa.bindparam("new_owner"),
    "lease_until_ms": now_ms() + sa.bindparam("lease_ms", type_=sa.BigInteger),
    "settled": 0,
}
_CLAIM: Final = Prepared(sa.update(lanes).where(_SEEN, _claimable()).values(epoch=lanes.c.epoch + 1, **_LEASED))
_STEAL: Final = Prepared(
    sa.update(lanes).where(_SEEN, _claimable()).values(epoch=lanes.c.epoch + 1, deaths=lanes.c.deaths + 1, **_LEASED)
)
_LOCK: Final = Prepared(sa.select(lanes.c.epoch).where(_SEEN).with_for_update(nowait=True))


def leased_lanes(source: Database, route: str) -> int:
    """How many lanes of the route are owned now. Raises DatabaseUnavailable."""
    return int(source.prepared(_NUMBER_LEASED, {"of_route": route}).rows[0][0])


_NUMBER_LEASED: Final = Prepared(
    sa.select(sa.func.count()).where(lanes.c.route == sa.bindparam("of_route"), lanes.c.lease_until_ms >= now_ms())
)
_MINE: Final = sa.and_(
    lanes.c.route == sa.bindparam("of_route"),
    lanes.c.lane == sa.bindparam("of_lane"),
    lanes.c.epoch == sa.bindparam("mine"),
)


def renew(connection: sa.Connection, lease: Lease, *, progress: bool, emptied_to: int = 0) -> Lease:
    """Prolong the lease, as the first statement of an acknowledging transaction.

    `progress` says that the lane has got further, and forgets its failures; acknowledging once more what an earlier
    owner had applied is none. `emptied_to` is kept with progress, if it is further than before. Raises LeaseLost where
    another worker owns the lane by now; the caller must roll back.
    """
    values = lease.values(new_owner=lease.owner, lease_ms=int(lease.lease_s * 1000))
    if not progress:
        if _RENEW.run(connection, values).rowcount != 1:
            raise _lost(lease)
        return lease
    deaths = lease.deaths if lease.deaths >= WARY_AT else 0
    emptied_to = max(emptied_to, lease.emptied_to)
    lease = replace(lease, failures=0, last_error=None, deaths=deaths, emptied_to=emptied_to)
    if _PROGRESS.run(connection, values | {"empty_to": emptied_to}).rowcount != 1:
        raise _lost(lease)
    return lease


def give_back(
    connection: sa.Connection, lease: Lease, *, settled: bool, delay_s: float = 0.0, emptied_to: int = 0
) -> None:
    """Give the lane back as the first statement of the transaction that acknowledges what was applied; it has got on.

    It may be claimed again after `delay_s`. `settled` is for an owner that has entered the target: as long as none has,
    an earlier one may still apply something. Raises LeaseLost as `renew` does.
    """
    empty_to = max(emptied_to, lease.emptied_to)
    values = lease.values(delay_ms=int(delay_s * 1000), in_order=int(settled), empty_to=empty_to)
    if _GIVE_BACK.run(connection, values).rowcount != 1:
        raise _lost(lease)


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(
        f"lane {lease.lane} of route {lease.route!r} is no longer owned under epoch {lease.epoch}: another worker "
        "took it after the lease had run out. It goes on from what this one has applied; nothing is to be done."
    )


def release(source: Database, lease: Lease, *, settled: bool, delay_s: float = 0.0) -> bool:
    """Give the lane back with nothing left to acknowledge; False where it was already somebody else's.

    It may be claimed again after `delay_s`, as where its next event waits for a saga. `settled` as in `give_back`.
    """
    values = lease.values(delay_ms=int(delay_s * 1000), in_order=int(settled))
    return source.prepared(_RELEASE, values, returns=False).rowcount == 1


_RENEW: Final = Prepared(sa.update(lanes).where(_MINE).values(_LEASED))
_GOT_ON: Final[dict[str, Any]] = {
    "failures": 0,
    "last_error": None,
    # Of a wary owner's lane the deaths are forgotten when it has tried all that may have caused them.
    "deaths": sa.case((lanes.c.deaths < WARY_AT, 0), else_=lanes.c.deaths),
    "emptied_to": sa.bindparam("empty_to", type_=sa.BigInteger),
}
_PROGRESS: Final = Prepared(sa.update(lanes).where(_MINE).values({**_LEASED, **_GOT_ON}))
_FREE: Final[dict[str, Any]] = {
    "owner": "",
    "lease_until_ms": 0,
    "settled": sa.bindparam("in_order", type_=sa.Integer),
    "ready_at_ms": now_ms() + sa.bindparam("delay_ms", type_=sa.BigInteger),
}
_RELEASE: Final = Prepared(sa.update(lanes).where(_MINE).values(_FREE))
_GIVE_BACK: Final = Prepared(sa.update(lanes).where(_MINE).values({**_FREE, **_GOT_ON}))


class Suspects(NamedTuple):
    """Which events may have killed owners of the lane.

    `trying`: the one that an owner has tried alone, and then was not heard of. `up_to`: those with no greater id; None
    where nobody has looked yet.
    """

    trying: int | None = None
    up_to: int | None = None


def suspects(source: Database, lease: Lease) -> Suspects:
    """What earlier owners have noted. Raises DatabaseUnavailable."""
    found = source.prepared(_SUSPECTS, lease.values()).rows
    return Suspects(*found[0]) if found else Suspects()


def suspect(source: Database, lease: Lease, noted: Suspects, *, deaths: int) -> Lease:
    """Note which event is about to be tried alone, and how many owners' deaths it has to answer for so far.

    The lease is prolonged, so that the trial has all of it. Raises LeaseLost as `renew` does.
    """
    values = lease.values(tried=noted.trying, last=noted.up_to, died=deaths, lease_ms=int(lease.lease_s * 1000))
    if source.prepared(_SUSPECT, values, returns=False).rowcount != 1:
        raise _lost(lease)
    return replace(lease, deaths=deaths)


def reassure(source: Database, lease: Lease) -> Lease:
    """Forget the deaths of earlier owners: what may have caused them was tried. Raises LeaseLost as `renew` does."""
    return suspect(source, lease, Suspects(), deaths=0)


def survived(source: Database, lease: Lease) -> None:
    """Say that this owner lives, although its lane was taken from it as from one that had died."""
    source.prepared(_SURVIVED, {"of_route": lease.route, "of_lane": lease.lane}, returns=False)


_SUSPECTS: Final = Prepared(sa.select(lanes.c.trying, lanes.c.suspects_to).where(_MINE))
_SUSPECT: Final = Prepared(
    sa.update(lanes)
    .where(_MINE)
    .values(
        trying=sa.bindparam("tried"),
        suspects_to=sa.bindparam("last"),
        deaths=sa.bindparam("died", type_=sa.Integer),
        lease_until_ms=now_ms() + sa.bindparam("lease_ms", type_=sa.BigInteger),
    )
)
_SURVIVED: Final = Prepared(
    sa.update(lanes)
    .where(lanes.c.route == sa.bindparam("of_route"), lanes.c.lane == sa.bindparam("of_lane"), lanes.c.deaths > 0)
    .values(deaths=lanes.c.deaths - 1)
)


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


def backoff_s(failures: int, *, jitter: float, first_s: float = FIRST_BACKOFF_S) -> float:
    """Seconds until a lane that has failed `failures` times before is tried again: `first_s` · 2ⁿ, at most 60.

    `jitter` in [0, 1) takes up to half of it away, so that lanes that failed together do not return together.
    """
    return min(LONGEST_BACKOFF_S, first_s * 2.0 ** min(failures, 16)) * (1 - jitter / 2)


def _end(source: Database, lease: Lease, values: Mapping[str, Any]) -> bool:
    statement = sa.update(lanes).where(_MINE).values(lease_until_ms=0, owner="", **values)
    with source.mapped_errors(), source.autocommit.connect() as connection:
        return connection.execute(statement, lease.values()).rowcount == 1
