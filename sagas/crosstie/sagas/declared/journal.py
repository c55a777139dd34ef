"""What a run has done and what it is to do next: one row for the run, one for each step that has become due.

A step's row is claimed under a lease, like a lane of the outbox: the claim raises its epoch, and whatever ends the step
says `WHERE epoch = mine`, so a lapsed worker changes nothing. The run's row is the lock under which steps of a group
that end at the same time find out which of them is the last.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import CrosstieError
from crosstie.outbox.tables import run as runs
from crosstie.outbox.tables import run_step as steps
from crosstie.outbox.tables import saga as records
from crosstie.sagas.declared.plan import Step

__all__ = ["Claimed", "Run", "RunState", "StepLost", "StepState", "claim", "due", "find", "read"]

FOREVER_MS: Final = 9_000_000_000_000_000
ERROR_LENGTH: Final = 2000
ACTIVE: Final = ("ready", "waiting", "undo")


class StepLost(CrosstieError):
    """Another worker took the step, or the run was turned round, before this one finished; nothing of it remains."""

    code = "saga.step-lost"
    retryable = True


@dataclass(frozen=True)
class StepState:
    """A step that has become due; one that has not has none.

    `state`: ready, waiting (for a signal), done, failed; undo (to be compensated), undone, quarantined (its
    compensation failed again and again).
    """

    name: str
    state: str
    attempts: int
    next_at_ms: int
    error: str | None


@dataclass(frozen=True)
class RunState:
    """A run as it is kept. `status`: running, compensating, done, compensated."""

    run_id: str
    name: str
    version: int
    status: str
    data: dict[str, Any]
    error: str | None
    """Why it turned round."""
    created_at_ms: int
    updated_at_ms: int
    steps: tuple[StepState, ...]
    """In the order in which they became due."""


@dataclass(frozen=True)
class Claimed:
    """A step that may be worked on; once claimed, under this epoch."""

    run_id: str
    step: str
    state: str
    epoch: int
    attempts: int
    """How often it was tried, this time included once it is claimed."""
    failures: int
    """Tries that failed by the step's own doing."""
    unfinished: int
    """Tries in a row of which nobody has told the end: their workers died, or were cut off."""
    name: str
    version: int
    overdue: bool
    """The deadline of the run has passed."""


@dataclass(frozen=True)
class Run:
    """What a step and its end need of a run's row."""

    status: str
    data: str
    signals: Mapping[str, Any]


def due(database: Database, limit: int) -> list[Claimed]:
    """Steps that nobody works on and whose time has come, the longest due first. Raises DatabaseUnavailable.

    One of a run that was started in a saga waits until that saga is decided: as long as the record of this branch says
    `applied`, it is not.
    """
    undecided = sa.exists().where(
        records.c.saga_id == runs.c.saga_id, records.c.participant == database.name, records.c.state == "applied"
    )
    query = (
        sa.select(
            steps.c.run_id,
            steps.c.step,
            steps.c.state,
            steps.c.epoch,
            steps.c.attempts,
            steps.c.failures,
            steps.c.unfinished,
            runs.c.name,
            runs.c.version,
            sa.func.coalesce(runs.c.deadline_ms < now_ms(), sa.false()),
        )
        .join(runs, runs.c.run_id == steps.c.run_id)
        .where(steps.c.state.in_(ACTIVE), steps.c.next_at_ms <= now_ms(), steps.c.lease_until_ms < now_ms(), ~undecided)
        .order_by(steps.c.next_at_ms)
        .limit(limit)
    )
    return [Claimed(*row) for row in database.rows(query)]


def claim(database: Database, found: Claimed, *, owner: str, lease_s: float) -> Claimed | None:
    """Take a step for `lease_s` seconds of the database's clock; None where somebody else was first.

    The attempt is counted now, so one that kills its worker is counted as well.
    """
    statement = (
        _this(found)
        .where(steps.c.lease_until_ms < now_ms())
        .values(
            epoch=steps.c.epoch + 1,
            attempts=steps.c.attempts + 1,
            unfinished=steps.c.unfinished + 1,
            owner=owner[:120],
            lease_until_ms=now_ms() + int(lease_s * 1000),
        )
    )
    with database.mapped_errors(), database.autocommit.connect() as connection:
        if connection.execute(statement).rowcount != 1:
            return None
    return replace(found, epoch=found.epoch + 1, attempts=found.attempts + 1, unfinished=found.unfinished + 1)


