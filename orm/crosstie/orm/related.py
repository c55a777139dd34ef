"""What a record's relations have loaded, kept in the slot `_related` and so out of comparison, dumps and copies.

Each value is kept with the key that it was loaded for: when the record's key changes, the value no longer counts. Where
the other model's database is chosen for each statement, the value counts only while the same one is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from crosstie.orm.errors import InvalidQuery
from crosstie.orm.mapping import TableMapping, mapping_of
from crosstie.orm.origin import require_origin
from crosstie.orm.placement import chosen

if TYPE_CHECKING:
    from crosstie.orm.link import Link
    from crosstie.orm.model import ActiveRecord
    from crosstie.orm.relation import Relation

__all__ = ["LOAD", "MISSING", "assign", "count_name", "forget", "forget_all", "recall", "remember", "set_back"]

MISSING: Final = object()
"""Nothing was loaded; None is a loaded answer."""
LOAD: Final = ""
"""In the place of a relation's name: what the records of one query share."""


def count_name(name: str) -> str:
    """In the place of a relation's name: how many records it leads to."""
    return f"{name}#count"


def _kept(record: ActiveRecord) -> dict[str, tuple[Any, Any, Any]] | None:
    try:
        found: dict[str, tuple[Any, Any, Any]] = object.__getattribute__(record, "_related")
    except AttributeError:
        return None
    return found


def recall(record: ActiveRecord, name: str, key: Any) -> Any:
    """What relation `name` has loaded for this key, or MISSING."""
    kept = _kept(record)
    if kept is None:
        return MISSING
    entry = kept.get(name)
    if entry is None or entry[0] != key:
        return MISSING
    return entry[1] if entry[2] is None or entry[2] == _scope(record, name) else MISSING


def remember(record: ActiveRecord, name: str, key: Any, value: Any) -> None:
    """Keep what relation `name` has loaded for this key."""
    kept = _kept(record)
    entry = (key, value, _scope(record, name))
    if kept is None:
        object.__setattr__(record, "_related", {name: entry})
    else:
        kept[name] = entry


def _scope(record: ActiveRecord, name: str) -> Any:
    """What must be chosen for a loaded value to count; None for anything. Raises WrongTenant."""
    if not TableMapping.any_placed:
        return None
    mapping = mapping_of(type(record))
    relation = mapping.relations.get(name)
    if relation is None:
        return chosen()
    placed = [hop.target for hop in relation.link(type(record)).chain if hop.target.is_placed]
    if not placed:
        return None
    require_origin(record, mapping)
    return [target.connection for target in placed]


def forget(record: ActiveRecord, name: str) -> None:
    """Drop what one relation has loaded."""
    kept = _kept(record)
    if kept is not None:
        kept.pop(name, None)


def forget_all(record: ActiveRecord) -> None:
    """Drop what every relation has loaded."""
    load = recall(record, LOAD, None)
    if _kept(record) is not None:
        object.__delattr__(record, "_related")
    if load is not MISSING:
        remember(record, LOAD, None, load)


def set_back(found: Sequence[ActiveRecord], link: Link, record: ActiveRecord, *, of_one_query: bool = False) -> None:
    """Tell the records found which record they were found from, so that the way back needs no query.

    Records just loaded by one query all hold something already or none does, which saves looking at each.
    """
    name, far = link.inverse, link.far.name
    if name is None or not found:
        return
    if of_one_query and not TableMapping.any_placed and _kept(found[0]) is None:
        for other in found:
            object.__setattr__(other, "_related", {name: (other.__dict__[far], record, None)})
        return
    for other in found:
        remember(other, name, getattr(other, far), record)


def assign(record: ActiveRecord, relation: Relation[Any], value: Any) -> None:
    """Keep what the user gives (`user._posts = [...]`) as what the relation has loaded. Raises InvalidQuery."""
    link = relation.link(type(record))
    given = value if relation.many else [] if value is None else [value]
    if not isinstance(given, list) or not all(isinstance(one, link.target.model) for one in given):
        kind = (
            f"a list of {link.target.model.__qualname__}"
            if relation.many
            else f"a {link.target.model.__qualname__} or None"
        )
        raise InvalidQuery(f"{type(record).__qualname__}._{relation.name}: expected {kind}, and found {value!r}.")
    remember(record, relation.name, getattr(record, link.near.name), value)
    set_back(given, link, record)
