"""Paying what a saga that recovers forward owes: home has committed, and each branch follows in one local transaction.

The branch's record is the barrier: it is inserted first, so of several redoers one gets through. A redoer may also have
stood still since it found the saga owing, until the branch was done, the saga settled and the record deleted. So it
looks at home again once its insert holds the register: as long as home says `owed`, a branch's record is never deleted,
and the insert has shown that there is none.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import CommitInDoubt, CrosstieError, DatabaseUnavailable, DuplicateKey, IntegrityViolation
from crosstie.orm.faults import fault_point
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox.batch import BLOCK_STEP
from crosstie.outbox.durability import await_durable
from crosstie.outbox.publish import enqueue_envelopes
from crosstie.outbox.tables import saga as records
from crosstie.sagas import image, record
from crosstie.sagas.errors import RedoConflict
from crosstie.sagas.lock_wait import limit_lock_waits
from crosstie.sagas.logged_row import Entry
from crosstie.sagas.record import SagaHeader, SagaRecord
from crosstie.sagas.redo import envelopes_in, rows_in
from crosstie.sagas.resolution import Decision, Manner, Resolution, understood
from crosstie.sagas.reversal import do_again

__all__ = ["ENDED", "branches_done", "find_owed", "redo_by_hand", "resolve_owed", "settle_owed"]

logger = logging.getLogger(__name__)

ENDED: Final = ("done", "refused")
"""States of a branch that is owed nothing any more: it was done, or an operator has given it up."""
_ATTEMPTS: Final = 3
_PORTION: Final = 500


def resolve_owed(header: SagaHeader, *, unreachable: Collection[str] = ()) -> Resolution:
    """Do what is left to do in the branches of a saga that has committed in home, and note that it is settled.

    Branches in `unreachable` are not tried now. A branch that cannot be done now does not keep the others waiting.
    Raises DatabaseUnavailable where home cannot be asked.
    """
    found = record.read(header.saga_id, header.home)
    if found is None:
        return Resolution(Decision.FORGOTTEN)
    resolution = Resolution(understood(header, found.state))
    if found.state != "owed":
        return resolution
    conflicts: dict[str, RedoConflict] = {}
    entries = image.load(found.undo_log)
    for branch in found.header.branches:
        if branch in unreachable:
            resolution.pending[branch] = DatabaseUnavailable(f"database {branch!r} did not answer a moment ago")
            continue
        try:
            conflict = _redo(found.header, branch, entries)
        except CrosstieError as error:
            resolution.pending[branch] = error
        else:
            if conflict is not None:
                conflicts[branch] = conflict
    resolution.quarantined = {branch: str(conflict) for branch, conflict in conflicts.items()}
    if resolution.finished:
        fault_point("redo.before-settled")
        settle_owed(header.home, [header.saga_id])
    elif not resolution.pending:
        _quarantine(found.header, conflicts)
    return resolution


def redo_by_hand(header: SagaHeader, branch: str, manner: Manner) -> None:
    """Do a branch of a committed saga in a manner of the operator's choice, and have the others tried again.

    Does nothing where nothing is owed any more. Raises RedoConflict, and then nothing is done; CommitInDoubt.
    """
    found = record.read(header.saga_id, header.home)
    if found is None or found.state != "owed":
        return
    conflict = _redo(found.header, branch, image.load(found.undo_log), manner)
    if conflict is not None:
        raise conflict
    with detached_transaction(header.home) as tx:
        tx.mark_written()
        record.release(tx.connection, header.saga_id, header.home)


def _redo(
    header: SagaHeader, branch: str, entries: Sequence[Entry], manner: Manner = Manner.CHECKED
) -> RedoConflict | None:
    """Bring one branch to its end; the conflict, if there is one."""
    for attempt in range(_ATTEMPTS):
        try:
            if record.state_in(header.saga_id, branch) is None:  # a look costs less than a duplicate key
                _redo_once(header, branch, entries, manner)
        except _NothingOwed:
            # The record was in the way, or is no longer wanted; home must not rely on one that may be lost.
            await_durable(ConnectionManager.get(branch))
            return None
        except RedoConflict as conflict:
            return conflict
        except CommitInDoubt:
            if attempt + 1 == _ATTEMPTS:
                raise
        else:
            return None
    raise AssertionError("unreachable")


class _NothingOwed(Exception):
    """Rolls a redo back: somebody else has done it."""


def _redo_once(header: SagaHeader, branch: str, entries: Sequence[Entry], manner: Manner) -> None:
    try:
        with detached_transaction(branch) as tx:
            limit_lock_waits(tx)
            _take_barrier(tx, header, "refused" if manner is Manner.KEPT else "done")
            tx.mark_written()
            fault_point("redo.recorded")
            if record.state_in(header.saga_id, header.home) != "owed":
                raise _NothingOwed
            if manner is not Manner.KEPT:
                do_again(tx, rows_in(entries, branch), forced=manner is Manner.FORCED)
                enqueue_envelopes(tx, envelopes_in(entries, branch))
            fault_point("redo.applied")
    except IntegrityViolation as error:  # a constraint that is checked by COMMIT
        raise RedoConflict(f"{branch}: a constraint refuses the redo: {error}. Nothing was overwritten.") from error
    fault_point("redo.committed")


def _take_barrier(tx: LocalTransaction, header: SagaHeader, state: str) -> None:
    try:
        with tx.mapped_errors():
            record.insert(tx.connection, header, tx.database.name, state)
    except DuplicateKey:
        raise _NothingOwed from None


def _quarantine(header: SagaHeader, conflicts: Mapping[str, RedoConflict]) -> None:
    for branch, conflict in conflicts.items():
        logger.error("saga %s (%r): the redo in %r is quarantined: %s", header.saga_id, header.name, branch, conflict)
    notes = {
        branch: {"conflict": str(one), "table": one.table, "key": one.key, **one.images}
        for branch, one in conflicts.items()
    }
    note = {"conflict": "; ".join(map(str, conflicts.values())), "branches": notes}
    with detached_transaction(header.home) as tx:
        tx.mark_written()
        record.quarantine(tx.connection, header.saga_id, header.home, json.dumps(note))


def find_owed(database: Database, limit: int) -> list[tuple[SagaRecord, bool]]:
    """Sagas of this home that owe something, without their logs, and whether each has expired."""
    columns = [sa.literal("[]").label("undo_log") if one is records.c.undo_log else one for one in records.c]
    query = (
        sa.select(*columns, (records.c.expires_at_ms < now_ms()).label("expired"))
        .where(records.c.state == "owed", records.c.quarantine.is_(None), records.c.next_at_ms <= now_ms())
        .order_by(records.c.expires_at_ms)
        .limit(limit)
    )
    return [(SagaRecord.from_row(row), bool(row.expired)) for row in database.rows(query)]


def branches_done(headers: Collection[SagaHeader], unreachable: set[str]) -> dict[str, set[str]]:
    """By saga, the branches that are owed nothing; those that do not answer are added to `unreachable`."""
    wanted: dict[str, list[str]] = defaultdict(list)
    for header in headers:
        for branch in header.branches:
            wanted[branch].append(header.saga_id)
    done: dict[str, set[str]] = {header.saga_id: set() for header in headers}
    for branch, saga_ids in wanted.items():
        try:
            database = ConnectionManager.get(branch)
            for start in range(0, len(saga_ids), _PORTION):
                for row in database.rows(_DONE, {"branch": branch, "saga_ids": saga_ids[start : start + _PORTION]}):
                    done[row.saga_id].add(branch)
            await_durable(database)
        except CrosstieError as error:
            logger.warning("%d saga(s) wait for %r: %s", len(saga_ids), branch, error)
            unreachable.add(branch)
    return done


_DONE: Final = sa.select(records.c.saga_id).where(
    records.c.saga_id.in_(sa.bindparam("saga_ids", expanding=True)),
    records.c.step == BLOCK_STEP,
    records.c.participant == sa.bindparam("branch"),
    records.c.state.in_(ENDED),
)


def settle_owed(home: str, saga_ids: Sequence[str]) -> int:
    """Note in home that these sagas owe nothing any more, which their branches' records have shown."""
    if not saga_ids:
        return 0
    values: dict[str, Any] = {"state": "committed", "quarantine": None, "updated_at_ms": now_ms()}
    with detached_transaction(home) as tx:
        settled = tx.connection.execute(
            sa.update(records)
            .where(records.c.saga_id.in_(saga_ids), records.c.participant == home, records.c.state == "owed")
            .values(values)
        ).rowcount
        if settled:
            tx.mark_written()
    return settled
