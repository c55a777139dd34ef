"""Starting, signalling and turning round a run, in the caller's transaction on home or in one of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError
from crosstie.orm.transaction import active_unit, transaction
from crosstie.sagas.block import SagaBlock
from crosstie.sagas.declared import journal
from crosstie.sagas.declared.journal import Run, RunState
from crosstie.sagas.declared.plan import Plan
from crosstie.sagas.errors import SagaError, SagaOperationRefused
from crosstie.sagas.record import new_saga_id

__all__ = [
    "UnknownRun",
    "begin_compensation",
    "compensate_next",
    "find",
    "known",
    "retry",
    "signal",
    "skip",
    "start",
    "turn_round",
    "unknown_run",
]

LONGEST_ID = 36


class UnknownRun(CrosstieError):
    """No run of this id is kept in that database: it was never started there, or ended long ago."""

    code = "saga.unknown-run"


def start(home: str, values: Mapping[str, Any], plan: Plan, *, run_id: str | None, deadline_s: float | None) -> str:
    """Write a run of these name, version and data, and its first steps; returns its id. See `Saga.start`."""
    if run_id is not None and not 0 < len(run_id) <= LONGEST_ID:
        raise SagaError(f"run_id: expected 1 to {LONGEST_ID} characters, found {len(run_id)}")
    made = run_id or new_saga_id()
    unit = active_unit()
    inside = unit.saga_id if isinstance(unit, SagaBlock) else None
    with transaction(home) as tx:
        # Inside a saga these are captured like any statement, so that an abort takes the run back before it begins.
        connection = unit.connection(home) if isinstance(unit, SagaBlock) else tx.connection
        tx.mark_written()
        with tx.mapped_errors():
            if run_id is not None and journal.read(connection, made) is not None:
                return made
            journal.insert_run(connection, {"run_id": made, "saga_id": inside, **values}, deadline_s)
            journal.make_due(connection, made, plan.groups[0], ())
    return made


def find(home: str, run_id: str) -> RunState | None:
    """The run of this id, or None. Raises DatabaseUnavailable."""
    return next(iter(journal.find(ConnectionManager.get(home), [run_id])), None)


def known(home: str, run_id: str) -> RunState:
    """The same. Raises UnknownRun, DatabaseUnavailable."""
    found = find(home, run_id)
    if found is None:
        raise unknown_run(f"database {home!r} has no", run_id)
    return found


def signal(home: str, run_id: str, name: str, payload: object) -> None:
    """Keep a signal, and let go on what waits for it. See `Saga.signal`."""
    _require_no_block("signal")
    with transaction(home) as tx, tx.mapped_errors():
        tx.mark_written()
        found = _locked(tx.connection, home, run_id)
        if name not in found.signals:
            journal.update_run(tx.connection, run_id, signals=json.dumps({**found.signals, name: payload}))
            journal.wake(tx.connection, run_id, name)


def turn_round(home: str, run_id: str, reason: str, plan: Plan) -> None:
    """Compensate a run that runs. See `Saga.cancel`."""
    _require_no_block("cancel")
    with transaction(home) as tx, tx.mapped_errors():
        tx.mark_written()
        run = _locked(tx.connection, home, run_id)
        begun = journal.states(tx.connection, run_id)
        passed = any(plan.is_past_the_pivot(name) for name in begun)
        if run.status != "running" or passed:
            at = "has passed its pivot" if passed else f"is {run.status}"
            raise SagaOperationRefused(f"run {run_id} {at}: it cannot be turned round any more; nothing was changed.")
        begin_compensation(tx.connection, plan, run_id, begun, reason)


def begin_compensation(connection: sa.Connection, plan: Plan, run_id: str, begun: dict[str, str], reason: str) -> None:
    """Turn a locked run round: nothing begins any more, and the last group that did something is to be undone."""
    stopped = [name for name, state in begun.items() if state in {"ready", "waiting"}]
    journal.set_states(connection, run_id, stopped, "failed")
    journal.update_run(connection, run_id, status="compensating", error=reason[: journal.ERROR_LENGTH])
    compensate_next(connection, plan, run_id, {**begun, **dict.fromkeys(stopped, "failed")})


def compensate_next(connection: sa.Connection, plan: Plan, run_id: str, begun: dict[str, str]) -> None:
    """Make the next group before it due for its compensation, or end the run where none is left."""
    if {"undo", "quarantined"} & set(begun.values()):
        return
    for group in reversed(plan.groups):
        done = [one for one in group if begun.get(one.name) == "done"]
        journal.set_states(connection, run_id, [one.name for one in done if one.undo is None], "undone")
        undo = [one.name for one in done if one.undo is not None]
        if undo:
            journal.set_states(connection, run_id, undo, "undo")
            return
    journal.update_run(connection, run_id, status="compensated")


def retry(home: str, run_id: str) -> int:
    """Try the quarantined compensations of a run again; returns how many. Raises UnknownRun, SagaOperationRefused."""
    with transaction(home) as tx, tx.mapped_errors():
        tx.mark_written()
        names = _quarantined(tx.connection, home, run_id)
        journal.set_states(tx.connection, run_id, names, "undo")
    return len(names)


def skip(home: str, run_id: str, plan: Plan) -> int:
    """Take the quarantined compensations of a run for done, by somebody else; the run goes on. Raises as `retry`."""
    with transaction(home) as tx, tx.mapped_errors():
        tx.mark_written()
        names = _quarantined(tx.connection, home, run_id)
        journal.set_states(tx.connection, run_id, names, "undone")
        compensate_next(tx.connection, plan, run_id, journal.states(tx.connection, run_id))
    return len(names)


def _quarantined(connection: sa.Connection, home: str, run_id: str) -> list[str]:
    _locked(connection, home, run_id)
    names = [name for name, state in journal.states(connection, run_id).items() if state == "quarantined"]
    if not names:
        raise SagaOperationRefused(f"run {run_id}: none of its steps is quarantined; nothing was changed.")
    return names


def _locked(connection: sa.Connection, home: str, run_id: str) -> Run:
    found = journal.read(connection, run_id, locked=True)
    if found is None:
        raise unknown_run(f"database {home!r} has no", run_id)
    return found


def unknown_run(whose: str, run_id: str) -> UnknownRun:
    """The error that says who has no such run, and why that may be."""
    return UnknownRun(
        f"{whose} run {run_id!r}: it was never started, its start was rolled back, or it ended longer ago than "
        "saga.run_retention_s."
    )


def _require_no_block(what: str) -> None:
    if isinstance(active_unit(), SagaBlock):
        raise SagaError(
            f"{what} inside a saga block could take effect although the block is undone. Do it after the block, or in "
            "the subscriber of an event that the block publishes."
        )
