"""Relations between models, whose two sides may live in different databases.

A relation is declared as a class variable and called on a record: `user.posts()` is a list, `post.user()` a record or
None. What was loaded stays with the record under the key it was loaded for, a missing parent too, so that a second
call asks no database and a changed foreign key asks again.
"""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Self, TypeVar, cast, get_args, overload

from crosstie.orm import related
from crosstie.orm.configuration import nearest
from crosstie.orm.errors import ModelDefinitionError, ReferenceTypeMismatch
from crosstie.orm.mapping import MappedField, TableMapping, mapping_of
from crosstie.orm.reading import find_first
from crosstie.orm.registry import registry

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord
    from crosstie.orm.query import Query

__all__ = ["BelongsTo", "HasMany", "HasOne", "Link", "Many", "One", "Relation"]

T = TypeVar("T", bound="ActiveRecord")


class Link(NamedTuple):
    """A relation of one model, resolved: `near` is a field of that model, `far` one of the target; they are equal."""

    target: TableMapping
    near: MappedField
    far: MappedField
    inverse: str | None
    plain: Callable[[Any], Any] | None
    """Makes the two sides' values hashable alike, where their Python types differ though their columns compare."""


class Relation(Generic[T]):
    """What the three kinds have in common."""

    key_is_here: ClassVar[bool] = False
    """Whether the foreign key is a column of the model that declares the relation."""
    many: ClassVar[bool] = False

    def __init__(self, *, foreign_key: str, inverse_of: str | None = None, primary_key: str | None = None) -> None:
        self.foreign_key = foreign_key
        self.inverse_of = inverse_of
        self.primary_key = primary_key
        self.name = ""
        self._owner: type[ActiveRecord] | None = None
        self._links: dict[type[ActiveRecord], tuple[int, Link]] = {}

    def __set_name__(self, owner: type[ActiveRecord], name: str) -> None:
        self._owner = owner
        self.name = name

    def __repr__(self) -> str:
        owner = self._owner.__qualname__ if self._owner else "?"
        return f"{type(self).__name__}({owner}.{self.name}, foreign_key={self.foreign_key!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Pydantic asks only where a relation is annotated like a field."""
        raise ModelDefinitionError(
            f"a relation is declared as a class variable: write `name: ClassVar[{cls.__name__}['Target']] = "
            f"{cls.__name__}(foreign_key=...)`."
        )

    def link(self, model: type[ActiveRecord]) -> Link:
        """The relation resolved for a model that has it; resolved again when models were defined since.

        Raises ModelDefinitionError, AmbiguousModel, and ReferenceTypeMismatch where the two keys do not compare.
        """
        known = self._links.get(model)
        if known is not None and known[0] == registry.generation:
            return known[1]
        generation = registry.generation
        link = self._resolve(model)
        self._links[model] = (generation, link)
        return link

    def _resolve(self, model: type[ActiveRecord]) -> Link:
        here, target = mapping_of(model), mapping_of(self._target())
        child, parent = (here, target) if self.key_is_here else (target, here)
        where = f"{model.__qualname__}.{self.name}"
        foreign = self._field(where, child, self.foreign_key)
        key = self._field(where, parent, self.primary_key) if self.primary_key else parent.single_key
        if foreign.family is None or foreign.family is not key.family:
            raise ReferenceTypeMismatch(
                f"{where}: expected a foreign key of the type of the key that it refers to, and found "
                f"{foreign.column!s} ({_type_name(foreign)}) against {key.column!s} ({_type_name(key)}): databases "
                "compare them differently or not at all. Give both fields one type."
            )
        plain = None if foreign.exact is key.exact else _plain_value
        near, far = (foreign, key) if self.key_is_here else (key, foreign)
        return Link(target, near, far, self._inverse(where, target), plain)

    def _target(self) -> type[ActiveRecord]:
        assert self._owner is not None, "a relation is an attribute of a model"
        written = inspect.get_annotations(self._owner).get(self.name)
        found = _target_in(written)
        if isinstance(found, str):
            return registry.resolve(found, self._owner)
        if found is None:
            raise ModelDefinitionError(
                f"{self._owner.__qualname__}.{self.name} does not say to which model it leads: annotate it "
                f"`{self.name}: ClassVar[{type(self).__name__}['Target']]`."
            )
        return registry.latest(found)

    def _inverse(self, where: str, target: TableMapping) -> str | None:
        if self.inverse_of is None:
            return None
        other = target.relations.get(self.inverse_of)
        if other is None:
            hint = nearest(self.inverse_of, list(target.relations))
            raise ModelDefinitionError(
                f"{where}: inverse_of names {self.inverse_of!r}, which {target.model.__qualname__} has not.{hint}"
            )
        if other.key_is_here is self.key_is_here or other.foreign_key != self.foreign_key:
            raise ModelDefinitionError(
                f"{where}: {target.model.__qualname__}.{self.inverse_of} is not its inverse: expected the opposite "
                f"side of the foreign key {self.foreign_key!r}, and found {other!r}."
            )
        return None if other.many else self.inverse_of

    @staticmethod
    def _field(where: str, mapping: TableMapping, name: str) -> MappedField:
        if name not in mapping.fields:
            raise ModelDefinitionError(f"{where}: {mapping.unknown(name)}")
        return mapping.fields[name]


