"""Rows that are about to be deleted, and what their referrers have to say about it.

The rows are locked and their keys read first, in the transaction that deletes them. So the keys that are told to the
children's database are those of the rows that go, whatever the condition would select a moment later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.condition import Membership
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import DeleteRestricted
from crosstie.orm.local_transaction import current
from crosstie.orm.mapping import TableMapping, mapping_of
from crosstie.orm.reference import Reference
from crosstie.orm.referrer import carrier
from crosstie.orm.transaction import active_unit, statement_connection, transaction, warn_of_foreign_write

__all__ = ["Departure", "Where", "depart", "together"]

Where = Callable[[Database], sa.ColumnElement[bool]]

COMPOSITE_CHUNK: Final = 200
"""Rows in one statement where the key has several columns, each of them a condition of its own."""


@contextmanager
def together(connection: str) -> Iterator[None]:
    """One transaction for the statements of the block: the open one, or one of its own."""
    if current(connection) is not None or active_unit() is not None:
        yield
        return
    warn_of_foreign_write(connection)
    with transaction(connection):
        yield


class Departure:
    """Locked rows of one table: their primary keys, and what references to them hold."""

    def __init__(self, mapping: TableMapping, references: Sequence[Reference], rows: Sequence[Sequence[Any]]) -> None:
        self._mapping = mapping
        self._references = references
        width = len(mapping.key)
        self.keys = [tuple(row[:width]) for row in rows]
        self._values = {
            reference.name: list(dict.fromkeys(row[width + place] for row in rows if row[width + place] is not None))
            for place, reference in enumerate(references)
        }

    def conditions(self) -> Iterator[Where]:
        """Conditions that these rows meet, and no others."""
        if not self.keys:
            return
        fields = self._mapping.key
        if len(fields) == 1:
            yield Membership(fields[0], [key[0] for key in self.keys]).clause
            return
        for start in range(0, len(self.keys), COMPOSITE_CHUNK):
            chunk = self.keys[start : start + COMPOSITE_CHUNK]
            one_of = sa.or_(*(sa.and_(*(f.column == v for f, v in zip(fields, key, strict=True))) for key in chunk))
            yield lambda _, clause=one_of: clause  # type: ignore[misc]

    def require_unrestricted(self) -> None:
        """Raise DeleteRestricted where a row elsewhere refers to one of these and restricts its delete.

        Nothing is locked there, and no database can lock for another: a row that refers to one of these may be
        inserted right after the answer.
        """
        for reference in self._references:
            values = self._values[reference.name]
            if reference.on_delete != "restrict" or not values:
                continue
            child = mapping_of(reference.child_model)
            field = child.field_of_column[reference.child_column.name]
            clause = Membership(field, values).clause(ConnectionManager.get(child.connection))
            query = sa.select(field.column).where(clause).limit(1)
            with statement_connection(child.connection, write=False) as connection:
                found = connection.execute(query).first()
            if found is not None:
                raise DeleteRestricted(
                    f"{self._mapping.model.__qualname__} with {reference.parent_column.name} = {found[0]!r} cannot be "
                    f"deleted from database {self._mapping.connection!r}: {child.model.__qualname__} in database "
                    f"{child.connection!r} refers to it, and {reference.name} is declared on_delete='restrict'. "
                    "Delete what refers to it first, or let it refer to another."
                )

    def carry(self) -> None:
        """Have the deletes told to the children's databases if the transaction commits."""
        tx = current(self._mapping.connection)
        for reference in self._references:
            values = self._values[reference.name]
            if reference.on_delete in {"cascade", "set_null"} and values:
                assert tx is not None, "rows are deleted together with word of it"
                carrier(reference)(tx, reference, values)


def depart(
    mapping: TableMapping, references: Sequence[Reference], where: Where, *, limit: int | None = None
) -> Departure:
    """Lock the rows that match, `limit` of them at most, for a delete that follows in the same transaction.

    Raises DeleteRestricted.
    """
    # The model may be another one of the same table than that which the reference names, and lack its column.
    columns = [field.column for field in mapping.key]
    columns += [_column(mapping, reference.parent_column) for reference in references]
    query = sa.select(*columns).select_from(mapping.table).where(where(ConnectionManager.get(mapping.connection)))
    query = query.with_for_update() if limit is None else query.limit(limit).with_for_update()
    with statement_connection(mapping.connection, write=False) as connection:
        # Positions, not names: two references may mean the same column.
        rows = connection.execute(query).all()
    departing = Departure(mapping, references, rows)
    departing.require_unrestricted()
    return departing


def _column(mapping: TableMapping, parent: sa.Column[Any]) -> Any:
    return mapping.table.c[parent.name] if parent.name in mapping.table.c else sa.column(parent.name, parent.type)
