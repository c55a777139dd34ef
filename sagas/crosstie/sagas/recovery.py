"""Finishing a saga: decide in home, then bring every branch to the decision.

The original process after a failure, and any worker that finds a record past its expiry, run this same code, at the
same time if it so happens. Each step is one local transaction that commits a register or moves a record on from a
named state, so a crash anywhere leaves only work that the next run repeats.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CommitInDoubt, CrosstieError, DuplicateKey
from crosstie.orm.faults import fault_point
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox.copy_event import undone
from crosstie.outbox.invalidation import tell_of_undo
from crosstie.outbox.key_json import to_json
from crosstie.outbox.publish import enqueue
from crosstie.outbox.tables import outbox
from crosstie.sagas import image, record
from crosstie.sagas.errors import SagaRecordConflict, UndoConflict
from crosstie.sagas.record import SagaHeader, SagaRecord
from crosstie.sagas.undo import apply_undo

__all__ = ["Decision", "Manner", "Resolution", "decide", "resolve", "undo_by_hand"]

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
"""Tries of one local transaction whose register another process took, or whose commit was in doubt."""


class Decision(Enum):
    """What home's register says, for good."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    FORGOTTEN = "forgotten"
    """It was decided and settled so long ago that its records are gone: there is nothing left to do."""


class Manner(Enum):
    """How an undo treats rows that somebody has changed since."""

    CHECKED = "checked"
    """They are a conflict, and nothing is undone."""
    FORCED = "forced"
    """They are overwritten."""
    KEPT = "kept"
    """All rows stay as they are."""


@dataclass
class Resolution:
    """How far `resolve` came. A saga is finished when nothing is pending and nothing quarantined."""

    decision: Decision
    pending: dict[str, CrosstieError] = field(default_factory=dict)
    """Branches that could not be reached or were locked; try again later."""
    quarantined: dict[str, str] = field(default_factory=dict)
    """Branches whose undo met somebody else's change; an operator decides."""

    @property
    def finished(self) -> bool:
        """Whether every branch stands where the decision wants it."""
        return not self.pending and not self.quarantined


def decide(header: SagaHeader, found_in: str | None) -> Decision:
    """Read home's decision, or make it `aborted` if there is none.

    `found_in` is the branch whose `applied` record is the reason to ask; None only for an original that has not sent
    home's COMMIT and never will. Raises DatabaseUnavailable or LockTimeout (somebody else's decision is in flight):
    nothing is known then, try later.
    """
    fault_point("recovery.before-decision")
    for attempt in range(_ATTEMPTS):
        state = record.state_in(header.saga_id, header.home)
        if state is not None:
            return _understood(header, state)
        try:
            return _abort_in_home(header, found_in)
        except _Forgotten:
            return Decision.FORGOTTEN
        except (DuplicateKey, CommitInDoubt):
            # Somebody decided while we tried, or our own answer was lost: the register knows.
            if attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _abort_in_home(header: SagaHeader, found_in: str | None) -> Decision:
    with detached_transaction(header.home) as tx:
        _limit_lock_waits(tx)
        record.insert(tx.connection, header, header.home, Decision.ABORTED.value)
        # The insert shows that home says nothing now; it may have said `committed` once, and retention have removed it
        # while this process stood still. Not so if the branch is still applied, because `committed` outlives that.
        if found_in is not None and record.state_in(header.saga_id, found_in) in {None, "done"}:
            raise _Forgotten
        tx.mark_written()
        fault_point("recovery.decision-recorded")
    fault_point("recovery.decided")
    return Decision.ABORTED


class _Forgotten(Exception):
    """Rolls the insert of `aborted` back."""


def resolve(header: SagaHeader, found_in: str | None) -> Resolution:
    """Bring every branch of a saga to home's decision, aborting it if there is none yet.

    Takes `found_in` and raises as `decide` does. A branch that cannot be resolved now does not keep the others waiting.
    """
    resolution = Resolution(decide(header, found_in))
    if resolution.decision is Decision.FORGOTTEN:
        return resolution
    for branch in header.branches:
        try:
            conflict = _resolve_branch(header, branch, resolution.decision)
        except CrosstieError as error:
            resolution.pending[branch] = error
        else:
            fault_point("recovery.branch-resolved")
            if conflict is not None:
                resolution.quarantined[branch] = conflict
    if resolution.decision is Decision.ABORTED and resolution.finished:
        fault_point("recovery.before-finish")
        with detached_transaction(header.home) as tx:
            if record.move(tx.connection, header.saga_id, header.home, "aborted", "finished"):
                tx.mark_written()
        fault_point("recovery.finished")
    return resolution


