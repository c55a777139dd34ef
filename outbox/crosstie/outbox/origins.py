"""Whose lanes the inbox of a target knows: an origin is a database as it was when its lanes were made.

A database that is dropped and made anew has new origins, and the inboxes keep the rows of the old ones. They are small
and do no harm; forgetting those of an origin that still delivers would apply its last batch twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox.errors import OperationRefused
from crosstie.outbox.tables import inbox
from crosstie.outbox.tables import lane as lanes

__all__ = ["UNUSED_FOR_S", "InboxOrigin", "forget_origin", "inbox_origins", "origins_of"]

UNUSED_FOR_S: Final = 7 * 86_400.0


@dataclass(frozen=True)
class InboxOrigin:
    """What the inbox of `target` has of one origin and route; `unused_s` is by the target's clock."""

    target: str
    origin: str
    route: str
    lanes: int
    unused_s: float


def inbox_origins(target: str) -> list[InboxOrigin]:
    """Each origin and route that the inbox knows, the longest unused first.

    Raises DatabaseUnavailable, NoSuchTable.
    """
    used = sa.func.max(inbox.c.used_at_ms)
    query = (
        sa.select(inbox.c.origin, inbox.c.route, sa.func.count().label("lanes"), (now_ms() - used).label("unused_ms"))
        .group_by(inbox.c.origin, inbox.c.route)
        .order_by(used, inbox.c.origin, inbox.c.route)
    )
    return [
        InboxOrigin(target, row.origin, row.route, row.lanes, row.unused_ms / 1000)
        for row in ConnectionManager.get(target).rows(query)
    ]


def origins_of(source: str) -> list[str]:
    """The origins of the lanes that a database has now. Raises DatabaseUnavailable, NoSuchTable."""
    return sorted(row.origin for row in ConnectionManager.get(source).rows(sa.select(lanes.c.origin).distinct()))


def forget_origin(target: str, origin: str, *, unused_for_s: float = UNUSED_FOR_S) -> int:
    """Delete the rows of an origin from the inbox of a target; returns how many.

    Raises OperationRefused where a configured database has lanes of this origin, or where it was heard of within
    `unused_for_s`: databases that are not configured here may deliver too. Raises DatabaseUnavailable, also where a
    configured database cannot be asked for its lanes.
    """
    for source in ConnectionManager.names(writable=True):
        if origin in origins_of(source):
            raise OperationRefused(
                f"expected an origin that has vanished, and found {origin!r}, of which database {source!r} has lanes: "
                "forgetting it could apply its last batch twice."
            )
    with detached_transaction(target) as tx:
        tx.mark_written()
        query = sa.select(now_ms() - inbox.c.used_at_ms).where(inbox.c.origin == origin).with_for_update()
        unused_ms = tx.connection.execute(query).scalars().all()
        if unused_ms and min(unused_ms) < unused_for_s * 1000:
            raise OperationRefused(
                f"expected an origin that {target!r} has not heard of for {unused_for_s:.0f} s, and {origin!r} was "
                f"there {min(unused_ms) / 1000:.0f} s ago: a database that is not configured here may still deliver. "
                "If it cannot, say so with a shorter time (--unused-for)."
            )
        return tx.connection.execute(sa.delete(inbox).where(inbox.c.origin == origin)).rowcount
