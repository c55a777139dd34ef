"""The sweep: finds every saga that a crash can leave, with no message delivered and nothing remembered.

A branch's `applied` record is the only trace that an unfinished saga must leave, in a two-phase saga the name of its
prepared transaction, in one that recovers forward home's `owed`, and home's `aborted` the only one of an unfinished
abort. The sweep of a database reads just
these, so sweeping every database finds every saga.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from dataclasses import dataclass
from secrets import SystemRandom
from typing import Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import CrosstieError, DatabaseUnavailable
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox.batch import home_states
from crosstie.outbox.lane import backoff_s
from crosstie.outbox.tables import saga as records
from crosstie.sagas import record, row_lock, withdrawal
from crosstie.sagas.cohort import cohorts
from crosstie.sagas.owed import branches_done, find_owed, resolve_owed, settle_owed
from crosstie.sagas.preparable import PREPARED, prepared_branches, prepared_header
from crosstie.sagas.record import SagaRecord
from crosstie.sagas.recovery import Decision, resolve

__all__ = ["SweepReport", "resolve_saga", "sweep_sagas"]

logger = logging.getLogger(__name__)

_random: Final = SystemRandom()


@dataclass(frozen=True)
class SweepReport:
    """What one sweep of one database did, in sagas."""

    settled: int = 0
    """Committed sagas whose branch here is now `done`, and those that owe nothing any more."""
    aborted: int = 0
    """Sagas whose abort was finished."""
    deferred: int = 0
    """Sagas that another participant keeps waiting: unreachable or locked."""
    quarantined: int = 0
    """Sagas whose undo or redo met somebody else's change and waits for an operator."""

    def __add__(self, other: SweepReport) -> SweepReport:
        return SweepReport(
            self.settled + other.settled,
            self.aborted + other.aborted,
            self.deferred + other.deferred,
            self.quarantined + other.quarantined,
        )


def sweep_sagas(database_name: str, *, limit: int = 500) -> SweepReport:
    """Settle or abort the sagas whose records in this database say that they are unfinished.

    At most `limit` records of each kind are taken at a time. Raises DatabaseUnavailable for this database, NoSuchTable
    where `crosstie init` has not run; what another participant cannot do now is deferred and found again.
    """
    database = ConnectionManager.get(database_name)
    report = SweepReport()
    unfinished = _aborted_homes(database, limit)
    by_home: dict[str, list[tuple[SagaRecord, bool]]] = defaultdict(list)
    for found, expired in [*_applied(database, limit), *_prepared(database)]:
        by_home[found.header.home].append((found, expired))
    for home, branches in by_home.items():
        try:
            states = home_states(ConnectionManager.get(home), {found.header.saga_id for found, _ in branches})
        except CrosstieError as error:
            logger.warning("%d saga(s) of home %r wait: %s", len(branches), home, error)
            _defer(database_name, [found for found, _ in branches])
            report += SweepReport(deferred=len(branches))
            continue
        decided = {found: states.get(found.header.saga_id) for found, _ in branches}
        settled = [one for one in decided if decided[one] == "committed" and one.state == "applied"]
        report += SweepReport(settled=_settle(database_name, settled))
        # An abort that somebody has decided needs no expiry to be finished; an undecided saga may still be running.
        # Home may even say `finished`: a saga that was aborted for its effects had no branch yet that anybody knew.
        unfinished += [
            found
            for found, expired in branches
            if decided[found] in {"aborted", "finished"}
            or (decided[found] is None and expired)
            or (found.state == PREPARED and decided[found] is not None)
        ]
    down: set[str] = set()
    # The latest sagas first: they may have written the rows of those before them.
    unfinished.sort(key=lambda one: one.age, reverse=True)
    apart = set(unfinished)
    for cohort in cohorts(unfinished):
        cohort.undo(down)
        report += SweepReport(aborted=len(cohort.undone))
        apart -= {*cohort.found} - {*cohort.left}
    for found in unfinished:
        if found in apart:
            report += _finish(database_name, found, down)
    report += _pay(database, limit, down)
    dropped = row_lock.drop_stale(database_name)
    if dropped:
        logger.warning(
            "%d row lock(s) in %r were left by sagas without a record, and are gone now", dropped, database_name
        )
    return report


def resolve_saga(saga_id: str, home: str) -> SweepReport:
    """Finish one saga now, found through whichever participant still has a record of it.

    For the doorbell: a saga of which nothing is unfinished is left alone. Raises what `sweep_sagas` raises.
    """
    for name in [home, *(other for other in ConnectionManager.names(writable=True) if other != home)]:
        database = ConnectionManager.get(name)
        with database.mapped_errors(), database.autocommit.connect() as connection:
            rows = connection.execute(sa.select(records).where(records.c.saga_id == saga_id)).all()
        for row in rows:
            if row.state in {"applied", "aborted", "committed", "owed"}:
                return _finish(name, SagaRecord.from_row(row), set())
    return SweepReport()


