"""Parked events: those that cannot be applied, and the later ones of their keys, which must not overtake them.

They are moved out of the outbox, and deleted when they have been applied, by the lane's owner in a transaction that
renews its lease. Others only mark rows. Of each parked key the event with the smallest id is the *head*: it says when
the key is tried again. What comes after it is `behind`.

An event is parked only once its saga is known to have committed; an abort therefore never finds its events here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.database import Database
from crosstie.outbox.batch import OutboxRow, not_paused
from crosstie.outbox.errors import DeliveryFailed, OutboxError
from crosstie.outbox.lane import DUE, Lease
from crosstie.outbox.tables import outbox, parked

__all__ = ["Blame", "Heads", "judge", "look", "note", "park", "read_parked", "remove"]

T = TypeVar("T")

FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 600.0
UNDEPLOYED_RETRY_S: Final = 60.0
PASSING_RETRY_S: Final = 5.0
DEADLY_ATTEMPTS: Final = 3
"""Each costs a worker or more."""
DEADLY_RETRY_S: Final = 60.0
"""After the first; it may have been something else that killed, and then its key shall not wait for long."""
CHUNK: Final = 500
KEYS_AT_ONCE: Final = 200
BLOCKING: Final = (*DUE, "dead")
"""The states of heads; `skipped` is any row that the operator wants to be gone."""

_COPIED: Final = [column.name for column in outbox.columns]


@dataclass(frozen=True)
class Heads:
    """What a lane's parked events mean for its owner now.

    `keys`: no event of these may leave the outbox but into the parking. `due`: keys to try again, the oldest first.
    `skipped`: ids to delete. `undeployed`: types of events for which the code is missing.
    """

    keys: frozenset[str] = frozenset()
    due: Sequence[str] = ()
    skipped: Sequence[int] = ()
    undeployed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Blame:
    """What a failed attempt makes of an event."""

    row: OutboxRow
    state: str
    attempts: int
    delay_s: float
    error: str
    deaths: int = 0


def judge(row: OutboxRow, failure: OutboxError, *, limit: int, jitter: float) -> Blame:
    """Decide about an event that has failed: again 1 s · 2ⁿ later, at most 600 s, and `limit` times in all.

    Code that this worker lacks, and what passes by itself, are no failures of the event; it never dies of them. One
    that kills workers is tried again after 60 s and after 600 s, and no more.
    """
    error = str(failure)
    if isinstance(failure, DeliveryFailed) and failure.undeployed:
        return Blame(row, "undeployed", row.attempts, UNDEPLOYED_RETRY_S, error, row.deaths)
    if isinstance(failure, DeliveryFailed) and failure.passing:
        return Blame(row, "failing", row.attempts, PASSING_RETRY_S, error, row.deaths)
    deadly = failure.deaths if isinstance(failure, DeliveryFailed) else 0
    deaths = row.deaths + deadly
    if row.attempts + 1 >= (min(limit, DEADLY_ATTEMPTS) if deadly else limit):
        return Blame(row, "dead", row.attempts + 1, 0.0, error, deaths)
    delay_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(row.attempts, 16)) * (1 - jitter / 2)
    if deadly:
        delay_s = LONGEST_RETRY_S if row.deaths else DEADLY_RETRY_S
    return Blame(row, "failing", row.attempts + 1, delay_s, error, deaths)


def look(source: Database, lease: Lease) -> Heads:
    """Read the heads of the lane's parked keys. Raises DatabaseUnavailable."""
    with source.mapped_errors(), source.autocommit.connect() as connection:
        rows = connection.execute(_HEADS, {"route": lease.route, "lane": lease.lane}).all()
    due = [row.key for row in rows if row.due and row.state in {"failing", "undeployed"}]
    return Heads(
        keys=frozenset(row.key for row in rows),
        due=due[:KEYS_AT_ONCE],
        skipped=[row.id for row in rows if row.state == "skipped"][:CHUNK],
        undeployed=frozenset(row.type for row in rows if row.state == "undeployed"),
    )


def read_parked(source: Database, lease: Lease, keys: Iterable[str], *, limit: int) -> list[OutboxRow]:
    """The first parked events of these keys, unless the lane is paused. Raises DatabaseUnavailable."""
    parameters = {"route": lease.route, "lane": lease.lane, "keys": list(keys), "limit": limit}
    with source.mapped_errors(), source.autocommit.connect() as connection:
        return [OutboxRow(*row) for row in connection.execute(_OF_KEYS, parameters)]


