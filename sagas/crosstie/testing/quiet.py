"""A worker in the test's own process, which works until there is nothing left to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox import sweep_lanes, sync_routes
from crosstie.outbox.tables import outbox, parked, run, run_step
from crosstie.sagas import sweep_effects, sweep_sagas
from crosstie.sagas.declared import journal, run_steps
from crosstie.sagas.inspection import find_unfinished
from crosstie.testing.passing import pass_in_databases

__all__ = ["Left", "run_until_quiet"]

_OWNER: Final = "crosstie.testing"
_LONG_S: Final = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Left:
    """What no worker will ever do, because it waits for an operator."""

    sagas: list[str] = field(default_factory=list)
    """Ids of those with a quarantined undo or compensation."""
    runs: list[str] = field(default_factory=list)
    """Ids of runs of declared sagas with a quarantined compensation."""
    events: int = 0
    """Events that are parked as dead, skipped or behind one that is, in all databases."""

    def __bool__(self) -> bool:
        return bool(self.sagas or self.runs or self.events)


def run_until_quiet(*, rounds: int = 50) -> Left:
    """Finish sagas, run steps, compensate, and deliver events of all databases, as workers do, until nothing is left.

    Nothing is waited for: where only the time is missing, an expiry or a next attempt, it passes (see `virtual_time`).
    It does not pass for timers, signals and deadlines of declared sagas: runs that wait for these are quiet. A saga
    that still runs in another process would be taken for one whose process is gone. Raises AssertionError that names
    what is left where `rounds` were not enough, DatabaseUnavailable.
    """
    failed = sync_routes().failed
    if failed:
        raise next(iter(failed.values()))
    for _ in range(rounds):
        if not _sweep():
            left, waits = _survey()
            if not waits:
                return left
            pass_in_databases(_LONG_S, besides=(run, run_step))
            _hurry_steps()
    raise AssertionError(f"not quiet after {rounds} rounds: {'; '.join(_survey()[1])}")


def _sweep() -> bool:
    """Sweep each database once; whether that did anything."""
    done = 0
    for name in ConnectionManager.names(writable=True):
        sagas, effects = sweep_sagas(name), sweep_effects(name)
        done += sagas.settled + sagas.aborted + effects.aborted + effects.compensated
        done += sweep_lanes(name, owner=_OWNER)
        steps = run_steps(name, owner=_OWNER)
        done += steps.done + steps.undone
    return done > 0


def _hurry_steps() -> None:
    """End the pauses between the tries of steps, and the leases of workers that are gone."""
    tried = sa.or_(run_step.c.attempts > 0, run_step.c.error.is_not(None))
    for name in ConnectionManager.names(writable=True):
        with detached_transaction(name) as tx:
            tx.mark_written()
            tx.connection.execute(
                sa.update(run_step)
                .where(run_step.c.state.in_(("ready", "undo")), tried)
                .values(next_at_ms=0, lease_until_ms=0)
            )


def _survey() -> tuple[Left, list[str]]:
    """What is left for operators, and what still waits for workers, in words."""
    unfinished, errors = find_unfinished()
    waits = [f"{name}: {error}" for name, error in errors.items()]
    stuck = []
    for one in unfinished:
        if one.quarantined or one.quarantined_effects:
            stuck.append(one.header.saga_id)
        else:
            waits.append(f"saga {one.header.saga_id} ({one.header.name!r}) is {one.decision}")
    dead = 0
    runs: list[str] = []
    for name in ConnectionManager.names(writable=True):
        database = ConnectionManager.get(name)
        for found in journal.find(database):
            runs += [found.run_id] * any(one.state == "quarantined" for one in found.steps)
            waits += [
                f"step {one.name!r} of run {found.run_id} ({found.name!r}) failed: {one.error}"
                for one in found.steps
                if one.state in {"ready", "undo"} and (one.attempts or one.error)
            ]
        with database.mapped_errors(), database.autocommit.connect() as connection:
            waiting = connection.execute(sa.select(sa.func.count()).select_from(outbox)).scalar_one()
            counted = connection.execute(sa.select(parked.c.state, sa.func.count()).group_by(parked.c.state))
            states: dict[str, int] = dict(tuple(row) for row in counted)
        if waiting:
            waits.append(f"{waiting} event(s) in the outbox of {name!r}")
        if states.get("failing"):
            waits.append(f"{states['failing']} event(s) that fail in {name!r}")
        dead += sum(states.values()) - states.get("failing", 0)
    return Left(stuck, runs, dead), waits
