"""Which database answers a read: the replica, unless this thread could miss what it has just written.

Inside a transaction or a saga the primary answers, and for a while after a write of this thread (its length is the
connection's `read_your_writes_s`). The time is counted from the commit.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.local_transaction import current, open_transactions
from crosstie.orm.mapping import TableMapping
from crosstie.orm.transaction import active_unit

__all__ = ["ReadRouter", "router"]

_LEDGER: Final = "orm.read-your-writes"


class _Written(threading.local):
    def __init__(self) -> None:
        self.at_s: dict[str, float] = {}
        self.primary_only = False


class ReadRouter:
    """Remembers, for each thread, when it last wrote to which connection; `monotonic` gives seconds."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.monotonic = monotonic
        self._written = _Written()
        self._turn = itertools.count()

    def read_connection(self, mapping: TableMapping) -> str:
        """The name of the connection on which a read of this model runs now."""
        replicas = mapping.read_connections
        primary = mapping.connection
        if (
            not replicas
            or self._written.primary_only
            or open_transactions()
            or active_unit() is not None
            or self._wrote_lately(primary)
        ):
            return primary
        return replicas[next(self._turn) % len(replicas)] if len(replicas) > 1 else replicas[0]

    def note_write(self, connection: str) -> None:
        """This thread writes to the connection now, or when its open transaction there commits."""
        tx = current(connection)
        if tx is None:
            self._written.at_s[connection] = self.monotonic()
            return
        noted = tx.ledger(_LEDGER)
        if not noted:
            noted.append(connection)
            tx.after_commit(lambda: self._committed(connection))

    def written_at_s(self, connection: str) -> float | None:
        """When this thread has last written there, by `monotonic`; None for never."""
        return self._written.at_s.get(connection)

    @contextmanager
    def primary_only(self) -> Iterator[None]:
        """Have the primary answer this thread's reads in the block."""
        before = self._written.primary_only
        self._written.primary_only = True
        try:
            yield
        finally:
            self._written.primary_only = before

    def forget(self) -> None:
        """Forget this thread's writes: the next read may go to a replica."""
        self._written.at_s.clear()

    def _committed(self, connection: str) -> None:
        self._written.at_s[connection] = self.monotonic()

    def _wrote_lately(self, connection: str) -> bool:
        at_s = self._written.at_s.get(connection)
        if at_s is None:
            return False
        return self.monotonic() - at_s < ConnectionManager.get(connection).settings.read_your_writes_s


router: Final = ReadRouter()
