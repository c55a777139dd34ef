"""The inbox: one row per lane in the target, which says what was applied last and keeps lapsed owners out.

It is written in the transaction that applies. So whoever reads it under its lock knows for certain which events of the
last batch are durable here, whatever was heard of that batch's COMMIT.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import sqlalchemy as sa

from crosstie.orm.database import Database
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.outbox.errors import InboxMissing, LeaseLost
from crosstie.outbox.lane import Lease
from crosstie.outbox.tables import inbox
from crosstie.outbox.upsert import insert_if_absent

__all__ = ["create", "fence", "lock", "store"]


def lock(tx: LocalTransaction, lease: Lease) -> frozenset[int]:
    """Lock the lane's row until the transaction ends, and return the ids of the batch that was applied last.

    Raises InboxMissing, LeaseLost where a later owner was here, and LockTimeout where another transaction holds the
    row: a paused owner, or one whose connection is gone and whose COMMIT may still be under way. Waiting for it could
    last for ever.
    """
    query = sa.select(inbox.c.epoch, inbox.c.ids).where(_mine(lease)).with_for_update(nowait=True)
    tx.mark_written()
    row = tx.connection.execute(query).one_or_none()
    if row is None:
        raise InboxMissing(
            f"lane {lease.lane} of route {lease.route!r} has no row in the inbox of {tx.database.name!r}, where its "
            "owner had made one: crosstie's tables were dropped or emptied meanwhile."
        )
    fence(row.epoch, lease)
    return frozenset(json.loads(row.ids))


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
    values: dict[str, object] = {"epoch": lease.epoch}
    if ids is not None:
        values["ids"] = json.dumps(sorted(ids), separators=(",", ":"))
    tx.connection.execute(sa.update(inbox).where(_mine(lease)).values(values))


def _mine(lease: Lease) -> sa.ColumnElement[bool]:
    return sa.and_(inbox.c.origin == lease.origin, inbox.c.route == lease.route, inbox.c.lane == lease.lane)
