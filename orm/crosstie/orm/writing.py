"""What every write of the ORM shares: the connection, the values as columns take them, the key of the row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.departure import together
from crosstie.orm.errors import ReadOnlyConnection, RecordInvalid
from crosstie.orm.local_transaction import LocalTransaction, current
from crosstie.orm.mapping import MappedField, TableMapping
from crosstie.orm.recorder import condition
from crosstie.orm.routing import router
from crosstie.orm.state import LOADED, state_of
from crosstie.orm.transaction import statement_connection
from crosstie.orm.watch import observed, watchers_of

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = ["Write", "checked", "key_condition", "row_key", "writing"]


class Write(NamedTuple):
    """Where a write runs; `tx` is None outside transactions, where it commits by itself."""

    connection: sa.Connection
    database: Database
    tx: LocalTransaction | None


@contextmanager
def writing(mapping: TableMapping) -> Iterator[Write]:
    """A connection for one write of this model. Raises ReadOnlyConnection, UnknownConnection, DatabaseUnavailable."""
    name = mapping.connection
    database = ConnectionManager.get(name)
    if database.settings.read_only:
        raise ReadOnlyConnection(
            f"{mapping.model.__qualname__} is written through connection {name!r}, which is configured read_only: name "
            "the primary in __connection__ and this one in __read_connection__."
        )
    watched = bool(watchers_of(mapping))
    with together(name) if watched else nullcontext(), statement_connection(name, write=True) as connection:
        tx = current(name)
        with nullcontext() if tx is None else tx.internal(), observed(tx, mapping) if watched else nullcontext():
            yield Write(connection, database, tx)
        router.note_write(name)


def checked(field: MappedField, value: Any) -> Any:
    """The value, if the column holds it unchanged on every kind of database. Raises RecordInvalid."""
    if value is None:
        if field.column.nullable:
            return None
        raise RecordInvalid(f"{field.column!s} is NULL, and the column takes none: assign a value.")
    complaint = None if field.check is None else field.check(value)
    if complaint is not None:
        raise RecordInvalid(f"{field.column!s}: {complaint}")
    return value


def row_key(record: ActiveRecord, mapping: TableMapping) -> tuple[Any, ...]:
    """The primary key that the record's row has, whatever was assigned since."""
    state = state_of(record) or LOADED
    held = record.__dict__
    return tuple(state.get(field.name, held[field.name]) for field in mapping.key)


def key_condition(record: ActiveRecord, mapping: TableMapping) -> sa.ColumnElement[bool]:
    """The condition that only the record's row meets."""
    return condition(mapping.table, row_key(record, mapping))
