"""Eager loading: each relation of a path in one query per database, however many records it starts from.

Keys are gathered once, asked for as one list, and the answers are dealt out by key: the work grows with the number of
records, not with its square. A parent that is missing is remembered as missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from crosstie.orm import related, strictness
from crosstie.orm.cache.lookup import looked_up
from crosstie.orm.condition import Membership
from crosstie.orm.errors import InvalidQuery
from crosstie.orm.hops import Reached, reached_over
from crosstie.orm.keyset import portions
from crosstie.orm.mapping import mapping_of
from crosstie.orm.modifier import Modifier, modified
from crosstie.orm.routing import router

if TYPE_CHECKING:
    from crosstie.orm.cache.policy import Cached
    from crosstie.orm.link import Link
    from crosstie.orm.model import ActiveRecord
    from crosstie.orm.query import Query
    from crosstie.orm.relation import Relation
    from crosstie.orm.strictness import Strictness

__all__ = ["load_one", "load_paths", "require_path"]

Wanted = tuple[str, Modifier | None]
"""A path such as `posts.comments`, and what modifies the query of its last relation."""


class _Node:
    """One relation of a path: what modifies its query, and the relations to load from there."""

    __slots__ = ("below", "modifiers")

    def __init__(self) -> None:
        self.below: dict[str, _Node] = {}
        self.modifiers: list[Modifier] = []

    def is_modified(self) -> bool:
        """Whether this relation or one below is not to be loaded as it is."""
        return bool(self.modifiers) or any(node.is_modified() for node in self.below.values())


def require_path(model: type[ActiveRecord], path: str, modifier: Modifier | None) -> None:
    """Raise InvalidQuery where a path such as `posts.comments` leads nowhere, or its modifier gives no query."""
    for name in path.split("."):
        model = mapping_of(model).relation(name).link(model).target.model
    if modifier is not None:
        modified(_query(model), (modifier,), f"with_({path!r})")


def load_paths(
    model: type[ActiveRecord], records: Sequence[ActiveRecord], wanted: Iterable[Wanted], strict: Strictness | None
) -> None:
    """Load the relations of all paths; a relation that several paths share is loaded once."""
    root = _Node()
    for path, modifier in wanted:
        node = root
        for name in path.split("."):
            node = node.below.setdefault(name, _Node())
        if modifier is not None:
            node.modifiers.append(modifier)
    _load_level(model, records, root, strict)


def load_one(record: ActiveRecord, relation: Relation[Any]) -> None:
    """Load a relation of one record, as for many."""
    _load(type(record), (record,), relation, _Node(), None)


def _load_level(
    model: type[ActiveRecord], records: Sequence[ActiveRecord], node: _Node, strict: Strictness | None
) -> None:
    for name, below in node.below.items():
        relation = mapping_of(model).relation(name)
        found = _load(model, records, relation, below, strict)
        if below.below and found:
            _load_level(relation.link(model).target.model, found, below, strict)


def _load(
    model: type[ActiveRecord],
    records: Sequence[ActiveRecord],
    relation: Relation[Any],
    node: _Node,
    strict: Strictness | None,
) -> list[ActiveRecord]:
    link = relation.link(model)
    name, near = relation.name, link.near.name
    # What is known already was loaded without the modifiers, and may be a record that leads back: its own relations
    # must not be replaced by those of a level further down.
    afresh = node.is_modified()
    waiting: dict[Any, list[ActiveRecord]] = {}
    known_ones: dict[int, ActiveRecord] = {}
    for record in records:
        key = getattr(record, near)
        known = related.MISSING if afresh else related.recall(record, name, key)
        if known is not related.MISSING:
            known_ones.update((id(one), one) for one in _sequence(known))
        elif key is None:
            related.remember(record, name, None, [] if relation.many else None)
        else:
            waiting.setdefault(link.chain[0].hashable(key), []).append(record)
    if waiting:
        reached = reached_over(link, list(waiting)) if link.hops else None
        query = modified(_query(link.target.model), node.modifiers, name).strict(strict)
        asked = list(waiting) if reached is None else reached.keys
        if relation.cache is None or node.modifiers:
            found = _ask(link, asked, query)
        else:
            found = _parents(link, relation.cache, asked, query)
            strictness.watch(found, strict)
        groups = _grouped(link, found, reached, ordered=bool(query.selection.order))
        _deal(relation, link, waiting, groups)
        if not known_ones:
            return found
        known_ones.update((id(one), one) for one in found)
    return list(known_ones.values())


def _ask(link: Link, keys: Sequence[Any], query: Query[Any]) -> list[Any]:
    last = link.chain[-1]
    lists = portions(link.target, [last.far.sought(key) for key in keys])
    if len(lists) > 1 and link.hops and query.selection.order:
        raise InvalidQuery(
            f"{len(keys)} keys of {link.target.model.__qualname__} are too long for one statement, and the answers "
            "of several have no common order: load fewer records at once, or leave out order_by()."
        )
    rows = query.loading([last.far])
    return [one for values in lists for one in rows.meeting(Membership(last.far, values)).all()]


def _parents(link: Link, policy: Cached, keys: Sequence[Any], query: Query[Any]) -> list[Any]:
    def read(missing: Sequence[Any], primary: bool) -> list[Any]:
        with router.primary_only() if primary else nullcontext():
            return _ask(link, missing, query)

    return looked_up(link, policy, [link.far.sought(key) for key in keys], read)


def _grouped(link: Link, found: list[Any], reached: Reached | None, *, ordered: bool) -> dict[Any, list[Any]]:
    """The records found, by the key of the record that they belong to."""
    last = link.chain[-1]
    by_key: dict[Any, list[Any]] = {}
    for one in found:
        by_key.setdefault(last.hashable(one.__dict__[last.far.name]), []).append(one)
    if reached is None:
        return by_key
    if not ordered:
        return {start: [one for key in keys for one in by_key.get(key, ())] for start, keys in reached.by_start.items()}
    starts: dict[Any, list[Any]] = {}
    for start, keys in reached.by_start.items():
        for key in keys:
            starts.setdefault(key, []).append(start)
    groups: dict[Any, list[Any]] = {}
    for one in found:
        for start in starts[last.hashable(one.__dict__[last.far.name])]:
            groups.setdefault(start, []).append(one)
    return groups


def _deal(
    relation: Relation[Any], link: Link, waiting: dict[Any, list[ActiveRecord]], groups: dict[Any, list[Any]]
) -> None:
    name, near = relation.name, link.near.name
    for key, records in waiting.items():
        group = groups.get(key, [])
        for record in records:
            value: Any = list(group) if relation.many else (group[0] if group else None)
            related.remember(record, name, getattr(record, near), value)
        if link.inverse is not None:
            related.set_back(group, link, records[0], of_one_query=True)


def _query(model: type[ActiveRecord]) -> Query[Any]:
    from crosstie.orm.query import Query

    return Query(model)


def _sequence(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
