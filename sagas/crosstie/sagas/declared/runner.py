"""Running steps: each is a block whose home commit also says that the step is done: it happens once or not at all.

A worker that dies in a step leaves a lease that runs out; the next one tries the step again. A step that fails is tried
again after a pause; one that fails for good turns its run round, unless it comes after the pivot. Compensations are
blocks of the same kind; one that fails again and again is quarantined for an operator.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from secrets import SystemRandom
from typing import Any, Final, Literal

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import CrosstieError, DatabaseUnavailable
from crosstie.orm.faults import fault_point
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox.lane import backoff_s
from crosstie.sagas.block import SagaBlock, saga
from crosstie.sagas.declared import control, journal
from crosstie.sagas.declared.definition import Saga, definition_of
from crosstie.sagas.declared.journal import Claimed, StepLost
from crosstie.sagas.declared.plan import Plan, Step
from crosstie.sagas.errors import SagaInDoubt

__all__ = ["RunReport", "run_steps"]

logger = logging.getLogger(__name__)

BATCH: Final = 100
FIRST_PAUSE_S: Final = 0.5
UNDEPLOYED_PAUSE_S: Final = 10.0
LEASE_MARGIN_S: Final = 15.0
"""What a step may take beyond its time limit before another worker tries it: its end, with all commits."""
UNDO_FAILURES: Final = 12
"""So often (some six minutes) a compensation is tried before it is quarantined."""
DEADLY_TRIES: Final = 5
"""So many workers in a row may die in a step before it counts as failed."""
_random: Final = SystemRandom()

_Kind = Literal["own", "passing", "final"]


@dataclass
class RunReport:
    """What one look at a database's runs did, in steps."""

    done: int = 0
    undone: int = 0
    failed: int = 0
    """Tries that failed, whatever became of the step."""
    undeployed: int = 0
    """Steps of sagas that no module of this process declares."""
    more: bool = False
    """Time ran out, so there may be more to do at once."""


def run_steps(database_name: str, *, owner: str, limit_s: float = 5.0) -> RunReport:
    """Run the steps that are due in a database, and those that become due by that, for about `limit_s` seconds.

    What a step raises is noted in its row and logged. Raises DatabaseUnavailable for this database, NoSuchTable where
    `crosstie init` has not run.
    """
    database = ConnectionManager.get(database_name)
    report = RunReport()
    end_s = time.monotonic() + limit_s
    while found := journal.due(database, BATCH):
        for one in found:
            _attempt(database, one, owner, report)
            if time.monotonic() >= end_s:
                report.more = True
                return report
    return report


def _attempt(database: Database, found: Claimed, owner: str, report: RunReport) -> None:
    declared = definition_of(found.name, found.version)
    step = declared.__plan__.steps.get(found.step) if declared is not None else None
    if declared is None or step is None:
        report.undeployed += 1
        what = f"no worker knows step {found.step!r} of version {found.version} of saga {found.name!r}"
        journal.postpone(database, found, delay_s=UNDEPLOYED_PAUSE_S, error=f"{what}: deploy or import its module.")
        return
    mine = journal.claim(database, found, owner=owner, lease_s=step.timeout_s + LEASE_MARGIN_S)
    if mine is None:
        return
    fault_point("steps.claimed")
    work = _Work(database, declared, step, mine)
    try:
        work.run()
    except StepLost as lost:
        logger.info("run %s: %s", mine.run_id, lost)
    except Exception as error:  # noqa: BLE001 - the user's code; it is noted in the step's row, and logged
        report.failed += 1
        work.fail(error)
    else:
        report.done += mine.state != "undo"
        report.undone += mine.state == "undo"


class _Overdue(Exception):
    """Its time had run out before it could be tried."""


