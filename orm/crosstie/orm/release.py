"""What becomes of rows that refer to deleted ones: in batches, they are deleted or their reference is taken away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crosstie.orm import bulk
from crosstie.orm.condition import Membership
from crosstie.orm.departure import depart, together
from crosstie.orm.mapping import mapping_of
from crosstie.orm.reference import Reference

__all__ = ["release"]


def release(reference: Reference, values: Sequence[Any], *, limit: int) -> int:
    """Do to `limit` rows that refer to these values what `reference.on_delete` says; returns how many there were.

    Fewer than `limit` means that none is left. Deleted rows are told to their own referrers in the same transaction.
    """
    child = mapping_of(reference.child_model)
    field = child.field_of_column[reference.child_column.name]
    where = Membership(field, values).clause
    if reference.on_delete == "cascade":
        return bulk.delete_rows(child, where, limit=limit)
    with together(child.connection):
        referring = depart(child, (), where, limit=limit)
        return sum(bulk.update_rows(child, condition, {field.name: None}) for condition in referring.conditions())
