"""Eager loading: each relation of a path in one query per database, however many records it starts from.

Keys are gathered once, asked for as one list, and the answers are dealt out by key: the work grows with the number of
records, not with its square. A parent that is missing is remembered as missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from crosstie.orm import related
from crosstie.orm.condition import Membership
from crosstie.orm.mapping import mapping_of
from crosstie.orm.relation import Link, Relation, records_of

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = ["load_paths", "require_path"]

Tree = dict[str, "Tree"]


def require_path(model: type[ActiveRecord], path: str) -> None:
    """Raise InvalidQuery where a path such as `posts.comments` names a relation that does not exist."""
    for name in path.split("."):
        model = mapping_of(model).relation(name).link(model).target.model


def load_paths(model: type[ActiveRecord], records: Sequence[ActiveRecord], paths: Iterable[str]) -> None:
    """Load the relations of all paths; a relation that several paths share is loaded once."""
    tree: Tree = {}
    for path in paths:
        level = tree
        for name in path.split("."):
            level = level.setdefault(name, {})
    _load_level(model, records, tree)


def _load_level(model: type[ActiveRecord], records: Sequence[ActiveRecord], tree: Tree) -> None:
    for name, below in tree.items():
        relation = mapping_of(model).relation(name)
        found = _load(model, records, relation)
        if below and found:
            _load_level(relation.link(model).target.model, found, below)


def _load(model: type[ActiveRecord], records: Sequence[ActiveRecord], relation: Relation[Any]) -> list[ActiveRecord]:
    link = relation.link(model)
    name, near = relation.name, link.near.name
    waiting: dict[Any, list[ActiveRecord]] = {}
    reached: dict[int, ActiveRecord] = {}
    for record in records:
        key = record.__dict__[near]
        known = related.recall(record, name, key)
        if known is not related.MISSING:
            reached.update((id(one), one) for one in records_of(known))
        elif key is None:
            related.remember(record, name, None, [] if relation.many else None)
        else:
            waiting.setdefault(key if link.plain is None else link.plain(key), []).append(record)
    if waiting:
        found = _ask(link, list(waiting))
        _deal(relation, link, waiting, found)
        reached.update((id(one), one) for one in found)
    return list(reached.values())


def _ask(link: Link, keys: list[Any]) -> list[Any]:
    from crosstie.orm.query import Query

    values = [link.far.sought(key) for key in keys]
    return Query(link.target.model).meeting(Membership(link.far, values)).all()


def _deal(
    relation: Relation[Any], link: Link, waiting: dict[Any, list[ActiveRecord]], found: list[ActiveRecord]
) -> None:
    name, far, near, plain = relation.name, link.far.name, link.near.name, link.plain
    by_key: dict[Any, list[ActiveRecord]] = {}
    for one in found:
        key = one.__dict__[far]
        by_key.setdefault(key if plain is None else plain(key), []).append(one)
    for key, records in waiting.items():
        group = by_key.get(key, [])
        for record in records:
            value: Any = list(group) if relation.many else (group[0] if group else None)
            related.remember(record, name, record.__dict__[near], value)
        if link.inverse is not None:
            related.set_back(group, link, records[0])
