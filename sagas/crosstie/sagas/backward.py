"""Backward recovery: the branches commit first, each with its record, and home's commit is the decision.

A branch's record holds what undoes its writes. Whatever stops the commits before home's, what was committed is undone,
here or by a worker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import CommitInDoubt, CrosstieError
from crosstie.orm.faults import fault_point
from crosstie.orm.joint_commit import commit_together, raise_all
from crosstie.orm.local_transaction import LocalTransaction, run_after_commit
from crosstie.sagas import doorbell, image, record, withdrawal
from crosstie.sagas.capture import BranchRecorder, HomeRecorder, uncaptured_reasons
from crosstie.sagas.errors import SagaError, in_doubt_of_home
from crosstie.sagas.home import choose_home
from crosstie.sagas.lock_wait import limit_lock_waits
from crosstie.sagas.recovery import Decision, Resolution, resolve
from crosstie.sagas.row_lock import LockingRecorder
from crosstie.sagas.strategy import Ending, Strategy, Terms, aborted
from crosstie.sagas.withdrawal import release_locks

if TYPE_CHECKING:
    from crosstie.orm.recorder import WriteRecorder
    from crosstie.sagas.record import SagaHeader

__all__ = ["BackwardRecovery"]

logger = logging.getLogger(__name__)


class BackwardRecovery(Strategy):
    """Branches that can be undone commit before home."""

    def __init__(self, terms: Terms) -> None:
        super().__init__(terms)
        self._row_limit = ConnectionManager.settings().saga.undo_row_limit

    def open(
        self, database: Database, before_begin: Callable[[sa.Connection], object] | None = None
    ) -> LocalTransaction:
        """Sagas that hold locks in one database do not wait for ever in another, where no server sees the deadlock."""
        tx = super().open(database, before_begin)
        if self.terms.isolation == "locked":
            try:
                with tx.mapped_errors():
                    limit_lock_waits(tx)
            except BaseException:  # nobody else knows of it yet
                tx.rollback()
                raise
        return tx

    def recorder(self, database: str, written: Sequence[str]) -> WriteRecorder:
        """Images are taken everywhere but in the database that is expected to be home."""
        presumed_home = self.terms.home or [*written, database][0]
        recorder = HomeRecorder() if database == presumed_home else BranchRecorder(self._row_limit)
        return LockingRecorder(recorder, self.terms.saga_id) if self.terms.isolation == "locked" else recorder

    def choose_home(self, participants: Sequence[LocalTransaction]) -> str:
        """Declared, else the one that cannot be undone, else the first one written."""
        stuck = {tx.database.name: list(uncaptured_reasons(tx)) for tx in participants}
        return choose_home(list(stuck), stuck, self.terms.home)

    def prepare_branch(self, tx: LocalTransaction) -> None:
        """Have its events wait for home's decision, and taken back with its writes."""
        tx.ledger("outbox.saga_id")[:] = [self.terms.saga_id]

    def prepare_decider(self, tx: LocalTransaction) -> None:
        """Its commit decides: until then the open transaction keeps others from the locks, and then they are over."""
        if self.terms.isolation == "locked":
            with tx.mapped_errors(), tx.internal():
                release_locks(tx.bare, [self.terms.saga_id], tx.database.name)

    def commit(self, ending: Ending) -> None:
        """Commit the branches, then home."""
        header = ending.header
        # The hooks of a branch wait for the decision: until home has committed, nothing has happened.
        after = ending.take("after_commit")
        restorers = ending.take("on_rollback")
        committing_home = False
        try:
            fault_point("saga.before-first-commit")
            self._commit_branches(ending)
            ending.decide()
            fault_point("saga.home-recorded")
            committing_home = True
            ending.home.commit()
        except Exception as error:  # noqa: BLE001 - whatever stopped the commits, what they did must be undone
            ending.roll_back()
            self._abort(header, error, restorers, in_doubt=committing_home and isinstance(error, CommitInDoubt))
        except BaseException:
            # Interrupted between two commits: this is a crash, and a worker ends it like one.
            ending.roll_back()
            doorbell.ring(header)
            raise
        fault_point("saga.home-committed")
        if self.terms.isolation == "locked":
            self._settle(header)
        run_after_commit(after, header.home)

    def _settle(self, header: SagaHeader) -> None:
        """Release the locks of the branches now; what cannot be released is by the next sweep."""
        try:
            resolve(header, None)
        except CrosstieError as error:
            logger.info(
                "saga %s (%r) is committed, and its locks wait for a worker: %s", header.saga_id, header.name, error
            )

    def _commit_branches(self, ending: Ending) -> None:
        """Have each say how it is undone, and commit them; several at once."""
        branches = ending.branches
        if len(branches) > 1:
            ending.run_hooks()  # what those of one leave in another is to be in its log
        for tx in branches:
            log = image.dump(withdrawal.complete_log(tx))
            tx.conclude_with(
                record.insertion(ending.header, tx.database.name, "applied", undo_log=log, expiry_s=self.terms.expiry_s)
            )
            fault_point("saga.branch-recorded")
        if len(branches) > 1:
            for tx in branches:
                tx.make_ready()  # what fails here fails before the first commit
        raise_all(commit_together(branches), "branches did not commit")
        for _ in branches:
            fault_point("saga.branch-committed")

    def _abort(
        self, header: SagaHeader, error: Exception, restorers: list[Callable[[], None]], *, in_doubt: bool
    ) -> None:
        """Finish the failed saga as any worker would; returns only if it turns out to have committed."""
        resolution: Resolution | None = None
        unresolved: CrosstieError | None = None
        try:
            resolution = resolve(header, [*header.branches, header.home][0] if in_doubt else None)
        except CrosstieError as failure:
            unresolved = failure
        if resolution is None or not resolution.finished:
            doorbell.ring(header)
        forgotten = resolution is not None and resolution.decision is Decision.FORGOTTEN
        if in_doubt and (resolution is None or forgotten):
            raise in_doubt_of_home(header, unresolved) from error
        if resolution is not None and resolution.decision is Decision.COMMITTED:
            if in_doubt:
                return
            raise SagaError(f"saga {header.saga_id}: home says committed, which this process never did") from error
        for restore in reversed(restorers):
            restore()
        pending = header.branches if resolution is None else (*resolution.pending, *resolution.quarantined)
        raise aborted(self.terms, error, pending) from error