def _understood(header: SagaHeader, state: str) -> Decision:
    if state == "committed":
        return Decision.COMMITTED
    if state in {"aborted", "finished"}:
        return Decision.ABORTED
    raise SagaRecordConflict(
        f"saga {header.saga_id} ({header.name!r}): expected home {header.home!r} to say committed, aborted or "
        f"finished, found {state!r}. Somebody else wrote crosstie_saga; nothing was changed."
    )


def _resolve_branch(header: SagaHeader, branch: str, decision: Decision) -> str | None:
    """Bring one branch to the decision; the text of a conflict if its undo is quarantined."""
    if decision is Decision.COMMITTED:
        with detached_transaction(branch) as tx:
            if record.move(tx.connection, header.saga_id, branch, "applied", "done"):
                tx.mark_written()
        return None
    for attempt in range(_ATTEMPTS):
        try:
            return _undo_or_refuse(header, branch)
        except UndoConflict as conflict:
            _quarantine(header, branch, conflict)
            return str(conflict)
        except (DuplicateKey, CommitInDoubt):
            # Another process wrote the branch's register first, or our answer was lost: the register knows.
            if attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def undo_by_hand(header: SagaHeader, branch: str, manner: Manner) -> None:
    """Undo an applied branch of an aborted saga although it may be quarantined.

    Does nothing where the branch is no longer applied. Raises UndoConflict, and then nothing is undone; CommitInDoubt.
    """
    with detached_transaction(branch) as tx:
        _limit_lock_waits(tx)
        found = record.lock(tx.connection, header.saga_id, branch)
        if found is not None and found.state == "applied":
            record.release(tx.connection, header.saga_id, branch)
            _undo(tx, found, manner)


def _undo_or_refuse(header: SagaHeader, branch: str) -> str | None:
    with detached_transaction(branch) as tx:
        _limit_lock_waits(tx)
        found = record.lock(tx.connection, header.saga_id, branch)
        if found is None:
            record.insert(tx.connection, header, branch, "refused")
            tx.mark_written()
        elif found.state == "applied":
            if found.quarantine is not None:
                return found.quarantine
            _undo(tx, found, Manner.CHECKED)
            fault_point("recovery.branch-undone")
    return None


def _undo(tx: LocalTransaction, found: SagaRecord, manner: Manner) -> None:
    """Take a branch's writes and its events back, and say so in its record. Raises UndoConflict."""
    header = found.header
    entries = image.load(found.undo_log)
    writes = [entry for entry in entries if entry["op"] != "events"]
    if manner is not Manner.KEPT:
        apply_undo(tx.database, tx.connection, writes, forced=manner is Manner.FORCED)
        tell_of_undo(tx, {entry["table"] for entry in writes})
    if len(writes) < len(entries):
        # There is no index for this; only a branch that published events pays for the search.
        tx.connection.execute(sa.delete(outbox).where(outbox.c.saga_id == header.saga_id))
    _tell_of_copies(tx, writes)
    record.move(tx.connection, header.saga_id, found.participant, "applied", "undone")
    tx.mark_written()


def _tell_of_copies(tx: LocalTransaction, entries: Iterable[Mapping[str, Any]]) -> None:
    """Have copies in and of these rows aligned: since the branch's commit, somebody may have copied what it wrote."""
    keys: dict[str, dict[tuple[Any, ...], None]] = {}
    for entry in entries:
        if entry["op"] in {"update", "delete", "increment"}:
            key = tuple(to_json(image.decode(value)) for value in entry["key"].values())
            keys.setdefault(entry["table"], {})[key] = None
    for table, rows in keys.items():
        enqueue(tx, undone(tx, table, list(rows)))


def _quarantine(header: SagaHeader, branch: str, conflict: UndoConflict) -> None:
    logger.error("saga %s (%r): the undo is quarantined: %s", header.saga_id, header.name, conflict)
    note = json.dumps({"conflict": str(conflict), "table": conflict.table, "key": conflict.key, **conflict.images})
    with detached_transaction(branch) as tx:
        tx.mark_written()
        record.quarantine(tx.connection, header.saga_id, branch, note)


def _limit_lock_waits(tx: LocalTransaction) -> None:
    """Wait for a lock of the original no longer than the configured time: its outcome is then simply not known yet."""
    seconds = int(ConnectionManager.settings().saga.lock_timeout_s)
    if tx.database.kind == "postgresql":
        tx.connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{seconds}s'")
    elif tx.database.kind in {"mysql", "mariadb"}:
        before = int(tx.connection.exec_driver_sql("SELECT @@SESSION.innodb_lock_wait_timeout").scalar_one())
        tx.connection.exec_driver_sql(f"SET SESSION innodb_lock_wait_timeout = {seconds}")
        # The connection goes back to the pool; later transactions on it must wait as long as they always did.
        restore = f"SET SESSION innodb_lock_wait_timeout = {before}"
        tx.at_close(lambda connection: connection.exec_driver_sql(restore))
