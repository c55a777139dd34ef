"""Who refers to a table and cares when its rows are deleted: the references declared with `on_delete`.

Only the models that this process has imported are known. What happens to their rows in other databases is not this
layer's affair: a carrier takes the keys of the deleted rows there, and must be part of the deleting transaction.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from crosstie.orm.declaration import relations_of
from crosstie.orm.errors import ModelDefinitionError
from crosstie.orm.mapping import TableMapping, mapping_of
from crosstie.orm.reference import Reference
from crosstie.orm.registry import registry

if TYPE_CHECKING:
    from crosstie.orm.local_transaction import LocalTransaction
    from crosstie.orm.model import ActiveRecord
    from crosstie.orm.relation import BelongsTo

__all__ = ["DeleteCarrier", "acting_references", "carrier", "carry_with", "referrers"]


class DeleteCarrier(Protocol):
    """Takes word of deleted parents to the database of their children."""

    def __call__(self, tx: LocalTransaction, reference: Reference, values: Sequence[Any]) -> None:
        """Rows whose `reference.parent_column` had these values are deleted in `tx`; told if and only if it commits."""


_carriers: list[DeleteCarrier] = []


def carry_with(carrier: DeleteCarrier) -> None:
    """Have deletes told by this carrier, in place of any other."""
    _carriers[:] = [carrier]


def carrier(reference: Reference) -> DeleteCarrier:
    """The carrier. Raises ModelDefinitionError where there is none: the children would stay, and nobody would know."""
    if not _carriers:
        raise ModelDefinitionError(
            f"{reference.name} is declared on_delete={reference.on_delete!r}, which the outbox carries out, and it is "
            "not loaded: import crosstie.outbox where the models are defined."
        )
    return _carriers[0]


def referrers(mapping: TableMapping) -> tuple[Reference, ...]:
    """The references to this table that say what a delete means, of all models defined.

    Raises ModelDefinitionError where one of them cannot be acted upon, and what resolving a relation raises.
    """
    if mapping.is_placed:
        return ()  # no reference that is acted upon leads to such a model
    return _by_parent(registry.generation).get((mapping.connection, mapping.table.name), ())


def acting_references() -> list[Reference]:
    """The references by which children are deleted or nulled after their parents. Raises as `referrers` does."""
    groups = _by_parent(registry.generation).values()
    return [one for group in groups for one in group if one.on_delete in {"cascade", "set_null"}]


@functools.lru_cache(maxsize=1)
def _by_parent(generation: int) -> dict[tuple[str, str], tuple[Reference, ...]]:
    from crosstie.orm.relation import BelongsTo

    del generation  # another one is another question
    found: dict[str, Reference] = {}
    for model in registry.models():
        for relation in relations_of(model).values():
            if not isinstance(relation, BelongsTo) or relation.on_delete == "none":
                continue
            reference = _reference(model, relation)
            first = found.setdefault(reference.name, reference)
            if first.on_delete != reference.on_delete:
                raise ModelDefinitionError(
                    f"{reference.name} is declared on_delete={first.on_delete!r} by {first.child_model.__qualname__} "
                    f"and on_delete={reference.on_delete!r} by {model.__qualname__}: let them say the same."
                )
    groups: dict[tuple[str, str], tuple[Reference, ...]] = {}
    for reference in found.values():
        parent = (reference.parent_connection, reference.parent_table.name)
        groups[parent] = (*groups.get(parent, ()), reference)
    for reference in found.values():
        _require_possible(reference, groups.get((reference.child_connection, reference.child_table.name), ()))
    return groups


def _reference(model: type[ActiveRecord], relation: BelongsTo[Any]) -> Reference:
    child, link = mapping_of(model), relation.link(model)
    placed = next((mapping for mapping in (child, link.target) if mapping.is_placed), None)
    if placed is not None:
        raise ModelDefinitionError(
            f"{model.__qualname__}.{relation.name} is declared on_delete={relation.on_delete!r}, and the database of "
            f"{placed.model.__qualname__} is chosen anew for each statement: expected two models whose __connection__ "
            "is a name. Delete the rows of a tenant or a shard explicitly, in a saga."
        )
    return Reference(
        child_model=model,
        child_table=child.table,
        child_column=link.near.column,
        child_connection=child.connection,
        parent_model=link.target.model,
        parent_table=link.target.table,
        parent_column=link.far.column,
        parent_connection=link.target.connection,
        on_delete=relation.on_delete,
    )


def _require_possible(reference: Reference, below: Sequence[Reference]) -> None:
    """Refuse at once what could only fail later, in a worker, again and again."""
    if reference.on_delete == "set_null" and not reference.child_column.nullable:
        raise ModelDefinitionError(
            f"{reference.name} is declared on_delete='set_null', and the column takes no NULL: annotate the field "
            "with `| None`, or declare another on_delete."
        )
    hindrance = next((one for one in below if one.on_delete == "restrict"), None)
    if reference.on_delete == "cascade" and hindrance is not None:
        raise ModelDefinitionError(
            f"{reference.name} is declared on_delete='cascade', and {hindrance.name} 'restrict': a worker could delete "
            "neither the rows nor leave them. Declare 'cascade' for both, or 'restrict' for the former."
        )
