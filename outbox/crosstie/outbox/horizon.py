"""How far the ids of an outbox are final: nobody can commit an event with one of them any more.

A server hands ids out before their transactions commit, so a reader may never begin behind the last id that it has
read. It may begin behind an id whose writers have all ended. PostgreSQL can tell: whoever inserts holds a lock on the
table, ROW EXCLUSIVE, from before the first of its ids until it has ended, and it ends after others see what it
committed. So once every transaction has gone that held this lock at a moment at which an id was known, no smaller id
can appear later. That matters where deleted events cannot be cleaned away, because some session keeps an old snapshot:
a lane that is read from its beginning is then read over all events that were ever in it.

Other servers do not tell it so cheaply; there the horizon is 0, and lanes are read from the beginning.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from crosstie.orm.database import Database
from crosstie.orm.prepared import Prepared
from crosstie.outbox.tables import lane as lanes
from crosstie.outbox.tables import outbox

__all__ = ["Horizon", "horizon_of"]

logger = logging.getLogger(__name__)

LOOK_S: Final = 1.0
CHECK_S: Final = 600.0


class Horizon:
    """What one process knows of one outbox; safe to use from several threads."""

    def __init__(self, source: Database) -> None:
        self._source = source
        self._mutex = threading.Lock()
        self._seen = 0
        self._final = 0
        self._bound = 0
        self._writers: frozenset[str] = frozenset()
        """Those that had begun when `_bound` was known, and may still commit a smaller id."""
        self._looked_at_s = self._checked_at_s = float("-inf")

    def saw(self, event_id: int) -> None:
        """An event with this id was read: every smaller id is handed out, to somebody who holds the lock by now."""
        self._seen = max(self._seen, event_id)

    def final(self) -> int:
        """No event with this id or a smaller one can become visible after this call; 0 where nothing is known.

        Asks the server once a second at most. Raises DatabaseUnavailable.
        """
        if self._source.kind != "postgresql" or time.monotonic() - self._looked_at_s < LOOK_S:
            return self._final
        if self._mutex.acquire(blocking=False):
            try:
                self._looked_at_s = time.monotonic()
                self._look()
            finally:
                self._mutex.release()
        return self._final

    def _look(self) -> None:
        seen = self._seen  # before the writers are listed
        found = self._source.prepared(_WRITERS, {}).rows
        writers = frozenset(str(transaction) for transaction, _ in found)
        if any(pid is None for _, pid in found):  # one that was prepared meanwhile is not called as before
            return
        if not self._writers & writers:
            self._final = max(self._final, self._bound)
            self._bound, self._writers = seen, writers
            if not writers:
                self._final = max(self._final, seen)

    def check(self) -> bool:
        """Have lanes read from the beginning that hold what they are said to hold no more; False where there is none.

        Ids that begin anew, after `TRUNCATE … RESTART IDENTITY` or on a server whose sequences were not copied, are
        smaller than those that are known to be final. Asks when first called and then every ten minutes. Raises
        DatabaseUnavailable.
        """
        if self._source.kind != "postgresql" or time.monotonic() - self._checked_at_s < CHECK_S:
            return False
        self._checked_at_s = time.monotonic()
        hidden = self._source.prepared(_RESET, {}, returns=False).rowcount > 0
        if hidden:
            self._seen = self._final = self._bound = 0
            logger.warning(
                "the outbox of %r held events with ids that had been in use before; they are delivered now. Were its "
                "ids reset? Start the workers of this database again after that.",
                self._source.name,
            )
        return hidden


_horizons: WeakKeyDictionary[Database, Horizon] = WeakKeyDictionary()
_mutex: Final = threading.Lock()


def horizon_of(source: Database) -> Horizon:
    """The one of this process."""
    with _mutex:
        horizon = _horizons.get(source)
        if horizon is None:
            horizon = _horizons[source] = Horizon(source)
        return horizon


_WRITERS: Final = Prepared(
    sa.text(
        "SELECT virtualtransaction, pid FROM pg_locks WHERE locktype = 'relation' AND mode = 'RowExclusiveLock'"
        " AND relation = CAST('crosstie_outbox' AS regclass)"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
)
_RESET: Final = Prepared(
    sa.update(lanes)
    .where(
        lanes.c.emptied_to > 0,
        sa.select(outbox.c.id)
        .where(outbox.c.route == lanes.c.route, outbox.c.lane == lanes.c.lane, outbox.c.id <= lanes.c.emptied_to)
        .limit(1)
        .correlate(lanes)
        .scalar_subquery()
        .is_not(None),
    )
    .values(emptied_to=0, epoch=lanes.c.epoch + 1)
)
