"""Crashed sagas of one home and one branch, aborted and undone together: three transactions for all of them.

The branch's records are locked first, and only those that nobody has locked: so processes that sweep at once share the
sagas among them, and one that dies leaves nothing behind. An `applied` record under lock is also what `decide` looks
for before it lets an abort stand: home cannot have said `committed` and have been forgotten.

What is out of the ordinary (a conflict, a decision in flight, a branch without a record) is left to `resolve`, one by
one.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError, DatabaseUnavailable
from crosstie.orm.faults import fault_point
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox.batch import home_states
from crosstie.sagas import effect, record
from crosstie.sagas.lock_wait import limit_lock_waits
from crosstie.sagas.record import Mode, SagaHeader, SagaRecord
from crosstie.sagas.recovery import undo_all
from crosstie.sagas.resolution import Decision, Manner, understood

__all__ = ["Cohort", "cohorts"]

logger = logging.getLogger(__name__)

SIZE: Final = 50
"""Sagas in one transaction: so many rows are locked at most for as long as it takes."""


@dataclass
class Cohort:
    """Sagas that have one and the same home, and one and the same database as their only branch."""

    home: str
    branch: str
    found: Sequence[SagaRecord]
    undone: list[str] = field(default_factory=list)
    """Ids of those that `undo` has finished."""
    busy: list[str] = field(default_factory=list)
    """Ids of those that somebody else has in hand just now."""

    @property
    def left(self) -> list[SagaRecord]:
        """Those that are to be resolved one by one."""
        seen = {*self.undone, *self.busy}
        return [one for one in self.found if one.header.saga_id not in seen]

    def undo(self, down: set[str]) -> None:
        """Abort, undo and finish those whose branches are applied and locked by nobody, as `resolve` would.

        What cannot be done in common is left, whatever the reason; a database that does not answer is added to `down`.
        """
        if down & {self.home, self.branch}:
            return
        try:
            with detached_transaction(self.branch) as tx:
                limit_lock_waits(tx)
                free = self._lock(tx)
                aborted = self._abort([one.header for one in free if _is_ready(one)], down)
                if aborted:
                    undo_all(tx, [one for one in free if one.header.saga_id in aborted], Manner.CHECKED)
                    fault_point("cohort.branch-undone")
            fault_point("cohort.branch-resolved")
            ended = {one.header.saga_id for one in free if one.state in {"undone", "refused"}}
            self.undone = self._finish(aborted | (ended & self._found_aborted()), down)
        except CrosstieError as error:
            logger.info("%d saga(s) of home %r are resolved one by one: %s", len(self.found), self.home, error)
            self.busy = []
            if isinstance(error, DatabaseUnavailable) and self.home not in down:
                down.add(self.branch)

    def _lock(self, tx: LocalTransaction) -> list[SagaRecord]:
        """Lock the branch's records that nobody has locked; those that somebody has, or has ended since, are `busy`."""
        wanted = {one.header.saga_id for one in self.found}
        free = record.lock_free(tx.connection, sorted(wanted), self.branch)
        others = wanted - {one.header.saga_id for one in free}
        # One without a record is nobody's, and wants a tombstone.
        self.busy = list(record.states_in(sorted(others), self.branch)) if others else []
        overtaken = {one.header.saga_id for one in free if one.state != "applied"} - self._found_aborted()
        self.busy += sorted(overtaken)
        return free

    def _abort(self, headers: Sequence[SagaHeader], down: set[str]) -> set[str]:
        """Have home say `aborted` of those of which it has said nothing; returns the ids of all that are aborted."""
        if not headers:
            return set()
        fault_point("cohort.before-decision")
        with self._asking_home(down):
            said = home_states(ConnectionManager.get(self.home), [one.saga_id for one in headers])
        silent = [one for one in headers if one.saga_id not in said]
        if silent:
            with self._asking_home(down), detached_transaction(self.home) as tx:
                limit_lock_waits(tx)
                record.insert_all(tx.connection, silent, self.home, "aborted")
                effect.fall_due_all(tx.connection, [one.saga_id for one in silent])
                tx.mark_written()
                fault_point("cohort.decision-recorded")
            fault_point("cohort.decided")
        return {one.saga_id for one in headers if understood(one, said.get(one.saga_id, "aborted")) is Decision.ABORTED}

    @contextmanager
    def _asking_home(self, down: set[str]) -> Iterator[None]:
        try:
            yield
        except DatabaseUnavailable:
            down.add(self.home)
            raise

    def _found_aborted(self) -> set[str]:
        """The ids of those that were found by home's `aborted`."""
        return {one.header.saga_id for one in self.found if one.state == "aborted"}

    def _finish(self, saga_ids: set[str], down: set[str]) -> list[str]:
        if saga_ids:
            fault_point("cohort.before-finish")
            with self._asking_home(down), detached_transaction(self.home) as tx:
                if record.move_all(tx.connection, sorted(saga_ids), self.home, "aborted", "finished"):
                    tx.mark_written()
            fault_point("cohort.finished")
        return sorted(saga_ids)


def _is_ready(one: SagaRecord) -> bool:
    return one.state == "applied" and one.quarantine is None


def cohorts(found: Iterable[SagaRecord]) -> Iterator[Cohort]:
    """Those of these that can be undone together, in the order in which they are given."""
    alike: dict[tuple[str, str], list[SagaRecord]] = defaultdict(list)
    for one in found:
        header = one.header
        if header.mode is Mode.BACKWARD and len(header.branches) == 1 and one.state in {"applied", "aborted"}:
            alike[header.home, header.branches[0]].append(one)
    for (home, branch), some in alike.items():
        # An open transaction of a database with one writer would keep everybody out until home has decided.
        if len(some) < 2 or not _takes_several_writers(branch):
            continue
        for start in range(0, len(some), SIZE):
            yield Cohort(home, branch, some[start : start + SIZE])


def _takes_several_writers(name: str) -> bool:
    try:
        return not ConnectionManager.get(name).capabilities.one_writer
    except CrosstieError:
        return False
