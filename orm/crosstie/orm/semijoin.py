"""Rows that have, or have not, related rows: a subquery within one database, two queries across two.

Across databases the keys of the one side are read first and sent to the other as one list, so both statements are
plain ones; they do not see the same moment. Such a condition reads its keys each time that its query is sent.
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

__all__ = ["Among", "has_related", "related_rows"]


class Among(Condition):
    """A field is among the values of a field of another query's rows; NULL is among none.

    `absent` turns it round: the rows whose field is NULL, or not among them.
    """

    def __init__(
        self,
        mapping: TableMapping,
        field: MappedField,
        rows: Query[Any],
        values: MappedField,
        link: Link,
        *,
        absent: bool = False,
    ) -> None:
        self._mapping = mapping
        self._field = field
        self._rows = rows
        self._values = values
        self._link = link
        self._absent = absent

    def clause(self, database: Database) -> sa.ColumnElement[bool]:
        """The condition for this database, for which another may be asked here. Raises DatabaseUnavailable."""
        other, column = self._rows._mapping, self._field.column
        if other.connection == self._mapping.connection:
            found: sa.ColumnElement[bool] = column.in_(self._subquery(database, other))
        else:
            found = Membership(self._field, self._read(other)).clause(database)
        return sa.or_(column.is_(None), sa.not_(found)) if self._absent else found

    def _subquery(self, database: Database, other: TableMapping) -> sa.Select[Any]:
        present = self._values.column.is_not(None)  # NOT IN a list with NULL is true of no row
        inner = self._rows._select(database, [self._values.column], None, ()).where(present)
        # MySQL refuses to write to a table that a subquery of the statement reads, but not one that is derived.
        return sa.select(*inner.subquery().c) if other.table is self._mapping.table else inner

    def _read(self, other: TableMapping) -> list[Any]:
        with reading(other) as (connection, database):
            selected = self._rows._select(database, [self._values.column], None, ())
            values = connection.execute(selected.distinct()).scalars().all()
        convert = self._values.convert
        converted = values if convert is None else map(convert, values)
        plain = {self._link.hashable(value): None for value in converted if value is not None}
        return [self._field.sought(value) for value in plain]


def has_related(
    model: type[ActiveRecord], relation: Relation[Any], modifiers: Iterable[Modifier], where: str, *, absent: bool
) -> Condition:
    """Rows of the model for which the relation leads to a row that the modifiers let pass, or to none."""
    chain = relation.link(model).chain
    rows = modified(_query(chain[-1]), modifiers, where)
    for hop, following in zip(reversed(chain[:-1]), reversed(chain[1:]), strict=True):
        rows = _query(hop).meeting(Among(hop.target, following.near, rows, following.far, following))
    return Among(mapping_of(model), chain[0].near, rows, chain[0].far, chain[0], absent=absent)


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
