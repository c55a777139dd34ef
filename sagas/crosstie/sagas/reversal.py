"""Writes taken back or done again in a transaction, and everybody told who keeps something of the rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from crosstie.orm.local_transaction import LocalTransaction
from crosstie.outbox.copy_event import undone
from crosstie.outbox.invalidation import tell_of_tables
from crosstie.outbox.key_json import to_json
from crosstie.outbox.publish import enqueue
from crosstie.sagas import image
from crosstie.sagas.logged_row import Entry
from crosstie.sagas.redo import apply_redo
from crosstie.sagas.undo import apply_undo

__all__ = ["do_again", "take_back", "tell_of_copies"]


def take_back(tx: LocalTransaction, entries: Collection[Entry], *, forced: bool = False) -> None:
    """Undo these writes in the transaction; caches are told. Raises UndoConflict, as `apply_undo` does."""
    apply_undo(tx.database, tx.connection, entries, forced=forced)
    tell_of_tables(tx, {entry["table"] for entry in entries})


def do_again(tx: LocalTransaction, entries: Collection[Entry], *, forced: bool = False) -> None:
    """Redo these writes in the transaction; caches and copies are told. Raises RedoConflict, as `apply_redo` does."""
    apply_redo(tx.database, tx.connection, entries, forced=forced)
    tell_of_tables(tx, {entry["table"] for entry in entries})
    tell_of_copies(tx, entries, new_rows=True)


def tell_of_copies(tx: LocalTransaction, entries: Iterable[Mapping[str, Any]], *, new_rows: bool = False) -> None:
    """Have copies in and of these rows aligned: somebody may have copied what is taken back.

    And in `new_rows`, whose copies may be older than they are.
    """
    operations = {"update", "delete", "increment"} | ({"insert"} if new_rows else set())
    keys: dict[str, dict[tuple[Any, ...], None]] = {}
    for entry in entries:
        if entry["op"] in operations:
            key = tuple(to_json(image.decode(value)) for value in entry["key"].values())
            keys.setdefault(entry["table"], {})[key] = None
    for table, rows in keys.items():
        enqueue(tx, undone(tx, table, list(rows)))
