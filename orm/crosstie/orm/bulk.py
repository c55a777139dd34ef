"""Writes of many rows in one statement, without records; the transaction's recorder sees them as any other write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from crosstie.orm.departure import Where, depart, together
from crosstie.orm.errors import InvalidQuery
from crosstie.orm.filling import fill_rows
from crosstie.orm.mapping import TableMapping
from crosstie.orm.referrer import referrers
from crosstie.orm.watch import watchers_of
from crosstie.orm.writing import checked, writing

__all__ = ["delete_rows", "update_rows"]


def update_rows(mapping: TableMapping, where: Where, values: Mapping[str, Any]) -> int:
    """Set fields of every row that matches; returns how many matched. Raises InvalidQuery, RecordInvalid."""
    if not values:
        raise InvalidQuery("update_all() expected at least one field to set.")
    row: dict[str, Any] = {}
    for name, value in fill_rows(mapping, values).items():
        field = mapping.field(name)
        if field in mapping.key:
            raise InvalidQuery(f"update_all() cannot set {field.column!s}: the key of a row does not change.")
        row[field.column.name] = checked(field, field.coerce(value))
    if mapping.lock is not None:  # whoever holds one of these records must learn of the change
        row[mapping.lock.column.name] = mapping.lock.column + 1
    if not watchers_of(mapping):
        return _update(mapping, where, row)
    with together(mapping.connection):
        # By their keys: watchers are told of these rows, and those that meet the condition may be others by now.
        return sum(_update(mapping, condition, row) for condition in depart(mapping, (), where).conditions())


def _update(mapping: TableMapping, where: Where, row: Mapping[str, Any]) -> int:
    with writing(mapping) as (connection, database, tx):
        clause = where(database)
        statement = sa.update(mapping.table).where(clause).values(row)
        if tx is None or tx.recorder is None:
            return connection.execute(statement).rowcount
        token = tx.recorder.updating(tx, mapping.table, clause, row)
        matched = connection.execute(statement).rowcount
        tx.recorder.updated(tx, token)
        return matched


def delete_rows(mapping: TableMapping, where: Where, *, limit: int | None = None) -> int:
    """Delete every row that matches, or `limit` of them; returns how many there were. Raises DeleteRestricted."""
    references = referrers(mapping)
    if not references and limit is None and not watchers_of(mapping):
        return _delete(mapping, where)
    with together(mapping.connection):
        departing = depart(mapping, references, where, limit=limit)
        # By their keys: the rows that meet the condition may be others by now.
        deleted = sum(_delete(mapping, condition) for condition in departing.conditions())
        departing.carry()
    return deleted


def _delete(mapping: TableMapping, where: Where) -> int:
    with writing(mapping) as (connection, database, tx):
        clause = where(database)
        if tx is not None and tx.recorder is not None:
            tx.recorder.deleting(tx, mapping.table, clause)
        return connection.execute(sa.delete(mapping.table).where(clause)).rowcount
