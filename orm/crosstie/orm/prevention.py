"""Blocks in which nothing may be written: for requests that only read, reports, replicas, scripts that only look.

Writes of the ORM are refused where they ask for a connection; other statements on connections of crosstie where their
words show that they write. That is a guard against mistakes: what a function does that SELECT calls, nobody sees here.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Final
from weakref import WeakSet

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import WritesPrevented
from crosstie.orm.prepared import guard_statements

__all__ = ["prevent_writes", "require_writable", "writes"]

_EVERYWHERE: Final[frozenset[str | None]] = frozenset({None})
_prevented: ContextVar[frozenset[str | None]] = ContextVar("crosstie.prevented", default=frozenset())

_READS: Final = frozenset(
    {
        "BEGIN", "CLOSE", "COMMIT", "DECLARE", "DESC", "DESCRIBE", "END", "EXPLAIN", "FETCH", "PRAGMA", "RELEASE",
        "RESET", "ROLLBACK", "SAVEPOINT", "SELECT", "SET", "SHOW", "START", "TABLE", "USE", "VALUES", "WITH",
    }
)  # fmt: skip
_MAY_CONTAIN_WRITES: Final = frozenset({"EXPLAIN", "SELECT", "TABLE", "VALUES", "WITH"})
_WRITES: Final = re.compile(r"\b(INSERT|DELETE|MERGE|REPLACE|INTO|(?<!FOR )(?<!FOR NO KEY )UPDATE)\b(?!\s*\()")
_STRINGS: Final = r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`(?:[^`]|``)*`"
_ESCAPED: Final = r"'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.|\"\")*\"|`(?:[^`]|``)*`"
_COMMENTS: Final = r"/\*(?!!).*?\*/|--[^\n]*"
_SKIPPED: Final = {
    True: re.compile(f"{_ESCAPED}|{_COMMENTS}|#[^\n]*", re.DOTALL),
    False: re.compile(rf"\bE{_ESCAPED}|{_STRINGS}|\$(\w*)\$.*?\$\1\$|{_COMMENTS}", re.DOTALL | re.IGNORECASE),
}


@contextmanager
def prevent_writes(*names: str) -> Iterator[None]:
    """Refuse every write to these connections in the block, or to any connection where none is named.

    It holds for this thread or asynchronous task; blocks inside add to it. A write raises WritesPrevented before
    anything is sent, and an open transaction goes on. Raises UnknownConnection.
    """
    for name in names:
        ConnectionManager.get(name)
    _guard_engines()
    before = _prevented.get()
    _prevented.set(before | (frozenset(names) or _EVERYWHERE))
    try:
        yield
    finally:
        _prevented.set(before)


def require_writable(name: str) -> None:
    """Raise WritesPrevented inside a block that prevents writes to this connection."""
    prevented = _prevented.get()
    if prevented and (None in prevented or name in prevented):
        raise WritesPrevented(
            f"a write to database {name!r} inside prevent_writes(): it was not sent. Write after the block, or leave "
            "the block out where writing is meant."
        )


@lru_cache(maxsize=1024)
def writes(statement: str, kind: str) -> bool:
    """Whether the words of an SQL statement, or of one of several, say that it writes; doubt counts as a write."""
    mysql = kind in {"mysql", "mariadb"}
    bare = _SKIPPED[mysql].sub(" ", statement).upper()
    return any(_part_writes(" ".join(part.split())) for part in bare.split(";") if part.strip())


def _part_writes(part: str) -> bool:
    first = re.match(r"\(*\s*(\w+)", part)
    if first is None or first[1] not in _READS:
        return True
    if first[1] == "PRAGMA":
        return "=" in part
    return first[1] in _MAY_CONTAIN_WRITES and _WRITES.search(part) is not None


def _guard_engines() -> None:
    """Listen on every engine from the first block on: until then no statement pays for it."""
    if _armed.is_set():
        return
    with _arming:
        if not _armed.is_set():
            Database.on_engine.append(_guard)  # first, so that an engine made meanwhile is not missed
            for name in ConnectionManager.names():
                database = ConnectionManager.get(name)
                for engine in database.engines():
                    _guard(database, engine)
            _armed.set()


def _guard(database: Database, engine: sa.Engine) -> None:
    if engine in _guarded:
        return
    _guarded.add(engine)

    def refuse(_: sa.Connection, statement: str) -> None:
        if _prevented.get() and writes(statement, database.kind):
            require_writable(database.name)

    # Of prepared statements too, within a block: not all of them come by way of `statement_connection`.
    guard_statements(engine, refuse, prepared=lambda: bool(_prevented.get()))


_guarded: WeakSet[sa.Engine] = WeakSet()
_arming: Final = threading.Lock()
_armed: Final = threading.Event()
