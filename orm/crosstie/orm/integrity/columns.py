"""Both ends of a reference, ready to be read: preflight passed, storages known."""

from __future__ import annotations

from dataclasses import replace

from crosstie.orm.integrity.catalog import column_facts
from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.composite import CompositeChild, CompositeParent, CompositeStorage
from crosstie.orm.integrity.endpoint import AuditedReference
from crosstie.orm.integrity.errors import KeysNotComparable
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.preflight import storages
from crosstie.orm.integrity.union import ParentUnion

__all__ = ["columns_of"]


def columns_of(reference: AuditedReference) -> tuple[ChildColumn, ParentColumn]:
    """The child's and the parent's column. Raises KeysNotComparable, NoSuchTable, DatabaseUnavailable."""
    if not reference.child.primary_key:
        raise KeysNotComparable(
            f"expected a primary key in {reference.child.table.fullname!r}, to tell its rows apart, and found none "
            "declared. Declare one in the model."
        )
    if reference.child.is_composite:
        return _composite(reference)
    facts = column_facts(reference.child)
    both = [storages(replace(reference, parent=end), facts, column_facts(end)) for end in reference.parents]
    kinds = {storage.kind for storage, _ in both}
    if len(kinds) > 1:
        raise KeysNotComparable(
            f"{reference.name}: expected keys of one kind in all databases of the parents, and found "
            f"{' and '.join(sorted(kinds))}. Give the columns one type."
        )
    child = ChildColumn(reference.child, both[0][0])
    parents = [ParentColumn(end, storage) for end, (_, storage) in zip(reference.parents, both, strict=True)]
    return child, parents[0] if len(parents) == 1 else ParentUnion(parents)


def _composite(reference: AuditedReference) -> tuple[ChildColumn, ParentColumn]:
    """Each column is compared with the one in its place, as if it were a reference by itself."""
    children: list[CompositeStorage] = []
    parents: list[ParentColumn] = []
    for end in reference.parents:
        both = []
        for number in range(len(reference.child.columns)):
            alone = replace(reference, child=reference.child.part(number), parent=end.part(number), others=())
            both.append(storages(alone, column_facts(alone.child), column_facts(alone.parent)))
        children.append(CompositeStorage(reference.child.columns, [child for child, _ in both]))
        parents.append(CompositeParent(end, CompositeStorage(end.columns, [parent for _, parent in both])))
    if len({tuple(part.kind for part in one.parts) for one in children}) > 1:
        raise KeysNotComparable(
            f"{reference.name}: expected keys of one kind in all databases of the parents. Give the columns one type."
        )
    return CompositeChild(reference.child, children[0]), parents[0] if len(parents) == 1 else ParentUnion(parents)
