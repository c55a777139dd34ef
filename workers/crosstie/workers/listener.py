"""Listens for the notifications of one PostgreSQL database, on a connection of its own outside of the pool."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.driver_errors import classify, describe
from crosstie.outbox.notification import CHANNEL

__all__ = ["Listener"]

LISTEN_S: Final = 1.0


class Listener:
    """A connection that is made when first needed, and again after an error."""

    def __init__(self, database: str, interval_s: float) -> None:
        self._name = database
        self._interval_s = interval_s
        self._connection: Any = None
        self._again = False

    def heard(self) -> bool:
        """Wait for a second at most; whether there may be events that no sweep has seen.

        What a process writes right after it has notified is told by nobody, so each notification counts twice: at
        once, and when the next one may come. Raises DatabaseUnavailable.
        """
        try:
            connection = self._connected()
            again = self._again
            timeout_s = self._interval_s if again else LISTEN_S
            self._again = any(True for _ in connection.notifies(timeout=timeout_s, stop_after=1))
        except Exception as error:
            self.close()
            failure = classify(error)
            if failure is None:
                raise
            database = ConnectionManager.get(self._name)
            raise failure.error(describe(failure, database.name, database.settings.address())) from error
        return again or self._again

    def close(self) -> None:
        """Give the connection up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it may be broken, which is why it is given up
                connection.close()

    def _connected(self) -> Any:
        if self._connection is None:
            database = ConnectionManager.get(self._name)
            pooled = database.autocommit.raw_connection()
            self._connection = pooled.driver_connection
            pooled.detach()
            self._connection.execute(f"LISTEN {CHANNEL}")
            self._again = True  # what was notified before is not heard
        return self._connection
