"""The inbox: one row per lane in the target, which says what was applied last and keeps lapsed owners out.

It is written in the transaction that applies. So whoever reads it under its lock knows for certain which events of the
last batch are durable here, whatever was heard of that batch's COMMIT.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final, NamedTuple

import sqlalchemy as sa

from crosstie.orm.database import Database
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.lock_wait import BOUND, bound_of
from crosstie.orm.prepared import Prepared
from crosstie.outbox.errors import InboxMissing, LeaseLost
from crosstie.outbox.lane import Lease
from crosstie.outbox.tables import inbox
from crosstie.outbox.upsert import insert_if_absent

__all__ = ["Memory", "create", "fence", "lock", "store"]


class Memory(NamedTuple):
    """What the inbox remembers of a lane: who was there last, and the ids of what was applied then."""

    epoch: int
    ids: frozenset[int]


def lock(tx: LocalTransaction, lease: Lease) -> Memory:
    """Lock the lane's row until the transaction ends, and return what it says.

    Raises InboxMissing, LeaseLost where a later owner was here, and LockTimeout where another transaction holds the
    row: a paused owner, or one whose connection is gone and whose COMMIT may still be under way. Waiting for it could
    last for ever.

    Where a query can, it also bounds how long the transaction waits for other locks from now on.
    """
    tx.mark_written()
    if tx.database.capabilities.bounds_lock_waits == "query":
        found = _LOCK_AND_BOUND.fetch(tx.bare, _place(lease) | bound_of(lease.lock_wait_s)).rows
    else:
        found = _LOCK.fetch(tx.bare, _place(lease)).rows
    if not found:
        raise InboxMissing(
            f"lane {lease.lane} of route {lease.route!r} has no row in the inbox of {tx.database.name!r}, where its "
            "owner had made one: crosstie's tables were dropped or emptied meanwhile."
        )
    epoch, ids = found[0][:2]
    fence(epoch, lease)
    return Memory(epoch, frozenset(json.loads(ids)))


def create(target: Database, lease: Lease) -> None:
    """Make the lane's row if it is missing: in a statement of its own, so that no paused owner keeps it uncommitted."""
    row = {"origin": lease.origin, "route": lease.route, "lane": lease.lane, "epoch": 0, "ids": "[]"}
    with target.mapped_errors(), target.autocommit.connect() as connection:
        insert_if_absent(connection, inbox, row)


def fence(seen_epoch: int, lease: Lease) -> None:
    """Raise LeaseLost where the target has seen a later owner of the lane than this one."""
    if seen_epoch > lease.epoch:
        raise LeaseLost(
            f"lane {lease.lane} of route {lease.route!r}: the target has seen epoch {seen_epoch}, and this worker "
            f"holds {lease.epoch}: another worker took the lane after the lease had run out. If this repeats itself "
            "while nobody else owns the lane, the source database was restored from a backup that is older than what "
            "the target has received."
        )


def store(tx: LocalTransaction, lease: Lease, ids: Iterable[int] | None = None) -> None:
    """Write the owner's epoch, and the ids of the batch that this transaction applies, into the locked row."""
    values = {**_place(lease), "mine": lease.epoch}
    if ids is None:
        _ENTER.run(tx.bare, values)
    else:
        _STORE.run(tx.bare, values | {"applied": json.dumps(sorted(ids), separators=(",", ":"))})


def _place(lease: Lease) -> dict[str, object]:
    return {"of_origin": lease.origin, "of_route": lease.route, "of_lane": lease.lane}


_MINE: Final = sa.and_(
    inbox.c.origin == sa.bindparam("of_origin"),
    inbox.c.route == sa.bindparam("of_route"),
    inbox.c.lane == sa.bindparam("of_lane"),
)
_SELECT: Final = sa.select(inbox.c.epoch, inbox.c.ids).where(_MINE).with_for_update(nowait=True)
_LOCK: Final = Prepared(_SELECT)
_LOCK_AND_BOUND: Final = Prepared(_SELECT.add_columns(BOUND))
_ENTER: Final = Prepared(sa.update(inbox).where(_MINE).values(epoch=sa.bindparam("mine")))
_STORE: Final = Prepared(sa.update(inbox).where(_MINE).values(epoch=sa.bindparam("mine"), ids=sa.bindparam("applied")))
