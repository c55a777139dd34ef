"""Answers in bulk: one row whose column is many keys, as bytes and not as text, and never cut short by a limit.

What a server needs for that is set for the one statement alone, so a pooled connection is given back as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.database import Database
from crosstie.orm.prepared import Prepared, is_watched

__all__ = ["CONCAT_LIMIT", "BulkQuery"]

CONCAT_LIMIT: Final = 2**30
"""Bytes that GROUP_CONCAT may give; by default 1 MB, or 1 kB on MySQL, and what is beyond that is dropped silently."""

_NO_VALUES: Final[Mapping[str, Any]] = {}


class BulkQuery:
    """A query for one row, compiled once for all pages of a scan; safe to share between threads."""

    def __init__(self, database: Database, query: sa.Select[Any]) -> None:
        self._database = database
        self._prepared = Prepared(query)

    def row(self, values: Mapping[str, Any] = _NO_VALUES, connection: sa.Connection | None = None) -> tuple[Any, ...]:
        """The row for these values, by the names of the query's parameters, as the driver gives it.

        Read through this connection or one of its own. Raises DatabaseUnavailable, and what the database refuses.
        """
        with self._database.mapped_errors():
            if connection is not None:
                return self._row(connection, values)
            with self._database.autocommit.connect() as own:
                return self._row(own, values)

    def _row(self, connection: sa.Connection, values: Mapping[str, Any]) -> tuple[Any, ...]:
        sql, parameters = self._prepared.rendered(connection.dialect, values)
        if self._database.kind != "postgresql" or is_watched(connection.engine):
            return tuple(connection.exec_driver_sql(_unlimited(self._database.kind, sql), parameters).one())
        cursor: Any = None
        try:
            # As text each byte of a BYTEA is two; and a plan made for any range would take it for a small one.
            cursor = connection.connection.cursor(binary=True)
            (row,) = cursor.execute(sql, parameters, prepare=False).fetchall()
            cursor.close()
        except BaseException as error:  # noqa: BLE001 - raised again, as SQLAlchemy's own error
            connection._handle_dbapi_exception(error, sql, None, cursor, None)
        return tuple(row)


def _unlimited(kind: str, sql: str) -> str:
    if kind == "mariadb":
        return f"SET STATEMENT group_concat_max_len={CONCAT_LIMIT} FOR {sql}"
    if kind == "mysql":
        return sql.replace("SELECT", f"SELECT /*+ SET_VAR(group_concat_max_len={CONCAT_LIMIT}) */", 1)
    return sql
