"""What a policy writes in the child's transaction: through the model where there is one, else by plain statements.

Each statement says `WHERE` primary key `AND` foreign key, whatever was looked at before.
"""

from __future__ import annotations

from typing import Any, Protocol

import sqlalchemy as sa

from crosstie.orm import bulk
from crosstie.orm.integrity import AuditedReference, Key
from crosstie.orm.integrity.child import ChildColumn, RowKey
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.mapping import TableMapping, mapping_of
from crosstie.orm.recorder import condition
from crosstie.orm.reference import Reference, reference_unions
from crosstie.orm.soft_delete import SoftDeleteMixin
from crosstie.workers.repair.errors import RepairRefused
from crosstie.workers.repair.policy import Policy

__all__ = ["ChildWriter", "declared", "row_condition", "writer_for"]


class ChildWriter(Protocol):
    """Writes one child row in the open transaction of its database, seen by the transaction's recorder."""

    def write(self, tx: LocalTransaction, row_key: RowKey, key: Key) -> int:
        """Do it to the row of this primary and foreign key; returns how many rows there were: 1 or 0."""


def row_condition(child: ChildColumn, row_key: RowKey, key: Key) -> sa.ColumnElement[bool]:
    """This row, as long as it has this foreign key, and the type that it is a key of."""
    only = child.storage.only(child.end.column, key)
    return sa.and_(condition(child.end.table, row_key), only, *child.end.conditions)


def declared(reference: AuditedReference) -> Reference | None:
    """The reference as models declare it, if they do; of one with several parents, the first."""
    return next((one.members[0] for one in reference_unions() if one.name == reference.name), None)


def writer_for(reference: AuditedReference, policy: Policy, child: ChildColumn) -> ChildWriter:
    """Who carries out `set_null`, `delete` or `quarantine`. Raises RepairRefused where the policy cannot be meant."""
    if policy is Policy.SET_NULL and not child.end.column.nullable:
        raise RepairRefused(
            f"{reference.name}: expected a column that takes NULL, for the policy 'set_null', and {child.end} takes "
            "none. Choose 'delete' or 'quarantine'."
        )
    found = declared(reference)
    mapping = None if found is None else mapping_of(found.child_model)
    if mapping is None or mapping.is_placed:
        if policy is Policy.DELETE:
            raise RepairRefused(
                f"{reference.name}: the policy 'delete' runs the callbacks of a model, and expected one whose "
                f"__connection__ is a name; found {'none' if mapping is None else mapping.model.__qualname__}. Choose "
                "'quarantine', which deletes the row and keeps it."
            )
        return _Plain(child, policy)
    return _WithCallbacks(child, mapping) if policy is Policy.DELETE else _ByModel(child, mapping, policy)


class _Plain:
    def __init__(self, child: ChildColumn, policy: Policy) -> None:
        self._child = child
        self._policy = policy

    def write(self, tx: LocalTransaction, row_key: RowKey, key: Key) -> int:
        table, column = self._child.end.table, self._child.end.column
        where = row_condition(self._child, row_key, key)
        assert tx.recorder is not None
        with tx.mapped_errors():
            if self._policy is not Policy.SET_NULL:
                tx.recorder.deleting(tx, table, row_key)
                return tx.connection.execute(sa.delete(table).where(where)).rowcount
            token = tx.recorder.updating(tx, table, row_key, [column.name])
            changed = tx.connection.execute(sa.update(table).where(where).values({column.name: None})).rowcount
            tx.recorder.updated(tx, token)
            return changed


class _ByModel:
    """As `update_all` and `delete_all` do: no callbacks, but watchers, copies and lock versions."""

    def __init__(self, child: ChildColumn, mapping: TableMapping, policy: Policy) -> None:
        self._child = child
        self._mapping = mapping
        self._policy = policy

    def write(self, tx: LocalTransaction, row_key: RowKey, key: Key) -> int:
        del tx
        where = row_condition(self._child, row_key, key)
        if self._policy is not Policy.SET_NULL:
            return bulk.delete_rows(self._mapping, lambda _: where)
        field = self._mapping.field_of_column[self._child.end.column.name]
        return bulk.update_rows(self._mapping, lambda _: where, {field.name: None})


class _WithCallbacks:
    def __init__(self, child: ChildColumn, mapping: TableMapping) -> None:
        self._child = child
        self._mapping = mapping

    def write(self, tx: LocalTransaction, row_key: RowKey, key: Key) -> int:
        del tx
        model = self._mapping.model
        query: Any = model.find_all().where(row_condition(self._child, row_key, key))
        if self._mapping.soft_delete is not None:
            query = query.with_deleted()
        record = query.first()
        if record is None:
            return 0
        if isinstance(record, SoftDeleteMixin):
            record.delete_forever()  # a hidden row would be as much of an orphan
        else:
            record.delete()
        return 1
