"""Dead events that nobody has looked at for too long, if the configuration says how long that is.

Like an operator, it only marks them as skipped: the owner of the lane deletes them, and their keys go on.
"""

from __future__ import annotations

import logging
from typing import Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox.tables import parked

__all__ = ["skip_dead"]

logger = logging.getLogger(__name__)

AT_ONCE: Final = 500


def skip_dead(source: str) -> int:
    """Skip events that died more than `outbox.dead_retention_s` ago; returns how many, at most 500 at a time.

    Raises DatabaseUnavailable, NoSuchTable.
    """
    retention_s = ConnectionManager.settings().outbox.dead_retention_s
    if retention_s is None:
        return 0
    # Of a dead event, `next_at_ms` is when it died.
    old = sa.and_(parked.c.state == "dead", parked.c.next_at_ms < now_ms() - int(retention_s * 1000))
    query = sa.select(parked.c.route, parked.c.lane, parked.c.id, parked.c.uid).where(old).limit(AT_ONCE)
    skipped = 0
    found = ConnectionManager.get(source).rows(query)
    if not found:
        return 0
    with detached_transaction(source) as tx:
        for row in found:
            this = sa.and_(parked.c.route == row.route, parked.c.lane == row.lane, parked.c.id == row.id)
            # Looked at again: an operator may have had it tried anew meanwhile.
            mark = sa.update(parked).where(this, old).values(state="skipped", next_at_ms=0)
            if tx.connection.execute(mark).rowcount:
                tx.mark_written()
                skipped += 1
                logger.warning(
                    "event %s (uid %s) of route %r in %r is skipped: it has been dead for longer than "
                    "outbox.dead_retention_s",
                    row.id,
                    row.uid,
                    row.route,
                    source,
                )
    return skipped
