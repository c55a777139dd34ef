"""Writes of many records at once, and the record that is made only where there is none.

Each is all or nothing: it runs in a transaction of its own, or in a savepoint of the one that is open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import sqlalchemy as sa

from crosstie.orm import persistence
from crosstie.orm import state as record_state
from crosstie.orm.condition import Membership
from crosstie.orm.errors import DuplicateKey, InvalidQuery, StaleRecord
from crosstie.orm.filling import fill
from crosstie.orm.local_transaction import current
from crosstie.orm.mapping import TableMapping, mapping_of
from crosstie.orm.multi_insert import insert_rows
from crosstie.orm.origin import mark_origin, require_origin
from crosstie.orm.parentage import require_parents
from crosstie.orm.reading import find_first, reading
from crosstie.orm.row import column_values, filled_in, row_condition
from crosstie.orm.transaction import active_unit, transaction, warn_of_foreign_write
from crosstie.orm.writing import Write, row_key, writing

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = ["atomic", "create_all", "find_or_create", "update_changed"]

M = TypeVar("M", bound="ActiveRecord")
_PORTION: Final = 250
"""Records that one UPDATE batch announces to the recorder; SQLite parses no condition of a thousand terms."""


@contextmanager
def atomic(mapping: TableMapping) -> Iterator[None]:
    """A transaction on the model's database, or a savepoint of the open one; warns as any write would."""
    name = mapping.connection
    if current(name) is None and active_unit() is None:
        warn_of_foreign_write(name)
    with transaction(name):
        yield


def find_or_create(model: type[M], equal: Mapping[str, Any], defaults: Mapping[str, Any]) -> M:
    """See `ActiveRecord.find_or_create_by`."""
    mapping = mapping_of(model)
    fields = [mapping.field(name) for name in equal]
    if not fields or any(field.mutable for field in fields):
        raise InvalidQuery("find_or_create_by() expected fields to find the record by, none of them a JSON document.")
    values = [field.sought(equal[field.name]) for field in fields]
    found: M | None = find_first(mapping, fields, values)
    if found is not None:
        return found
    record = model(**{**defaults, **equal})
    try:
        with atomic(mapping):
            record.save()
    except DuplicateKey:
        # Somebody was faster, or a replica lags behind. What the primary has now was committed by then.
        there: M | None = find_first(mapping, fields, values, primary=True)
        if there is None:
            raise
        return there
    return record


def create_all(mapping: TableMapping, records: list[M]) -> list[M]:
    """See `ActiveRecord.bulk_create`."""
    if len({id(record) for record in records}) < len(records):
        raise InvalidQuery("bulk_create() expected each record once.")
    for record in records:
        if type(record) is not mapping.model or not record_state.is_new(record):
            raise InvalidQuery(f"bulk_create() expected new records of {mapping.model.__qualname__}.")
    if not records:
        return records
    generated = mapping.generated
    if generated is None:
        numbered, chosen = [], records
    else:
        numbered = [record for record in records if record.__dict__.get(generated.name) is None]
        chosen = [record for record in records if record.__dict__.get(generated.name) is not None]
    _require_parents(mapping, records)
    with atomic(mapping), writing(mapping) as write:
        for group, numbers in ((chosen, False), (numbered, True)):
            if group:
                _insert(mapping, group, write, numbers=numbers)
    return records


def _require_parents(mapping: TableMapping, records: Sequence[ActiveRecord]) -> None:
    """Validated references of all records, asked for in one statement for each of them."""
    for relation in mapping.validated:
        link = relation.link(mapping.model)
        keys = dict.fromkeys(record.__dict__[link.near.name] for record in records)
        sought = [link.far.sought(key) for key in keys if key is not None]
        if not sought:
            continue
        with reading(link.target, primary=True) as (connection, database):
            among = Membership(link.far, sought).clause(database)
            there = set(connection.execute(sa.select(link.far.column).where(among)).scalars())
        for record in records:
            if record.__dict__[link.near.name] not in there:
                require_parents(record, mapping)


def _insert(mapping: TableMapping, records: Sequence[ActiveRecord], write: Write, *, numbers: bool) -> None:
    generated = mapping.generated if numbers else None
    _, database, tx = write
    if generated is not None and not database.capabilities.insert_returning:
        for record in records:  # nobody else could tell which row got which number
            persistence.insert(record, mapping)
        return
    fields = [field for field in mapping.fields.values() if field is not generated]
    filled = [filled_in(record) | copied for record, copied in zip(records, fill(mapping, records), strict=True)]
    columns = [column_values(field, records, filled) for field in fields]
    given = insert_rows(write, mapping, fields, columns, numbered=generated)
    if generated is not None:
        for stamps, number in zip(filled, given, strict=True):
            stamps[generated.name] = number
    for record, stamps in zip(records, filled, strict=True):
        record.__dict__.update(stamps)
        record_state.mark_loaded(record, mapping.mutable)
    if mapping.is_placed:
        mark_origin(records, database.name)
    assert tx is not None

    def make_new() -> None:
        for record, stamps in zip(records, filled, strict=True):
            persistence.make_new(record, stamps)

    tx.on_rollback(make_new)
    if tx.recorder is not None:
        keys = [row_key(record, mapping) for record in records]
        tx.recorder.inserted(tx, mapping.table, keys, numbered=generated is not None)


def update_changed(mapping: TableMapping, records: list[M]) -> int:
    """See `ActiveRecord.bulk_update`."""
    by_fields: dict[tuple[str, ...], list[M]] = {}
    for record in {id(record): record for record in records}.values():
        if type(record) is not mapping.model or record_state.is_new(record) or record_state.is_deleted(record):
            raise InvalidQuery(f"bulk_update() expected saved records of {mapping.model.__qualname__}.")
        require_origin(record, mapping)
        changed = record_state.changes(record)
        if changed:
            by_fields.setdefault(tuple(name for name in mapping.fields if name in changed), []).append(record)
    if not by_fields:
        return 0
    with atomic(mapping), writing(mapping) as write:
        for group in by_fields.values():
            for start in range(0, len(group), _PORTION):
                _update(mapping, group[start : start + _PORTION], write)
    return sum(map(len, by_fields.values()))


def _update(mapping: TableMapping, records: Sequence[ActiveRecord], write: Write) -> None:
    connection, _, tx = write
    assert tx is not None
    copies = zip(records, fill(mapping, records, changed=record_state.changes(records[0])), strict=True)
    changes = [persistence.Change(record, mapping, copied=copied) for record, copied in copies]
    columns = list(changes[0].row)
    statement = persistence.update_statement(mapping, columns).statement
    where = sa.or_(*(row_condition(record, mapping) for record in records))
    token = None if tx.recorder is None else tx.recorder.updating(tx, mapping.table, where, columns)
    matched = connection.execute(statement, [change.parameters for change in changes]).rowcount
    if tx.recorder is not None:
        tx.recorder.updated(tx, token)
    if matched != len(records):
        raise StaleRecord(
            f"of {len(records)} records of {mapping.model.__qualname__} only {matched} are in database "
            f"{mapping.connection!r} as they were loaded: somebody changed or deleted the others. Load them again."
        )
    for change in changes:
        change.done()
        tx.on_rollback(change.undone)
