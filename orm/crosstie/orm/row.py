"""A record's values on their way into its row, and the parameters by which its statements find the row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from crosstie.orm import state as record_state
from crosstie.orm.errors import RecordInvalid, StaleRecord
from crosstie.orm.filling import fill
from crosstie.orm.mapping import MappedField, TableMapping
from crosstie.orm.recorder import Rows
from crosstie.orm.writing import checked, key_condition, row_key

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = [
    "column_values",
    "filled_in",
    "key_matches",
    "key_parameters",
    "new_row",
    "next_version",
    "require_found",
    "row_condition",
    "row_matches",
    "row_parameters",
    "row_values",
    "rows_of",
]


def new_row(
    record: ActiveRecord, mapping: TableMapping, *, without: MappedField | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of a new record by column, and the fields that are filled in for it. Raises RecordInvalid."""
    filled = filled_in(record)
    if mapping.copied:
        filled |= fill(mapping, [record])[0]
    return row_values(record, (field for field in mapping.fields.values() if field is not without), filled), filled


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


def row_values(record: ActiveRecord, fields: Iterable[MappedField], filled: Mapping[str, Any]) -> dict[str, Any]:
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


def rows_of(record: ActiveRecord, mapping: TableMapping) -> Rows:
    """The record's row for a recorder: none where somebody has changed its lock version."""
    return row_key(record, mapping) if mapping.lock is None else row_condition(record, mapping)


def row_matches(mapping: TableMapping) -> sa.ColumnElement[bool]:
    """The condition that a row has the key, and the lock version, of `row_parameters`."""
    fields = mapping.key if mapping.lock is None else (*mapping.key, mapping.lock)
    return key_matches(field.column for field in fields)


def key_matches(columns: Iterable[sa.Column[Any]]) -> sa.ColumnElement[bool]:
    """The condition that these columns have the values of `key_parameters`."""
    return sa.and_(*(column == sa.bindparam(f"key_{i}", type_=column.type) for i, column in enumerate(columns)))


def row_parameters(record: ActiveRecord, mapping: TableMapping) -> dict[str, Any]:
    """The parameters of `row_matches`."""
    values = row_key(record, mapping)
    if mapping.lock is not None:
        values = (*values, _version(record, mapping.lock))
    return key_parameters(values)


def key_parameters(values: Sequence[Any]) -> dict[str, Any]:
    """The parameters of `key_matches`."""
    return {f"key_{position}": value for position, value in enumerate(values)}


def require_found(matched: int, record: ActiveRecord, mapping: TableMapping) -> None:
    """Raise StaleRecord where the statement of a record's row has found no row."""
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


def next_version(record: ActiveRecord, mapping: TableMapping) -> dict[str, Any]:
    """The lock version that a write of the record gives its row; empty where the model has none."""
    return {} if mapping.lock is None else {mapping.lock.name: _version(record, mapping.lock) + 1}


def _version(record: ActiveRecord, lock: MappedField) -> int:
    state = record_state.state_of(record) or record_state.LOADED
    version: int = state.get(lock.name, record.__dict__[lock.name])
    return version
