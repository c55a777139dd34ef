"""Copies of columns: which fields have whose values, of all models that are defined.

A *group* is what one foreign key brings into one table: its copies are filled, told of and aligned together. Only the
models that this process has imported are known.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from crosstie.orm.condition import Membership
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.declaration import connection_of, table_name_of
from crosstie.orm.denormalized import denormalized_paths
from crosstie.orm.errors import ModelDefinitionError
from crosstie.orm.keyset import portions
from crosstie.orm.mapping import MappedField, TableMapping, mapping_of
from crosstie.orm.registry import registry

if TYPE_CHECKING:
    from crosstie.orm.link import Link
    from crosstie.orm.model import ActiveRecord

__all__ = ["Copy", "CopyGroup", "copies_in", "copies_of", "copy_groups"]


class Copy(NamedTuple):
    """A field of the child, and the field of the parent whose value it has."""

    field: MappedField
    original: MappedField


@dataclass(frozen=True, eq=False)
class CopyGroup:
    """The copies in one table that follow one foreign key; `link` leads from the child to the parent."""

    child: TableMapping
    link: Link
    copies: tuple[Copy, ...]

    @property
    def parent(self) -> TableMapping:
        """The mapping of the originals."""
        return self.link.target

    @property
    def name(self) -> str:
        """`secondary.posts.user_id -> default.users.id`, as the reference is called."""
        return f"{_spelt(self.child, self.link.near)} -> {_spelt(self.parent, self.link.far)}"

    def originals(self, connection: sa.Connection, keys: Sequence[Any]) -> dict[Any, tuple[Any, ...]]:
        """The values of the originals, by key as `link.hashable` has it; `connection` is to the parent's database.

        A key that no row has is left out.
        """
        fields = [self.link.far, *(copy.original for copy in self.copies)]
        query = sa.select(*(field.column for field in fields))
        found: dict[Any, tuple[Any, ...]] = {}
        for portion in portions(self.parent, keys):
            clause = Membership(self.link.far, portion).clause(ConnectionManager.get(self.parent.connection))
            for row in connection.execute(query.where(clause)):
                key, *values = (v if f.convert is None else f.convert(v) for f, v in zip(fields, row, strict=True))
                found[self.link.hashable(key)] = tuple(values)
        return found


def copies_in(mapping: TableMapping) -> tuple[CopyGroup, ...]:
    """The copies that this table has. Raises ModelDefinitionError where any declared copy cannot be kept."""
    if mapping.is_placed and not mapping.copied:
        return ()
    return _index(registry.generation).by_child.get(_place(mapping), ())


def copies_of(mapping: TableMapping) -> tuple[CopyGroup, ...]:
    """The copies that other tables have of this one's columns. Raises as `copies_in` does."""
    return () if mapping.is_placed else _index(registry.generation).by_parent.get(_place(mapping), ())


def copy_groups() -> tuple[CopyGroup, ...]:
    """All copies that are declared. Raises as `copies_in` does."""
    return _index(registry.generation).groups


class _Index(NamedTuple):
    groups: tuple[CopyGroup, ...]
    by_child: dict[tuple[Any, str], tuple[CopyGroup, ...]]
    by_parent: dict[tuple[Any, str], tuple[CopyGroup, ...]]


def _place(mapping: TableMapping) -> tuple[Any, str]:
    return mapping.place, mapping.table.name


def _spelt(mapping: TableMapping, field: MappedField) -> str:
    return f"{mapping.connection}.{mapping.table.name}.{field.column.name}"


@functools.lru_cache(maxsize=1)
def _index(generation: int) -> _Index:
    del generation  # another one is another question
    collected: dict[str, CopyGroup] = {}
    for model in registry.models():
        for name, path in denormalized_paths(model).items():
            made = _resolved(model, name, path)
            _require_same_everywhere(made)
            known = collected.get(made.name)
            if known is None:
                collected[made.name] = made
            elif all(one.field.column.name != made.copies[0].field.column.name for one in known.copies):
                collected[made.name] = CopyGroup(known.child, known.link, known.copies + made.copies)
    by_child: dict[tuple[Any, str], tuple[CopyGroup, ...]] = {}
    by_parent: dict[tuple[Any, str], tuple[CopyGroup, ...]] = {}
    for group in collected.values():
        child, parent = _place(group.child), _place(group.parent)
        by_child[child] = (*by_child.get(child, ()), group)
        by_parent[parent] = (*by_parent.get(parent, ()), group)
    return _Index(tuple(collected.values()), by_child, by_parent)


