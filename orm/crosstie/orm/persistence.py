"""Writes of one record: insert, update of what changed, delete, increment; each one statement.

Inside a transaction the recorder sees each of them, and each leaves a restorer, so that a rollback gives the record in
memory back what it was: a new record is new again, a saved change is an unsaved change again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from crosstie.orm import state as record_state
from crosstie.orm.database import Database
from crosstie.orm.departure import depart, together
from crosstie.orm.errors import InvalidQuery, RecordInvalid, StaleRecord
from crosstie.orm.filling import fill, refuse_copies
from crosstie.orm.loader import result_processors
from crosstie.orm.mapping import MappedField, TableMapping
from crosstie.orm.origin import mark_origin
from crosstie.orm.parentage import require_parents
from crosstie.orm.prepared import Prepared
from crosstie.orm.recorder import Rows
from crosstie.orm.referrer import referrers
from crosstie.orm.sql_types import ExactDecimal
from crosstie.orm.writing import Write, checked, key_condition, row_key, writing

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = [
    "Change",
    "column_values",
    "delete",
    "filled_in",
    "increment",
    "insert",
    "make_new",
    "new_row",
    "next_version",
    "row_condition",
    "update",
    "update_statement",
    "write_fields",
]


def insert(record: ActiveRecord, mapping: TableMapping) -> None:
    """Insert a new record; a key that the database generates is set on it. Raises RecordInvalid."""
    held = record.__dict__
    generated = mapping.generated
    if generated is not None and held.get(generated.name) is not None:
        generated = None  # the caller chose the key
    row, filled = new_row(record, mapping, without=generated)
    if mapping.validated:
        require_parents(record, mapping)
    with writing(mapping) as (connection, database, tx):
        if generated is None:
            _insert_statement(mapping, row, "insert").run(connection, row)
        elif database.capabilities.lastrowid:
            statement = _insert_statement(mapping, row, "insert, numbered")
            filled[generated.name] = statement.run(connection, row).lastrowid
        else:
            statement = _insert_statement(mapping, row, "insert, returning", generated.column)
            filled[generated.name] = statement.fetch(connection, row).rows[0][0]
        held.update(filled)
        record_state.mark_loaded(record, mapping.mutable)
        if mapping.is_placed:
            mark_origin((record,), database.name)
        if tx is None:
            return
        tx.on_rollback(lambda: make_new(record, filled))
        if tx.recorder is not None:
            tx.recorder.inserted(tx, mapping.table, [row_key(record, mapping)])


def _insert_statement(mapping: TableMapping, row: Mapping[str, Any], shape: str, *returned: sa.Column[Any]) -> Prepared:
    prepared: Prepared | None = mapping.statements.get(shape)
    if prepared is None:
        statement = sa.insert(mapping.table)
        prepared = Prepared(statement.returning(*returned) if returned else statement, list(row))
        mapping.statements[shape] = prepared
    return prepared


def new_row(
    record: ActiveRecord, mapping: TableMapping, *, without: MappedField | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of a new record by column, and the fields that are filled in for it. Raises RecordInvalid."""
    filled = filled_in(record)
    if mapping.copied:
        filled |= fill(mapping, [record])[0]
    return _row(record, (field for field in mapping.fields.values() if field is not without), filled), filled


def filled_in(record: ActiveRecord) -> dict[str, Any]:
    """The times that a new record gets as it is written."""
    model, held = type(record), record.__dict__
    return {name: model.current_time() for name in model.__stamped_on_insert__ if held.get(name) is None}


def column_values(
    field: MappedField, records: Sequence[ActiveRecord], filled: Sequence[Mapping[str, Any]]
) -> list[Any]:
    """The values of one column, record by record; `filled` goes before what they hold. Raises RecordInvalid."""
    name = field.name
    try:
        values = [
            stamps[name] if name in stamps else record.__dict__[name]
            for record, stamps in zip(records, filled, strict=True)
        ]
    except KeyError:
        raise RecordInvalid(_no_value(field)) from None
    check = field.check
    for value in values:
        if value is None or (check is not None and check(value) is not None):
            checked(field, value)
    return values


def make_new(record: ActiveRecord, filled: Mapping[str, Any]) -> None:
    """An insert was rolled back: what it filled in is empty again, unless assigned since."""
    held = record.__dict__
    held.update({name: None for name, value in filled.items() if held[name] == value})
    record_state.mark_new(record)


def update(record: ActiveRecord, mapping: TableMapping) -> None:
    """Write the fields that changed since the load; nothing where none did.

    Raises StaleRecord where the row has vanished, RecordInvalid.
    """
    if not record_state.changes(record):
        return
    change = Change(record, mapping)
    with writing(mapping) as write:
        _update_row(record, mapping, change.row, write)
        change.done()
        if write.tx is not None:
            write.tx.on_rollback(change.undone)


