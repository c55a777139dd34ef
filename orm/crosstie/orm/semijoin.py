"""Rows that have, or have not, related rows: a subquery within one database, two queries across two.

Across databases the keys of the one side are read first and sent to the other as one list, so both statements are
plain ones; they do not see the same moment. The keys are read before the query takes a connection of its own, so no
thread holds one while it waits for another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from crosstie.orm.condition import Condition, Membership
from crosstie.orm.mapping import MappedField, TableMapping, mapping_of
from crosstie.orm.modifier import Modifier, modified
from crosstie.orm.origin import SameOrigin
from crosstie.orm.reading import reading

if TYPE_CHECKING:
    from crosstie.orm.database import Database
    from crosstie.orm.link import Link
    from crosstie.orm.model import ActiveRecord
    from crosstie.orm.query import Query
    from crosstie.orm.relation import Relation

__all__ = ["Absent", "Among", "has_related", "related_rows"]


class Among(Condition):
    """A field is among the values of a field of another query's rows; NULL is among none."""

    is_resolved = False

    def __init__(
        self, mapping: TableMapping, field: MappedField, rows: Query[Any], values: MappedField, link: Link
    ) -> None:
        self._mapping = mapping
        self._field = field
        self._rows = rows
        self._values = values
        self._link = link

    def resolved(self) -> Condition:
        """The keys themselves, where another database has them; no connection is held but the one they come from."""
        if self._is_here():
            return Among(self._mapping, self._field, self._rows.resolved(), self._values, self._link)
        return Membership(self._field, self._read())

    def clause(self, database: Database) -> sa.ColumnElement[bool]:
        """The condition for this database, for which another is asked where `resolved` has not."""
        if not self._is_here():
            return self.resolved().clause(database)
        rows = self._rows.selection
        present = self._values.column.is_not(None)  # NOT IN a list with NULL is true of no row
        inner = rows._replace(order=()).select(database, [self._values.column]).where(present)
        if any(read.table is self._mapping.table for read in rows.tables):
            # MySQL refuses to write to a table that a subquery of the statement reads, but not one that is derived.
            inner = sa.select(*inner.subquery().c)
        return self._field.column.in_(inner)

    def _is_here(self) -> bool:
        return self._rows.mapping.connection == self._mapping.connection

    def _read(self) -> list[Any]:
        rows = self._rows.selection._replace(order=()).resolved()
        with reading(rows.mapping) as (connection, database):
            selected = rows.select(database, [self._values.column])
            values = connection.execute(selected.distinct()).scalars().all()
        convert = self._values.convert
        converted = values if convert is None else map(convert, values)
        plain = {self._link.hashable(value): None for value in converted if value is not None}
        return [self._field.sought(value) for value in plain]


class Absent(Condition):
    """A field is NULL, or not among what a condition on it finds."""

    is_resolved = False

    def __init__(self, field: MappedField, among: Condition) -> None:
        self._field = field
        self._among = among

    def resolved(self) -> Condition:
        """With what was to be read of another database."""
        return Absent(self._field, self._among.resolved())

    def clause(self, database: Database) -> sa.ColumnElement[bool]:
        """The opposite of the other's."""
        return sa.or_(self._field.column.is_(None), sa.not_(self._among.clause(database)))


def has_related(
    model: type[ActiveRecord], relation: Relation[Any], modifiers: Iterable[Modifier], where: str, *, absent: bool
) -> Condition:
    """Rows of the model for which the relation leads to a row that the modifiers let pass, or to none."""
    chain = relation.link(model).chain
    rows = modified(_query(chain[-1]), modifiers, where)
    for hop, following in zip(reversed(chain[:-1]), reversed(chain[1:]), strict=True):
        rows = _query(hop).meeting(Among(hop.target, following.near, rows, following.far, following))
    among = Among(mapping_of(model), chain[0].near, rows, chain[0].far, chain[0])
    return Absent(chain[0].near, among) if absent else among


def related_rows(record: ActiveRecord, relation: Relation[Any]) -> Query[Any]:
    """The rows to which a relation leads from one record, as a query."""
    chain = relation.link(type(record)).chain
    key = getattr(record, chain[0].near.name)
    # NULL refers to nothing; as a condition it would match every row without a parent.
    rows = _query(chain[0]).where(**{chain[0].far.name: [] if key is None else key})
    for hop in chain[1:]:
        rows = _query(hop).meeting(Among(hop.target, hop.far, rows, hop.near, hop))
    if mapping_of(type(record)).is_placed and any(hop.target.is_placed for hop in chain):
        rows = rows.meeting(SameOrigin(record))
    return rows


def _query(link: Link) -> Query[Any]:
    from crosstie.orm.query import Query

    return Query(link.target.model)
