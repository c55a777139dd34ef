"""Answers in bulk: one row whose column is many keys, as bytes and not as text, and never cut short by a limit.

What a server needs for that is set for the one statement alone, so a pooled connection is given back as it was.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event

from crosstie.orm.database import Database

__all__ = ["CONCAT_LIMIT", "bulk_row"]

CONCAT_LIMIT: Final = 2**30
"""Bytes that GROUP_CONCAT may give; by default 1 MB, or 1 kB on MySQL, and what is beyond that is dropped silently."""


def bulk_row(database: Database, query: sa.Select[Any], connection: sa.Connection | None = None) -> tuple[Any, ...]:
    """The one row of the query's answer, through this connection or one of its own. Raises DatabaseUnavailable."""
    if connection is None:
        with database.mapped_errors(), database.autocommit.connect() as own:
            return bulk_row(database, query, own)
    prepare = _PREPARATIONS[database.kind]
    event.listen(connection, "before_cursor_execute", prepare, retval=True)
    try:
        return tuple(connection.execute(query).one())
    finally:
        event.remove(connection, "before_cursor_execute", prepare)


def _binary(_: sa.Connection, cursor: Any, statement: str, parameters: Any, *__: Any) -> tuple[str, Any]:
    # As text each byte of a BYTEA is two.
    from psycopg.pq import Format

    cursor.format = Format.BINARY
    return statement, parameters


def _unlimited(_: sa.Connection, __: Any, statement: str, parameters: Any, *___: Any) -> tuple[str, Any]:
    return f"SET STATEMENT group_concat_max_len={CONCAT_LIMIT} FOR {statement}", parameters


def _unlimited_by_hint(_: sa.Connection, __: Any, statement: str, parameters: Any, *___: Any) -> tuple[str, Any]:
    hint = f"SELECT /*+ SET_VAR(group_concat_max_len={CONCAT_LIMIT}) */"
    return statement.replace("SELECT", hint, 1), parameters


_PREPARATIONS: Final = {"postgresql": _binary, "mariadb": _unlimited, "mysql": _unlimited_by_hint}
