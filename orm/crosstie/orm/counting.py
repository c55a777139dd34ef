"""How many related rows each record has, for many records at once: one query per relation and database."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from crosstie.orm import related
from crosstie.orm.condition import Membership
from crosstie.orm.errors import InvalidQuery
from crosstie.orm.hops import reached_over
from crosstie.orm.keyset import portions
from crosstie.orm.mapping import mapping_of
from crosstie.orm.modifier import Modifier, modified
from crosstie.orm.reading import reading

if TYPE_CHECKING:
    from crosstie.orm.link import Link
    from crosstie.orm.model import ActiveRecord
    from crosstie.orm.query import Query

__all__ = ["load_counts", "require_many"]

Counted = tuple[str, Modifier | None]


def require_many(model: type[ActiveRecord], name: str, modifier: Modifier | None) -> None:
    """Raise InvalidQuery where a model has no relation to many of this name, or its modifier gives no query."""
    relation = mapping_of(model).relation(name)
    if not relation.many:
        raise InvalidQuery(
            f"with_count() counts what a relation to many leads to, and {relation!r} leads to one record at most."
        )
    if modifier is not None:
        modified(_query(relation.link(model)), (modifier,), f"with_count({name!r})")


def load_counts(model: type[ActiveRecord], records: Sequence[ActiveRecord], counted: Iterable[Counted]) -> None:
    """Count for each record, and remember the number where `record.posts.count()` looks for it."""
    for name, modifier in counted:
        link = mapping_of(model).relation(name).link(model)
        query = modified(_query(link), () if modifier is None else (modifier,), name)
        near, first = link.near.name, link.chain[0]
        keys = {first.hashable(key): None for record in records if (key := record.__dict__[near]) is not None}
        reached = reached_over(link, list(keys)) if link.hops else None
        found = _counts(link, list(keys) if reached is None else reached.keys, query)
        for record in records:
            key = record.__dict__[near]
            start = None if key is None else first.hashable(key)
            number = (
                found.get(start, 0)
                if reached is None
                else sum(found.get(one, 0) for one in reached.by_start.get(start, ()))
            )
            related.remember(record, related.count_name(name), key, number)


def _counts(link: Link, keys: list[Any], query: Query[Any]) -> dict[Any, int]:
    last = link.chain[-1]
    found: dict[Any, int] = {}
    for values in portions(link.target, [last.far.sought(key) for key in keys]):
        asked = query.meeting(Membership(last.far, values)).selection._replace(order=()).asked()
        with reading(link.target) as (connection, database):
            statement = asked.select(database, [last.far.column, sa.func.count()])
            rows = connection.execute(statement.group_by(last.far.column)).all()
        convert = last.far.convert
        for value, number in rows:
            found[last.hashable(value if convert is None else convert(value))] = number
    return found


def _query(link: Link) -> Query[Any]:
    from crosstie.orm.query import Query

    return Query(link.target.model)
