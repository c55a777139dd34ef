"""Writes: insert, update of what changed, delete, increment; each one statement, seen by the transaction's recorder.

Inside a transaction every write leaves a restorer, so that a rollback gives the records in memory back what they were:
a new record is new again, a saved change is an unsaved change again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from crosstie.orm import state as record_state
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import InvalidQuery, RecordInvalid, StaleRecord
from crosstie.orm.mapping import MappedField, TableMapping
from crosstie.orm.routing import router
from crosstie.orm.sql_types import ExactDecimal
from crosstie.orm.transaction import LocalTransaction, current, statement_connection

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = ["delete", "delete_rows", "increment", "insert", "update", "update_rows"]


@contextmanager
def _writing(mapping: TableMapping) -> Iterator[tuple[sa.Connection, LocalTransaction | None]]:
    with statement_connection(mapping.connection, write=True) as connection:
        yield connection, current(mapping.connection)
        router.note_write(mapping.connection)


def insert(record: ActiveRecord, mapping: TableMapping) -> None:
    """Insert a new record; a key that the database generates is set on it. Raises RecordInvalid."""
    held = record.__dict__
    stamps = {name: mapping.model.current_time() for name in mapping.model.__stamped_on_insert__ if held[name] is None}
    generated = mapping.generated
    if generated is not None and held.get(generated.name) is not None:
        generated = None
    fields = [field for field in mapping.fields.values() if field is not generated]
    row = _row(record, mapping, fields, stamps)
    statement = mapping.statements.get("insert")
    if statement is None:
        statement = mapping.statements["insert"] = sa.insert(mapping.table)
    before: dict[str, Any] = dict.fromkeys(stamps)
    with _writing(mapping) as (connection, tx):
        result = connection.execute(statement, row)
        if generated is not None:
            assert result.inserted_primary_key is not None
            stamps[generated.name] = result.inserted_primary_key[0]
            before[generated.name] = None
        held.update(stamps)
        record_state.mark_loaded(record, mapping.mutable)
        if tx is None:
            return
        tx.on_rollback(lambda: _make_new(record, before))
        if tx.recorder is not None:
            tx.recorder.inserted(tx, mapping.table, [tuple(held[field.name] for field in mapping.key)])


def _make_new(record: ActiveRecord, before: Mapping[str, Any]) -> None:
    record.__dict__.update(before)
    record_state.mark_new(record)


def update(record: ActiveRecord, mapping: TableMapping) -> None:
    """Write the fields that changed since the load; nothing where none did.

    Raises StaleRecord where the row has vanished, RecordInvalid.
    """
    old = record_state.changes(record)
    if not old:
        return
    if any(field.name in old for field in mapping.key):
        raise RecordInvalid(
            f"{mapping.model.__qualname__}: the primary key of a saved record cannot change (from "
            f"{[old.get(field.name) for field in mapping.key]}): create another record, and delete this one."
        )
    held = record.__dict__
    stamps = {name: mapping.model.current_time() for name in mapping.model.__stamped_on_update__ if name not in old}
    fields = [mapping.fields[name] for name in (*old, *stamps)]
    row = _row(record, mapping, fields, stamps)
    old |= {name: held[name] for name in stamps}
    with _writing(mapping) as (connection, tx):
        _update_row(record, mapping, row, connection, tx)
        held.update(stamps)
        record_state.mark_loaded(record, mapping.mutable)
        if tx is not None:
            tx.on_rollback(lambda: record_state.put_back(record, old))


def _update_row(
    record: ActiveRecord,
    mapping: TableMapping,
    row: Mapping[str, Any],
    connection: sa.Connection,
    tx: LocalTransaction | None,
) -> None:
    shape = ("update", *row)
    statement = mapping.statements.get(shape)
    if statement is None:
        statement = sa.update(mapping.table).where(_key_parameters(mapping))
        statement = mapping.statements[shape] = statement.values({name: sa.bindparam(f"new_{name}") for name in row})
    recorder = None if tx is None else tx.recorder
    token = None
    if recorder is not None:
        assert tx is not None
        token = recorder.updating(tx, mapping.table, _key_equals(record, mapping), list(row))
    values = {f"new_{name}": value for name, value in row.items()}
    result = connection.execute(statement, values | _key_values(record, mapping))
    if recorder is not None:
        assert tx is not None
        recorder.updated(tx, token)
    _require_found(result.rowcount, record, mapping)


def delete(record: ActiveRecord, mapping: TableMapping) -> None:
    """Delete the record's row. Raises StaleRecord where it has vanished."""
    before = record_state.state_of(record)
    statement = mapping.statements.get("delete")
    if statement is None:
        statement = mapping.statements["delete"] = sa.delete(mapping.table).where(_key_parameters(mapping))
    with _writing(mapping) as (connection, tx):
        if tx is not None and tx.recorder is not None:
            tx.recorder.deleting(tx, mapping.table, _key_equals(record, mapping))
        result = connection.execute(statement, _key_values(record, mapping))
        _require_found(result.rowcount, record, mapping)
        record_state.mark_deleted(record)
        if tx is not None and before is not None:
            tx.on_rollback(lambda: record_state.set_state(record, before))


