"""Increments: a column is added to in the database, so that concurrent additions all count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from crosstie.orm import state as record_state
from crosstie.orm.database import Database
from crosstie.orm.errors import InvalidQuery, RecordInvalid
from crosstie.orm.filling import refuse_copies
from crosstie.orm.loader import result_processors
from crosstie.orm.mapping import MappedField, TableMapping
from crosstie.orm.prepared import Prepared
from crosstie.orm.row import key_matches, key_parameters, require_found
from crosstie.orm.sql_types import ExactDecimal
from crosstie.orm.writing import checked, row_key, writing

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = ["increment"]


def increment(record: ActiveRecord, mapping: TableMapping, deltas: Mapping[str, Any]) -> None:
    """Add to columns in the database, so that concurrent additions all count.

    The record then has the row's values where the dialect returns them, else its own values plus the deltas.
    Raises StaleRecord, InvalidQuery, RecordInvalid.
    """
    refuse_copies(mapping, deltas)
    fields = [mapping.field(name) for name in deltas]
    added = {field.name: _delta(record, field, deltas[field.name]) for field in fields}
    held = record.__dict__
    before = {name: held[name] for name in added}
    key = row_key(record, mapping)
    parameters = {f"delta_{name}": delta for name, delta in added.items()} | key_parameters(key)
    with writing(mapping) as (connection, database, tx):
        statement = _increment_statement(mapping, fields, database)
        recorder = None if tx is None else tx.recorder
        token: object = None
        if tx is not None and recorder is not None:
            by_column = {field.column.name: added[field.name] for field in fields}
            token = recorder.incrementing(tx, mapping.table, key, by_column)
        if database.capabilities.update_returning:
            answer = statement.fetch(connection, parameters)
            require_found(len(answer.rows), record, mapping)
            processors = result_processors(fields, connection.dialect, answer.description)
            for name, value, process in zip(added, answer.rows[0], processors, strict=True):
                held[name] = value if process is None else process(value)
        else:
            require_found(statement.run(connection, parameters).rowcount, record, mapping)
            held.update({name: held[name] + delta for name, delta in added.items()})
        if tx is not None:
            tx.on_rollback(lambda: _take_back(record, before))
            if recorder is not None:
                recorder.incremented(tx, token)


def _increment_statement(mapping: TableMapping, fields: Sequence[MappedField], database: Database) -> Prepared:
    """The UPDATE that adds to these fields of one row by its key, and returns them where the dialect can."""
    shape = ("increment", database.kind, *(field.name for field in fields))
    prepared: Prepared | None = mapping.statements.get(shape)
    if prepared is None:
        statement = (
            sa.update(mapping.table)
            .where(key_matches(mapping.table.primary_key))
            .values({field.column: _sum(field, database) for field in fields})
        )
        if database.capabilities.update_returning:
            statement = statement.returning(*(field.column for field in fields))
        prepared = mapping.statements[shape] = Prepared(statement)
    return prepared


def _take_back(record: ActiveRecord, before: Mapping[str, Any]) -> None:
    """An increment was rolled back: the fields have again what they had; what was assigned since stays unsaved."""
    changed = record_state.changes(record)
    record_state.put_back(record, {name: value for name, value in before.items() if name in changed})
    record.__dict__.update({name: value for name, value in before.items() if name not in changed})


def _delta(record: ActiveRecord, field: MappedField, delta: Any) -> Any:
    if field.family not in {int, float, Decimal} or isinstance(delta, bool):
        raise InvalidQuery(
            f"increment() expected a numeric field and a number, and found {field.column!s} += {delta!r}."
        )
    if field.name in record_state.changes(record):
        raise RecordInvalid(f"{field.column!s} has an unsaved change, which increment() would mix up: save() first.")
    if getattr(record, field.name) is None:
        raise RecordInvalid(f"{field.column!s} is NULL, and NULL plus a number is NULL: assign a value first.")
    return checked(field, field.coerce(delta))


def _sum(field: MappedField, database: Database) -> sa.ColumnElement[Any]:
    total = field.column + sa.bindparam(f"delta_{field.name}", type_=field.column.type)
    if database.kind == "sqlite" and isinstance(field.column.type, ExactDecimal):
        # SQLite adds doubles: 0.1 + 0.2 must become the number that 0.3 is stored as.
        return sa.func.round(total, field.column.type.scale, type_=field.column.type)
    return total
