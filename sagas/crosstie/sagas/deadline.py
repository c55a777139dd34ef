"""The time that a block may take: no statement begins after it, and the server ends the one that runs across it.

Time is this process's own, and no other process rests on it: a block that is late has committed nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.database import Database
from crosstie.orm.driver_errors import classify
from crosstie.orm.errors import CrosstieError, LockTimeout
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.statement_limit import LIMIT_VARIABLES
from crosstie.sagas.errors import SagaTimedOut

__all__ = ["Deadline", "StatementLimit"]

monotonic: Callable[[], float] = time.monotonic
"""This module's clock, in seconds, which tests may move."""
_SLACK: Final = 1.25
"""A limit is set anew once it is longer than what remains by this factor, so that not every statement pays for it."""
_SET: Final = "saga.limit"
"""The ledger of the limits set: PostgreSQL takes a limit back with the savepoint after which it was set."""


@dataclass(frozen=True)
class Deadline:
    """The moment, by `time.monotonic`, at which the saga of this name must have ended its block."""

    saga: str
    timeout_s: float
    at: float

    @classmethod
    def after(cls, saga: str, timeout_s: float) -> Deadline:
        """`timeout_s` seconds from now. Raises ValueError unless they are a positive number."""
        if not (timeout_s > 0 and math.isfinite(timeout_s)):
            raise ValueError(f"timeout_s: expected a positive number of seconds, found {timeout_s!r}.")
        return cls(saga, timeout_s, monotonic() + timeout_s)

    def remaining_s(self) -> float:
        """Seconds left; not positive when it has passed."""
        return self.at - monotonic()

    def require_time(self) -> float:
        """Seconds left. Raises SagaTimedOut when there are none."""
        remaining_s = self.remaining_s()
        if remaining_s <= 0:
            raise self.passed()
        return remaining_s

    def passed(self) -> SagaTimedOut:
        """The error to raise."""
        return SagaTimedOut(
            f"saga {self.saga!r} had not ended after its timeout of {self.timeout_s:g} s. Nothing was committed."
        )

    def explains(self, error: BaseException) -> bool:
        """Whether it was the deadline that ended the statement which failed so."""
        failure = None if isinstance(error, CrosstieError) else classify(error)
        kind = type(error) if failure is None else failure.error
        return issubclass(kind, LockTimeout) and self.remaining_s() <= 0


class StatementLimit:
    """Holds the statements of one transaction to a deadline, which `current` tells: an inner saga has one of its own.

    PostgreSQL and MariaDB end a statement at the deadline, or later by a quarter of the time that it had; MySQL does so
    with SELECT alone; SQLite looks at the clock while it works.
    """

    def __init__(self, database: Database, current: Callable[[], Deadline | None]) -> None:
        self._database = database
        self._variable = LIMIT_VARIABLES.get(database.kind)
        self._current = current
        self._own: float | None = None
        """The server's limit as it was before, in its own unit."""
        self._reckoned_s = 0.0
        self._token = object()

    def before_begin(self, connection: sa.Connection) -> None:
        """Bound the wait for SQLite's only writer, which is in BEGIN already."""
        deadline = self._current()
        if deadline is None:
            return
        remaining_s = deadline.require_time()
        if self._variable is None:
            longest_s = min(self._database.settings.busy_timeout_s, remaining_s)
            _driver(connection).execute(f"PRAGMA busy_timeout = {math.ceil(longest_s * 1000)}")

    def attached(self, tx: LocalTransaction) -> StatementLimit:
        """Look at the clock before each statement of `tx` from now on."""
        tx.before_statement = self.announce
        tx.at_close(self._restore)
        if self._variable is None:
            _driver(tx.connection).set_progress_handler(self._is_late, 10_000)
        return self

    def announce(self, tx: LocalTransaction) -> None:
        """A statement is about to run. Raises SagaTimedOut."""
        deadline = self._current()
        if deadline is None:
            if self._own is not None:
                self._write(tx.connection, self._own)
                self._own = None
            return
        remaining_s = deadline.require_time()
        if self._variable is None:
            return
        is_set = tx.ledger(_SET)[-1:] == [self._token]
        if is_set and remaining_s <= self._reckoned_s <= remaining_s * _SLACK:
            return
        with tx.mapped_errors():
            if self._own is None:
                self._own = float(tx.connection.exec_driver_sql(self._variable.read).scalar_one())
            # One unit more: the server's answer comes when the deadline has passed, not just before.
            limit = remaining_s * self._variable.per_s + (1 if self._variable.per_s > 1 else 0.001)
            self._write(tx.connection, min(limit, self._own or limit))
        self._reckoned_s = remaining_s
        self._token = object()
        tx.ledger(_SET).append(self._token)

    def lift(self, tx: LocalTransaction) -> None:
        """The block has ended in time: what follows, the commits, takes as long as it takes."""
        tx.before_statement = None
        with tx.mapped_errors(), tx.internal():
            if self._variable is None:
                _driver(tx.connection).set_progress_handler(None, 0)
            elif self._own is not None:
                self._write(tx.connection, self._own)
                self._own = None

    def _is_late(self) -> bool:
        deadline = self._current()
        return deadline is not None and deadline.remaining_s() <= 0

    def _write(self, connection: sa.Connection, limit: float) -> None:
        assert self._variable is not None
        connection.exec_driver_sql((self._variable.write_local or self._variable.write).format(limit))

    def _restore(self, connection: sa.Connection) -> None:
        """The connection goes back to the pool, where the application finds it."""
        if self._variable is None:
            _driver(connection).set_progress_handler(None, 0)
            _driver(connection).execute(f"PRAGMA busy_timeout = {int(self._database.settings.busy_timeout_s * 1000)}")
        elif self._own is not None and self._variable.write_local is None:
            self._write(connection, self._own)


def _driver(connection: sa.Connection) -> Any:
    return connection.connection.dbapi_connection
