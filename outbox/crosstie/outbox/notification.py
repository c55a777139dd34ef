"""NOTIFY, an option for sources in PostgreSQL: a commit with events wakes sweepers without a broker.

PostgreSQL lets transactions that notify commit one after another. So a process notifies once in a while at most, and
who listens looks once more after that while.
"""

from __future__ import annotations

import threading
import time
from typing import Final

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager

__all__ = ["CHANNEL", "announce", "interval_s"]

CHANNEL: Final = "crosstie_outbox"
_NOTIFY: Final = sa.text(f"NOTIFY {CHANNEL}")

_lock = threading.Lock()
_next_s: dict[str, float] = {}


def interval_s() -> float | None:
    """How much time lies between two notifications of one process; None where there are none."""
    every_ms = ConnectionManager.settings().outbox.notify_every_ms
    return None if every_ms is None else every_ms / 1000


def announce(connection: sa.Connection) -> None:
    """Say, with the commit of the connection's transaction, that events were written, unless it was said just now.

    Nothing on other databases, and where the setting is off. A transaction that rolls back has said nothing, and the
    next sweep finds what it would have been for.
    """
    if connection.dialect.name != "postgresql":
        return
    every_s = interval_s()
    if every_s is None:
        return
    place, now_s = str(connection.engine.url), time.monotonic()
    with _lock:
        if now_s < _next_s.get(place, 0.0):
            return
        _next_s[place] = now_s + every_s
    connection.execute(_NOTIFY)
