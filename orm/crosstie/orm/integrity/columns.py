"""Both ends of a reference, ready to be read: preflight passed, storages known."""

from __future__ import annotations

from crosstie.orm.integrity.catalog import column_facts
from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.endpoint import AuditedReference
from crosstie.orm.integrity.errors import KeysNotComparable
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.preflight import storages

__all__ = ["columns_of"]


def columns_of(reference: AuditedReference) -> tuple[ChildColumn, ParentColumn]:
    """The child's and the parent's column. Raises KeysNotComparable, NoSuchTable, DatabaseUnavailable."""
    if not reference.child.primary_key:
        raise KeysNotComparable(
            f"expected a primary key in {reference.child.table.fullname!r}, to tell its rows apart, and found none "
            "declared. Declare one in the model."
        )
    facts = column_facts(reference.child), column_facts(reference.parent)
    child_storage, parent_storage = storages(reference, *facts)
    return ChildColumn(reference.child, child_storage), ParentColumn(reference.parent, parent_storage)
