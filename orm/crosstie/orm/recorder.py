"""How a layer above watches the writes of a local transaction, so that it can undo them later.

The ORM calls the recorder of a transaction around each of its writes; a transaction without one costs a test for None.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa

if TYPE_CHECKING:
    from crosstie.orm.transaction import LocalTransaction

__all__ = ["WriteRecorder"]


class WriteRecorder(Protocol):
    """Sees each write of the ORM in the transaction's own order.

    `where` is the condition of the statement; a key is a tuple of primary-key values in the table's order.
    """

    def inserted(self, tx: LocalTransaction, table: sa.Table, keys: Sequence[tuple[Any, ...]]) -> None:
        """Rows with these keys have just been inserted."""

    def updating(
        self, tx: LocalTransaction, table: sa.Table, where: sa.ColumnElement[bool], columns: Collection[str]
    ) -> object:
        """The rows that match are about to change in `columns`; the answer is handed to `updated`."""

    def updated(self, tx: LocalTransaction, token: object) -> None:
        """The update announced by `updating` has run."""

    def deleting(self, tx: LocalTransaction, table: sa.Table, where: sa.ColumnElement[bool]) -> None:
        """The rows that match are about to be deleted."""

    def incrementing(
        self,
        tx: LocalTransaction,
        table: sa.Table,
        where: sa.ColumnElement[bool],
        deltas: Mapping[str, Any],
        *,
        key: tuple[Any, ...] | None = None,
    ) -> object:
        """`column = column + delta` is about to run for the rows that match; the answer is handed to `incremented`.

        `key` is that of the only row that can match, where it is known, so that nobody need ask for it.
        """

    def incremented(self, tx: LocalTransaction, token: object) -> None:
        """The increment announced by `incrementing` has run and has found its rows."""

    def uncaptured(self, tx: LocalTransaction, reason: str) -> None:
        """A write is about to run that nobody can undo; `reason` names it for the message."""
