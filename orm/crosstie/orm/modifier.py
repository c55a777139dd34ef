"""What narrows or orders the far side of a relation: a function from a query to a query."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from crosstie.orm.errors import InvalidQuery

if TYPE_CHECKING:
    from crosstie.orm.query import Query

__all__ = ["Modifier", "modified"]

Modifier: TypeAlias = Callable[["Query[Any]"], "Query[Any]"]


def modified(query: Query[Any], modifiers: Iterable[Modifier], where: str) -> Query[Any]:
    """The query as the modifiers make it, in their order, and each row once where they join others to it.

    Raises InvalidQuery where one returns no query of the same model, or one with a limit or an offset, which would
    count the rows of all records together.
    """
    for modifier in modifiers:
        made = modifier(query)
        if not isinstance(made, type(query)) or made._model is not query._model:
            raise InvalidQuery(
                f"{where}: expected a function that returns the query of {query._model.__qualname__} that it was "
                f"given, narrowed or ordered, and it returned {made!r}."
            )
        query = made
    if query.selection.is_cut:
        raise InvalidQuery(
            f"{where}: a limit or an offset would count the rows of all records together, not of each: take the "
            "first ones of each record's list, or ask each record's query()."
        )
    return query.distinct() if query.selection.repeats else query
