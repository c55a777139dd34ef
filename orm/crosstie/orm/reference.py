"""References: foreign keys as data, within one database or between two. Audits and maps are made from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from crosstie.orm.mapping import mapping_of
from crosstie.orm.placement import Placement, connections_of
from crosstie.orm.polymorphic import typed_links
from crosstie.orm.registry import registry

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord
    from crosstie.orm.on_delete import OnDelete

__all__ = ["Reference", "ReferenceUnion", "reference_unions", "references"]


@dataclass(frozen=True)
class Reference:
    """A column of the child's table refers to a column of the parent's, each in the database of its connection."""

    child_model: type[ActiveRecord]
    child_table: sa.Table
    child_column: sa.Column[Any]
    child_connection: str
    parent_model: type[ActiveRecord]
    parent_table: sa.Table
    parent_column: sa.Column[Any]
    parent_connection: str
    on_delete: OnDelete = "none"
    audit: str | None = None
    """The cron line by which it is audited, if it has one of its own."""
    child_type: tuple[sa.Column[Any], str] | None = None
    """Of a polymorphic reference: only the rows whose column has this value."""

    @property
    def name(self) -> str:
        """`secondary.posts.user_id -> default.users.id`, or `secondary.notes.subject_id[subject_type=Post] -> …`."""
        child = f"{self.child_connection}.{self.child_table.name}.{self.child_column.name}"
        if self.child_type is not None:
            column, value = self.child_type
            child = f"{child}[{column.name}={value}]"
        return f"{child} -> {self.parent_connection}.{self.parent_table.name}.{self.parent_column.name}"

    @property
    def is_crossing(self) -> bool:
        """Whether the two tables are in different databases, so that no database can check it."""
        return self.child_connection != self.parent_connection

    def __str__(self) -> str:
        return self.name


def references(models: Iterable[type[ActiveRecord]] | None = None, *, crossing_only: bool = False) -> list[Reference]:
    """The references that `BelongsTo` relations and `Polymorphic` fields declare, each once.

    A model in a database for each tenant or shard has a reference for each that is configured; one whose database a
    function tells has none, because nobody can list what a function may return. `models` defaults to every model
    defined. Raises what resolving a relation raises: ModelDefinitionError,
    AmbiguousModel, ReferenceTypeMismatch.
    """
    found: dict[str, Reference] = {}
    for model in registry.models() if models is None else models:
        child = mapping_of(model)
        for relation in child.belongs_to():
            link = relation.link(model)
            for child_connection, parent_connection in connections_of(child.place, link.target.place):
                reference = Reference(
                    child_model=model,
                    child_table=child.table,
                    child_column=link.near.column,
                    child_connection=child_connection,
                    parent_model=link.target.model,
                    parent_table=link.target.table,
                    parent_column=link.far.column,
                    parent_connection=parent_connection,
                    on_delete=relation.on_delete,
                    audit=relation.audit,
                )
                if reference.is_crossing or not crossing_only:
                    first = found.setdefault(reference.name, reference)
                    if first.audit is None and reference.audit is not None:
                        found[reference.name] = replace(first, audit=reference.audit)
        for reference in _polymorphic(model):
            if reference.is_crossing or not crossing_only:
                found.setdefault(reference.name, reference)
    return list(found.values())


def _polymorphic(model: type[ActiveRecord]) -> Iterator[Reference]:
    child = mapping_of(model)
    for one in typed_links(model):
        parent = one.link.target
        for child_connection, parent_connection in connections_of(child.place, parent.place):
            yield Reference(
                child_model=model,
                child_table=child.table,
                child_column=one.link.near.column,
                child_connection=child_connection,
                parent_model=parent.model,
                parent_table=parent.table,
                parent_column=one.link.far.column,
                parent_connection=parent_connection,
                child_type=(one.type_field.column, one.value),
            )


@dataclass(frozen=True)
class ReferenceUnion:
    """References of one column to one model that is in several databases: a key has its parent in any of them."""

    members: tuple[Reference, ...]

    @property
    def name(self) -> str:
        """As that of its member, if it has one; else the parents' rule stands for their connections.

        `default.notes.order_id -> tenant_{tenant}.orders.id`, or `{region}` for a map of shards.
        """
        first = self.members[0]
        if len(self.members) == 1:
            return first.name
        rule = mapping_of(first.parent_model).place
        where = rule.spelt if isinstance(rule, Placement) else rule
        return f"{first.name.partition(' -> ')[0]} -> {where}.{first.parent_table.name}.{first.parent_column.name}"

    @property
    def is_crossing(self) -> bool:
        """Whether one of the tables of parents is in another database than the child's."""
        return any(one.is_crossing for one in self.members)

    @property
    def audit(self) -> str | None:
        """The cron line by which it is audited, if it has one of its own."""
        return next((one.audit for one in self.members if one.audit is not None), None)


def reference_unions(
    models: Iterable[type[ActiveRecord]] | None = None, *, crossing_only: bool = False
) -> list[ReferenceUnion]:
    """The references as they are to hold: those that a choice of the parent's database alone tells apart are one.

    Where child and parent are chosen together (orders and their lines, of one tenant), each has the parent of its own
    choice. Raises what `references` does.
    """
    found: dict[tuple[object, ...], list[Reference]] = {}
    for one in references(models):
        of_type = None if one.child_type is None else one.child_type[1]
        end = one.child_connection, one.child_table.name, one.child_column.name, of_type
        place = mapping_of(one.parent_model).place
        own = one.name if isinstance(place, str) else (one.parent_model, one.parent_column.name)
        found.setdefault((*end, own), []).append(one)
    unions = [ReferenceUnion(tuple(members)) for members in found.values()]
    return [one for one in unions if one.is_crossing or not crossing_only]
