"""Locks on rows that outlive a branch's commit: nobody builds on what an undecided saga has written.

A lock is a row of `crosstie_saga_lock`, inserted in the transaction that writes the row which it stands for, so it is
there exactly as long as that write and its record `applied`. While the transaction is open, the insert of another saga
waits for it, no longer than `saga.lock_timeout_s`: two sagas that hold what the other wants, in two databases where no
server sees the deadlock, end so. The transaction that settles or undoes the branch deletes its locks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import CrosstieError, DuplicateKey, LockTimeout
from crosstie.orm.local_transaction import LocalTransaction, current
from crosstie.orm.recorder import Key, Rows, WriteRecorder
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox.tables import saga as records
from crosstie.outbox.tables import saga_lock as locks
from crosstie.sagas import record
from crosstie.sagas.capture import undo_log
from crosstie.sagas.errors import RowLocked, SagaError
from crosstie.sagas.image import key_text
from crosstie.sagas.record import SagaRecord
from crosstie.sagas.recovery import resolve
from crosstie.sagas.withdrawal import LOCKS, release_locks

__all__ = ["LockingRecorder", "drop_stale", "help_along", "stale_locks"]

logger = logging.getLogger(__name__)

_HELD: Final = "saga.locks"
_PORTION: Final = 250
_PAUSE_S: Final = 0.02
_LONGEST: Final = 400
"""Characters in `row_key`."""


class LockingRecorder:
    """Takes the lock of each row before `recorder` sees its write; that of a new row after its insert.

    Raises RowLocked, and SagaError for writes whose rows it cannot know.
    """

    def __init__(self, recorder: WriteRecorder, saga_id: str) -> None:
        self._recorder = recorder
        self._saga_id = saga_id

    def inserted(self, tx: LocalTransaction, table: sa.Table, keys: Sequence[Key], *, numbered: bool = False) -> None:
        """Lock the new rows, which others can see once the branch has committed."""
        self.lock(tx, table, keys)
        self._recorder.inserted(tx, table, keys, numbered=numbered)

    def updating(
        self, tx: LocalTransaction, table: sa.Table, rows: Rows, columns: Collection[str], *, upserting: bool = False
    ) -> object:
        """Lock the rows."""
        self.lock(tx, table, _keys(tx, table, rows))
        return self._recorder.updating(tx, table, rows, columns, upserting=upserting)

    def updated(self, tx: LocalTransaction, token: object) -> None:
        """Nothing to lock."""
        self._recorder.updated(tx, token)

    def deleting(self, tx: LocalTransaction, table: sa.Table, rows: Rows) -> None:
        """Lock the rows: until the saga is decided, nobody else makes one of the same key."""
        self.lock(tx, table, _keys(tx, table, rows))
        self._recorder.deleting(tx, table, rows)

    def incrementing(self, tx: LocalTransaction, table: sa.Table, rows: Rows, deltas: Mapping[str, Any]) -> object:
        """Lock the rows."""
        self.lock(tx, table, _keys(tx, table, rows))
        return self._recorder.incrementing(tx, table, rows, deltas)

    def incremented(self, tx: LocalTransaction, token: object) -> None:
        """Nothing to lock."""
        self._recorder.incremented(tx, token)

    def uncaptured(self, tx: LocalTransaction, reason: str) -> None:
        """Refuse it: nobody can tell which rows it writes."""
        raise SagaError(
            f"database {tx.database.name!r}: {reason} inside a saga with isolation='locked', which cannot know and "
            "lock the rows that it writes. Write through models, or leave isolation out."
        )

    def lock(self, tx: LocalTransaction, table: sa.Table, keys: Iterable[Key]) -> None:
        """Take the locks of these rows, in the order of their keys. Raises RowLocked."""
        name = f"{table.schema}.{table.name}" if table.schema else table.name
        held = tx.ledger(_HELD)
        already = set(held)
        wanted = sorted({_row_key(key) for key in keys} - {key for table_name, key in already if table_name == name})
        if not wanted:
            return
        if not held:
            undo_log(tx).append({"op": LOCKS})
        with tx.internal():
            for start in range(0, len(wanted), _PORTION):
                self._take(tx, name, wanted[start : start + _PORTION])
        held.extend((name, key) for key in wanted)

    def _take(self, tx: LocalTransaction, table: str, keys: Sequence[str]) -> None:
        """Wait for those that others hold, then insert ours."""
        gives_up_at = time.monotonic() + ConnectionManager.settings().saga.lock_timeout_s
        while (key := _held_by_another(tx, table, keys)) is not None:
            if tx.database.kind == "sqlite" or time.monotonic() >= gives_up_at:
                # Its owner can settle nothing in a SQLite database while we are the writer.
                raise _locked(tx, table, key)
            if not help_along(tx.database.name, table, key):
                time.sleep(_PAUSE_S)
        values = [
            {"table_name": table, "row_key": key, "saga_id": self._saga_id, "participant": tx.database.name}
            for key in keys
        ]
        try:
            with tx.mapped_errors():
                tx.connection.execute(sa.insert(locks).values(created_at_ms=now_ms()), values)
        except (DuplicateKey, LockTimeout) as error:
            raise _locked(tx, table, keys[0] if len(keys) == 1 else "") from error


def _keys(tx: LocalTransaction, table: sa.Table, rows: Rows) -> Iterator[Key]:
    if isinstance(rows, tuple):
        yield rows
        return
    query = sa.select(*table.primary_key).where(rows).with_for_update()
    with tx.mapped_errors(), tx.internal():
        yield from [tuple(row) for row in tx.connection.execute(query)]


def _row_key(key: Key) -> str:
    text = json.dumps([key_text(value) for value in key], separators=(",", ":"), ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _held_by_another(tx: LocalTransaction, table: str, keys: Sequence[str]) -> str | None:
    """One of the keys that is locked already. A plain read, which leaves no lock of ours in its owner's way."""
    query = sa.select(locks.c.row_key).where(locks.c.table_name == table, locks.c.row_key.in_(keys)).limit(1)
    with tx.mapped_errors():
        found: str | None = tx.connection.execute(query).scalar_one_or_none()
    return found


