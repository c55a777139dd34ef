"""Finishing a saga: decide in home, then bring every branch to the decision.

The original process after a failure, and any worker that finds a record past its expiry, run this same code, at the
same time if it so happens. Each step is one local transaction that commits a register or moves a record on from a
named state, so a crash anywhere leaves only work that the next run repeats.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CommitInDoubt, CrosstieError, DuplicateKey
from crosstie.orm.faults import fault_point
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.transaction import detached_transaction
from crosstie.sagas import effect, image, record, withdrawal
from crosstie.sagas.branch_id import BranchId
from crosstie.sagas.errors import RowConflict, UndoWaits
from crosstie.sagas.lock_wait import limit_lock_waits
from crosstie.sagas.logged_row import Entry
from crosstie.sagas.owed import resolve_owed
from crosstie.sagas.preparable import finish, prepared_branches
from crosstie.sagas.record import Mode, SagaHeader, SagaRecord
from crosstie.sagas.resolution import Decision, Manner, Resolution, understood
from crosstie.sagas.reversal import take_back, tell_of_copies

__all__ = ["Decision", "Manner", "Resolution", "decide", "resolve", "undo_all", "undo_by_hand"]

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
"""Tries of one local transaction whose register another process took, or whose commit was in doubt."""


def decide(header: SagaHeader, found_in: str | None, *, still_open: Callable[[], bool] | None = None) -> Decision:
    """Read home's decision, or make it `aborted` if there is none.

    `found_in` is the branch whose `applied` record is the reason to ask, or home for its open effects; None only for an
    original that has not sent home's COMMIT and never will, or that can tell by `still_open` whether a branch's own
    transaction still holds its register, so that nobody can have settled the saga. Raises DatabaseUnavailable or
    LockTimeout (somebody else's decision is in flight): nothing is known then, try later.
    """
    fault_point("recovery.before-decision")
    for attempt in range(_ATTEMPTS):
        state = record.state_in(header.saga_id, header.home)
        if state is not None:
            return understood(header, state)
        try:
            return _abort_in_home(header, found_in, still_open)
        except _Forgotten:
            return Decision.FORGOTTEN
        except (DuplicateKey, CommitInDoubt):
            # Somebody decided while we tried, or our own answer was lost: the register knows.
            if attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _abort_in_home(header: SagaHeader, found_in: str | None, still_open: Callable[[], bool] | None) -> Decision:
    with detached_transaction(header.home) as tx:
        limit_lock_waits(tx)
        # Where no branch is known there is nothing to finish; one that appears later finds the decision all the same.
        # Nor is there where branches follow home.
        undoable = header.branches and header.mode is not Mode.FORWARD
        record.insert(tx.connection, header, header.home, "aborted" if undoable else "finished")
        due = effect.fall_due(tx.connection, header.saga_id)
        # The insert shows that home says nothing now; it may have said `committed` once, and retention have removed it
        # while this process stood still. Not so if the branch is still applied, because `committed` outlives that, nor
        # if an effect is still open, because the commit of `committed` has settled all.
        if found_in is not None and not _still_waits(header, found_in, due):
            raise _Forgotten
        if still_open is not None and not (due > 0 or still_open()):
            raise _Forgotten
        tx.mark_written()
        fault_point("recovery.decision-recorded")
    fault_point("recovery.decided")
    return Decision.ABORTED


def _still_waits(header: SagaHeader, found_in: str, due: int) -> bool:
    if found_in == header.home:
        return due > 0
    if header.mode is Mode.TWO_PHASE:
        return bool(_prepared(header, found_in))
    return record.states_in([header.saga_id], found_in).get(header.saga_id) not in {None, "done"}


def _prepared(header: SagaHeader, branch: str) -> list[BranchId]:
    found = prepared_branches(ConnectionManager.get(branch)) or ()
    return [one for one in found if one.saga_id == header.saga_id and one.branch == branch]


class _Forgotten(Exception):
    """Rolls the insert of `aborted` back."""


def resolve(header: SagaHeader, found_in: str | None) -> Resolution:
    """Bring every branch of a saga to home's decision, aborting it if there is none yet.

    Takes `found_in` and raises as `decide` does. A branch that cannot be resolved now does not keep the others waiting.
    """
    if header.mode is Mode.FORWARD:
        return resolve_owed(header)
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


def _resolve_branch(header: SagaHeader, branch: str, decision: Decision) -> str | None:
    """Bring one branch to the decision; the text of a conflict if its undo is quarantined."""
    if header.mode is Mode.TWO_PHASE:
        for prepared in _prepared(header, branch):
            finish(ConnectionManager.get(branch), prepared, commit=decision is Decision.COMMITTED)
        return None
    if decision is Decision.COMMITTED:
        with detached_transaction(branch) as tx:
            if record.move(tx.connection, header.saga_id, branch, "applied", "done"):
                tx.mark_written()
                withdrawal.release_locks(tx.connection, [header.saga_id], branch)
        return None
    for attempt in range(_ATTEMPTS):
        try:
            return _undo_or_refuse(header, branch)
        except RowConflict as conflict:
            _require_none_later(header, branch, conflict)
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
        limit_lock_waits(tx)
        found = record.lock(tx.connection, header.saga_id, branch)
        if found is not None and found.state == "applied":
            record.release(tx.connection, header.saga_id, branch)
            undo_all(tx, [found], manner)


def _undo_or_refuse(header: SagaHeader, branch: str) -> str | None:
    with detached_transaction(branch) as tx:
        limit_lock_waits(tx)
        found = record.lock(tx.connection, header.saga_id, branch)
        if found is None:
            record.insert(tx.connection, header, branch, "refused")
            tx.mark_written()
        elif found.state == "applied":
            if found.quarantine is not None:
                return found.quarantine
            undo_all(tx, [found], Manner.CHECKED)
            fault_point("recovery.branch-undone")
    return None


def undo_all(tx: LocalTransaction, found: Sequence[SagaRecord], manner: Manner) -> None:
    """Take the writes and the events of one participant's branches back, and say so in their records, which are locked.

    Raises UndoConflict.
    """
    branch = tx.database.name
    writes: list[Entry] = []
    others: dict[str, list[Entry]] = {}
    for one in sorted(found, key=lambda one: one.age):  # the last writes are undone first
        for entry in image.load(one.undo_log):
            own = entry["op"] in {withdrawal.EVENTS, withdrawal.LOCKS}
            (others.setdefault(one.header.saga_id, []) if own else writes).append(entry)
    if manner is not Manner.KEPT:
        take_back(tx, writes, forced=manner is Manner.FORCED)
    for saga_id, other in others.items():
        withdrawal.withdraw(tx.connection, other, saga_id)
    locked = [saga_id for saga_id, other in others.items() if any(one["op"] == withdrawal.LOCKS for one in other)]
    if locked:
        withdrawal.release_locks(tx.connection, locked, branch)
    tell_of_copies(tx, writes)
    record.move_all(tx.connection, [one.header.saga_id for one in found], branch, "applied", "undone")
    tx.mark_written()


def _require_none_later(header: SagaHeader, branch: str, conflict: RowConflict) -> None:
    """Raise UndoWaits where a saga that wrote the row after this one is unfinished: the conflict may be with it.

    It will be undone itself, or settled, or quarantined; nobody waits for one that came before it.
    """
    database = ConnectionManager.get(branch)
    with database.alone() as connection:
        later = record.later_logs(connection, header.saga_id, branch, image.dump([conflict.key])[1:-1])
    for saga_id, log in later:
        if any(one.get("key") == conflict.key and one["table"] == conflict.table for one in image.load(log)):
            raise UndoWaits(f"{conflict} Saga {saga_id} has written the row since, and is not finished itself.")


def _quarantine(header: SagaHeader, branch: str, conflict: RowConflict) -> None:
    logger.error("saga %s (%r): the undo is quarantined: %s", header.saga_id, header.name, conflict)
    note = json.dumps({"conflict": str(conflict), "table": conflict.table, "key": conflict.key, **conflict.images})
    with detached_transaction(branch) as tx:
        tx.mark_written()
        record.quarantine(tx.connection, header.saga_id, branch, note)
