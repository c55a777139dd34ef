"""Writes of one record: insert, update of what changed, delete; each one statement.

Inside a transaction the recorder sees each of them, and each leaves a restorer, so that a rollback gives the record in
memory back what it was: a new record is new again, a saved change is an unsaved change again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from crosstie.orm import state as record_state
from crosstie.orm.departure import depart, together
from crosstie.orm.errors import RecordInvalid
from crosstie.orm.filling import fill, refuse_copies
from crosstie.orm.mapping import TableMapping
from crosstie.orm.origin import mark_origin
from crosstie.orm.parentage import require_parents
from crosstie.orm.prepared import Prepared
from crosstie.orm.referrer import referrers
from crosstie.orm.row import (
    new_row,
    next_version,
    require_found,
    row_condition,
    row_matches,
    row_parameters,
    row_values,
    rows_of,
)
from crosstie.orm.writing import Write, row_key, writing

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = [
    "Change",
    "delete",
    "insert",
    "make_new",
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
            tx.recorder.inserted(tx, mapping.table, [row_key(record, mapping)], numbered=generated is not None)


def _insert_statement(mapping: TableMapping, row: Mapping[str, Any], shape: str, *returned: sa.Column[Any]) -> Prepared:
    prepared: Prepared | None = mapping.statements.get(shape)
    if prepared is None:
        statement = sa.insert(mapping.table)
        prepared = Prepared(statement.returning(*returned) if returned else statement, list(row))
        mapping.statements[shape] = prepared
    return prepared


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
        self.row = row_values(record, written, self._stamps)
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
    row = row_values(record, (field for field in mapping.fields.values() if field.name in new), new)
    with writing(mapping) as write:
        _update_row(record, mapping, row, write)
        held.update(new)
        record_state.mark_written(record, new)
        if write.tx is not None:
            write.tx.on_rollback(lambda: _make_unsaved(record, old, new))


def _make_unsaved(record: ActiveRecord, old: Mapping[str, Any], stamps: Mapping[str, Any]) -> None:
    """An update was rolled back: the row has its old values again, and the record differs from it where it did."""
    held = record.__dict__
    held.update({name: old[name] for name, stamp in stamps.items() if held[name] == stamp})
    record_state.put_back(record, old)


def _update_row(record: ActiveRecord, mapping: TableMapping, row: Mapping[str, Any], write: Write) -> None:
    connection, _, tx = write
    statement, parameters = update_statement(mapping, row), _update_parameters(record, mapping, row)
    if tx is None or tx.recorder is None:
        require_found(statement.run(connection, parameters).rowcount, record, mapping)
    else:
        token = tx.recorder.updating(tx, mapping.table, row_key(record, mapping), row)
        require_found(statement.run(connection, parameters).rowcount, record, mapping)
        tx.recorder.updated(tx, token)


def update_statement(mapping: TableMapping, columns: Iterable[str]) -> Prepared:
    """The UPDATE of these columns of one row by its key, made once for each set of columns."""
    shape = ("update", *columns)
    prepared: Prepared | None = mapping.statements.get(shape)
    if prepared is None:
        new: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in columns}
        statement = sa.update(mapping.table).where(row_matches(mapping)).values(new)
        prepared = mapping.statements[shape] = Prepared(statement)
    return prepared


def _update_parameters(record: ActiveRecord, mapping: TableMapping, row: Mapping[str, Any]) -> dict[str, Any]:
    return {f"new_{name}": value for name, value in row.items()} | row_parameters(record, mapping)


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
        statement = sa.delete(mapping.table).where(row_matches(mapping))
        prepared = mapping.statements["delete"] = Prepared(statement)
    with writing(mapping) as (connection, _, tx):
        if tx is not None and tx.recorder is not None:
            tx.recorder.deleting(tx, mapping.table, rows_of(record, mapping))
        require_found(prepared.run(connection, row_parameters(record, mapping)).rowcount, record, mapping)
        record_state.mark_deleted(record)
        if tx is not None:
            tx.on_rollback(lambda: record_state.set_state(record, before))
