"""Waits for locks of the database that end before a lease does.

PostgreSQL takes the bound with a query that a transaction makes anyway. The others have it in the session: a
connection keeps it as long as those who take it from the pool want the same, and is set back for the first who does
not.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects.postgresql import INTERVAL
from sqlalchemy.pool import ConnectionPoolEntry

from crosstie.orm.pool import pool_of

__all__ = ["BOUND", "bound_every_wait", "bound_of", "bounded_sessions", "watch_sessions"]

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
_UNBOUNDED_S: Final = 50.0
"""What MySQL and MariaDB have by default."""
BOUND: Final = _bound()
"""In a query of one row on PostgreSQL: its transaction waits for no lock longer than `lock_wait` from now on.

Not longer either than the configuration of the connection has it.
"""


def bound_of(seconds: float) -> dict[str, str]:
    """The parameter of BOUND."""
    return {"lock_wait": f"{max(1, int(seconds * 1000))}ms"}


def bound_every_wait(engine: sa.Engine, seconds: float | None) -> None:
    """Have the sessions of PostgreSQL, MySQL or MariaDB wait for no lock longer than this.

    None: as long as the server has it; on PostgreSQL, if it has no bound, as long as the others have it by default. Two
    transactions may wait for each other across two databases, where no server sees that they do.
    """
    postgresql = engine.dialect.name == "postgresql"
    if seconds is None and not postgresql:
        return

    def connected(dbapi_connection: Any, _: ConnectionPoolEntry) -> None:
        cursor = dbapi_connection.cursor()
        try:
            if not postgresql:
                cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {max(1, math.ceil(seconds or 0))}")
                return
            wanted = f"{math.ceil((seconds or _UNBOUNDED_S) * 1000)}ms"
            where = "" if seconds is not None else " WHERE current_setting('lock_timeout') = '0'"
            cursor.execute(f"SELECT set_config('lock_timeout', %s, false){where}", (wanted,))
            dbapi_connection.commit()  # else a rollback takes it back
        finally:
            cursor.close()

    event.listen(engine, "connect", connected)


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
    pool_of(engine).suits = obeys
