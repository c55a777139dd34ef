"""Undoing a branch: the log of its writes, run backwards inside one local transaction.

Each entry is checked against the row as it is now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import sqlalchemy as sa

from crosstie.orm.database import Database
from crosstie.sagas.facts import FreshFacts
from crosstie.sagas.image import Image
from crosstie.sagas.logged_row import Entry, LoggedRow

__all__ = ["apply_undo"]


def apply_undo(
    database: Database, connection: sa.Connection, entries: Iterable[Entry], *, forced: bool = False
) -> None:
    """Undo the entries, last first, inside the connection's transaction.

    `forced` overwrites rows that somebody has changed since, and passes over those that somebody has deleted. Raises
    UndoConflict, naming table, key, and what was expected and found; the caller must roll back.
    """
    facts = FreshFacts(database, connection)
    for entry in reversed(list(entries)):
        LoggedRow(facts, entry, forced=forced).run(_UNDO[entry["op"]])


def _undo_insert(row: LoggedRow) -> None:
    after: Image = row.entry["after"]
    now = row.read(after)
    if now is None:
        return  # somebody deleted the row: nothing of this insert is left
    row.require_unchanged(now, after)
    row.delete()


def _undo_update(row: LoggedRow) -> None:
    before: Image = row.entry["before"]
    now = row.read(before)
    if now is None:
        row.require_there()
        return
    row.require_unchanged(now, row.entry["after"])
    row.update(before)


def _undo_delete(row: LoggedRow) -> None:
    before: Image = row.entry["before"]
    row.insert(before)
    stamps = {name: before[name] for name in row.stamped & before.keys()}
    if stamps and row.read(stamps) != stamps:
        row.update(stamps)  # a trigger of the insert has written them anew; one of the update has the last word


def _undo_increment(row: LoggedRow) -> None:
    row.add(sign=-1)


_UNDO: Final[dict[str, Callable[[LoggedRow], None]]] = {
    "insert": _undo_insert,
    "update": _undo_update,
    "delete": _undo_delete,
    "increment": _undo_increment,
}
