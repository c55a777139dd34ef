"""Queries: built step by step, each step a new query, sent when their rows are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self, TypeVar

import sqlalchemy as sa

from crosstie.orm import bulk
from crosstie.orm.condition import Condition, Expression, all_of, keyword, require_one_database, require_one_table
from crosstie.orm.errors import InvalidQuery, MultipleRecords, RecordNotFound
from crosstie.orm.mapping import TableMapping, mapping_of
from crosstie.orm.reading import fetch, reading
from crosstie.orm.relation_query import Plan, RelationQuery

if TYPE_CHECKING:
    from crosstie.orm.database import Database
    from crosstie.orm.model import ActiveRecord

__all__ = ["Query"]

M = TypeVar("M", bound="ActiveRecord")


class Query(RelationQuery[M]):
    """Rows of one model that meet all conditions.

    Every method that narrows or orders returns a new query. Names are checked when they are given: an unknown field or
    relation raises InvalidQuery, a table of another database CrossDatabaseQuery. Iterating loads all rows.
    """

    __slots__ = ("_conditions", "_limit", "_mapping", "_model", "_offset", "_order", "_plan")

    def __init__(self, model: type[M]) -> None:
        self._model = model
        self._mapping: TableMapping = mapping_of(model)
        self._conditions: tuple[Condition, ...] = ()
        self._order: tuple[sa.ColumnElement[Any], ...] = ()
        self._limit: int | None = None
        self._offset: int | None = None
        self._plan = Plan()

    def __repr__(self) -> str:
        return f"Query({self._model.__qualname__}, {len(self._conditions)} conditions)"

    # -- narrowing ------------------------------------------------------------------------------------------

    def where(self, *expressions: sa.ColumnElement[bool] | sa.TextClause, **equal: Any) -> Self:
        """Rows that also meet these conditions: SQLAlchemy expressions over `Model.c`, and fields by keyword.

        A keyword's value is compared; None means IS NULL, and a list, tuple or set means IN.
        """
        added = [Expression(self._mapping, one) for one in expressions]
        return self._with(
            _conditions=(
                *self._conditions,
                *added,
                *(keyword(self._mapping, name, value) for name, value in equal.items()),
            )
        )

    def meeting(self, condition: Condition) -> Self:
        """Rows that also meet a condition made elsewhere in crosstie."""
        return self._with(_conditions=(*self._conditions, condition))

    def order_by(self, *terms: str | sa.ColumnElement[Any]) -> Self:
        """Ordered by fields, `"name"` or `"-name"` for descending, or by expressions; earlier terms weigh more."""
        return self._with(_order=(*self._order, *(self._order_term(term) for term in terms)))

    def limit(self, count: int | None) -> Self:
        """At most so many rows; None takes the limit away."""
        return self._with(_limit=_count_of(count, "limit"))

    def offset(self, count: int | None) -> Self:
        """Without the first `count` rows."""
        return self._with(_offset=_count_of(count, "offset"))

    # -- reading --------------------------------------------------------------------------------------------

    def all(self) -> list[M]:
        """Every row as a record."""
        return self._load(self._limit, self._order)

    def __iter__(self) -> Iterator[M]:
        return iter(self.all())

    def first(self) -> M | None:
        """The first row, by primary key where no order was given; None where there is none."""
        order = self._order or tuple(field.column for field in self._mapping.key)
        limit = 1 if self._limit is None else min(1, self._limit)
        found = self._load(limit, order)
        return found[0] if found else None

    def one(self) -> M:
        """The only row. Raises RecordNotFound where there is none, MultipleRecords where there are more."""
        found = self._load(2 if self._limit is None else min(2, self._limit), self._order)
        if not found:
            raise RecordNotFound(f"expected one {self._model.__qualname__} and found none that meets the conditions.")
        if len(found) > 1:
            raise MultipleRecords(
                f"expected one {self._model.__qualname__} and found several: narrow the conditions, or use first()."
            )
        return found[0]

    def count(self) -> int:
        """How many rows there are, limit and offset included."""
        with reading(self._mapping) as (connection, database):
            rows = self._select(database, [sa.literal_column("1")], self._limit, ())
            counted = sa.select(sa.func.count()).select_from(rows.subquery())
            if self._limit is None and self._offset is None:
                counted = self._select(database, [sa.func.count()], None, ())
            found: int = connection.execute(counted).scalar_one()
        return found

    def exists(self) -> bool:
        """Whether there is any row."""
        with reading(self._mapping) as (connection, database):
            limit = 1 if self._limit is None else min(1, self._limit)
            row = connection.execute(self._select(database, [sa.literal_column("1")], limit, ())).first()
        return row is not None

    def pluck(self, *names: str) -> list[Any]:
        """The values of one field, or tuples of the values of several, without making records."""
        if not names:
            raise InvalidQuery("pluck() expected the name of at least one field.")
        fields = [self._mapping.field(name) for name in names]
        with reading(self._mapping) as (connection, database):
            columns = [field.column for field in fields]
            rows = connection.execute(self._select(database, columns, self._limit, self._order)).all()
        converted = [tuple(_converted(fields, row)) for row in rows]
        return [row[0] for row in converted] if len(names) == 1 else converted

    # -- writing --------------------------------------------------------------------------------------------

    def update_all(self, **values: Any) -> int:
        """Set fields of every matching row in one statement; returns how many rows matched.

        Records in memory keep what they have. Raises InvalidQuery with a limit, an offset or an order.
        """
        self._require_plain("update_all")
        return bulk.update_rows(self._mapping, self._clause, values)

    def delete_all(self) -> int:
        """Delete every matching row in one statement; returns how many there were."""
        self._require_plain("delete_all")
        return bulk.delete_rows(self._mapping, self._clause)

    # -- the statement --------------------------------------------------------------------------------------

    def _with(self, **changed: Any) -> Self:
        made = object.__new__(type(self))
        for name in Query.__slots__:
            object.__setattr__(made, name, changed.get(name, getattr(self, name)))
        return made

    def _load(self, limit: int | None, order: tuple[sa.ColumnElement[Any], ...]) -> list[M]:
        with reading(self._mapping) as (connection, database):
            columns = [field.column for field in self._mapping.fields.values()]
            found: list[M] = fetch(self._mapping, connection, self._select(database, columns, limit, order))
        self._plan.complete(self._model, found)
        return found

    def _select(
        self, database: Database, columns: list[Any], limit: int | None, order: tuple[sa.ColumnElement[Any], ...]
    ) -> sa.Select[Any]:
        statement = sa.select(*columns).select_from(self._mapping.table)
        clause = all_of(self._conditions, database)
        if clause is not None:
            statement = statement.where(clause)
        if order:
            statement = statement.order_by(*order)
        if any(isinstance(condition, Expression) for condition in self._conditions) or order:
            require_one_table(self._mapping, statement)
        if limit is not None:
            statement = statement.limit(limit)
        return statement if self._offset is None else statement.offset(self._offset)

    def _clause(self, database: Database) -> sa.ColumnElement[bool]:
        clause = all_of(self._conditions, database)
        if clause is None:
            return sa.true()
        require_one_table(self._mapping, sa.select(self._mapping.key[0].column).where(clause))
        return clause

    def _order_term(self, term: str | sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        if isinstance(term, str):
            column = self._mapping.field(term.removeprefix("-")).column
            return column.desc() if term.startswith("-") else column.asc()
        if not isinstance(term, sa.ColumnElement):
            raise InvalidQuery(f"order_by() expected the name of a field or an expression, and found {term!r}.")
        require_one_database(self._mapping, term)
        return term

    def _require_plain(self, method: str) -> None:
        if self._limit is not None or self._offset is not None or self._order:
            raise InvalidQuery(
                f"{method}() writes every row that meets the conditions; a limit, an offset or an order cannot narrow "
                "it. Read the keys first and pass them to where() as a list."
            )


def _converted(fields: list[Any], row: sa.Row[Any]) -> Iterator[Any]:
    for field, value in zip(fields, row, strict=True):
        yield value if field.convert is None else field.convert(value)


def _count_of(value: int | None, what: str) -> int | None:
    if value is not None and (type(value) is not int or value < 0):
        raise InvalidQuery(f"{what}() expected a number of rows, zero or more, and found {value!r}.")
    return value