def _locked(tx: LocalTransaction, table: str, key: str) -> RowLocked:
    return RowLocked(
        f"database {tx.database.name!r}: a row of {table!r} ({key or 'one of several'}) is locked by another saga that "
        "has not ended. Nothing was committed; run the whole block again.",
        database=tx.database.name,
        table=table,
        key=key,
    )


def help_along(database_name: str, table: str, key: str) -> bool:
    """End the saga that holds this row's lock, if it is decided or past its expiry; whether the row may be free now."""
    try:
        query = (
            sa.select(records, (records.c.expires_at_ms < now_ms()).label("expired"))
            .join(locks, sa.and_(locks.c.saga_id == records.c.saga_id, locks.c.participant == records.c.participant))
            .where(locks.c.table_name == table, locks.c.row_key == key, records.c.state == "applied")
        )
        holders = ConnectionManager.get(database_name).rows(query)
        if not holders:
            return drop_stale(database_name) > 0
        row = holders[0]
        found = SagaRecord.from_row(row)
        if found.quarantine is not None or _stands_in_its_way(found.header.participants):
            return False
        if record.state_in(found.header.saga_id, found.header.home) is None and not row.expired:
            return False
        return resolve(found.header, found.participant).finished
    except CrosstieError as error:
        logger.info("the saga that holds a row of %r in %r cannot be ended now: %s", table, database_name, error)
        return False


def _stands_in_its_way(participants: Iterable[str]) -> bool:
    """Whether this thread is the one writer of a SQLite database that the saga would have to write to."""
    return any(current(name) is not None and ConnectionManager.get(name).kind == "sqlite" for name in participants)


def stale_locks(database: Database, limit: int = 1000) -> list[Any]:
    """Locks without the `applied` record with which they were committed: somebody deleted it by hand.

    Raises DatabaseUnavailable.
    """
    owner = sa.select(records.c.saga_id).where(
        records.c.saga_id == locks.c.saga_id,
        records.c.participant == locks.c.participant,
        records.c.state == "applied",
    )
    return database.rows(sa.select(locks).where(~owner.exists()).limit(limit))


def drop_stale(database_name: str) -> int:
    """Delete the locks that nothing will release any more; returns how many. Raises DatabaseUnavailable."""
    stale = stale_locks(ConnectionManager.get(database_name))
    if not stale:
        return 0
    with detached_transaction(database_name) as tx:
        tx.mark_written()
        for owner in {(row.saga_id, row.participant) for row in stale}:
            release_locks(tx.connection, [owner[0]], owner[1])
    return len(stale)
