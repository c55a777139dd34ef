"""Pooled connections that died are found before they are used, at no cost to a busy pool.

A connection is pinged when it has rested for a while, or when any connection to the same database has been lost since
it was last used: a server that restarts takes all of them.
"""

from __future__ import annotations

import time
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from crosstie.orm.pool import RESTED_SINCE, RESTS_AT_MOST_S

__all__ = ["IDLE_BEFORE_PING_S", "Liveness"]

IDLE_BEFORE_PING_S: Final = RESTS_AT_MOST_S
_USED_AT: Final = "crosstie.used_at"


class Liveness:
    """What is known about the connections to one database, in all of its pools."""

    def __init__(self) -> None:
        self.lost_at = float("-inf")
        """When a connection was last lost, by `time.monotonic`."""

    def note_loss(self) -> None:
        """A connection was lost: distrust every other one that has not been used since."""
        self.lost_at = time.monotonic()

    def watch(self, engine: sa.Engine) -> None:
        """Ping this engine's connections before use where they may be dead, and learn from those that are."""
        dialect = engine.dialect

        def returned(_: DBAPIConnection | None, entry: ConnectionPoolEntry) -> None:
            entry.info[_USED_AT] = entry.info.pop(RESTED_SINCE, None) or time.monotonic()

        def taken(dbapi_connection: DBAPIConnection, entry: ConnectionPoolEntry, _: Any) -> None:
            used_at = entry.info.get(_USED_AT)
            if used_at is None or (used_at > self.lost_at and time.monotonic() - used_at < IDLE_BEFORE_PING_S):
                return
            try:
                alive = dialect.do_ping(dbapi_connection)
            except (DBAPIError, dialect.loaded_dbapi.Error):
                alive = False
            if not alive:
                raise DisconnectionError("the connection died while it rested in the pool")

        def failed(context: sa.engine.ExceptionContext) -> None:
            if context.is_disconnect:
                self.note_loss()

        event.listen(engine, "checkin", returned)
        event.listen(engine, "checkout", taken)
        event.listen(engine, "handle_error", failed)