def read(connection: sa.Connection, run_id: str, *, locked: bool = False) -> Run | None:
    """The run's row as last committed, `locked` until the transaction ends; None for an unknown run."""
    query = sa.select(runs.c.status, runs.c.data, runs.c.signals).where(runs.c.run_id == run_id)
    row = connection.execute(query.with_for_update() if locked else query).one_or_none()
    return None if row is None else Run(row.status, row.data, json.loads(row.signals))


def update_run(connection: sa.Connection, run_id: str, **values: Any) -> None:
    """Change the row of a run that is locked."""
    connection.execute(sa.update(runs).where(runs.c.run_id == run_id).values(updated_at_ms=now_ms(), **values))


def insert_run(connection: sa.Connection, values: Mapping[str, Any], deadline_s: float | None) -> None:
    """A new run. Raises the driver's duplicate-key error for an id that is taken."""
    deadline = None if deadline_s is None else now_ms() + int(deadline_s * 1000)
    connection.execute(
        sa.insert(runs).values(
            signals="{}",
            status="running",
            deadline_ms=deadline,
            created_at_ms=now_ms(),
            updated_at_ms=now_ms(),
            **values,
        )
    )


def make_due(connection: sa.Connection, run_id: str, upcoming: Iterable[Step], signals: Collection[str]) -> None:
    """Insert the rows of steps whose turn has come; `signals` are the names of those that have come already."""
    for one in upcoming:
        waiting = one.waits_for is not None and one.waits_for not in signals
        pause_s = one.wait_s if waiting else one.delay_s
        connection.execute(
            sa.insert(steps).values(
                run_id=run_id,
                step=one.name,
                waits_for=one.waits_for,
                delay_ms=int(one.delay_s * 1000),
                state="waiting" if waiting else "ready",
                attempts=0,
                failures=0,
                unfinished=0,
                epoch=0,
                owner="",
                lease_until_ms=0,
                next_at_ms=FOREVER_MS if pause_s is None else now_ms() + int(pause_s * 1000),
                became_due_at_ms=now_ms(),
            )
        )


def end_step(connection: sa.Connection, mine: Claimed, state: str, *, error: str | None = None) -> bool:
    """Move a claimed step on to a state, for good; False where it was somebody else's by then."""
    return _changed(connection, mine, {"state": state, "error": _cut(error)})


def retry_step(connection: sa.Connection, mine: Claimed, *, delay_s: float, error: str, counts: bool) -> bool:
    """Give a claimed step back, to be tried again after `delay_s`; False where it was somebody else's.

    `counts` says that it failed by its own doing.
    """
    next_at = now_ms() + int(delay_s * 1000)
    return _changed(connection, mine, {"next_at_ms": next_at, "error": _cut(error), "failures": mine.failures + counts})


def postpone(database: Database, found: Claimed, *, delay_s: float, error: str) -> None:
    """Look at a step that was not claimed again after `delay_s`."""
    values = {"next_at_ms": now_ms() + int(delay_s * 1000), "error": _cut(error)}
    with database.mapped_errors(), database.autocommit.connect() as connection:
        connection.execute(_this(found).values(**values))


def states(connection: sa.Connection, run_id: str) -> dict[str, str]:
    """The state of each step that has become due."""
    rows = connection.execute(sa.select(steps.c.step, steps.c.state).where(steps.c.run_id == run_id))
    return {str(name): str(state) for name, state in rows}


