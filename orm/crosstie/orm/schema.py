"""Tables of models, created and dropped; migrations of a database in use belong to Alembic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import InvalidQuery
from crosstie.orm.local_transaction import current
from crosstie.orm.mapping import TableMapping
from crosstie.orm.transaction import statement_connection

__all__ = ["create_table", "drop_table"]


def create_table(mapping: TableMapping) -> None:
    """Create the model's table and indexes where the table does not exist."""
    with _ddl_connection(mapping, "create_table") as connection:
        mapping.table.create(connection, checkfirst=True)


def drop_table(mapping: TableMapping) -> None:
    """Drop the model's table where it exists."""
    with _ddl_connection(mapping, "drop_table") as connection:
        mapping.table.drop(connection, checkfirst=True)


@contextmanager
def _ddl_connection(mapping: TableMapping, action: str) -> Iterator[sa.Connection]:
    tx = current(mapping.connection)
    if tx is not None and not ConnectionManager.get(mapping.connection).capabilities.transactional_ddl:
        raise InvalidQuery(
            f"{action}() of {mapping.model.__qualname__} inside a transaction on {mapping.connection!r}: this kind of "
            "database would commit the transaction at once. Create tables before it begins."
        )
    with statement_connection(mapping.connection, write=True) as connection:
        tx = current(mapping.connection)
        if tx is not None and tx.recorder is not None:
            tx.recorder.uncaptured(tx, f"{action}() of {mapping.model.__qualname__} changes the schema")
        yield connection
