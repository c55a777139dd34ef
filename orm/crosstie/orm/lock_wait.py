"""Waits for locks of the database that end before a lease does.

PostgreSQL takes the bound with a query that a transaction makes anyway. The others have it in the session: a
connection keeps it as long as those who take it from the pool want the same, and is set back for the first who does
not.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects.postgresql import INTERVAL
from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["BOUND", "bound_of", "bounded_sessions", "obeys", "watch_sessions"]

_FOUND: Final = "crosstie.lock_wait_found"
_SET: Final = "crosstie.lock_wait_set"


def _bound() -> sa.ColumnElement[str]:
    found: sa.ColumnElement[str] = sa.func.current_setting("lock_timeout")
    wanted = sa.cast(sa.bindparam("lock_wait"), sa.Text)
    shorter = sa.cast(found, INTERVAL).between(sa.literal_column("INTERVAL '1 ms'"), sa.cast(wanted, INTERVAL))
    return sa.func.set_config("lock_timeout", sa.case((shorter, found), else_=wanted), sa.true())


_SESSION: Final = {
    "sqlite": ("PRAGMA busy_timeout", "PRAGMA busy_timeout", 0.001),
    "mysql": ("SELECT @@SESSION.innodb_lock_wait_timeout", "SET SESSION innodb_lock_wait_timeout", 1.0),
}
"""How a session is asked for its bound and told another, and the unit in seconds."""
BOUND: Final = _bound()
"""In a query of one row on PostgreSQL: its transaction waits for no lock longer than `lock_wait` from now on.

Not longer either than the configuration of the connection has it.
"""


def bound_of(seconds: float) -> dict[str, str]:
    """The parameter of BOUND."""
    return {"lock_wait": f"{max(1, int(seconds * 1000))}ms"}


class _Wanted(threading.local):
    seconds: float | None = None


_wanted: Final = _Wanted()


@contextmanager
def bounded_sessions(seconds: float) -> Iterator[None]:
    """Transactions that the thread begins in the block wait for no row longer than this, on SQLite for no other writer.

    On MySQL and MariaDB in whole seconds, one at least. Not longer either than the configuration of the connection has
    it. PostgreSQL needs BOUND.
    """
    before = _wanted.seconds
    _wanted.seconds = seconds
    try:
        yield
    finally:
        _wanted.seconds = before


def obeys(info: Mapping[Any, Any]) -> bool:
    """Whether the session of a connection with this info has the bound that the thread wants."""
    return bool(info.get(_SET) == _wanted.seconds)


def watch_sessions(engine: sa.Engine) -> None:
    """Have connections of SQLite, MySQL or MariaDB obey, when they are taken from the engine's pool."""
    read, write, unit_s = _SESSION["sqlite" if engine.dialect.name == "sqlite" else "mysql"]

    def taken(dbapi_connection: Any, entry: ConnectionPoolEntry, _: Any) -> None:
        if obeys(entry.info):
            return
        wanted = _wanted.seconds
        cursor = dbapi_connection.cursor()
        try:
            if _FOUND not in entry.info:
                cursor.execute(read)
                entry.info[_FOUND] = int(cursor.fetchone()[0])
            found: int = entry.info[_FOUND]
            bound = found if wanted is None else min(found, max(1, int(wanted / unit_s)))
            cursor.execute(f"{write} = {bound}")
        finally:
            cursor.close()
        entry.info[_SET] = wanted

    event.listen(engine, "checkout", taken)