class _Work:
    """One try of one step, or of its compensation."""

    def __init__(self, database: Database, declared: type[Saga], step: Step, mine: Claimed) -> None:
        self._database = database
        self._declared = declared
        self._plan: Plan = declared.__plan__
        self._step = step
        self._mine = mine

    def run(self) -> None:
        """Run the method and note in home that it is done, as one outcome. Raises what method and block raise."""
        mine, home = self._mine, self._database.name
        if mine.state == "waiting":
            raise _Overdue(f"no signal {self._step.waits_for!r} came in time")
        if mine.overdue and mine.state == "ready" and not self._plan.is_past_the_pivot(mine.step):
            raise _Overdue("the deadline of the run has passed")
        if mine.unfinished > DEADLY_TRIES and not self._plan.is_past_the_pivot(mine.step):
            raise _Overdue(f"the last {mine.unfinished - 1} workers that tried it died in it, or were cut off")
        undoing = mine.state == "undo"
        with saga(f"{mine.name}.{mine.step}{'.undo' if undoing else ''}", home=home) as block:
            with self._database.mapped_errors(), self._database.autocommit.connect() as connection:
                run = journal.read(connection, mine.run_id)
            if run is None:
                raise StepLost(f"run {mine.run_id} is gone")
            state = self._declared._resume(mine.run_id, mine.step, run.data)
            before = _fields(state)
            method = self._step.undo if undoing else self._step.function
            assert method is not None
            method(state, *self._arguments(method, run.signals))
            fault_point("steps.worked")
            self._note_end(block, before, _fields(state))
        fault_point("steps.committed")

    def _arguments(self, method: Callable[..., object], signals: Any) -> list[object]:
        takes_signal = method is self._step.function and self._step.takes_signal
        return [signals.get(self._step.waits_for)] if takes_signal else []

    def _note_end(self, block: SagaBlock, before: dict[str, Any], after: dict[str, Any]) -> None:
        mine = self._mine
        tx = block.transaction(self._database.name)
        tx.mark_written()
        with tx.mapped_errors(), tx.internal():
            connection = tx.connection
            run = journal.read(connection, mine.run_id, locked=True)
            undoing = mine.state == "undo"
            wanted = "compensating" if undoing else "running"
            ended = run is not None and run.status == wanted
            if not ended or not journal.end_step(connection, mine, "undone" if undoing else "done"):
                raise StepLost(
                    f"step {mine.step!r} was taken over by another worker, or the run turned round, while this one was "
                    "at it; nothing of it remains."
                )
            assert run is not None
            changes = {name: value for name, value in after.items() if value != before.get(name)}
            if changes:  # other steps of the group may have changed other fields meanwhile
                journal.update_run(connection, mine.run_id, data=json.dumps({**json.loads(run.data), **changes}))
            begun = journal.states(connection, mine.run_id)
            if undoing:
                control.compensate_next(connection, self._plan, mine.run_id, begun)
            else:
                self._go_on(connection, begun, run.signals)

    def _go_on(self, connection: sa.Connection, begun: dict[str, str], signals: Any) -> None:
        index = self._plan.group_of(self._mine.step)
        if any(begun.get(one.name) != "done" for one in self._plan.groups[index]):
            return
        if index + 1 == len(self._plan.groups):
            journal.update_run(connection, self._mine.run_id, status="done")
        else:
            journal.make_due(connection, self._mine.run_id, self._plan.groups[index + 1], signals)

    def fail(self, error: Exception) -> None:
        """Note a failed try: the step is tried again, or the run turns round, or an operator must look at it."""
        mine = self._mine
        text = str(error) if isinstance(error, _Overdue) else f"{type(error).__name__}: {error}"
        logger.warning("run %s of %r, step %r, try %d: %s", mine.run_id, mine.name, mine.step, mine.attempts, text)
        try:
            with detached_transaction(self._database.name) as tx:
                tx.mark_written()
                if journal.read(tx.connection, mine.run_id, locked=True) is not None:
                    self._note_failure(tx.connection, text, _kind_of(error))
        except DatabaseUnavailable:
            logger.warning("run %s: the failure could not be noted; the lease of the step will run out", mine.run_id)

    def _note_failure(self, connection: sa.Connection, text: str, kind: _Kind) -> None:
        mine = self._mine
        counts = kind != "passing"
        pause_s = backoff_s(mine.attempts - 1, jitter=_random.random(), first_s=FIRST_PAUSE_S)
        undoing = mine.state == "undo"
        last = counts and (kind == "final" or mine.failures + 1 > (UNDO_FAILURES if undoing else self._step.retries))
        if not last or (not undoing and self._plan.is_past_the_pivot(mine.step)):
            journal.retry_step(connection, mine, delay_s=pause_s, error=text, counts=counts)
        elif undoing:
            journal.end_step(connection, mine, "quarantined", error=text)
        elif journal.end_step(connection, mine, "failed", error=text):
            begun = journal.states(connection, mine.run_id)
            control.begin_compensation(connection, self._plan, mine.run_id, begun, f"step {mine.step!r}: {text}")


def _kind_of(error: Exception) -> _Kind:
    """A database that is away is no reason to turn round; what no retry can mend is."""
    if isinstance(error, SagaInDoubt):
        return "passing"
    if isinstance(error, _Overdue):
        return "final"
    if isinstance(error, CrosstieError):
        return "passing" if error.retryable else "final"
    return "own"


def _fields(state: Saga) -> dict[str, Any]:
    fields: dict[str, Any] = state.model_dump(mode="json")
    return fields
