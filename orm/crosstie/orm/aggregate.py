"""Counts, sums, averages and extremes, of all rows of a query or of each group of them.

Answers are the same on every database: a sum of whole numbers is a whole number, and an average is the quotient of sum
and count, taken here, where servers would round each in their own way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Self, TypeVar, overload
from uuid import UUID

import sqlalchemy as sa

from crosstie.orm.combination import Given, conditions_of
from crosstie.orm.condition import Condition
from crosstie.orm.errors import InvalidQuery
from crosstie.orm.mapping import MappedField

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crosstie.orm.query import Query

__all__ = ["COUNT", "Aggregate", "Groups", "average", "extreme", "number_of", "total"]

K = TypeVar("K")
Row = Sequence[Any]


class Aggregate(NamedTuple):
    """What is computed over rows, and the value that the results make."""

    columns: tuple[sa.ColumnElement[Any], ...]
    value: Callable[[Row], Any]


COUNT: Final = Aggregate((sa.func.count(),), lambda row: row[0])


def number_of(field: MappedField, *, distinct: bool) -> Aggregate:
    """How many rows have a value, or how many different values there are."""
    column = sa.distinct(field.column) if distinct else field.column
    return Aggregate((sa.func.count(column),), lambda row: row[0])


def total(field: MappedField) -> Aggregate:
    """The sum, 0 where there is nothing to add. Raises InvalidQuery where the field is no number."""
    kind = _number(field, "sum")
    return Aggregate((sa.func.sum(field.column),), lambda row: kind(0 if row[0] is None else row[0]))


def average(field: MappedField) -> Aggregate:
    """Sum over count, None where there is no value; a Decimal of Decimals, else a float."""
    kind = _number(field, "avg")

    def value(row: Row) -> Any:
        found, count = row
        if not count:
            return None
        return Decimal(found) / count if kind is Decimal else kind(found) / count

    return Aggregate((sa.func.sum(field.column), sa.func.count(field.column)), value)


def extreme(field: MappedField, which: str) -> Aggregate:
    """The least ("min") or greatest ("max") value, None where there is none."""
    if field.mutable or field.family in {bool, UUID}:  # for which PostgreSQL has no min() and max()
        raise InvalidQuery(f"{which}() expected a field whose values have an order, and found {field.column!s}.")
    convert = field.convert
    made = sa.func.min(field.column) if which == "min" else sa.func.max(field.column)
    return Aggregate((made,), lambda row: row[0] if convert is None else convert(row[0]))


def _number(field: MappedField, what: str) -> Callable[[Any], Any]:
    if field.family not in {int, float, Decimal}:
        raise InvalidQuery(f"{what}() expected a field that holds numbers, and found {field.column!s}.")
    assert field.family is not None
    return field.family


class Groups(Generic[K]):
    """The rows of a query by the values of some fields; each answer is a dict from those values.

    The key is the value of the one field, or a tuple of the values of several.
    """

    __slots__ = ("_fields", "_having", "_query")

    def __init__(self, query: Query[Any], fields: Sequence[MappedField], having: tuple[Condition, ...] = ()) -> None:
        self._query = query
        self._fields = tuple(fields)
        self._having = having

    @overload
    def having(self, sql: str, parameters: Mapping[str, object], /) -> Self: ...
    @overload
    def having(self, *conditions: Given) -> Self: ...
    def having(self, *conditions: Any) -> Self:
        """Only groups that meet these conditions: `having(sqlalchemy.func.count() > 1)`, or SQL with its values."""
        added = conditions_of(self._query.mapping, conditions, {})
        return type(self)(self._query, self._fields, (*self._having, *added))

    def count(self) -> dict[K, int]:
        """How many rows each group has."""
        return self._ask(COUNT)

    def sum(self, name: str | sa.ColumnElement[Any]) -> dict[K, Any]:
        """The sum of a field in each group."""
        return self._ask(total(self._query.selection.field(name)))

    def avg(self, name: str | sa.ColumnElement[Any]) -> dict[K, Any]:
        """The average of a field in each group, None where it is NULL in all of its rows."""
        return self._ask(average(self._query.selection.field(name)))

    def min(self, name: str | sa.ColumnElement[Any]) -> dict[K, Any]:
        """The least value of a field in each group."""
        return self._ask(extreme(self._query.selection.field(name), "min"))

    def max(self, name: str | sa.ColumnElement[Any]) -> dict[K, Any]:
        """The greatest value of a field in each group."""
        return self._ask(extreme(self._query.selection.field(name), "max"))

    def _ask(self, aggregate: Aggregate) -> dict[K, Any]:
        rows = self._query.grouped_rows(self._fields, aggregate, self._having)
        width = len(self._fields)
        found: dict[Any, Any] = {}
        for row in rows:
            values = [
                value if field.convert is None else field.convert(value)
                for field, value in zip(self._fields, row[:width], strict=True)
            ]
            found[values[0] if width == 1 else tuple(values)] = aggregate.value(row[width:])
        return found
