"""Statements that end after a while: the server cancels what runs longer, and whoever asked may ask for less.

A connection whose statements commit by themselves keeps its limit as long as those who take it from the pool want the
same, and is set back for the first who does not: so a limit costs nothing once it is set. A transaction takes the limit
where it says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import ConnectionPoolEntry

from crosstie.orm.pool import pool_of

if TYPE_CHECKING:
    from crosstie.orm.local_transaction import LocalTransaction

__all__ = [
    "LIMIT_VARIABLES",
    "LimitVariable",
    "limit_transaction",
    "limited_statements",
    "watch_statements",
    "what_to_do",
]

_FOUND: Final = "crosstie.statement_limit_found"
_SET: Final = "crosstie.statement_limit_set"


@dataclass(frozen=True)
class LimitVariable:
    """Where a server keeps the longest time of a statement, in units of which a second has `per_s`; 0 is no limit.

    `write_local` sets it until the transaction ends, where the server can do that.
    """

    per_s: int
    read: str
    write: str
    write_local: str | None = None

    def shortest(self, found: float, seconds: float | None) -> float:
        """What to set for this many seconds (None: no limit), in the server's unit: nothing above what was found."""
        return min((one for one in (found, (seconds or 0) * self.per_s) if one > 0), default=0)


LIMIT_VARIABLES: Final = {
    "postgresql": LimitVariable(
        1000,
        "SELECT CAST(setting AS INTEGER) FROM pg_settings WHERE name = 'statement_timeout'",
        "SET statement_timeout = {:.0f}",
        "SET LOCAL statement_timeout = {:.0f}",
    ),
    "mariadb": LimitVariable(1, "SELECT @@SESSION.max_statement_time", "SET SESSION max_statement_time = {:.6f}"),
    # MySQL holds SELECT alone to it.
    "mysql": LimitVariable(1000, "SELECT @@SESSION.max_execution_time", "SET SESSION max_execution_time = {:.0f}"),
}
"""Of each kind of server; SQLite runs in this process, and has none."""
_wanted: Final[ContextVar[float | None]] = ContextVar("crosstie.statement_limit", default=None)


@contextmanager
def limited_statements(seconds: float | None) -> Iterator[None]:
    """Statements of the block, each by itself outside of transactions, may run no longer; None: as long as they take.

    Not longer either than the configuration of the connection has it. They raise StatementTimeout. Threads that are
    given the block's context obey as well, and transactions that `limit_transaction` is called with. SQLite has no
    such limit.
    """
    token = _wanted.set(seconds)
    try:
        yield
    finally:
        _wanted.reset(token)


def what_to_do() -> str:
    """The advice to whom a statement took too long: audits and repairs have their limit from a setting."""
    wanted = _wanted.get()
    if wanted is None:
        return "Run the whole block again."
    return (
        f"Raise audit.statement_timeout_s ({wanted:g} s), give the foreign key an index, or try again when nobody "
        "holds locks on these tables."
    )


def limit_transaction(tx: LocalTransaction) -> None:
    """Hold the statements of an open transaction to the limit of the block; the next on its connection has none of it.

    Raises DatabaseUnavailable.
    """
    variable, wanted = LIMIT_VARIABLES.get(tx.database.kind), _wanted.get()
    if variable is None or wanted is None:
        return
    with tx.mapped_errors(), tx.internal():
        found = float(tx.connection.exec_driver_sql(variable.read).scalar_one())
        write = variable.write_local or variable.write
        tx.connection.exec_driver_sql(write.format(variable.shortest(found, wanted)))
    if variable.write_local is None:
        restore = variable.write.format(found)
        tx.at_close(lambda connection: connection.exec_driver_sql(restore))


def obeys(info: Mapping[Any, Any]) -> bool:
    """Whether the session of a connection with this info has the limit that the thread or task wants."""
    return bool(info.get(_SET) == _wanted.get())


def watch_statements(engine: sa.Engine, kind: str) -> None:
    """Have the engine's connections to a server of this kind obey, when they are taken from its pool."""
    variable = LIMIT_VARIABLES.get(kind)
    if variable is None:
        return

    def taken(dbapi_connection: Any, entry: ConnectionPoolEntry, _: Any) -> None:
        if obeys(entry.info):
            return
        wanted = _wanted.get()
        cursor = dbapi_connection.cursor()
        try:
            if _FOUND not in entry.info:
                cursor.execute(variable.read)
                entry.info[_FOUND] = float(cursor.fetchone()[0])
            cursor.execute(variable.write.format(variable.shortest(entry.info[_FOUND], wanted)))
        finally:
            cursor.close()
        entry.info[_SET] = wanted

    event.listen(engine, "checkout", taken)
    pool_of(engine).suits = obeys
