"""What a query asks for, and the SELECT that it becomes: plain values, and no connection."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.sql import visitors

from crosstie.orm.condition import Condition, all_of, require_tables
from crosstie.orm.database import Database
from crosstie.orm.errors import InvalidQuery
from crosstie.orm.join import Join, source_of
from crosstie.orm.locking import RowLock
from crosstie.orm.mapping import MappedField, TableMapping
from crosstie.orm.ordering import require_selected

__all__ = ["Selection"]

Order = tuple[sa.ColumnElement[Any], ...]


class Selection(NamedTuple):
    """The rows of a query, in their order; each change makes another selection."""

    mapping: TableMapping
    conditions: tuple[Condition, ...] = ()
    joins: tuple[Join, ...] = ()
    order: Order = ()
    limit: int | None = None
    offset: int | None = None
    deleted: Literal["hidden", "shown", "only"] = "hidden"
    distinct: bool = False
    lock: RowLock | None = None
    loaded: tuple[MappedField, ...] | None = None
    """The fields that records are to have; None for all."""

    # -- what is said of it ---------------------------------------------------------------------------------

    @property
    def fields(self) -> tuple[MappedField, ...]:
        """The fields that its records have."""
        return tuple(self.mapping.fields.values()) if self.loaded is None else self.loaded

    @property
    def is_cut(self) -> bool:
        """Whether a limit or an offset leaves rows out."""
        return self.limit is not None or self.offset is not None

    @property
    def repeats(self) -> bool:
        """Whether a join may give a row several times."""
        return any(join.repeats for join in self.joins)

    @property
    def tables(self) -> list[TableMapping]:
        """Its own table and those joined."""
        return [self.mapping, *(hop.target for join in self.joins for hop in join.hops)]

    def field(self, given: str | sa.ColumnElement[Any]) -> MappedField:
        """The field of its model of this name, or that of a column such as `User.c.name`, where User is joined.

        Raises InvalidQuery.
        """
        if isinstance(given, str):
            return self.mapping.field(given)
        for mapping in self.tables:
            if isinstance(given, sa.Column) and given.table is mapping.table:
                return mapping.field_of_column[given.name]
        raise InvalidQuery(
            f"expected the name of a field of {self.mapping.model.__qualname__}, or a column of it or of a model that "
            f"is joined, and found {given!r}."
        )

    def with_fields(self, fields: Collection[MappedField]) -> Selection:
        """With these fields for its records, beside those that it has been given, and those that a save needs."""
        mapping, model = self.mapping, self.mapping.model
        written = (mapping.fields[name] for name in (*model.__stamped_on_update__, *mapping.copied))
        needed = {*fields, *(self.loaded or ()), *mapping.key, *written, mapping.lock, mapping.soft_delete}
        return self._replace(loaded=tuple(field for field in mapping.fields.values() if field in needed))

    def require_lockable(self) -> None:
        """Raise InvalidQuery where locks were asked for and no transaction would hold them."""
        if self.lock is not None:
            self.lock.require_transaction(self.mapping)

    def require_read(self, columns: Iterable[sa.ColumnElement[Any]]) -> None:
        """Raise InvalidQuery for a column of a table that was joined before `distinct()` made each row one."""
        tables = [read.table for read in self.tables]
        for part in (part for column in columns for part in visitors.iterate(column)):
            if isinstance(part, sa.Column) and not any(part.table is table for table in tables):
                raise InvalidQuery(
                    f"distinct() gives each {self.mapping.model.__qualname__} once, and {part!s} may have several "
                    "values for it: leave out distinct(), or ask the other model."
                )

    # -- made ready to be sent ------------------------------------------------------------------------------

    def resolved(self) -> Selection:
        """The same, with what its conditions need of other databases read already."""
        if all(condition.is_resolved for condition in self.conditions):
            return self
        return self._replace(conditions=tuple(condition.resolved() for condition in self.conditions))

    def asked(self) -> Selection:
        """Resolved, and after `distinct()` with each row once. Raises InvalidQuery."""
        resolved = self.resolved()
        return resolved.without_joins("distinct()") if self.distinct and self.repeats else resolved

    def without_joins(self, what: str) -> Selection:
        """The same rows, each once, by a condition on their keys. Raises InvalidQuery for an order by what was joined.

        `what` needs it.
        """
        if not self.joins:
            return self
        require_selected(self.order, list(self.mapping.columns), f"{what} of joined rows", "fields of its own model")
        rows = self._replace(order=(), limit=None, offset=None, lock=None)
        return self._replace(conditions=(_OfJoined(rows),), joins=(), deleted="shown")

    # -- the statement --------------------------------------------------------------------------------------

    def select(self, database: Database, columns: Sequence[sa.ColumnElement[Any]]) -> sa.Select[Any]:
        """The rows' columns, in their order and within their limits. Raises InvalidQuery for a table not read."""
        source = source_of(self.mapping, self.joins)
        statement = sa.select(*columns).select_from(source)
        clause = self._met(database)
        if clause is not None:
            statement = statement.where(clause)
        if self.order:
            statement = statement.order_by(*self.order)
        if any(condition.is_given for condition in self.conditions) or self.order:
            require_tables(self.mapping, source, statement)
        if self.limit is not None:
            statement = statement.limit(self.limit)
        return statement if self.offset is None else statement.offset(self.offset)

    def select_records(self, database: Database) -> sa.Select[Any]:
        """What its records are made of, with the locks that were asked for."""
        return self.locked(self.select(database, [field.column for field in self.fields]))

    def locked(self, statement: sa.Select[Any]) -> sa.Select[Any]:
        """The statement, locking the rows of its own table."""
        if self.lock is None:
            return statement
        return self.lock.added_to(statement, of=self.mapping.table if self.joins else None)

    def clause(self, database: Database) -> sa.ColumnElement[bool]:
        """The condition that the rows meet; there are no joins. Raises InvalidQuery for a table not read."""
        clause = self._met(database)
        if clause is None:
            return sa.true()
        self.require_known(clause)
        return clause

    def require_known(self, clause: sa.ColumnElement[bool]) -> None:
        """Raise InvalidQuery where a condition uses a table that is neither the query's own nor joined."""
        source = source_of(self.mapping, self.joins)
        require_tables(self.mapping, source, sa.select(sa.literal(1)).select_from(source).where(clause))

    def _met(self, database: Database) -> sa.ColumnElement[bool] | None:
        clause, hidden = all_of(self.conditions, database), self.mapping.soft_delete
        if hidden is None or self.deleted == "shown":
            return clause
        state = hidden.column.is_(None) if self.deleted == "hidden" else hidden.column.is_not(None)
        return state if clause is None else sa.and_(clause, state)


class _OfJoined(Condition):
    """The row's key is among those of joined rows."""

    def __init__(self, rows: Selection) -> None:
        self._rows = rows

    def clause(self, database: Database) -> sa.ColumnElement[bool]:
        """A subquery; DISTINCT keeps MySQL from merging it, which could then not write to a table that it reads."""
        key = [field.column for field in self._rows.mapping.key]
        keys = self._rows.select(database, key).distinct().subquery()
        own = key[0] if len(key) == 1 else sa.tuple_(*key)
        among: sa.ColumnElement[bool] = own.in_(sa.select(*keys.c))
        return among
