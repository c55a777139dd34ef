"""Relations between models, whose two sides may live in different databases.

A relation is declared as a class variable and called on a record: `user.posts()` is a list, `post.user()` a record or
None. What was loaded stays with the record under the key it was loaded for, a missing parent too, so that a second
call asks no database and a changed foreign key asks again.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, overload

from crosstie.orm import through as chains
from crosstie.orm.cache.policy import Cached, policy_of, require_cacheable
from crosstie.orm.configuration import nearest
from crosstie.orm.errors import ModelDefinitionError
from crosstie.orm.far_side import Many, One
from crosstie.orm.link import Link, joined, mapped_field, target_in
from crosstie.orm.mapping import TableMapping, mapping_of
from crosstie.orm.on_delete import OnDelete, require_on_delete
from crosstie.orm.registry import registry

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = ["BelongsTo", "HasMany", "HasOne", "Link", "Many", "ManyToMany", "One", "Relation"]

T = TypeVar("T", bound="ActiveRecord")


class Relation(Generic[T]):
    """What all kinds have in common; resolved when first used, so that models may be defined in any order."""

    key_is_here: ClassVar[bool] = False
    """Whether the foreign key is a column of the model that declares the relation."""
    many: ClassVar[bool] = False
    cache: Cached | None = None
    """How long what it leads to is kept, where it is."""

    def __init__(self, *, foreign_key: str, inverse_of: str | None = None, primary_key: str | None = None) -> None:
        self._require_one_field(foreign_key=foreign_key, primary_key=primary_key)
        self.foreign_key = foreign_key
        self.inverse_of = inverse_of
        self.primary_key = primary_key
        self.name = ""
        self._owner: type[ActiveRecord] | None = None
        self._links: dict[type[ActiveRecord], tuple[int, Link]] = {}

    def _require_one_field(self, **named: object) -> None:
        for argument, given in named.items():
            if given is not None and not isinstance(given, str):
                raise ModelDefinitionError(
                    f"{type(self).__name__}: expected {argument} to be the name of one field, and found {given!r}: a "
                    "relation cannot refer to a key of several fields. Give the target a unique field besides, and "
                    "name it with primary_key=..."
                )

    def __set_name__(self, owner: type[ActiveRecord], name: str) -> None:
        self._owner = owner
        self.name = name

    def __repr__(self) -> str:
        owner = self._owner.__qualname__ if self._owner else "?"
        return f"{type(self).__name__}({owner}.{self.name}, {self._told()})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Pydantic asks only where a relation is annotated like a field."""
        raise ModelDefinitionError(
            f"a relation is declared as a class variable: write `name: ClassVar[{cls.__name__}['Target']] = "
            f"{cls.__name__}(...)`."
        )

    def link(self, model: type[ActiveRecord], *, seen: tuple[Relation[Any], ...] = ()) -> Link:
        """The relation resolved for a model that has it; resolved again when models were defined since.

        `seen` are the relations through which this one is being resolved. Raises ModelDefinitionError,
        AmbiguousModel, and ReferenceTypeMismatch where two keys do not compare.
        """
        known = self._links.get(model)
        if known is not None and known[0] == registry.generation:
            return known[1]
        generation = registry.generation
        link = self._resolve(model, seen)
        self._links[model] = (generation, link)
        return link

    def owner(self) -> type[ActiveRecord]:
        """The class that declares the relation."""
        assert self._owner is not None, "a relation is an attribute of a model"
        return self._owner

    def _told(self) -> str:
        return f"foreign_key={self.foreign_key!r}"

    def _resolve(self, model: type[ActiveRecord], seen: tuple[Relation[Any], ...]) -> Link:
        here, target = mapping_of(model), mapping_of(self._target())
        child, parent = (here, target) if self.key_is_here else (target, here)
        where = f"{model.__qualname__}.{self.name}"
        foreign = mapped_field(where, child, self.foreign_key)
        key = mapped_field(where, parent, self.primary_key) if self.primary_key else parent.single_key
        inverse = self._inverse(where, target)
        return joined(where, target, foreign, key, key_is_here=self.key_is_here, inverse=inverse)

    def _target(self) -> type[ActiveRecord]:
        owner = self.owner()
        found = target_in(inspect.get_annotations(owner).get(self.name))
        if isinstance(found, str):
            return registry.resolve(found, owner)
        if found is None:
            raise ModelDefinitionError(
                f"{owner.__qualname__}.{self.name} does not say to which model it leads: annotate it "
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


class ToMany(Relation[T]):
    """A relation whose far side is a list."""

    many = True

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, instance: ActiveRecord, owner: type[Any]) -> Many[T]: ...
    def __get__(self, instance: ActiveRecord | None, owner: type[Any]) -> Self | Many[T]:
        """The relation itself from the class; from a record, its far side."""
        return self if instance is None else Many(instance, self)