class Change:
    """What has changed in a record since it was loaded, on its way into the row.

    `row` has the new values by column; `copied` are its copies where they are known already. Raises RecordInvalid.
    """

    def __init__(self, record: ActiveRecord, mapping: TableMapping, *, copied: Mapping[str, Any] | None = None) -> None:
        self._record, self._mapping = record, mapping
        old = record_state.changes(record)
        _require_same_key(record, mapping, old)
        held, model = record.__dict__, mapping.model
        stamps = {name: model.current_time() for name in model.__stamped_on_update__ if name not in old}
        self._stamps = stamps | next_version(record, mapping)
        if mapping.copied:
            self._stamps |= fill(mapping, [record], changed=old)[0] if copied is None else copied
        self._old = {name: held[name] for name in self._stamps} | old
        written = (field for field in mapping.fields.values() if field.name in self._old)
        self.row = _row(record, written, self._stamps)
        if mapping.validated:
            require_parents(record, mapping, changed=old)

    @property
    def parameters(self) -> dict[str, Any]:
        """What `update_statement` is sent with."""
        return _update_parameters(self._record, self._mapping, self.row)

    def done(self) -> None:
        """The row has the values."""
        self._record.__dict__.update(self._stamps)
        record_state.mark_loaded(self._record, self._mapping.mutable)

    def undone(self) -> None:
        """The write was rolled back."""
        _make_unsaved(self._record, self._old, self._stamps)


def _require_same_key(record: ActiveRecord, mapping: TableMapping, old: Mapping[str, Any]) -> None:
    if any(field.name in old for field in mapping.key):
        raise RecordInvalid(
            f"{mapping.model.__qualname__}: the primary key of a saved record cannot change, and this one was "
            f"{row_key(record, mapping)!r}: create another record, and delete this one."
        )


def write_fields(record: ActiveRecord, mapping: TableMapping, values: Mapping[str, Any]) -> None:
    """Set these fields of the record and of its row, and no other; other unsaved changes stay unsaved.

    Raises StaleRecord where the row has vanished, RecordInvalid.
    """
    refuse_copies(mapping, values)
    held = record.__dict__
    state = record_state.state_of(record) or record_state.LOADED
    new: dict[str, Any] = {**values, **next_version(record, mapping)}
    old = {name: state[name] if name in state else getattr(record, name) for name in new}
    row = _row(record, (field for field in mapping.fields.values() if field.name in new), new)
    with writing(mapping) as write:
        _update_row(record, mapping, row, write)
        held.update(new)
        record_state.mark_written(record, new)
        if write.tx is not None:
            write.tx.on_rollback(lambda: _make_unsaved(record, old, new))


def next_version(record: ActiveRecord, mapping: TableMapping) -> dict[str, Any]:
    """The lock version that a write of the record gives its row; empty where the model has none."""
    return {} if mapping.lock is None else {mapping.lock.name: _version(record, mapping.lock) + 1}


def _version(record: ActiveRecord, lock: MappedField) -> int:
    state = record_state.state_of(record) or record_state.LOADED
    version: int = state.get(lock.name, record.__dict__[lock.name])
    return version


def _make_unsaved(record: ActiveRecord, old: Mapping[str, Any], stamps: Mapping[str, Any]) -> None:
    """An update was rolled back: the row has its old values again, and the record differs from it where it did."""
    held = record.__dict__
    held.update({name: old[name] for name, stamp in stamps.items() if held[name] == stamp})
    record_state.put_back(record, old)


def _update_row(record: ActiveRecord, mapping: TableMapping, row: Mapping[str, Any], write: Write) -> None:
    connection, _, tx = write
    statement, parameters = update_statement(mapping, row), _update_parameters(record, mapping, row)
    if tx is None or tx.recorder is None:
        matched = statement.run(connection, parameters).rowcount
    else:
        token = tx.recorder.updating(tx, mapping.table, row_key(record, mapping), list(row))
        matched = statement.run(connection, parameters).rowcount
        tx.recorder.updated(tx, token)
    _require_found(matched, record, mapping)


def update_statement(mapping: TableMapping, columns: Iterable[str]) -> Prepared:
    """The UPDATE of these columns of one row by its key, made once for each set of columns."""
    shape = ("update", *columns)
    prepared: Prepared | None = mapping.statements.get(shape)
    if prepared is None:
        new: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in columns}
        statement = sa.update(mapping.table).where(_key_parameters(mapping)).values(new)
        prepared = mapping.statements[shape] = Prepared(statement)
    return prepared


def _update_parameters(record: ActiveRecord, mapping: TableMapping, row: Mapping[str, Any]) -> dict[str, Any]:
    return {f"new_{name}": value for name, value in row.items()} | _key_values(record, mapping)