def set_states(connection: sa.Connection, run_id: str, names: Collection[str], state: str) -> None:
    """Give steps of a locked run a new state at once, and shut out whoever works on them."""
    if names:
        connection.execute(
            sa.update(steps)
            .where(steps.c.run_id == run_id, steps.c.step.in_(names))
            .values(
                state=state,
                epoch=steps.c.epoch + 1,
                attempts=0,
                failures=0,
                unfinished=0,
                next_at_ms=0,
                owner="",
                lease_until_ms=0,
                error=None,
            )
        )


def wake(connection: sa.Connection, run_id: str, signal: str) -> None:
    """Let the steps of a locked run go on that wait for this signal."""
    connection.execute(
        sa.update(steps)
        .where(steps.c.run_id == run_id, steps.c.state == "waiting", steps.c.waits_for == signal)
        .values(state="ready", epoch=steps.c.epoch + 1, next_at_ms=now_ms() + steps.c.delay_ms)
    )


def find(database: Database, run_ids: Collection[str] | None = None, *, limit: int = 1000) -> list[RunState]:
    """These runs, or those that have not ended, the oldest first. Raises DatabaseUnavailable."""
    query = sa.select(runs).order_by(runs.c.created_at_ms, runs.c.run_id).limit(limit)
    if run_ids is None:
        query = query.where(runs.c.status.in_(("running", "compensating")))
    else:
        query = query.where(runs.c.run_id.in_(run_ids))
    found = database.rows(query)
    of_runs: dict[str, list[StepState]] = {row.run_id: [] for row in found}
    listed = sa.select(steps).where(steps.c.run_id.in_(of_runs)).order_by(steps.c.became_due_at_ms, steps.c.step)
    for row in database.rows(listed) if of_runs else ():
        of_runs[row.run_id].append(StepState(row.step, row.state, row.attempts, row.next_at_ms, row.error))
    return [
        RunState(
            row.run_id,
            row.name,
            row.version,
            row.status,
            json.loads(row.data),
            row.error,
            row.created_at_ms,
            row.updated_at_ms,
            tuple(of_runs[row.run_id]),
        )
        for row in found
    ]


def count(database: Database) -> dict[str, int]:
    """How many runs are `running`, `compensating`, and `quarantined`: those that wait for an operator."""
    stuck = sa.exists().where(steps.c.run_id == runs.c.run_id, steps.c.state == "quarantined")
    state = sa.case((stuck, "quarantined"), else_=runs.c.status).label("state")
    query = sa.select(state, sa.func.count().label("number")).where(runs.c.status.in_(("running", "compensating")))
    found = {row.state: row.number for row in database.rows(query.group_by(state))}
    return {"running": 0, "compensating": 0, "quarantined": 0} | found


def prune(database_name: str, *, limit: int = 500) -> int:
    """Delete at most `limit` runs that ended `saga.run_retention_s` ago; returns how many.

    Raises DatabaseUnavailable.
    """
    database = ConnectionManager.get(database_name)
    old_ms = now_ms() - int(ConnectionManager.settings().saga.run_retention_s * 1000)
    old = (
        sa.select(runs.c.run_id)
        .where(runs.c.status.in_(("done", "compensated")), runs.c.updated_at_ms < old_ms)
        .limit(limit)
    )
    with database.mapped_errors(), database.engine.begin() as connection:
        ids = list(connection.execute(old).scalars())
        if ids:
            connection.execute(sa.delete(steps).where(steps.c.run_id.in_(ids)))
            connection.execute(sa.delete(runs).where(runs.c.run_id.in_(ids)))
    return len(ids)


def _this(found: Claimed) -> sa.Update:
    return sa.update(steps).where(
        steps.c.run_id == found.run_id,
        steps.c.step == found.step,
        steps.c.epoch == found.epoch,
        steps.c.state == found.state,
    )


def _changed(connection: sa.Connection, mine: Claimed, values: Mapping[str, Any]) -> bool:
    statement = _this(mine).values(owner="", lease_until_ms=0, unfinished=0, **values)
    return connection.execute(statement).rowcount == 1


def _cut(error: str | None) -> str | None:
    return None if error is None else error[:ERROR_LENGTH]
