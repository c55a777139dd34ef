"""What a record gives for its relations: `user.posts` and `post.user`, to be called, counted or queried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from crosstie.orm import related, strictness
from crosstie.orm.cache.lookup import looked_up
from crosstie.orm.reading import find_first

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosstie.orm.cache.policy import Cached
    from crosstie.orm.link import Link
    from crosstie.orm.model import ActiveRecord
    from crosstie.orm.query import Query
    from crosstie.orm.relation import Relation

__all__ = ["Many", "One"]

T = TypeVar("T", bound="ActiveRecord")


class _FarSide(Generic[T]):
    __slots__ = ("_record", "_relation")

    def __init__(self, record: ActiveRecord, relation: Relation[T]) -> None:
        self._record = record
        self._relation = relation

    def query(self) -> Query[T]:
        """The related rows as a query, to be narrowed further."""
        from crosstie.orm.semijoin import related_rows

        return cast("Query[T]", related_rows(self._record, self._relation))

    @property
    def is_loaded(self) -> bool:
        """Whether calling asks no database."""
        key = getattr(self._record, self._relation.link(type(self._record)).near.name)
        return related.recall(self._record, self._relation.name, key) is not related.MISSING

    def reset(self) -> None:
        """Forget what was loaded, and a count too."""
        related.forget(self._record, self._relation.name)
        related.forget(self._record, related.count_name(self._relation.name))

    def _load_through(self, key: Any) -> Any:
        from crosstie.orm import eager

        eager.load_one(self._record, self._relation)
        return related.recall(self._record, self._relation.name, key)


class Many(_FarSide[T]):
    """The far side of one record's `HasMany` or `ManyToMany`; call it for the records."""

    __slots__ = ()

    def __call__(self) -> list[T]:
        """The related records, loaded once. Raises what the database answers: a missing table is an error."""
        record, relation = self._record, self._relation
        link = relation.link(type(record))
        key = getattr(record, link.near.name)
        known = related.recall(record, relation.name, key)
        if known is not related.MISSING:
            return cast("list[T]", known)
        if key is None or (record.is_new and not link.key_is_here):
            return []  # no row can refer to a row that does not exist
        strictness.lazily(record, relation)
        if link.hops:
            return cast("list[T]", self._load_through(key))
        found = self.query().all()
        related.remember(record, relation.name, key, found)
        related.set_back(found, link, record, of_one_query=True)
        return found

    def count(self) -> int:
        """How many there are: what `with_count` has counted, else how many are loaded, else one query."""
        record, relation = self._record, self._relation
        link = relation.link(type(record))
        key = getattr(record, link.near.name)
        counted = related.recall(record, related.count_name(relation.name), key)
        if counted is not related.MISSING:
            return cast("int", counted)
        known = related.recall(record, relation.name, key)
        if known is not related.MISSING:
            return len(cast("list[T]", known))
        if key is None or (record.is_new and not link.key_is_here):
            return 0
        strictness.lazily(record, relation)
        return self.query().count()


class One(_FarSide[T]):
    """The far side of one record's `BelongsTo` or `HasOne`; call it for the record."""

    __slots__ = ()

    def __call__(self) -> T | None:
        """The related record, or None; asked for once, and that there is none is remembered too."""
        record, relation = self._record, self._relation
        link = relation.link(type(record))
        key = getattr(record, link.near.name)
        known = related.recall(record, relation.name, key)
        if known is not related.MISSING:
            return cast("T | None", known)
        if key is None or (record.is_new and not link.key_is_here):
            return None
        strictness.lazily(record, relation)
        if link.hops:
            return cast("T | None", self._load_through(key))
        sought = link.far.sought(key)
        if relation.cache is None:
            found = find_first(link.target, (link.far,), (sought,))
        else:
            found = _parent(link, relation.cache, sought)
        related.remember(record, relation.name, key, found)
        if found is not None:
            related.set_back((found,), link, record)
        return cast("T | None", found)


def _parent(link: Link, policy: Cached, key: Any) -> Any | None:
    def read(_: Sequence[Any], primary: bool) -> list[Any]:
        one = find_first(link.target, (link.far,), (key,), primary=primary)
        return [] if one is None else [one]

    found = looked_up(link, policy, [key], read)
    return found[0] if found else None
