"""Two-phase commit: every branch is prepared, home's commit is the decision, and the branches obey it.

All branches are asked to prepare at once, and to commit at once. Nothing is undone and no images are kept, so a branch
may run any SQL. Until home has committed nobody sees a branch's writes, and a crash leaves them locked until a worker
has asked home.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import sqlalchemy as sa

from crosstie.orm.database import Database
from crosstie.orm.errors import CommitInDoubt, CrosstieError
from crosstie.orm.faults import fault_point
from crosstie.orm.joint_commit import raise_all, request_together
from crosstie.orm.local_transaction import LocalTransaction, run_after_commit
from crosstie.orm.recorder import WriteRecorder
from crosstie.sagas import doorbell, record
from crosstie.sagas.branch_id import BranchId
from crosstie.sagas.capture import HomeRecorder
from crosstie.sagas.preparable import PreparableTransaction, begin_branch, require_two_phase
from crosstie.sagas.record import Mode, SagaHeader
from crosstie.sagas.recovery import Decision
from crosstie.sagas.strategy import Ending, Strategy, aborted, ask_home

__all__ = ["TwoPhaseCommit"]

logger = logging.getLogger(__name__)


class TwoPhaseCommit(Strategy):
    """Home is the declared database, else the first one touched: the branches' names tell it from the start."""

    mode = Mode.TWO_PHASE

    def open(
        self, database: Database, before_begin: Callable[[sa.Connection], object] | None = None
    ) -> LocalTransaction:
        """A plain transaction for home, one that can be prepared for every other. Raises TwoPhaseUnavailable."""
        if self.terms.home is None:
            self.terms = replace(self.terms, home=database.name)
        if database.name == self._home:
            return LocalTransaction(database, before_begin=before_begin)
        expires_at_ms = int((time.time() + self.terms.expiry_s) * 1000)
        branch = BranchId(self.terms.saga_id, self._home, database.name, expires_at_ms)
        return begin_branch(database, branch, before_begin)

    @property
    def _home(self) -> str:
        return self.terms.home or ""

    def recorder(self, database: str, written: Sequence[str]) -> WriteRecorder:
        """None takes images."""
        del database, written
        return HomeRecorder()

    def before_end(self, written: Sequence[str], transaction: Callable[[str], LocalTransaction]) -> None:
        """Make home a participant of two or more, though the block has only read it: its record decides."""
        if len(written) > 1 and self._home not in written:
            transaction(self._home).mark_written()

    def choose_home(self, participants: Sequence[LocalTransaction]) -> str:
        """See the class."""
        del participants
        return self._home

    def prepare_branch(self, tx: LocalTransaction) -> None:
        """Refuse what cannot be prepared. Raises TwoPhaseUnavailable."""
        require_two_phase(tx)
        tx.notifies = False  # PostgreSQL prepares no transaction that has sent NOTIFY

    def prepare_decider(self, tx: LocalTransaction) -> None:
        """Nothing: the databases' own locks are all there are."""

    def commit(self, ending: Ending) -> None:
        """Prepare the branches, commit home, commit the branches."""
        header = ending.header
        after = ending.take("after_commit")
        restorers = ending.take("on_rollback")
        branches: list[PreparableTransaction] = []
        for tx in ending.branches:
            assert isinstance(tx, PreparableTransaction), f"{tx.database.name} was not refused"
            branches.append(tx)
        committing_home = False
        try:
            fault_point("two-phase.before-first-prepare")
            self._prepare_branches(ending, branches)
            ending.decide()
            fault_point("two-phase.home-recorded")
            committing_home = True
            ending.home.commit()
        except Exception as error:  # noqa: BLE001 - whatever stopped it, what is prepared must not stay
            if committing_home and isinstance(error, CommitInDoubt):
                decided = ask_home(ending, error, [*header.branches, header.home][0])
            else:
                # Home's COMMIT was not sent and will not be, so there is nothing to ask.
                decided = Decision.ABORTED
            if decided is not Decision.COMMITTED:
                self._abort(header, branches, error, restorers, ending)
        except BaseException:
            # A crash but for the name: a worker ends it like one.
            ending.roll_back()
            doorbell.ring(header)
            raise
        fault_point("two-phase.home-committed")
        self.owed = tuple(self._finish(header, branches, commit=True))
        run_after_commit(after, header.home)

    def _prepare_branches(self, ending: Ending, branches: Sequence[PreparableTransaction]) -> None:
        """Prepare them, all at once, each with its record."""
        ending.run_hooks()  # what those of one leave in another is to be prepared, too
        for tx in branches:
            tx.conclude_with(record.insertion(ending.header, tx.database.name, "done"))
            fault_point("two-phase.branch-recorded")
        for tx in branches:
            tx.make_ready_to_prepare()  # what fails here fails before the first is prepared
        raise_all(
            request_together([tx.preparation() for tx in branches], lambda: fault_point("two-phase.prepares-sent")),
            "branches were not prepared",
        )
        for _ in branches:
            fault_point("two-phase.branch-prepared")

    def _abort(
        self,
        header: SagaHeader,
        branches: Sequence[PreparableTransaction],
        error: Exception,
        restorers: Sequence[Callable[[], None]],
        ending: Ending,
    ) -> None:
        pending = self._finish(header, branches, commit=False)
        ending.roll_back()
        for restore in reversed(restorers):
            restore()
        raise aborted(self.terms, error, tuple(pending)) from error

    def _finish(self, header: SagaHeader, branches: Sequence[PreparableTransaction], *, commit: bool) -> list[str]:
        """End what is prepared, all at once; those that a worker has to end, as their database does not do it now."""
        endings = [tx.ending(commit=commit) for tx in branches]
        failed = request_together(endings, lambda: fault_point("two-phase.ends-sent"))
        for tx, error in failed.items():
            logger.warning("saga %s (%r) waits for %r: %s", header.saga_id, header.name, tx.database.name, error)
        if failed:
            doorbell.ring(header)
        for error in failed.values():
            if not isinstance(error, CrosstieError):
                raise error
        for _ in branches:
            fault_point("two-phase.branch-finished")
        return [tx.database.name for tx in branches if tx in failed]
