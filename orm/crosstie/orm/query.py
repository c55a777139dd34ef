"""Queries: built step by step, each step a new query, sent when their rows are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

import sqlalchemy as sa
from sqlalchemy.sql import visitors

from crosstie.orm import aggregate, bulk, page
from crosstie.orm.combination import Given, conditions_of
from crosstie.orm.condition import Condition, all_of, require_one_table
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import InvalidQuery, MultipleRecords, RecordNotFound
from crosstie.orm.locking import RowLock
from crosstie.orm.mapping import MappedField, TableMapping, mapping_of
from crosstie.orm.ordering import order_term, require_selected, reversed_terms
from crosstie.orm.plan import plan_of, sql_of
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

    __slots__ = (
        "_conditions",
        "_deleted",
        "_distinct",
        "_limit",
        "_lock",
        "_mapping",
        "_model",
        "_offset",
        "_order",
        "_plan",
    )

    def __init__(self, model: type[M]) -> None:
        self._model = model
        self._mapping: TableMapping = mapping_of(model)
        self._conditions: tuple[Condition, ...] = ()
        self._order: tuple[sa.ColumnElement[Any], ...] = ()
        self._limit: int | None = None
        self._offset: int | None = None
        self._plan = Plan()
        self._deleted: Literal["hidden", "shown", "only"] = "hidden"
        self._distinct = False
        self._lock: RowLock | None = None

    def __repr__(self) -> str:
        return f"Query({self._model.__qualname__}, {len(self._conditions)} conditions)"

    # -- narrowing ------------------------------------------------------------------------------------------

    @property
    def mapping(self) -> TableMapping:
        """The mapping of the model whose rows these are."""
        return self._mapping

    @overload
    def where(self, sql: str, parameters: Mapping[str, object], /) -> Self: ...
    @overload
    def where(self, *conditions: Given, **equal: Any) -> Self: ...
    def where(self, *conditions: Any, **equal: Any) -> Self:
        """Rows that also meet these conditions: fields by keyword, expressions over `Model.c`, SQL with its values.

        A keyword's value is compared; None means IS NULL, and a list, tuple or set means IN. `any_of`, `all_of` and
        `not_` join conditions: `where(any_of(name="Ada", age=36))`. SQL comes with a mapping of the values that it
        names: `where("price > :low", {"low": 3})`.
        """
        return self._with(_conditions=(*self._conditions, *conditions_of(self._mapping, conditions, equal)))

    def merge(self, other: Query[M]) -> Self:
        """Rows that meet the conditions of both queries; order, limit and the rest stay this query's.

        So that named queries combine: `Post.published().merge(Post.recent())`.
        """
        if other._mapping is not self._mapping:
            raise InvalidQuery(f"merge() expected a query of {self._model.__qualname__} and found {other!r}.")
        return self._with(_conditions=(*self._conditions, *other._conditions))

    def meeting(self, condition: Condition) -> Self:
        """Rows that also meet a condition made elsewhere in crosstie."""
        return self._with(_conditions=(*self._conditions, condition))

    def order_by(self, *terms: str | sa.ColumnElement[Any]) -> Self:
        """Ordered by fields, `"name"` or `"-name"` for descending, or by expressions; earlier terms weigh more."""
        return self._with(_order=(*self._order, *(order_term(self._mapping, term) for term in terms)))

    def limit(self, count: int | None) -> Self:
        """At most so many rows; None takes the limit away."""
        return self._with(_limit=_count_of(count, "limit"))

    def offset(self, count: int | None) -> Self:
        """Without the first `count` rows."""
        return self._with(_offset=_count_of(count, "offset"))

    def distinct(self) -> Self:
        """Each value once: for `pluck` and for `count` of a field. Records are distinct in any case, by their key."""
        return self._with(_distinct=True)

    def with_deleted(self) -> Self:
        """Rows that SoftDeleteMixin hides too. Raises InvalidQuery for a model without it."""
        self._require_soft_delete("with_deleted")
        return self._with(_deleted="shown")

    def only_deleted(self) -> Self:
        """No rows but those that SoftDeleteMixin hides. Raises InvalidQuery for a model without it."""
        self._require_soft_delete("only_deleted")
        return self._with(_deleted="only")

    def for_update(self, *, skip_locked: bool = False, nowait: bool = False) -> Self:
        """Lock the rows that are read until the transaction ends; without one, reading raises InvalidQuery.

        `skip_locked` leaves out rows that another transaction has locked, `nowait` raises LockTimeout for them. SQLite
        has no row locks: there a transaction excludes all other writers from its beginning.
        """
        if skip_locked and nowait:
            raise InvalidQuery("for_update() expected skip_locked or nowait, and found both.")
        return self._with(_lock=RowLock(skip_locked, nowait))

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

    def last(self) -> M | None:
        """The last row, by primary key where no order was given; None where there is none."""
        if self._limit is not None or self._offset is not None:
            found = (self if self._order else self.order_by(*self._key_names())).all()
            return found[-1] if found else None
        ordered = self._order or tuple(field.column for field in self._mapping.key)
        found = self._load(1, reversed_terms(ordered))
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

    def count(self, name: str | None = None) -> int:
        """How many rows there are, or how many have a value of this field; limit and offset included.

        After `distinct()`, how many different values the field has.
        """
        if name is not None:
            counted_field = self._mapping.field(name)
            return int(self._aggregate(counted_field, aggregate.number_of(counted_field, distinct=self._distinct)))
        with reading(self._mapping) as (connection, database):
            if self._limit is None and self._offset is None:
                counted = self._select(database, [sa.func.count()], None, ())
            else:
                rows = self._select(database, [sa.literal_column("1")], self._limit, ())
                counted = sa.select(sa.func.count()).select_from(rows.subquery())
            found: int = connection.execute(counted).scalar_one()
        return found

    def exists(self) -> bool:
        """Whether there is any row."""
        with reading(self._mapping) as (connection, database):
            limit = 1 if self._limit is None else min(1, self._limit)
            row = connection.execute(self._select(database, [sa.literal_column("1")], limit, ())).first()
        return row is not None

    @overload
    def pluck(self, name: str, /) -> list[Any]: ...
    @overload
    def pluck(self, name: str, /, *names: str) -> list[tuple[Any, ...]]: ...
    def pluck(self, *names: str) -> list[Any]:
        """The values of one field, or tuples of the values of several, without making records."""
        if not names:
            raise InvalidQuery("pluck() expected the name of at least one field.")
        fields = [self._mapping.field(name) for name in names]
        columns = [field.column for field in fields]
        if self._distinct:
            require_selected(self._order, columns, "pluck() of a distinct query")
        with self._reading() as (connection, database):
            statement = self._select(database, columns, self._limit, self._order)
            statement = statement.distinct() if self._distinct else self._locked(statement)
            rows = connection.execute(statement).all()
        converted = [tuple(_converted(fields, row)) for row in rows]
        return [row[0] for row in converted] if len(names) == 1 else converted

    def sum(self, name: str) -> Any:
        """The sum of a numeric field, in the field's type; 0 where there is nothing to add."""
        field = self._mapping.field(name)
        return self._aggregate(field, aggregate.total(field))

    def avg(self, name: str) -> Any:
        """The average of a numeric field: a Decimal for Decimals, else a float; None where there is no value."""
        field = self._mapping.field(name)
        return self._aggregate(field, aggregate.average(field))

    def min(self, name: str) -> Any:
        """The least value of a field, None where there is none."""
        field = self._mapping.field(name)
        return self._aggregate(field, aggregate.extreme(field, "min"))

    def max(self, name: str) -> Any:
        """The greatest value of a field, None where there is none."""
        field = self._mapping.field(name)
        return self._aggregate(field, aggregate.extreme(field, "max"))

    @overload
    def group_by(self, name: str, /) -> aggregate.Groups[Any]: ...
    @overload
    def group_by(self, name: str, /, *names: str) -> aggregate.Groups[tuple[Any, ...]]: ...
    def group_by(self, *names: str) -> aggregate.Groups[Any]:
        """The rows by the values of these fields, to be counted or summed: `group_by("status").count()`.

        A limit, an offset and an order are those of the groups, which can be ordered by the fields alone.
        """
        if not names:
            raise InvalidQuery("group_by() expected the name of at least one field.")
        return aggregate.Groups(self, [self._mapping.field(name) for name in names])

    def grouped_rows(
        self, fields: Sequence[MappedField], columns: Sequence[sa.ColumnElement[Any]], having: Sequence[Condition]
    ) -> Sequence[sa.Row[Any]]:
        """The values of the fields and the aggregates of each group."""
        keys = [field.column for field in fields]
        require_selected(self._order, keys, "group_by()")
        with reading(self._mapping) as (connection, database):
            statement = self._select(database, [*keys, *columns], self._limit, self._order).group_by(*keys)
            clause = all_of(having, database)
            return connection.execute(statement if clause is None else statement.having(clause)).all()

    def in_batches(self, size: int = 1000) -> Iterator[list[M]]:
        """All records in lists of at most `size`, by primary key, so that no more than that is in memory.

        Each list is read when the one before was consumed, after its last key, so that rows may be changed or deleted
        meanwhile. Raises InvalidQuery where an order or an offset was given.
        """
        page.positive(size, "in_batches()")
        if self._order or self._offset is not None:
            raise InvalidQuery("in_batches() goes by the primary key: an order or an offset cannot be kept.")
        return page.batches(self, size, self._limit)

    def find_each(self, size: int = 1000) -> Iterator[M]:
        """All records one by one, read in batches of `size` by primary key; see `in_batches`."""
        return (record for batch in self.in_batches(size) for record in batch)

    def paginate(self, number: int = 1, per_page: int = 50) -> page.Page[M]:
        """Page `number`, counted from 1, of the rows in their order (by primary key where none was given).

        Two statements: the rows of the page, and how many there are of all. A limit or offset raises InvalidQuery.
        """
        page.positive(number, "paginate()")
        page.positive(per_page, "paginate()")
        if self._limit is not None or self._offset is not None:
            raise InvalidQuery("paginate() sets limit and offset by itself: leave them out.")
        ordered = self if self._order else self.order_by(*self._key_names())
        records = ordered.limit(per_page).offset((number - 1) * per_page).all()
        return page.Page(records, number, per_page, self.count())

    # -- looking at it --------------------------------------------------------------------------------------

    def explain(self) -> str:
        """How the database would read the rows, in its own words; the query is not run."""
        with reading(self._mapping) as (connection, database):
            statement = self._select(database, self._columns(), self._limit, self._order)
            return plan_of(connection, database, statement)

    def to_sql(self) -> str:
        """The SQL that `all()` would send, with placeholders where the values are.

        Nothing is sent, but for the keys that a `where_has` needs of another database.
        """
        database = ConnectionManager.get(self._mapping.connection)
        return sql_of(database, self._locked(self._select(database, self._columns(), self._limit, self._order)))

    # -- writing --------------------------------------------------------------------------------------------

    def update_all(self, **values: Any) -> int:
        """Set fields of every matching row in one statement; returns how many rows matched.

        Records in memory keep what they have. Raises InvalidQuery with a limit, an offset or an order.
        """
        self._require_plain("update_all")
        return bulk.update_rows(self._mapping, self._clause, values)

    def delete_all(self, *, forever: bool = False) -> int:
        """Delete every matching row in one statement; returns how many there were.

        Rows of a model with SoftDeleteMixin are hidden, as by its `delete()`; `forever` deletes them.
        """
        self._require_plain("delete_all")
        hidden = self._mapping.soft_delete
        if hidden is not None and not forever:
            moment = self._model.current_time()
            stamps = dict.fromkeys((*self._model.__stamped_on_update__, hidden.name), moment)
            # Those that are hidden already keep the time at which they were.
            return bulk.update_rows(self._mapping, self._with(_deleted="hidden")._clause, stamps)
        return bulk.delete_rows(self._mapping, self._clause)

    # -- the statement --------------------------------------------------------------------------------------

    def _with(self, **changed: Any) -> Self:
        made = object.__new__(type(self))
        for name in Query.__slots__:
            object.__setattr__(made, name, changed.get(name, getattr(self, name)))
        return made

    def _load(self, limit: int | None, order: tuple[sa.ColumnElement[Any], ...]) -> list[M]:
        with self._reading() as (connection, database):
            statement = self._locked(self._select(database, self._columns(), limit, order))
            found: list[M] = fetch(self._mapping, connection, statement)
        self._plan.complete(self._model, found)
        return found

    def _select(
        self, database: Database, columns: list[Any], limit: int | None, order: tuple[sa.ColumnElement[Any], ...]
    ) -> sa.Select[Any]:
        statement = sa.select(*columns).select_from(self._mapping.table)
        clause = self._met(database)
        if clause is not None:
            statement = statement.where(clause)
        if order:
            statement = statement.order_by(*order)
        if any(condition.is_given for condition in self._conditions) or order:
            require_one_table(self._mapping, statement)
        if limit is not None:
            statement = statement.limit(limit)
        return statement if self._offset is None else statement.offset(self._offset)

    def _clause(self, database: Database) -> sa.ColumnElement[bool]:
        clause = self._met(database)
        if clause is None:
            return sa.true()
        require_one_table(self._mapping, sa.select(self._mapping.key[0].column).where(clause))
        return clause

    def _met(self, database: Database) -> sa.ColumnElement[bool] | None:
        clause, hidden = all_of(self._conditions, database), self._mapping.soft_delete
        if hidden is None or self._deleted == "shown":
            return clause
        state = hidden.column.is_(None) if self._deleted == "hidden" else hidden.column.is_not(None)
        return state if clause is None else sa.and_(clause, state)

    def _require_soft_delete(self, method: str) -> None:
        if self._mapping.soft_delete is None:
            raise InvalidQuery(
                f"{method}() expected a model with SoftDeleteMixin, and found {self._model.__qualname__}."
            )

    def _columns(self) -> list[sa.ColumnElement[Any]]:
        return [field.column for field in self._mapping.fields.values()]

    def _key_names(self) -> list[str]:
        return [field.name for field in self._mapping.key]

    def _reading(self) -> AbstractContextManager[tuple[sa.Connection, Database]]:
        if self._lock is not None:
            self._lock.require_transaction(self._mapping)
        return reading(self._mapping)

    def _locked(self, statement: sa.Select[Any]) -> sa.Select[Any]:
        return statement if self._lock is None else self._lock.added_to(statement)

    def _aggregate(self, field: MappedField, wanted: aggregate.Aggregate) -> Any:
        with reading(self._mapping) as (connection, database):
            columns = wanted.columns
            if self._limit is None and self._offset is None:
                statement = self._select(database, list(columns), None, ())
            else:
                rows = self._select(database, [field.column], self._limit, self._order).subquery()
                statement = sa.select(*(_over(column, field, rows) for column in columns))
            return wanted.value(connection.execute(statement).one())

    def _require_plain(self, method: str) -> None:
        if self._limit is not None or self._offset is not None or self._order:
            raise InvalidQuery(
                f"{method}() writes every row that meets the conditions; a limit, an offset or an order cannot narrow "
                "it. Read the keys first and pass them to where() as a list."
            )


def _over(column: sa.ColumnElement[Any], field: MappedField, rows: sa.Subquery) -> sa.ColumnElement[Any]:
    """The aggregate over the rows of a subquery instead of the table's."""
    there = rows.c[field.column.name]
    replaced: sa.ColumnElement[Any] = visitors.replacement_traverse(
        column, {}, lambda element, **_: there if element is field.column else None
    )
    return replaced


def _converted(fields: list[Any], row: sa.Row[Any]) -> Iterator[Any]:
    for field, value in zip(fields, row, strict=True):
        yield value if field.convert is None else field.convert(value)


def _count_of(value: int | None, what: str) -> int | None:
    if value is not None and (type(value) is not int or value < 0):
        raise InvalidQuery(f"{what}() expected a number of rows, zero or more, and found {value!r}.")
    return value