def _target_in(annotation: Any) -> str | type[ActiveRecord] | None:
    """The target in `ClassVar[HasMany['Post']]`, however it was written."""
    if isinstance(annotation, str):
        found = re.search(r"\b(?:HasMany|HasOne|BelongsTo)\[\s*[\"']?([\w.]+)[\"']?\s*\]", annotation)
        return found[1] if found else None
    forward = getattr(annotation, "__forward_arg__", None)
    if isinstance(forward, str):
        return forward if forward.isidentifier() or "[" not in forward else _target_in(forward)
    if isinstance(annotation, type) and hasattr(annotation, "__pydantic_fields__"):
        return cast("type[ActiveRecord]", annotation)
    arguments = get_args(annotation)
    return _target_in(arguments[0]) if arguments else None


def _plain_value(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


def _type_name(field: MappedField) -> str:
    return "JSON or another type that is no key" if field.family is None else field.family.__name__


class Many(Generic[T]):
    """The far side of one record's `HasMany`; call it for the records."""

    __slots__ = ("_record", "_relation")

    def __init__(self, record: ActiveRecord, relation: HasMany[T]) -> None:
        self._record = record
        self._relation = relation

    def __call__(self) -> list[T]:
        """The related records, loaded once. Raises what the database answers: a missing table is an error."""
        link = self._relation.link(type(self._record))
        key = getattr(self._record, link.near.name)
        known = related.recall(self._record, self._relation.name, key)
        if known is not related.MISSING:
            return cast("list[T]", known)
        if key is None or self._record.is_new:
            return []  # no row can refer to a row that does not exist
        found = self.query().all()
        related.remember(self._record, self._relation.name, key, found)
        related.set_back(found, link, self._record)
        return found

    def query(self) -> Query[T]:
        """The related rows as a query, to be narrowed further."""
        return _query(self._record, self._relation)

    @property
    def is_loaded(self) -> bool:
        """Whether calling asks no database."""
        return _is_loaded(self._record, self._relation)

    def reset(self) -> None:
        """Forget what was loaded."""
        related.forget(self._record, self._relation.name)


class One(Generic[T]):
    """The far side of one record's `BelongsTo` or `HasOne`; call it for the record."""

    __slots__ = ("_record", "_relation")

    def __init__(self, record: ActiveRecord, relation: Relation[T]) -> None:
        self._record = record
        self._relation = relation

    def __call__(self) -> T | None:
        """The related record, or None; asked for once, and that there is none is remembered too."""
        record, relation = self._record, self._relation
        link = relation.link(type(record))
        key = getattr(record, link.near.name)
        known = related.recall(record, relation.name, key)
        if known is not related.MISSING:
            return cast("T | None", known)
        if key is None or (record.is_new and not relation.key_is_here):
            return None
        found = find_first(link.target, (link.far,), (link.far.sought(key),))
        related.remember(record, relation.name, key, found)
        if found is not None:
            related.set_back((found,), link, record)
        return cast("T | None", found)

    def query(self) -> Query[T]:
        """The related row as a query."""
        return _query(self._record, self._relation)

    @property
    def is_loaded(self) -> bool:
        """Whether calling asks no database."""
        return _is_loaded(self._record, self._relation)

    def reset(self) -> None:
        """Forget what was loaded."""
        related.forget(self._record, self._relation.name)


def _query(record: ActiveRecord, relation: Relation[T]) -> Query[T]:
    from crosstie.orm.query import Query

    link = relation.link(type(record))
    key = getattr(record, link.near.name)
    query: Query[T] = Query(cast("type[T]", link.target.model))
    # NULL refers to nothing; as a condition it would match every row without a parent.
    return query.where(**{link.far.name: [] if key is None else key})


def _is_loaded(record: ActiveRecord, relation: Relation[Any]) -> bool:
    key = getattr(record, relation.link(type(record)).near.name)
    return related.recall(record, relation.name, key) is not related.MISSING


class HasMany(Relation[T]):
    """Rows of another model whose `foreign_key` is this record's key.

    Declared as `posts: ClassVar[HasMany["Post"]] = HasMany(foreign_key="user_id")`. `inverse_of` names the relation
    that leads back, which is then set without a query; `primary_key` names the field that the foreign key refers to,
    where it is not the primary key.
    """

    many = True

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, instance: ActiveRecord, owner: type[Any]) -> Many[T]: ...
    def __get__(self, instance: ActiveRecord | None, owner: type[Any]) -> Self | Many[T]:
        """The relation itself from the class; from a record, its far side."""
        return self if instance is None else Many(instance, self)


class HasOne(Relation[T]):
    """The row of another model whose `foreign_key` is this record's key, of which there is at most one."""

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, instance: ActiveRecord, owner: type[Any]) -> One[T]: ...
    def __get__(self, instance: ActiveRecord | None, owner: type[Any]) -> Self | One[T]:
        """The relation itself from the class; from a record, its far side."""
        return self if instance is None else One(instance, self)


class BelongsTo(Relation[T]):
    """The row of another model to whose key `foreign_key`, a field of this model, refers."""

    key_is_here = True

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, instance: ActiveRecord, owner: type[Any]) -> One[T]: ...
    def __get__(self, instance: ActiveRecord | None, owner: type[Any]) -> Self | One[T]:
        """The relation itself from the class; from a record, its far side."""
        return self if instance is None else One(instance, self)


def records_of(value: object) -> Sequence[Any]:
    """What a loaded relation holds, as a sequence."""
    return value if isinstance(value, list) else [] if value is None else [value]
