"""What a query answers with: records, numbers, values, batches and pages, its plan and its SQL.

Each answer is one statement. What its conditions need of other databases is read first, before it takes a connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import sqlalchemy as sa
from sqlalchemy.sql import visitors

from crosstie.orm import aggregate, page
from crosstie.orm.condition import Condition, all_of
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import InvalidQuery, MultipleRecords, RecordNotFound
from crosstie.orm.mapping import MappedField
from crosstie.orm.ordering import require_selected, reversed_terms
from crosstie.orm.plan import plan_of, sql_of
from crosstie.orm.reading import fetch, reading
from crosstie.orm.relation_query import RelationQuery
from crosstie.orm.selection import Selection

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord
    from crosstie.orm.query import Query

__all__ = ["ReadQuery"]

M = TypeVar("M", bound="ActiveRecord")
Column = sa.ColumnElement[Any]


class ReadQuery(RelationQuery[M]):
    """The part of `Query` that reads.

    Where a field is named, a column of a joined model may stand, `User.c.name`.
    """

    __slots__ = ()

    # -- records --------------------------------------------------------------------------------------------

    def all(self) -> list[M]:
        """Every row as a record."""
        return self._load(self._selection)

    def __iter__(self) -> Iterator[M]:
        return iter(self.all())

    def first(self) -> M | None:
        """The first row, by primary key where no order was given; None where there is none."""
        found = self._load(_at_most(1, self._ordered()))
        return found[0] if found else None

    def last(self) -> M | None:
        """The last row, by primary key where no order was given; None where there is none."""
        ordered = self._ordered()
        if ordered.is_cut:
            found = self._load(ordered)
            return found[-1] if found else None
        found = self._load(ordered._replace(limit=1, order=reversed_terms(ordered.order)))
        return found[0] if found else None

    def one(self) -> M:
        """The only row. Raises RecordNotFound where there is none, MultipleRecords where there are more."""
        found = self._load(_at_most(2, self._selection))
        if not found:
            raise RecordNotFound(f"expected one {self._model.__qualname__} and found none that meets the conditions.")
        if len(found) > 1:
            raise MultipleRecords(
                f"expected one {self._model.__qualname__} and found several: narrow the conditions, or use first()."
            )
        return found[0]

    def in_batches(self, size: int = 1000) -> Iterator[list[M]]:
        """All records in lists of at most `size`, by primary key, so that no more than that is in memory.

        Each list is read when the one before was consumed, after its last key, so that rows may be changed or deleted
        meanwhile. What conditions need of other databases is read once, for all of them. Rows that a join repeats come
        once. Raises InvalidQuery where an order or an offset was given.
        """
        page.positive(size, "in_batches()")
        if self._selection.order or self._selection.offset is not None:
            raise InvalidQuery("in_batches() goes by the primary key: an order or an offset cannot be kept.")
        return page.batches(cast("Query[M]", self.distinct()), size, self._selection.limit)

    def find_each(self, size: int = 1000) -> Iterator[M]:
        """All records one by one, read in batches of `size` by primary key; see `in_batches`."""
        return (record for batch in self.in_batches(size) for record in batch)

    def paginate(self, number: int = 1, per_page: int = 50) -> page.Page[M]:
        """Page `number`, counted from 1, of the rows in their order (by primary key where none was given).

        Two statements: the rows of the page, and how many there are of all. A limit or offset raises InvalidQuery.
        """
        page.positive(number, "paginate()")
        page.positive(per_page, "paginate()")
        if self._selection.is_cut:
            raise InvalidQuery("paginate() sets limit and offset by itself: leave them out.")
        resolved = self.resolved()
        asked = resolved._ordered()._replace(limit=per_page, offset=(number - 1) * per_page)
        return page.Page(resolved._load(asked), number, per_page, resolved.count())

    # -- values ---------------------------------------------------------------------------------------------

    def count(self, name: str | Column | None = None) -> int:
        """How many rows there are, or how many have a value of this field; limit and offset included.

        After `distinct()`, how many different values the field has.
        """
        if name is not None:
            field, distinct = self._selection.field(name), self._selection.distinct
            counted = aggregate.number_of(field, distinct=distinct)
            asked = self._selection.resolved() if distinct else self._selection.asked()
            return int(self._aggregate(field, counted, asked))
        asked = self._selection._replace(order=()).asked()
        with reading(self.mapping) as (connection, database):
            if asked.is_cut:
                rows = asked.select(database, [sa.literal_column("1")]).subquery()
                statement = sa.select(sa.func.count()).select_from(rows)
            else:
                statement = asked.select(database, [sa.func.count()])
            found: int = connection.execute(statement).scalar_one()
        return found

    def exists(self) -> bool:
        """Whether there is any row."""
        asked = _at_most(1, self._selection._replace(order=()).asked())
        with reading(self.mapping) as (connection, database):
            return connection.execute(asked.select(database, [sa.literal_column("1")])).first() is not None

    @overload
    def pluck(self, name: str | Column, /) -> list[Any]: ...
    @overload
    def pluck(self, name: str | Column, /, *names: str | Column) -> list[tuple[Any, ...]]: ...
    def pluck(self, *names: str | Column) -> list[Any]:
        """The values of one field, or tuples of the values of several, without making records."""
        if not names:
            raise InvalidQuery("pluck() expected the name of at least one field.")
        fields = [self._selection.field(name) for name in names]
        columns = [field.column for field in fields]
        if self._selection.distinct:
            require_selected(self._selection.order, columns, "pluck() of a distinct query")
        self._selection.require_lockable()
        asked = self._selection.resolved()
        with reading(self.mapping) as (connection, database):
            statement = asked.select(database, columns)
            statement = statement.distinct() if asked.distinct else asked.locked(statement)
            rows = connection.execute(statement).all()
        if len(fields) == 1:
            convert = fields[0].convert
            return [row[0] if convert is None else convert(row[0]) for row in rows]
        return [tuple(_converted(fields, row)) for row in rows]

    def sum(self, name: str | Column) -> Any:
        """The sum of a numeric field, in the field's type; 0 where there is nothing to add."""
        field = self._selection.field(name)
        return self._aggregate(field, aggregate.total(field), self._selection.asked())

    def avg(self, name: str | Column) -> Any:
        """The average of a numeric field: a Decimal for Decimals, else a float; None where there is no value."""
        field = self._selection.field(name)
        return self._aggregate(field, aggregate.average(field), self._selection.asked())

    def min(self, name: str | Column) -> Any:
        """The least value of a field, None where there is none."""
        field = self._selection.field(name)
        return self._aggregate(field, aggregate.extreme(field, "min"), self._selection.asked())

    def max(self, name: str | Column) -> Any:
        """The greatest value of a field, None where there is none."""
        field = self._selection.field(name)
        return self._aggregate(field, aggregate.extreme(field, "max"), self._selection.asked())

    @overload
    def group_by(self, name: str | Column, /) -> aggregate.Groups[Any]: ...
    @overload
    def group_by(self, name: str | Column, /, *names: str | Column) -> aggregate.Groups[tuple[Any, ...]]: ...
    def group_by(self, *names: str | Column) -> aggregate.Groups[Any]:
        """The rows by the values of these fields, to be counted or summed: `group_by("status").count()`.

        A limit, an offset and an order are those of the groups, which can be ordered by the fields alone.
        """
        if not names:
            raise InvalidQuery("group_by() expected the name of at least one field.")
        return aggregate.Groups(cast("Query[M]", self), [self._selection.field(name) for name in names])

    def grouped_rows(
        self, fields: Sequence[MappedField], wanted: aggregate.Aggregate, having: Sequence[Condition]
    ) -> Sequence[sa.Row[Any]]:
        """The values of the fields and the aggregates of each group."""
        keys = [field.column for field in fields]
        require_selected(self._selection.order, keys, "group_by()")
        asked = self._selection.asked()
        asked.require_read([*keys, *wanted.columns])
        with reading(self.mapping) as (connection, database):
            statement = asked.select(database, [*keys, *wanted.columns]).group_by(*keys)
            clause = all_of(having, database)
            if clause is not None:
                asked.require_known(clause)
                statement = statement.having(clause)
            return connection.execute(statement).all()

    # -- looking at it --------------------------------------------------------------------------------------

    def explain(self) -> str:
        """How the database would read the rows, in its own words; the query is not run."""
        asked = self._selection.asked()._replace(lock=None)
        with reading(self.mapping) as (connection, database):
            return plan_of(connection, database, asked.select_records(database))

    def to_sql(self) -> str:
        """The SQL that `all()` would send, with placeholders where the values are.

        Nothing is sent, but for the keys that a `where_has` needs of another database.
        """
        database = ConnectionManager.get(self.mapping.connection)
        return sql_of(database, self._selection.asked().select_records(database))

    # -- sending it -----------------------------------------------------------------------------------------

    def _ordered(self) -> Selection:
        """By the primary key, unless an order was given."""
        selection = self._selection
        return selection if selection.order else selection._replace(order=tuple(f.column for f in self.mapping.key))

    def _load(self, selection: Selection) -> list[M]:
        selection.require_lockable()
        self._plan.require_loaded(selection)
        asked = selection.asked()
        with reading(asked.mapping) as (connection, database):
            found: list[M] = fetch(asked.mapping, connection, asked.select_records(database), fields=asked.loaded)
        self._plan.complete(self._model, found)
        return found

    def _aggregate(self, field: MappedField, wanted: aggregate.Aggregate, asked: Selection) -> Any:
        asked.require_read(wanted.columns)
        with reading(asked.mapping) as (connection, database):
            if asked.is_cut:
                rows = asked.select(database, [field.column]).subquery()
                statement = sa.select(*(_over(column, field, rows) for column in wanted.columns))
            else:
                statement = asked._replace(order=()).select(database, wanted.columns)
            return wanted.value(connection.execute(statement).one())


def _at_most(count: int, selection: Selection) -> Selection:
    return selection._replace(limit=count if selection.limit is None else min(count, selection.limit))


def _over(column: Column, field: MappedField, rows: sa.Subquery) -> Column:
    """The aggregate over the rows of a subquery instead of the table's."""
    there = rows.c[field.column.name]
    replaced: Column = visitors.replacement_traverse(
        column, {}, lambda element, **_: there if element is field.column else None
    )
    return replaced


def _converted(fields: Sequence[MappedField], row: sa.Row[Any]) -> Iterator[Any]:
    for field, value in zip(fields, row, strict=True):
        yield value if field.convert is None else field.convert(value)