def _applied(database: Database, limit: int) -> list[tuple[SagaRecord, bool]]:
    query = (
        sa.select(records, (records.c.expires_at_ms < now_ms()).label("expired"))
        .where(
            records.c.state == "applied",
            records.c.quarantine.is_(None),
            records.c.next_at_ms <= now_ms(),
        )
        .order_by(records.c.expires_at_ms)
        .limit(limit)
    )
    with database.mapped_errors(), database.autocommit.connect() as connection:
        return [(SagaRecord.from_row(row), bool(row.expired)) for row in connection.execute(query)]


def _prepared(database: Database) -> list[tuple[SagaRecord, bool]]:
    """The prepared branches here, as far as their names tell of them, and whether each has expired."""
    now = time.time() * 1000
    return [
        (SagaRecord(prepared_header(one), database.name, PREPARED, "[]", 0, None), one.expires_at_ms <= now)
        for one in prepared_branches(database) or ()
        if one.branch == database.name
    ]


def _aborted_homes(database: Database, limit: int) -> list[SagaRecord]:
    query = (
        sa.select(records)
        .where(records.c.state == "aborted", records.c.next_at_ms <= now_ms())
        .order_by(records.c.expires_at_ms)
        .limit(limit)
    )
    with database.mapped_errors(), database.autocommit.connect() as connection:
        return [SagaRecord.from_row(row) for row in connection.execute(query)]


def _settle(database_name: str, committed: list[SagaRecord]) -> int:
    if not committed:
        return 0
    with detached_transaction(database_name) as tx:
        settled = record.move_all(
            tx.connection, [one.header.saga_id for one in committed], database_name, "applied", "done"
        )
        if settled:
            tx.mark_written()
            # Only the logs of sagas with locks say so.
            locked = [one.header.saga_id for one in committed if f'"{withdrawal.LOCKS}"' in one.undo_log]
            if locked:
                withdrawal.release_locks(tx.connection, locked, database_name)
    return settled


def _pay(database: Database, limit: int, down: set[str]) -> SweepReport:
    """Settle the sagas of this home whose branches are done, and do what others owe since they expired."""
    found = find_owed(database, limit)
    done = branches_done([one.header for one, _ in found], down)
    settled = {one.header.saga_id for one, _ in found if done[one.header.saga_id] >= set(one.header.branches)}
    report = SweepReport(settled=settle_owed(database.name, sorted(settled)))
    for one, expired in found:
        if expired and one.header.saga_id not in settled:
            report += _finish(database.name, one, down)
    return report


def _finish(database_name: str, found: SagaRecord, down: set[str]) -> SweepReport:
    """Resolve one saga; `down` are the databases that this sweep has found unreachable, one connection attempt each."""
    header = found.header
    if header.home in down or (found.state != "owed" and down & set(header.participants)):
        _defer(database_name, [found])
        return SweepReport(deferred=1)
    try:
        resolution = (
            resolve_owed(header, unreachable=down) if found.state == "owed" else resolve(header, found.participant)
        )
    except CrosstieError as error:
        logger.warning("saga %s (%r) waits: %s", header.saga_id, header.name, error)
        if isinstance(error, DatabaseUnavailable):
            down.add(header.home)
        _defer(database_name, [found])
        return SweepReport(deferred=1)
    if resolution.finished:
        ended = resolution.decision is Decision.ABORTED
        logger.info("saga %s (%r): %s", header.saga_id, header.name, resolution.decision.value)
        return SweepReport(aborted=1) if ended else SweepReport(settled=1)
    for branch, reason in resolution.pending.items():
        logger.warning("saga %s (%r) waits for %r: %s", header.saga_id, header.name, branch, reason)
        if isinstance(reason, DatabaseUnavailable):
            down.add(branch)
    _defer(database_name, [found])
    return SweepReport(quarantined=1) if resolution.quarantined else SweepReport(deferred=1)


def _defer(database_name: str, found: list[SagaRecord]) -> None:
    """Look again later, later each time: capped exponential, with jitter so that workers do not meet."""
    # The record of a prepared branch is in the transaction that is prepared, and locked by it.
    found = [one for one in found if one.state != PREPARED]
    if not found:
        return
    with detached_transaction(database_name) as tx:
        tx.mark_written()
        for one in found:
            record.defer(tx.connection, one, backoff_s(one.attempts, jitter=_random.random()))
