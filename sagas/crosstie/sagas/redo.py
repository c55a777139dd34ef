"""What a branch of a saga that recovers forward can be redone from, and the redoing.

The log is that of an undo, run forwards: the same entries with the same images. Between home's commit and a redo,
others may have written the rows, and nobody can tell them that a committed saga is about to. So a branch takes only
writes that do not care (rows under keys that the caller made, increments) and those that notice (upserts, and updates
and deletes of rows with a version): a redo finds the row as the block found it, or it is a conflict for an operator.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.database import Database
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.recorder import Key, Rows
from crosstie.outbox.envelope import Envelope
from crosstie.outbox.publish import KEPT
from crosstie.sagas.capture import BranchRecorder, undo_log, without_copies
from crosstie.sagas.errors import RedoConflict
from crosstie.sagas.facts import FreshFacts, TableFacts
from crosstie.sagas.image import Image
from crosstie.sagas.logged_row import Entry, LoggedRow

__all__ = ["PUBLISH", "RedoRecorder", "apply_redo", "envelopes_in", "redo_log", "rows_in"]

PUBLISH: Final = "publish"
"""The `op` of the entry that has the events of a branch."""


class RedoRecorder(BranchRecorder):
    """Takes down how each write of a branch is done again, and calls uncaptured what could be refused then."""

    def inserted(self, tx: LocalTransaction, table: sa.Table, keys: Sequence[Key], *, numbered: bool = False) -> None:
        """Read the new rows back, wholly."""
        if numbered:
            # Where the transaction is lost, SQLite gives the number to somebody else, and home refers to it already.
            self.uncaptured(tx, f"an insert into {table.name!r} whose key the database makes")
            return
        super().inserted(tx, table, keys)

    def updating(
        self, tx: LocalTransaction, table: sa.Table, rows: Rows, columns: Collection[str], *, upserting: bool = False
    ) -> object:
        """Read the columns before they change: that is how a redo must find them."""
        names = {table.c[name].name if name in table.c else name: "" for name in columns}
        if not upserting and without_copies(table, names) and _version_of(table) not in names:
            self.uncaptured(tx, f"an update of {table.name!r} that raises no version (OptimisticLockMixin)")
        return super().updating(tx, table, rows, columns)

    def deleting(self, tx: LocalTransaction, table: sa.Table, rows: Rows) -> None:
        """Read the whole rows: that is how a redo must find them."""
        if _version_of(table) is None:
            self.uncaptured(tx, f"deleting rows of {table.name!r}, which has no version (OptimisticLockMixin)")
        super().deleting(tx, table, rows)

    def _must_not_tell(self, operation: str) -> bool:
        del operation
        return False  # a redo has them tell again

    def _of_new_rows(self, table: sa.Table, facts: TableFacts) -> dict[str, str]:
        del table
        return facts.insertable


def _version_of(table: sa.Table) -> str | None:
    version: str | None = table.info.get("crosstie.version")
    return version


def redo_log(tx: LocalTransaction) -> list[dict[str, Any]]:
    """The entries of a branch, its events last."""
    entries = [{**entry, "in": tx.database.name} for entry in undo_log(tx)]
    written: list[Envelope] = tx.ledger(KEPT)
    if written:
        events = [[one.uid, one.key, one.type, one.schema_version, one.payload, dict(one.headers)] for one in written]
        entries.append({"op": PUBLISH, "in": tx.database.name, "events": events})
    return entries


def rows_in(entries: Iterable[Entry], database_name: str) -> list[Entry]:
    """The entries about rows of this database."""
    return [entry for entry in entries if entry["in"] == database_name and entry["op"] != PUBLISH]


def envelopes_in(entries: Iterable[Entry], database_name: str) -> list[Envelope]:
    """The events that this database has to publish."""
    return [
        Envelope(*event)
        for entry in entries
        if entry["in"] == database_name and entry["op"] == PUBLISH
        for event in entry["events"]
    ]


def apply_redo(
    database: Database, connection: sa.Connection, entries: Iterable[Entry], *, forced: bool = False
) -> None:
    """Do the entries, which are about rows, again in their order, inside the connection's transaction.

    `forced` overwrites rows that somebody has changed or made since, and passes over those that somebody has deleted.
    Raises RedoConflict, naming table, key, and what was expected and found; the caller must roll back.
    """
    facts = FreshFacts(database, connection)
    for entry in entries:
        LoggedRow(facts, entry, forced=forced, conflicts=RedoConflict).run(_REDO[entry["op"]])


def _redo_insert(row: LoggedRow) -> None:
    row.insert(row.entry["after"])


def _redo_update(row: LoggedRow) -> None:
    before: Image = row.entry["before"]
    now = row.read(before)
    if now is None:
        row.require_there()
        return
    row.require_unchanged(now, before)
    row.update(row.entry["after"])


def _redo_delete(row: LoggedRow) -> None:
    before: Image = row.entry["before"]
    now = row.read(before)
    if now is None:
        return  # somebody else has deleted it: that is what was wanted
    row.require_unchanged(now, before)
    row.delete()


def _redo_increment(row: LoggedRow) -> None:
    row.add(sign=1)


_REDO: Final[Mapping[str, Callable[[LoggedRow], None]]] = {
    "insert": _redo_insert,
    "update": _redo_update,
    "delete": _redo_delete,
    "increment": _redo_increment,
}
