"""The order of a query: terms made of names and expressions, and the same order read from its end."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql import operators, visitors

from crosstie.orm.condition import require_one_database
from crosstie.orm.errors import InvalidQuery
from crosstie.orm.mapping import TableMapping

__all__ = ["order_term", "require_selected", "reversed_terms"]

Term = sa.ColumnElement[Any]


def order_term(mapping: TableMapping, term: str | Term) -> Term:
    """What a term of `order_by` means. Raises InvalidQuery, CrossDatabaseQuery."""
    if isinstance(term, str):
        column = mapping.field(term.removeprefix("-")).column
        return column.desc() if term.startswith("-") else column.asc()
    if not isinstance(term, sa.ColumnElement):
        raise InvalidQuery(f"order_by() expected the name of a field or an expression, and found {term!r}.")
    require_one_database(mapping, term)
    return term


def reversed_terms(order: Sequence[Term]) -> tuple[Term, ...]:
    """The opposite order. Raises InvalidQuery for terms that say where NULL stands."""
    return tuple(_reversed(term) for term in order)


def _reversed(term: Term) -> Term:
    modifier = getattr(term, "modifier", None)
    if modifier is None:
        return term.desc()
    assert isinstance(term, sa.UnaryExpression)
    if modifier is operators.desc_op:
        return term.element.asc()
    if modifier is operators.asc_op:
        return term.element.desc()
    raise InvalidQuery(f"last() cannot reverse the order {term!s}: give the opposite one, and use first().")


def require_selected(
    order: Sequence[Term],
    columns: Collection[sa.ColumnElement[Any]],
    what: str,
    named: str = "the fields it names",
) -> None:
    """Raise InvalidQuery where rows that were made one are to be ordered by what they do not share."""
    for term in order:
        for part in visitors.iterate(term):
            if isinstance(part, sa.Column) and not any(part is column for column in columns):
                raise InvalidQuery(f"{what} expected an order by {named}, and found {term!s}.")
