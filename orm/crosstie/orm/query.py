"""Queries: built step by step, each step a new query, sent when their rows are asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import sqlalchemy as sa

from crosstie.orm import bulk
from crosstie.orm.combination import Given, conditions_of
from crosstie.orm.condition import Condition
from crosstie.orm.errors import InvalidQuery
from crosstie.orm.join import joined
from crosstie.orm.locking import RowLock
from crosstie.orm.mapping import MappedField, TableMapping, mapping_of
from crosstie.orm.ordering import order_term
from crosstie.orm.read_query import ReadQuery
from crosstie.orm.relation_query import Plan
from crosstie.orm.selection import Selection

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = ["Query"]

M = TypeVar("M", bound="ActiveRecord")


class Query(ReadQuery[M]):
    """Rows of one model that meet all conditions.

    Every method that narrows or orders returns a new query. Names are checked when they are given: an unknown field or
    relation raises InvalidQuery, a table of another database CrossDatabaseQuery. Iterating loads all rows.
    """

    __slots__ = ("_model", "_plan", "_selection")

    def __init__(self, model: type[M]) -> None:
        self._model = model
        self._plan = Plan()
        self._selection = Selection(mapping_of(model))

    def __repr__(self) -> str:
        return f"Query({self._model.__qualname__}, {len(self._selection.conditions)} conditions)"

    @property
    def mapping(self) -> TableMapping:
        """The mapping of the model whose rows these are."""
        return self._selection.mapping

    @property
    def selection(self) -> Selection:
        """What the query asks for."""
        return self._selection

    # -- narrowing ------------------------------------------------------------------------------------------

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
        return self._narrowed(*conditions_of(self.mapping, conditions, equal))

    def merge(self, other: Query[M]) -> Self:
        """Rows that meet the conditions of both queries; order, limit and the rest stay this query's.

        So that named queries combine: `Post.published().merge(Post.recent())`. Raises InvalidQuery for one of another
        model, or with joins.
        """
        if other.mapping is not self.mapping:
            raise InvalidQuery(f"merge() expected a query of {self._model.__qualname__} and found {other!r}.")
        if other.selection.joins:
            raise InvalidQuery("merge() takes over conditions and no joins: join() in the query that is merged into.")
        return self._narrowed(*other.selection.conditions)

    def meeting(self, condition: Condition) -> Self:
        """Rows that also meet a condition made elsewhere in crosstie."""
        return self._narrowed(condition)

    def join(self, *paths: str) -> Self:
        """Rows for which there is a row to join by each of these relations, so that conditions and orders may use it.

        `Order.find_all().join("user").where(User.c.name == "Ada").order_by(User.c.name)`. A path, `"post.user"`, joins
        all on its way. A relation to many gives a row once for each that is joined, until `distinct()`. Raises
        CrossDatabaseQuery where a relation leads into another database, InvalidQuery where a table comes twice.
        """
        return self._joined(paths, "join", outer=False)

    def left_join(self, *paths: str) -> Self:
        """As `join`, with the rows for which there is nothing to join: the columns there are NULL."""
        return self._joined(paths, "left_join", outer=True)

    def order_by(self, *terms: str | sa.ColumnElement[Any]) -> Self:
        """Ordered by fields, `"name"` or `"-name"` for descending, or by expressions; earlier terms weigh more."""
        mapping, order = self.mapping, self._selection.order
        return self._with(order=(*order, *(order_term(mapping, term) for term in terms)))

    def limit(self, count: int | None) -> Self:
        """At most so many rows; None takes the limit away."""
        return self._with(limit=_count_of(count, "limit"))

    def offset(self, count: int | None) -> Self:
        """Without the first `count` rows."""
        return self._with(offset=_count_of(count, "offset"))

    def distinct(self) -> Self:
        """Each value once, for `pluck` and for `count` of a field; each row once, where a join repeats it."""
        return self._with(distinct=True)

    def select(self, *names: str) -> Self:
        """Records that have these fields alone, and those that a save of them needs: the key, `lock_version` and so on.

        Reading or assigning another field raises FieldNotLoaded, `refresh()` loads them all, and `save()` writes what
        has changed. What is named in several calls adds up. To read values without records, `pluck` them.
        """
        if not names:
            raise InvalidQuery("select() expected the name of at least one field.")
        return self._made(self._selection.with_fields([self.mapping.field(name) for name in names]), self._plan)

    def loading(self, fields: Collection[MappedField]) -> Self:
        """The same query, whose records have these fields too, if `select` has left any out."""
        if self._selection.loaded is None:
            return self
        return self._made(self._selection.with_fields(fields), self._plan)

    def with_deleted(self) -> Self:
        """Rows that SoftDeleteMixin hides too. Raises InvalidQuery for a model without it."""
        self._require_soft_delete("with_deleted")
        return self._with(deleted="shown")

    def only_deleted(self) -> Self:
        """No rows but those that SoftDeleteMixin hides. Raises InvalidQuery for a model without it."""
        self._require_soft_delete("only_deleted")
        return self._with(deleted="only")

    def for_update(self, *, skip_locked: bool = False, nowait: bool = False) -> Self:
        """Lock the rows that are read until the transaction ends; without one, reading raises InvalidQuery.

        `skip_locked` leaves out rows that another transaction has locked, `nowait` raises LockTimeout for them. SQLite
        has no row locks: there a transaction excludes all other writers from its beginning.
        """
        if skip_locked and nowait:
            raise InvalidQuery("for_update() expected skip_locked or nowait, and found both.")
        return self._with(lock=RowLock(skip_locked, nowait))

    def resolved(self) -> Self:
        """The same query, with what its conditions need of other databases read now, and not each time it is sent."""
        return self._made(self._selection.resolved(), self._plan)

    # -- writing --------------------------------------------------------------------------------------------

    def update_all(self, **values: Any) -> int:
        """Set fields of every matching row in one statement; returns how many rows matched.

        Records in memory keep what they have. Raises InvalidQuery with a limit, an offset or an order.
        """
        asked = self._rows_to_write("update_all")
        return bulk.update_rows(asked.mapping, asked.clause, values)

    def delete_all(self, *, forever: bool = False) -> int:
        """Delete every matching row in one statement; returns how many there were.

        Rows of a model with SoftDeleteMixin are hidden, as by its `delete()`; `forever` deletes them.
        """
        hidden = self.mapping.soft_delete
        if hidden is None or forever:
            asked = self._rows_to_write("delete_all")
            return bulk.delete_rows(asked.mapping, asked.clause)
        # Those that are hidden already keep the time at which they were.
        asked = self._with(deleted="hidden")._rows_to_write("delete_all")
        stamps = dict.fromkeys((*self._model.__stamped_on_update__, hidden.name), self._model.current_time())
        return bulk.update_rows(asked.mapping, asked.clause, stamps)

    # -- making the next query ------------------------------------------------------------------------------

    def _with(self, **changed: Any) -> Self:
        return self._made(self._selection._replace(**changed), self._plan)

    def _planned(self, plan: Plan) -> Self:
        return self._made(self._selection, plan)

    def _made(self, selection: Selection, plan: Plan) -> Self:
        made = object.__new__(type(self))
        made._model, made._plan, made._selection = self._model, plan, selection
        return made

    def _narrowed(self, *conditions: Condition) -> Self:
        return self._with(conditions=(*self._selection.conditions, *conditions))

    def _joined(self, paths: tuple[str, ...], method: str, *, outer: bool) -> Self:
        if not paths:
            raise InvalidQuery(f"{method}() expected the name of at least one relation.")
        joins = self._selection.joins
        for path in paths:
            joins = joined(self.mapping, joins, path, outer=outer)
        return self._with(joins=joins)

    def _rows_to_write(self, method: str) -> Selection:
        selection = self._selection
        if selection.is_cut or selection.order:
            raise InvalidQuery(
                f"{method}() writes every row that meets the conditions; a limit, an offset or an order cannot narrow "
                "it. Read the keys first and pass them to where() as a list."
            )
        return selection.resolved().without_joins(f"{method}()")

    def _require_soft_delete(self, method: str) -> None:
        if self.mapping.soft_delete is None:
            raise InvalidQuery(
                f"{method}() expected a model with SoftDeleteMixin, and found {self._model.__qualname__}."
            )


def _count_of(value: int | None, what: str) -> int | None:
    if value is not None and (type(value) is not int or value < 0):
        raise InvalidQuery(f"{what}() expected a number of rows, zero or more, and found {value!r}.")
    return value