_MINE: Final = sa.and_(parked.c.route == sa.bindparam("route"), parked.c.lane == sa.bindparam("lane"))
_HEADS: Final = (
    sa.select(parked.c.id, parked.c.key, parked.c.state, parked.c.type, (parked.c.next_at_ms <= now_ms()).label("due"))
    # Of a paused lane too: a pause that begins while a batch is in hand must not open the keys that are closed to it.
    .where(_MINE, parked.c.state.in_(BLOCKING))
    .order_by(parked.c.id)
)
_OF_KEYS: Final = (
    sa.select(
        parked.c.id,
        parked.c.uid,
        parked.c.key,
        parked.c.type,
        parked.c.schema_version,
        parked.c.payload,
        parked.c.headers,
        parked.c.saga_id,
        sa.null().label("saga_state"),
        sa.null().label("home"),
        (now_ms() - parked.c.created_at_ms).label("age_ms"),
        parked.c.attempts,
        parked.c.deaths,
    )
    .where(_MINE, parked.c.key.in_(sa.bindparam("keys", expanding=True)), parked.c.state != "skipped")
    .where(not_paused(sa.bindparam("route"), sa.bindparam("lane")))
    .order_by(parked.c.id)
    .limit(sa.bindparam("limit"))
)


# -- what the lane's owner does in the transaction that renews its lease ---------------------------------------------


def park(connection: sa.Connection, lease: Lease, rows: Collection[OutboxRow], blame: Blame | None) -> None:
    """Copy events of the outbox into the parking, which the caller deletes there; one of them may have failed.

    Copied by the database: an event that is gone by now, whoever deleted it, does not come back.
    """
    added = {"state": "behind", "attempts": 0, "next_at_ms": 0, "error": "", "deaths": 0}
    for part in _parts(sorted(row.id for row in rows)):
        copied = sa.select(
            *(outbox.c[name] for name in _COPIED), *(sa.literal(value) for value in added.values()), now_ms()
        ).where(outbox.c.route == lease.route, outbox.c.lane == lease.lane, outbox.c.id.in_(part))
        connection.execute(
            sa.insert(parked).from_select([*_COPIED, *added, "parked_at_ms"], copied, include_defaults=False)
        )
    note(connection, lease, blame)
    _settle(connection, lease, {row.key for row in rows})


def note(connection: sa.Connection, lease: Lease, blame: Blame | None) -> None:
    """Write a failed attempt down, unless the operator has marked the event meanwhile, and bring its key in order."""
    if blame is None:
        return
    row = blame.row
    connection.execute(
        sa.update(parked)
        .where(_in(lease), parked.c.id == row.id, parked.c.attempts == row.attempts, parked.c.state != "skipped")
        .values(
            state=blame.state,
            attempts=blame.attempts,
            next_at_ms=now_ms() + int(blame.delay_s * 1000),
            error=blame.error,
            deaths=blame.deaths,
        )
    )
    _settle(connection, lease, {row.key})


def remove(connection: sa.Connection, lease: Lease, ids: Collection[int]) -> None:
    """Delete parked events that are applied or skipped, and bring their keys in order; other ids do nothing."""
    touched: set[str] = set()
    for part in _parts(sorted(ids)):
        these = sa.and_(_in(lease), parked.c.id.in_(part))
        found = connection.execute(sa.select(parked.c.key).distinct().where(these)).scalars().all()
        if found:
            touched.update(found)
            connection.execute(sa.delete(parked).where(these))
    _settle(connection, lease, touched)


def _settle(connection: sa.Connection, lease: Lease, keys: Collection[str]) -> None:
    """Make the first event of each key its head, due at once if it was behind, and no other.

    Only the lane's owner adds or deletes rows, so nothing moves between these statements.
    """
    for part in _parts(sorted(keys)):
        of_keys = sa.and_(_in(lease), parked.c.key.in_(part))
        first = sa.select(sa.func.min(parked.c.id)).where(of_keys).group_by(parked.c.key)
        heads = connection.execute(first).scalars().all()
        if not heads:
            continue
        overtaken = sa.and_(of_keys, parked.c.id.not_in(heads), parked.c.state.in_(("failing", "undeployed", "dead")))
        promoted = sa.and_(_in(lease), parked.c.id.in_(heads), parked.c.state == "behind")
        connection.execute(sa.update(parked).where(overtaken).values(state="behind"))
        connection.execute(sa.update(parked).where(promoted).values(state="failing", next_at_ms=0))


def _in(lease: Lease) -> sa.ColumnElement[bool]:
    return sa.and_(parked.c.route == lease.route, parked.c.lane == lease.lane)


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