def increment(record: ActiveRecord, mapping: TableMapping, deltas: Mapping[str, Any]) -> None:
    """Add to columns in the database, so that concurrent additions all count.

    The record then has the row's values where the dialect returns them, else its own values plus the deltas.
    Raises StaleRecord, InvalidQuery, RecordInvalid.
    """
    fields = [mapping.field(name) for name in deltas]
    added = {field.name: _delta(record, field, deltas[field.name]) for field in fields}
    held = record.__dict__
    before = {name: held[name] for name in added}
    where = _key_equals(record, mapping)
    with _writing(mapping) as (connection, tx):
        database = tx.database if tx is not None else ConnectionManager.get(mapping.connection)
        statement = sa.update(mapping.table).where(where)
        statement = statement.values({field.column: _sum(field, added[field.name], database) for field in fields})
        if tx is not None and tx.recorder is not None:
            by_column = {field.column.name: added[field.name] for field in fields}
            tx.recorder.incrementing(tx, mapping.table, where, by_column)
        if database.capabilities.update_returning:
            row = connection.execute(statement.returning(*(field.column for field in fields))).first()
            _require_found(0 if row is None else 1, record, mapping)
            assert row is not None
            held.update(zip(added, row, strict=True))
        else:
            result = connection.execute(statement)
            _require_found(result.rowcount, record, mapping)
            held.update({name: held[name] + delta for name, delta in added.items()})
        if tx is not None:
            tx.on_rollback(lambda: held_back(record, before))


def held_back(record: ActiveRecord, before: Mapping[str, Any]) -> None:
    """An increment was rolled back: the fields have again what they had, unless they were assigned since."""
    changed = record_state.changes(record)
    record.__dict__.update({name: value for name, value in before.items() if name not in changed})


def _delta(record: ActiveRecord, field: MappedField, delta: Any) -> Any:
    if field.family not in {int, float, Decimal} or isinstance(delta, bool):
        raise InvalidQuery(
            f"increment() expected a numeric field and a number, and found {field.column!s} += {delta!r}."
        )
    if field.name in record_state.changes(record):
        raise RecordInvalid(f"{field.column!s} has an unsaved change, which increment() would mix up: save() first.")
    if record.__dict__.get(field.name) is None:
        raise RecordInvalid(f"{field.column!s} is NULL, and NULL plus a number is NULL: assign a value first.")
    return field.coerce(delta)


def _sum(field: MappedField, delta: Any, database: Database) -> sa.ColumnElement[Any]:
    total = field.column + sa.literal(delta, field.column.type)
    if database.kind == "sqlite" and isinstance(field.column.type, ExactDecimal):
        # SQLite adds doubles: 0.1 + 0.2 must become the number that 0.3 is stored as.
        return sa.func.round(total, field.column.type.scale, type_=field.column.type)
    return total


# -- many rows -------------------------------------------------------------------------------------------------


def update_rows(
    mapping: TableMapping, where: Callable[[Database], sa.ColumnElement[bool]], values: Mapping[str, Any]
) -> int:
    """Set fields of every row that matches; returns how many matched. Raises InvalidQuery, RecordInvalid."""
    if not values:
        raise InvalidQuery("update_all() expected at least one field to set.")
    row = {}
    for name, value in values.items():
        field = mapping.field(name)
        row[field.column.name] = _checked(field, field.coerce(value))
    with _writing(mapping) as (connection, tx):
        clause = where(tx.database if tx is not None else ConnectionManager.get(mapping.connection))
        statement = sa.update(mapping.table).where(clause).values(row)
        if tx is None or tx.recorder is None:
            return connection.execute(statement).rowcount
        token = tx.recorder.updating(tx, mapping.table, clause, list(row))
        matched = connection.execute(statement).rowcount
        tx.recorder.updated(tx, token)
        return matched


def delete_rows(mapping: TableMapping, where: Callable[[Database], sa.ColumnElement[bool]]) -> int:
    """Delete every row that matches; returns how many there were."""
    with _writing(mapping) as (connection, tx):
        clause = where(tx.database if tx is not None else ConnectionManager.get(mapping.connection))
        if tx is not None and tx.recorder is not None:
            tx.recorder.deleting(tx, mapping.table, clause)
        return connection.execute(sa.delete(mapping.table).where(clause)).rowcount


# -- values and keys -------------------------------------------------------------------------------------------


def _row(
    record: ActiveRecord, mapping: TableMapping, fields: Sequence[MappedField], stamps: Mapping[str, Any]
) -> dict[str, Any]:
    held = record.__dict__
    row = {}
    for field in fields:
        name = field.name
        if name in stamps:
            value = stamps[name]
        elif name in held:
            value = held[name]
        else:
            raise RecordInvalid(f"{field.column!s} has no value: the record was made without validation. Assign one.")
        row[field.column.name] = _checked(field, value)
    return row


def _checked(field: MappedField, value: Any) -> Any:
    if value is None:
        if field.column.nullable:
            return None
        raise RecordInvalid(f"{field.column!s} is NULL, and the column takes none: assign a value.")
    complaint = None if field.check is None else field.check(value)
    if complaint is not None:
        raise RecordInvalid(f"{field.column!s}: {complaint}")
    return value


def _key_parameters(mapping: TableMapping) -> sa.ColumnElement[bool]:
    return sa.and_(
        *(field.column == sa.bindparam(f"key_{field.column.name}", type_=field.column.type) for field in mapping.key)
    )


def _key_values(record: ActiveRecord, mapping: TableMapping) -> dict[str, Any]:
    old = record_state.changes(record)
    held = record.__dict__
    return {f"key_{field.column.name}": old.get(field.name, held[field.name]) for field in mapping.key}


def _key_equals(record: ActiveRecord, mapping: TableMapping) -> sa.ColumnElement[bool]:
    values = _key_values(record, mapping)
    return sa.and_(*(field.column == values[f"key_{field.column.name}"] for field in mapping.key))


def _require_found(matched: int, record: ActiveRecord, mapping: TableMapping) -> None:
    if matched:
        return
    key = ", ".join(f"{field.name}={record.__dict__[field.name]!r}" for field in mapping.key)
    raise StaleRecord(
        f"{mapping.model.__qualname__} ({key}) is no longer in database {mapping.connection!r}: somebody deleted it since "
        "it was loaded. Load it again, or create another."
    )
