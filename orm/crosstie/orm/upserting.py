"""Insert or update: one statement where nobody watches, a locked look and a plain write where a recorder does.

ON CONFLICT names the constraint that decides. MySQL's ON DUPLICATE KEY UPDATE takes any, so there each assignment
holds only for the row that has the values asked for, and a row of another constraint stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from crosstie.orm import state as record_state
from crosstie.orm.collection import atomic
from crosstie.orm.errors import DuplicateKey, InvalidQuery, RecordInvalid
from crosstie.orm.filling import copies_that_follow, refuse_copies
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.mapping import MappedField, TableMapping
from crosstie.orm.origin import mark_origin
from crosstie.orm.parentage import require_parents
from crosstie.orm.reading import fetch
from crosstie.orm.row import new_row
from crosstie.orm.writing import Write, writing

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord
    from crosstie.orm.recorder import WriteRecorder

__all__ = ["upsert"]


def upsert(record: ActiveRecord, mapping: TableMapping, on: Sequence[str], update: Sequence[str] | None) -> None:
    """See `ActiveRecord.upsert`."""
    if not record_state.is_new(record):
        raise InvalidQuery(f"upsert() expected a new {mapping.model.__qualname__}: save() writes a loaded one.")
    found_by = [mapping.field(name) for name in on]
    written = _written(mapping, found_by, update)
    generated = mapping.generated
    if generated is not None and record.__dict__.get(generated.name) is not None:
        generated = None
    row, _ = new_row(record, mapping, without=generated)
    for field in found_by:
        if row.get(field.column.name) is None:
            raise RecordInvalid(f"{field.column!s} is NULL, by which upsert() can find no row: assign a value.")
    if mapping.validated:
        require_parents(record, mapping)
    before = dict(record.__dict__)
    with atomic(mapping), writing(mapping) as write:
        _require_unique(write, mapping, found_by)
        assert write.tx is not None
        meant = _Upsert(mapping, row, found_by, written)
        if write.tx.recorder is None:
            write.connection.execute(meant.statement(write))
        else:
            meant.look_and_write(write.tx, write.tx.recorder)
        found = fetch(mapping, write.connection, mapping.select.where(meant.same))
        if not found:
            raise DuplicateKey(
                f"database {mapping.connection!r}: a row of {mapping.table.name!r} has the values of another unique "
                f"constraint than that of ({', '.join(on)}), so that nothing was inserted or updated."
            )
        record.__dict__.update(found[0].__dict__)
        record_state.mark_loaded(record, mapping.mutable)
        if mapping.is_placed:
            mark_origin((record,), write.database.name)
        write.tx.on_rollback(lambda: _make_new(record, before))


def _make_new(record: ActiveRecord, before: dict[str, Any]) -> None:
    record.__dict__.update(before)
    record_state.mark_new(record)


def _written(mapping: TableMapping, found_by: Sequence[MappedField], update: Sequence[str] | None) -> list[MappedField]:
    """The fields that an existing row gets."""
    if not found_by:
        raise InvalidQuery("upsert() expected at least one field to find a row by.")
    model = mapping.model
    kept = {field.name for field in (*mapping.key, *found_by)}
    if update is None:
        left_out = set(model.__stamped_on_insert__) - set(model.__stamped_on_update__) | set(mapping.copied)
        names = [name for name in mapping.fields if name not in kept | left_out]
    else:
        refuse_copies(mapping, update)
        names = [mapping.field(name).name for name in update]
        unfit = next((name for name in names if name in kept), None)
        if unfit is not None:
            raise InvalidQuery(f"upsert() cannot update {unfit!r}: the row is found or known by it.")
        names += [name for name in model.__stamped_on_update__ if names and name not in names]
    names += copies_that_follow(mapping, names)
    return [mapping.fields[name] for name in names if mapping.fields[name] is not mapping.lock]


class _Upsert(NamedTuple):
    mapping: TableMapping
    row: dict[str, Any]
    found_by: Sequence[MappedField]
    written: Sequence[MappedField]

    @property
    def same(self) -> sa.ColumnElement[bool]:
        """The condition that the row which is meant meets."""
        return sa.and_(*(field.column == self.row[field.column.name] for field in self.found_by))

    def statement(self, write: Write) -> sa.Insert:
        """The one statement of this dialect."""
        if not write.database.capabilities.on_conflict:
            return self._on_duplicate_key()
        make = postgresql.insert if write.database.kind == "postgresql" else sqlite.insert
        insert = make(self.mapping.table).values(self.row)
        columns = [field.column for field in self.found_by]
        new: dict[str, Any] = {field.column.name: insert.excluded[field.column.name] for field in self.written}
        if not new:
            return insert.on_conflict_do_nothing(index_elements=columns)
        return insert.on_conflict_do_update(index_elements=columns, set_=new | self._next_version())

    def _on_duplicate_key(self) -> sa.Insert:
        insert = mysql.insert(self.mapping.table).values(self.row)
        given = insert.inserted
        same = sa.and_(*(field.column == given[field.column.name] for field in self.found_by))
        new: dict[str, Any] = {field.column.name: given[field.column.name] for field in self.written}
        if new:
            new |= self._next_version()
        table = self.mapping.table
        guarded: dict[str, Any] = {name: sa.func.if_(same, value, table.c[name]) for name, value in new.items()}
        first = self.mapping.key[0].column
        return insert.on_duplicate_key_update(guarded or {first.name: first})

    def _next_version(self) -> dict[str, Any]:
        lock = self.mapping.lock
        return {} if lock is None else {lock.column.name: lock.column + 1}

    def look_and_write(self, tx: LocalTransaction, recorder: WriteRecorder) -> None:
        """The same in statements whose undo the recorder can take down."""
        if self._update_found(tx, recorder):
            return
        try:
            with tx.savepoint(), tx.mapped_errors():
                result = tx.connection.execute(sa.insert(self.mapping.table), self.row)
        except DuplicateKey:
            # Another transaction was faster; where it is no row of ours, the caller is told so.
            self._update_found(tx, recorder)
            return
        assert result.inserted_primary_key is not None
        numbered = any(field.column.name not in self.row for field in self.mapping.key)
        recorder.inserted(tx, self.mapping.table, [tuple(result.inserted_primary_key)], numbered=numbered)

    def _update_found(self, tx: LocalTransaction, recorder: WriteRecorder) -> bool:
        table, keys = self.mapping.table, [field.column for field in self.mapping.key]
        found = tx.connection.execute(sa.select(*keys).where(self.same).with_for_update()).first()
        if found is None:
            return False
        new = {field.column.name: self.row[field.column.name] for field in self.written}
        if new:
            new |= self._next_version()
            where = sa.and_(*(column == value for column, value in zip(keys, found, strict=True)))
            token = recorder.updating(tx, table, where, list(new), upserting=True)
            tx.connection.execute(sa.update(table).where(where).values(new))
            recorder.updated(tx, token)
        return True


def _require_unique(write: Write, mapping: TableMapping, found_by: Sequence[MappedField]) -> None:
    """Where no constraint makes the fields unique, MySQL would insert the same row again and again."""
    columns = frozenset(field.column.name for field in found_by)
    if columns == {field.column.name for field in mapping.key} or (len(columns) == 1 and found_by[0].column.unique):
        return
    known = ("unique", write.database.name, columns)
    if known in mapping.statements:
        return
    inspector = sa.inspect(write.connection)
    name, schema = mapping.table.name, mapping.table.schema
    constraints = [one["column_names"] for one in inspector.get_unique_constraints(name, schema=schema)]
    for index in inspector.get_indexes(name, schema=schema):
        is_partial = any(option.endswith("_where") for option in index.get("dialect_options", {}))
        if index["unique"] and not is_partial and None not in index["column_names"]:
            constraints.append([str(column) for column in index["column_names"]])
    if columns not in map(frozenset, constraints):
        names = ", ".join(field.name for field in found_by)
        raise InvalidQuery(
            f"upsert() expected the fields of the primary key or of a unique constraint of {mapping.table.name!r}, and "
            f"found ({names}): two callers at once would both insert. Add the constraint."
        )
    mapping.statements[known] = True