def delete(record: ActiveRecord, mapping: TableMapping) -> None:
    """Delete the record's row. Raises StaleRecord where it has vanished, DeleteRestricted."""
    references = referrers(mapping)
    if not references:
        _delete_row(record, mapping)
        return
    with together(mapping.connection):
        departing = depart(mapping, references, lambda _: row_condition(record, mapping))
        _delete_row(record, mapping)
        departing.carry()


def _delete_row(record: ActiveRecord, mapping: TableMapping) -> None:
    before = record_state.state_of(record)
    assert before is not None
    prepared: Prepared | None = mapping.statements.get("delete")
    if prepared is None:
        statement = sa.delete(mapping.table).where(_key_parameters(mapping))
        prepared = mapping.statements["delete"] = Prepared(statement)
    with writing(mapping) as (connection, _, tx):
        if tx is not None and tx.recorder is not None:
            tx.recorder.deleting(tx, mapping.table, _rows(record, mapping))
        _require_found(prepared.run(connection, _key_values(record, mapping)).rowcount, record, mapping)
        record_state.mark_deleted(record)
        if tx is not None:
            tx.on_rollback(lambda: record_state.set_state(record, before))


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
    parameters = {f"delta_{name}": delta for name, delta in added.items()} | _numbered("key", key)
    with writing(mapping) as (connection, database, tx):
        statement = _increment_statement(mapping, fields, database)
        recorder = None if tx is None else tx.recorder
        token: object = None
        if tx is not None and recorder is not None:
            by_column = {field.column.name: added[field.name] for field in fields}
            token = recorder.incrementing(tx, mapping.table, key, by_column)
        if database.capabilities.update_returning:
            answer = statement.fetch(connection, parameters)
            _require_found(len(answer.rows), record, mapping)
            processors = result_processors(fields, connection.dialect, answer.description)
            for name, value, process in zip(added, answer.rows[0], processors, strict=True):
                held[name] = value if process is None else process(value)
        else:
            _require_found(statement.run(connection, parameters).rowcount, record, mapping)
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
            .where(_equal(mapping.key))
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


def _row(record: ActiveRecord, fields: Iterable[MappedField], filled: Mapping[str, Any]) -> dict[str, Any]:
    """The values by column; `filled` goes before what the record holds. Raises RecordInvalid."""
    held = record.__dict__
    row = {}
    for field in fields:
        name = field.name
        if name in filled:
            value = filled[name]
        elif name in held:
            value = held[name]
        else:
            raise RecordInvalid(_no_value(field))
        row[field.column.name] = checked(field, value)
    return row


def _no_value(field: MappedField) -> str:
    return f"{field.column!s} has no value: the record was made without validation. Assign one."


def row_condition(record: ActiveRecord, mapping: TableMapping) -> sa.ColumnElement[bool]:
    """The condition that the record's row meets as long as nobody has changed its lock version."""
    where = key_condition(record, mapping)
    return where if mapping.lock is None else sa.and_(where, mapping.lock.column == _version(record, mapping.lock))


def _rows(record: ActiveRecord, mapping: TableMapping) -> Rows:
    """The record's row for a recorder: none where somebody has changed its lock version."""
    return row_key(record, mapping) if mapping.lock is None else row_condition(record, mapping)


def _key_parameters(mapping: TableMapping) -> sa.ColumnElement[bool]:
    return _equal(mapping.key if mapping.lock is None else (*mapping.key, mapping.lock))


def _equal(fields: Sequence[MappedField]) -> sa.ColumnElement[bool]:
    numbered = enumerate(fields)
    return sa.and_(*(field.column == sa.bindparam(f"key_{i}", type_=field.column.type) for i, field in numbered))


def _key_values(record: ActiveRecord, mapping: TableMapping) -> dict[str, Any]:
    values = row_key(record, mapping)
    if mapping.lock is not None:
        values = (*values, _version(record, mapping.lock))
    return _numbered("key", values)


def _numbered(name: str, values: Sequence[Any]) -> dict[str, Any]:
    return {f"{name}_{position}": value for position, value in enumerate(values)}


def _require_found(matched: int, record: ActiveRecord, mapping: TableMapping) -> None:
    if matched:
        return
    key = ", ".join(
        f"{field.name}={value!r}" for field, value in zip(mapping.key, row_key(record, mapping), strict=True)
    )
    if mapping.lock is not None:
        raise StaleRecord(
            f"{mapping.model.__qualname__} ({key}) is no longer in database {mapping.connection!r} with "
            f"{mapping.lock.name} {_version(record, mapping.lock)}: somebody changed or deleted it since it was "
            "loaded. refresh() it, and decide again."
        )
    raise StaleRecord(
        f"{mapping.model.__qualname__} ({key}) is no longer in database {mapping.connection!r}: somebody deleted it "
        "since it was loaded. Load it again, or create another."
    )