def _resolved(model: type[ActiveRecord], name: str, path: str) -> CopyGroup:
    """The group of one declared field alone. Raises ModelDefinitionError."""
    child = mapping_of(model)
    where = f"{model.__qualname__}.{name} is declared Denormalized({path!r})"
    relation_name, _, original_name = path.partition(".")
    if not relation_name or not original_name or "." in original_name:
        raise ModelDefinitionError(
            f'{where}: expected "<relation>.<field>" with one BelongsTo relation of {model.__qualname__}. A path over '
            "several would have to follow foreign keys that change in other databases: copy the key into a column of "
            "its own, and declare a relation on it."
        )
    relation = next((one for one in child.belongs_to() if one.name == relation_name), None)
    if relation is None:
        known = ", ".join(sorted(one.name for one in child.belongs_to())) or "none"
        raise ModelDefinitionError(
            f"{where}, and {model.__qualname__} has no BelongsTo relation {relation_name!r}; it has: {known}."
        )
    link = relation.link(model)
    original = link.target.fields.get(original_name)
    if original is None:
        raise ModelDefinitionError(f"{where}: {link.target.unknown(original_name)}")
    field = child.fields[name]
    _require_possible(where, child, field, link, original)
    return CopyGroup(child, link, (Copy(field, original),))


def _require_possible(where: str, child: TableMapping, field: MappedField, link: Link, original: MappedField) -> None:
    parent = link.target
    placed = next((mapping for mapping in (child, parent) if mapping.is_placed), None)
    if placed is not None:
        raise ModelDefinitionError(
            f"{where}, and the database of {placed.model.__qualname__} is chosen anew for each statement: expected two "
            "models whose __connection__ is a name."
        )
    if original.name in parent.copied:
        raise ModelDefinitionError(
            f"{where}, and {parent.model.__qualname__}.{original.name} is a copy itself, of "
            f"{parent.copied[original.name]!r}: a column has one original, which its own database owns. Name a column "
            "that is written by the application."
        )
    taken = {one.foreign_key for one in child.belongs_to()} | {key.name for key in child.key}
    taken |= {one.name for one in (child.lock, child.soft_delete) if one is not None}
    taken |= {*child.model.__stamped_on_insert__, *child.model.__stamped_on_update__}
    if field.name in taken:
        raise ModelDefinitionError(f"{where}, and it is a key, a lock version or a time stamp: give the copy a field.")
    if not field.nullable:
        raise ModelDefinitionError(
            f"{where}: annotate it `... | None` with the default None. It is NULL where the foreign key leads nowhere, "
            "and has no value before the record is saved."
        )
    if not _holds(field, original):
        raise ModelDefinitionError(
            f"{where}: expected a column that holds whatever {original.column!s} does ({original.column.type!r}), and "
            f"found {field.column!s} ({field.column.type!r}). Give both fields one type."
        )


def _holds(field: MappedField, original: MappedField) -> bool:
    """Whether every value of the original is a value of the copy."""
    mine, theirs = field.column.type, original.column.type
    for kind in (sa.String, sa.LargeBinary):
        if isinstance(mine, kind) and isinstance(theirs, kind) and not isinstance(mine, sa.Enum):
            return mine.length is None or (theirs.length is not None and theirs.length <= mine.length)
    return field.family is original.family and repr(mine) == repr(theirs)


def _require_same_everywhere(group: CopyGroup) -> None:
    """Every model of the table must know of the copy, or one of them would let the application write it."""
    column, table, place = group.copies[0].field.column.name, group.child.table.name, group.child.place
    for model in registry.models():
        if model is group.child.model or table_name_of(model) != table or connection_of(model)[0] != place:
            continue
        other = mapping_of(model).field_of_column.get(column)
        if other is None:
            continue
        path = mapping_of(model).copied.get(other.name)
        same = None if path is None else _resolved(model, other.name, path)
        if same is None or same.name != group.name or _originals(same) != _originals(group):
            raise ModelDefinitionError(
                f"{group.child.model.__qualname__}.{group.copies[0].field.name} is a copy of "
                f"{group.copies[0].original.column!s} in database {group.parent.connection!r}, and "
                f"{model.__qualname__}.{other.name}, the same column, is "
                f"{'no copy' if path is None else f'one of {path!r}'}: a column has one owner. Declare both alike."
            )


def _originals(group: CopyGroup) -> list[str]:
    return [str(copy.original.column) for copy in group.copies]
