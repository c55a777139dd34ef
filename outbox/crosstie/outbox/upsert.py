"""INSERT that leaves a row alone which is there already, in the words of each dialect.

A concurrent insert of the same key is waited for. Other errors are not masked, as INSERT IGNORE would.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

__all__ = ["insert_if_absent"]


def insert_if_absent(connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> None:
    """Insert the row unless one with its primary key exists; never commits."""
    connection.execute(_statement(connection.dialect.name, table, values))


def _statement(dialect: str, table: sa.Table, values: Mapping[str, Any]) -> sa.Insert:
    if dialect == "postgresql":
        return postgresql.insert(table).values(values).on_conflict_do_nothing()
    if dialect == "sqlite":
        return sqlite.insert(table).values(values).on_conflict_do_nothing()
    # Setting a key column to itself changes nothing, and takes the exclusive lock at once where a plain insert would
    # leave a shared one behind, over which two processes deadlock.
    first_key = next(iter(table.primary_key.columns))
    return mysql.insert(table).values(values).on_duplicate_key_update({first_key.name: first_key})