class ToOne(Relation[T]):
    """A relation whose far side is a record or None."""

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, instance: ActiveRecord, owner: type[Any]) -> One[T]: ...
    def __get__(self, instance: ActiveRecord | None, owner: type[Any]) -> Self | One[T]:
        """The relation itself from the class; from a record, its far side."""
        return self if instance is None else One(instance, self)


class Has(Relation[T]):
    """A relation whose foreign key is the other side's, or that leads over other relations."""

    def __init__(
        self,
        *,
        foreign_key: str | None = None,
        inverse_of: str | None = None,
        primary_key: str | None = None,
        through: str | None = None,
        source: str | None = None,
    ) -> None:
        if (foreign_key is None) is (through is None):
            raise ModelDefinitionError(
                f"{type(self).__name__} expected either foreign_key, the other model's field, or through, the name of "
                "a relation of this model."
            )
        if through is None and source is not None:
            raise ModelDefinitionError(f"{type(self).__name__}: source says where `through` goes on, and is alone.")
        if through is not None and (inverse_of is not None or primary_key is not None):
            raise ModelDefinitionError(
                f"{type(self).__name__}: a relation through {through!r} has neither inverse_of nor primary_key; the "
                "relations that it leads over have them."
            )
        super().__init__(foreign_key=foreign_key or "", inverse_of=inverse_of, primary_key=primary_key)
        self.through = through
        self.source = source

    def _told(self) -> str:
        return super()._told() if self.through is None else f"through={self.through!r}"

    def _resolve(self, model: type[ActiveRecord], seen: tuple[Relation[Any], ...]) -> Link:
        if self.through is None:
            return super()._resolve(model, seen)
        return chains.over_relations(self, model, self._target(), seen)


class HasMany(Has[T], ToMany[T]):
    """Rows of another model whose `foreign_key` is this record's key.

    Declared as `posts: ClassVar[HasMany["Post"]] = HasMany(foreign_key="user_id")`. `inverse_of` names the relation
    that leads back, which is then set without a query; `primary_key` names the field that the foreign key refers to,
    where it is not the primary key.

    With `through`, the name of a relation of this model, in place of `foreign_key`: rows that are reached over that
    relation's records, `teams: ClassVar[HasMany["Team"]] = HasMany(through="memberships")`, each once. `source` names
    the relation by which to go on from there, where several lead to the target.
    """


class HasOne(Has[T], ToOne[T]):
    """The row of another model whose `foreign_key` is this record's key, of which there is at most one.

    With `through` and `source` as for `HasMany`; of several rows that are reached, the first.
    """


class BelongsTo(ToOne[T]):
    """The row of another model to whose key `foreign_key`, a field of this model, refers.

    `validate` has `save()` look whether that row exists. `on_delete` says what becomes of this model's rows when that
    row is deleted through the ORM: `restrict` refuses the delete, `cascade` deletes them and `set_null` takes their
    reference away, both soon after and by the outbox.

    `cache` has parents that were looked up by their key kept in Redis and in `request_cache()`: True, or
    `Cached(ttl_s=...)` for how long at most.

    `audit` is a cron line by which workers audit this reference, in place of the setting `audit.schedule`.

    Raises ModelDefinitionError for another word.
    """

    key_is_here = True

    def __init__(
        self,
        *,
        foreign_key: str,
        inverse_of: str | None = None,
        primary_key: str | None = None,
        validate: bool = False,
        on_delete: OnDelete = "none",
        cache: Cached | bool = False,
        audit: str | None = None,
    ) -> None:
        super().__init__(foreign_key=foreign_key, inverse_of=inverse_of, primary_key=primary_key)
        self.validate = validate
        self.audit = audit
        self.on_delete: OnDelete = require_on_delete(on_delete)
        self.cache = policy_of(cache)

    def _resolve(self, model: type[ActiveRecord], seen: tuple[Relation[Any], ...]) -> Link:
        link = super()._resolve(model, seen)
        if self.cache is not None:
            require_cacheable(f"{model.__qualname__}.{self.name}", link)
        return link


class ManyToMany(ToMany[T]):
    """Rows of another model that rows of a join model, named by `through`, tie to this record; each once.

    Declared as `tags: ClassVar[ManyToMany["Tag"]] = ManyToMany(through="Tagging")`. The three tables may be in three
    databases. The join model's fields are those of its `BelongsTo` relations to the two models; `foreign_key` (this
    record's key) and `target_key` (the target's key) name them where it has none, or several.
    """

    def __init__(
        self,
        *,
        through: str | type[ActiveRecord],
        foreign_key: str | None = None,
        target_key: str | None = None,
    ) -> None:
        super().__init__(foreign_key=foreign_key or "")
        self._require_one_field(target_key=target_key)
        self.through = through
        self.target_key = target_key or ""

    def _told(self) -> str:
        return f"through={self.through!r}"

    def _resolve(self, model: type[ActiveRecord], seen: tuple[Relation[Any], ...]) -> Link:
        return chains.over_join_model(self, model, self._target())
