"""Which tables are looked up through the cache: the parents of the relations that are declared with it.

Only the models that this process has imported are known: who writes a parent must have imported those that cache it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from crosstie.orm.declaration import relations_of
from crosstie.orm.errors import InvalidQuery, ModelDefinitionError
from crosstie.orm.placement import Place
from crosstie.orm.registry import registry

if TYPE_CHECKING:
    from crosstie.orm.mapping import TableMapping

__all__ = ["cached_columns", "cached_tables", "may_be_cached"]


class _Target(NamedTuple):
    place: Place
    column: str


def may_be_cached(mapping: TableMapping) -> bool:
    """Whether rows of this model's table may be in the cache."""
    targets = _by_table(registry.generation).get(mapping.table.name, ())
    return any(
        target.place == mapping.place or not (isinstance(target.place, str) and isinstance(mapping.place, str))
        for target in targets
    )


def cached_columns(table: str, connection: str) -> list[str]:
    """The columns by which rows of a table in this database are found in the cache."""
    targets = _by_table(registry.generation).get(table, ())
    return list(dict.fromkeys(target.column for target in targets if _is_at(target.place, connection)))


def cached_tables(connection: str) -> list[str]:
    """The tables of this database of which rows are cached."""
    return [table for table in _by_table(registry.generation) if cached_columns(table, connection)]


def _is_at(place: Place, connection: str) -> bool:
    # A function may return any name: then each database may have such rows.
    return place == connection if isinstance(place, str) else place.reachable() is None or place.may_be(connection)


@functools.lru_cache(maxsize=1)
def _by_table(generation: int) -> dict[str, tuple[_Target, ...]]:
    del generation  # another one is another question
    found: dict[str, tuple[_Target, ...]] = {}
    for table, target in _declared():
        found[table] = (*found.get(table, ()), target)
    return found


def _declared() -> Iterator[tuple[str, _Target]]:
    for model in registry.models():
        for relation in relations_of(model).values():
            if relation.cache is None:
                continue
            try:
                link = relation.link(model)
            except (ModelDefinitionError, InvalidQuery):
                continue  # its parent is not defined here, or no parent of it: who looks it up here is told so
            yield link.target.table.name, _Target(link.target.place, link.far.column.name)
