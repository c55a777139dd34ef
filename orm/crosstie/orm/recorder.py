"""How a layer above watches the writes of a local transaction, so that it can undo or repeat them later.

The ORM calls the recorder of a transaction around each of its writes; a transaction without one costs a test for None.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa

if TYPE_CHECKING:
    from crosstie.orm.local_transaction import LocalTransaction

__all__ = ["Key", "Rows", "WriteRecorder", "condition"]

Key = tuple[Any, ...]
"""Values of a primary key, in the table's order."""
Rows = sa.ColumnElement[bool] | Key
"""The condition of a statement, or the key of the only row that can meet it."""


def condition(table: sa.Table, rows: Rows) -> sa.ColumnElement[bool]:
    """The rows as a condition."""
    if not isinstance(rows, tuple):
        return rows
    pairs = zip(table.primary_key, rows, strict=True)
    return sa.and_(*(column == sa.literal(value, column.type) for column, value in pairs))


class WriteRecorder(Protocol):
    """Sees each write of the ORM in the transaction's own order."""

    def inserted(self, tx: LocalTransaction, table: sa.Table, keys: Sequence[Key], *, numbered: bool = False) -> None:
        """Rows with these keys have just been inserted; `numbered` says that the database made the keys."""

    def updating(
        self, tx: LocalTransaction, table: sa.Table, rows: Rows, columns: Collection[str], *, upserting: bool = False
    ) -> object:
        """The rows are about to change in `columns`, be it as part of an upsert; `updated` is handed the answer."""

    def updated(self, tx: LocalTransaction, token: object) -> None:
        """The update announced by `updating` has run and has found its rows."""

    def deleting(self, tx: LocalTransaction, table: sa.Table, rows: Rows) -> None:
        """The rows are about to be deleted."""

    def incrementing(self, tx: LocalTransaction, table: sa.Table, rows: Rows, deltas: Mapping[str, Any]) -> object:
        """`column = column + delta` is about to run for the rows; the answer is handed to `incremented`."""

    def incremented(self, tx: LocalTransaction, token: object) -> None:
        """The increment announced by `incrementing` has run and has found its rows."""

    def uncaptured(self, tx: LocalTransaction, reason: str) -> None:
        """A write is about to run that nobody can undo; `reason` names it for the message."""
