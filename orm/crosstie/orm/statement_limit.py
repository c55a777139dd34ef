"""Statements that end after a while: the server cancels what runs longer, and whoever asked may ask for less.

For statements that commit by themselves. A connection keeps its limit as long as those who take it from the pool want
the same, and is set back for the first who does not: so a limit costs nothing once it is set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import ConnectionPoolEntry

from crosstie.orm.pool import pool_of

__all__ = ["limited_statements", "watch_statements"]

_FOUND: Final = "crosstie.statement_limit_found"
_SET: Final = "crosstie.statement_limit_set"


@dataclass(frozen=True)
class _Variable:
    """Where a server keeps the longest time of a statement, in units of which a second has `per_s`; 0 is no limit."""

    per_s: int
    read: str
    write: str


_VARIABLES: Final = {
    "postgresql": _Variable(
        1000,
        "SELECT CAST(setting AS INTEGER) FROM pg_settings WHERE name = 'statement_timeout'",
        "SET statement_timeout = {:.0f}",
    ),
    "mariadb": _Variable(1, "SELECT @@SESSION.max_statement_time", "SET SESSION max_statement_time = {:.6f}"),
    # MySQL holds SELECT alone to it.
    "mysql": _Variable(1000, "SELECT @@SESSION.max_execution_time", "SET SESSION max_execution_time = {:.0f}"),
}
_wanted: Final[ContextVar[float | None]] = ContextVar("crosstie.statement_limit", default=None)


@contextmanager
def limited_statements(seconds: float | None) -> Iterator[None]:
    """Statements of the block, each by itself outside of transactions, may run no longer; None: as long as they take.

    Not longer either than the configuration of the connection has it. They raise StatementTimeout. Threads that are
    given the block's context obey as well. SQLite, which runs in this process, has no such limit.
    """
    token = _wanted.set(seconds)
    try:
        yield
    finally:
        _wanted.reset(token)


def obeys(info: Mapping[Any, Any]) -> bool:
    """Whether the session of a connection with this info has the limit that the thread or task wants."""
    return bool(info.get(_SET) == _wanted.get())


def watch_statements(engine: sa.Engine, kind: str) -> None:
    """Have the engine's connections to a server of this kind obey, when they are taken from its pool."""
    variable = _VARIABLES.get(kind)
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
            found: float = entry.info[_FOUND]
            limits = [one for one in (found, (wanted or 0) * variable.per_s) if one > 0]
            cursor.execute(variable.write.format(min(limits, default=0)))
        finally:
            cursor.close()
        entry.info[_SET] = wanted

    event.listen(engine, "checkout", taken)
    pool_of(engine).suits = obeys
