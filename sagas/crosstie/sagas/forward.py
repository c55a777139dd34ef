"""Forward recovery: home commits first and thereby decides, and the branches follow.

Home's record holds what the branches are redone from, so from then on the saga cannot fail any more. In the usual case
no branch is redone: its transaction, in which the block ran, is still open, and commits. Its record is inserted there
before home commits, so a worker that would redo the branch waits for that transaction, and nobody can have been faster.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CommitInDoubt, CrosstieError
from crosstie.orm.faults import fault_point
from crosstie.orm.joint_commit import commit_together
from crosstie.orm.local_transaction import LocalTransaction, run_after_commit
from crosstie.outbox.publish import KEPT
from crosstie.sagas import doorbell, image, record
from crosstie.sagas.capture import HomeRecorder, uncaptured_reasons
from crosstie.sagas.home import choose_home
from crosstie.sagas.owed import resolve_owed
from crosstie.sagas.record import Mode
from crosstie.sagas.recovery import Decision
from crosstie.sagas.redo import RedoRecorder, redo_log
from crosstie.sagas.strategy import Ending, Strategy, Terms, aborted, ask_home

if TYPE_CHECKING:
    from crosstie.orm.recorder import WriteRecorder
    from crosstie.sagas.record import SagaHeader

__all__ = ["ForwardRecovery"]

logger = logging.getLogger(__name__)


class ForwardRecovery(Strategy):
    """Branches that can be redone commit after home."""

    mode = Mode.FORWARD

    def __init__(self, terms: Terms) -> None:
        super().__init__(terms)
        self._row_limit = ConnectionManager.settings().saga.undo_row_limit

    def recorder(self, database: str, written: Sequence[str]) -> WriteRecorder:
        """Images are taken everywhere but in the database that is expected to be home."""
        presumed_home = self.terms.home or [*written, database][0]
        return HomeRecorder() if database == presumed_home else RedoRecorder(self._row_limit)

    def choose_home(self, participants: Sequence[LocalTransaction]) -> str:
        """Declared, else the one that cannot be redone, else the first one written."""
        stuck = {tx.database.name: list(uncaptured_reasons(tx)) for tx in participants}
        return choose_home(list(stuck), stuck, self.terms.home, forward=True)

    def prepare_branch(self, tx: LocalTransaction) -> None:
        """Have its events kept, to be written again with its rows."""
        tx.ledger(KEPT)

    def prepare_decider(self, tx: LocalTransaction) -> None:
        """Nothing: the databases' own locks are all there are."""

    def commit(self, ending: Ending) -> None:
        """Commit home, then the branches."""
        header = ending.header
        after = ending.take("after_commit")
        restorers = ending.take("on_rollback")
        committing_home = False
        try:
            fault_point("forward.before-home")
            ending.run_hooks()
            owed: list[dict[str, Any]] = []
            for name in header.branches:
                tx = ending.transactions[name]
                owed += redo_log(tx)
                with tx.mapped_errors(), tx.internal():
                    record.insert(tx.connection, header, name, "done")
                fault_point("forward.branch-recorded")
            if header.branches:
                ending.decide("owed", log=image.dump(owed), expiry_s=self.terms.expiry_s)
            else:  # it has effects, and no other database
                ending.decide()
            fault_point("forward.home-recorded")
            committing_home = True
            ending.home.commit()
        except Exception as error:
            # Unless home's COMMIT was sent nothing is committed anywhere, and there is nobody to ask.
            decided = Decision.ABORTED
            if committing_home and isinstance(error, CommitInDoubt):
                decided = ask_home(ending, error, None, still_open=lambda: _any_open(ending))
            if decided is not Decision.COMMITTED:
                ending.roll_back()
                for restore in reversed(restorers):
                    restore()
                raise aborted(self.terms, error) from error
        except BaseException:
            # A crash but for the name: if home has committed, a worker ends it like one.
            ending.roll_back()
            doorbell.ring(header)
            raise
        self.owed = header.branches
        fault_point("forward.home-committed")
        self._follow(ending)
        run_after_commit(after, header.home)

    def _follow(self, ending: Ending) -> None:
        """Commit the branches; those that do not are redone from home's record, now or by a worker."""
        header = ending.header
        try:
            failed = commit_together(ending.branches)
            for tx in ending.branches:
                name, error = tx.database.name, failed.get(tx)
                if error is None:
                    self.owed = tuple(one for one in self.owed if one != name)
                elif isinstance(error, CrosstieError):
                    logger.warning(
                        "saga %s (%r): %r did not commit and is redone: %s", header.saga_id, header.name, name, error
                    )
                else:
                    raise error
                fault_point("forward.branch-committed")
            if self.owed:
                self.owed = _redone(header)
        except BaseException:
            doorbell.ring(header)
            raise


def _redone(header: SagaHeader) -> tuple[str, ...]:
    """Redo once what is owed; the branches that are left to workers."""
    try:
        resolution = resolve_owed(header)
    except CrosstieError as error:
        logger.warning("saga %s (%r) waits for home: %s", header.saga_id, header.name, error)
        left = header.branches
    else:
        left = (*resolution.pending, *resolution.quarantined)
    if left:
        doorbell.ring(header)
    return left


def _any_open(ending: Ending) -> bool:
    """Whether a branch's transaction still holds the record that it has inserted."""
    return any(_holds(tx, ending.header.saga_id) for tx in ending.branches)


def _holds(tx: LocalTransaction, saga_id: str) -> bool:
    try:
        with tx.mapped_errors(), tx.internal():
            return record.read_state(tx.connection, saga_id, tx.database.name) == "done"
    except CrosstieError:
        return False
