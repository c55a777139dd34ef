"""Counter caches as fields declare them: how many rows of another table a record has, kept in a column of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from crosstie.orm.column import annotated
from crosstie.orm.errors import ModelDefinitionError
from crosstie.orm.mapping import mapping_of
from crosstie.orm.placement import connections_of
from crosstie.orm.registry import registry

if TYPE_CHECKING:
    from crosstie.orm.mapping import TableMapping
    from crosstie.orm.model import ActiveRecord

__all__ = ["Counter", "CounterCache", "counters"]


@dataclass(frozen=True, eq=False)
class CounterCache:
    """How many records a relation has: `posts_count: Annotated[int, CounterCache("posts")] = 0`.

    `relation` is a `HasMany` of the model. The application writes the column, with the children or soon after; audits
    find where it is wrong.
    """

    relation: str


@dataclass(frozen=True)
class Counter:
    """A column of the parent's table that is to be the number of rows whose `child_column` is the parent's key.

    The children may be in several databases, and count together.
    """

    connection: str
    table: sa.Table
    key_column: sa.Column[Any]
    counter_column: sa.Column[Any]
    child_connections: tuple[str, ...]
    child_table: sa.Table
    child_column: sa.Column[Any]


def counters(models: Iterable[type[ActiveRecord]] | None = None) -> list[Counter]:
    """The counters that fields declare, each once; of every model defined unless `models` are given.

    A model in a database for each tenant or shard has one for each that is configured. Raises ModelDefinitionError for
    one that names no `HasMany`, and what resolving a relation raises.
    """
    found: dict[tuple[str, str, str], Counter] = {}
    for model in registry.models() if models is None else models:
        for name, info in model.model_fields.items():
            for marker in annotated(info, CounterCache):
                for one in _resolved(model, name, marker.relation):
                    found.setdefault((one.connection, one.table.fullname, one.counter_column.name), one)
    return list(found.values())


def _resolved(model: type[ActiveRecord], name: str, relation_name: str) -> list[Counter]:
    parent = mapping_of(model)
    where = f"{model.__qualname__}.{name} is declared CounterCache({relation_name!r})"
    relation = parent.relations.get(relation_name)
    link = None if relation is None else relation.link(model)
    if relation is None or link is None or not relation.many or link.hops:
        known = ", ".join(sorted(one.name for one in parent.relations.values() if one.many)) or "none"
        raise ModelDefinitionError(
            f"{where}: expected a HasMany relation of {model.__qualname__} with a foreign key of its own; its "
            f"relations to many: {known}."
        )
    field, child = parent.fields[name], link.target
    _require_possible(where, parent, name, child)
    by_parent: dict[str, list[str]] = {}
    for child_connection, parent_connection in connections_of(child.place, parent.place):
        by_parent.setdefault(parent_connection, []).append(child_connection)
    return [
        Counter(
            connection,
            parent.table,
            link.near.column,
            field.column,
            tuple(children),
            child.table,
            link.far.column,
        )
        for connection, children in by_parent.items()
    ]


def _require_possible(where: str, parent: TableMapping, name: str, child: TableMapping) -> None:
    if child.soft_delete is not None:
        raise ModelDefinitionError(
            f"{where}, and {child.model.__qualname__} marks its rows deleted and keeps them: an audit counts the rows "
            "of a key, whatever is in their other columns."
        )
    if not isinstance(parent.fields[name].column.type, sa.Integer):
        raise ModelDefinitionError(
            f"{where}: expected a field of type int, and found {parent.fields[name].column.type!r}."
        )
