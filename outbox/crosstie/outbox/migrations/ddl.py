"""Tables and indexes made and dropped so that doing it again is harmless."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.schema import CreateIndex, CreateTable, DropTable

from crosstie.orm.faults import fault_point

__all__ = ["create_missing", "drop_existing"]


def create_missing(connection: sa.Connection, tables: Iterable[sa.Table]) -> None:
    """Create those tables that are missing, and the missing indexes of those that are there."""
    existing = set(sa.inspect(connection).get_table_names())
    # MySQL has no CREATE INDEX IF NOT EXISTS; elsewhere it helps where the caller's transaction cannot be alone.
    if_not_exists = connection.dialect.name in {"postgresql", "sqlite"}
    for table in tables:
        wanted = sorted(table.indexes, key=lambda one: one.name or "")
        if table.name not in existing:
            connection.execute(CreateTable(table, if_not_exists=True))
            fault_point("migration.table-created")
        elif wanted:
            present = {index["name"] for index in sa.inspect(connection).get_indexes(table.name)}
            wanted = [index for index in wanted if index.name not in present]
        for index in wanted:
            connection.execute(CreateIndex(index, if_not_exists=if_not_exists))


def drop_existing(connection: sa.Connection, tables: Iterable[sa.Table]) -> None:
    """Drop those tables that are there, with all that is in them."""
    for table in tables:
        connection.execute(DropTable(table, if_exists=True))
