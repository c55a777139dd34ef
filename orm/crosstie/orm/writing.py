"""What every write of the ORM shares: the connection, the values as columns take them, the key of the row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
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
from crosstie.orm.transaction import statement_connection, transaction_for_statement
from crosstie.orm.watch import observed, watchers_of

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = ["Write", "checked", "key_condition", "row_key", "writing"]


class Write(NamedTuple):
    """Where a write runs; `tx` is None outside transactions, where it commits by itself."""

    connection: sa.Connection
    database: Database
    tx: LocalTransaction | None


class writing:  # noqa: N801 - reads as a word where it is used
    """A connection for one write of this model; a context manager.

    Raises ReadOnlyConnection, UnknownConnection, DatabaseUnavailable, WritesPrevented, TransactionPoisoned.
    """

    __slots__ = ("_block", "_mapping", "_tx")

    def __init__(self, mapping: TableMapping) -> None:
        self._mapping = mapping
        self._tx: LocalTransaction | None = None
        self._block: AbstractContextManager[Write, bool | None] | None = None

    def __enter__(self) -> Write:
        mapping = self._mapping
        database = ConnectionManager.get(mapping.connection)
        if database.settings.read_only:
            raise ReadOnlyConnection(
                f"{mapping.model.__qualname__} is written through connection {mapping.connection!r}, which is "
                "configured read_only: name the primary in __connection__ and this one in __read_connection__."
            )
        watched = bool(watchers_of(mapping))
        tx = None if watched else transaction_for_statement(mapping.connection, write=True)
        if tx is None:
            self._block = _writing_elsewhere(mapping, database, watched=watched)
            return self._block.__enter__()
        self._tx = tx
        tx.begin_internal()
        return Write(tx.bare, database, tx)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._block is not None:
            return self._block.__exit__(kind, error, traceback)
        tx = self._tx
        assert tx is not None
        tx.end_internal()
        if error is None:
            router.note_write(tx.database.name)
        else:
            tx.mapped_errors().__exit__(kind, error, traceback)
        return None


@contextmanager
def _writing_elsewhere(mapping: TableMapping, database: Database, *, watched: bool) -> Iterator[Write]:
    """The same where the model is watched, or the write commits by itself."""
    name = mapping.connection
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
