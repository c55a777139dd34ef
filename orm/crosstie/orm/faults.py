"""Named places at which a test can make the process die, fail or stop.

In use nothing is armed, and a fault point is one test of an empty dictionary. A subprocess is armed by its environment
(`CROSSTIE_FAULTS="saga.branch-committed=kill"`, several separated by commas, `name=kill:2` for the second time the
place is reached); a test in the same process arms with `armed`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["FAULT_POINTS", "FaultInjected", "armed", "fault_point"]

FAULT_POINTS: Final[frozenset[str]] = frozenset(
    {
        # one saga, in the order in which the original process reaches them
        "saga.before-first-commit",
        "saga.branch-recorded",
        "saga.branch-committed",
        "saga.home-recorded",
        "saga.home-committed",
        # several branches, whose commits leave together
        "joint.commits-sent",
        # one two-phase saga
        "two-phase.before-first-prepare",
        "two-phase.branch-recorded",
        "two-phase.prepares-sent",
        "two-phase.branch-prepared",
        "two-phase.home-recorded",
        "two-phase.home-committed",
        "two-phase.ends-sent",
        "two-phase.branch-finished",
        # one saga that recovers forward
        "forward.before-home",
        "forward.branch-recorded",
        "forward.home-recorded",
        "forward.home-committed",
        "forward.branch-committed",
        # what such a saga owes, done by a worker or by the original itself
        "redo.recorded",
        "redo.applied",
        "redo.committed",
        "redo.before-settled",
        # abort and recovery, in the original or in a worker
        "recovery.before-decision",
        "recovery.decision-recorded",
        "recovery.decided",
        "recovery.branch-undone",
        "recovery.branch-resolved",
        "recovery.before-finish",
        "recovery.finished",
        # the same for many crashed sagas at once, in a worker
        "cohort.before-decision",
        "cohort.decision-recorded",
        "cohort.decided",
        "cohort.branch-undone",
        "cohort.branch-resolved",
        "cohort.before-finish",
        "cohort.finished",
        # an effect outside databases: its call, and its compensation
        "effect.intended",
        "effect.called",
        "effect.claimed",
        "effect.compensated",
        "effect.completed",
        # one step of a declared saga
        "steps.claimed",
        "steps.worked",
        "steps.committed",
        # the relay
        "relay.claimed",
        "relay.recovered",
        "relay.trying",
        "relay.applied",
        "relay.target-committed",
        "relay.acknowledged",
        "relay.source-committed",
        "relay.parked",
        "relay.unparked",
        # events for a message broker, confirmed and not yet acknowledged
        "broker.published",
        # a change of crosstie's own tables
        "migration.table-created",
        "migration.applied",
        "migration.taken-back",
        # a parent that is looked up through the cache, and one that was changed
        "cache.looked",
        "cache.read",
        "cache.forgetting",
        # a subscriber that deletes or nulls the children of deleted parents
        "reference.released",
        # a subscriber that aligns copies with their originals, and a walk that asks for it
        "copies.locked",
        "copies.aligned",
        "backfill.chunk-committed",
        # a run of an audit, chunk by chunk
        "audit.chunk-claimed",
        "audit.chunk-audited",
        "audit.chunk-committed",
        "audit.concluded",
        # the end of such a run, whose notes in the parent's database are still there
        "notes.recorded",
        # a repair of orphans, and its undo
        "repair.fenced",
        "repair.recorded",
        "repair.committed",
        "repair.recreated",
        "repair.restored",
    }
)
"""Every name that the code reaches; arming another is an error, and a test holds the code to this list."""


class FaultInjected(Exception):
    """Raised at a fault point armed with `raise`; deliberately no CrosstieError, as a crash is none."""


_armed: dict[str, Callable[[], None]] = {}


def fault_point(name: str, /) -> None:
    """Do what a test armed for this place; nothing in use."""
    if _armed:
        action = _armed.get(name)
        if action is not None:
            action()


@contextmanager
def armed(name: str, action: Callable[[], None] | None = None, *, nth: int = 1) -> Iterator[None]:
    """Run `action` (default: raise FaultInjected) the `nth` time that the place is reached inside the block.

    Raises ValueError for a name that is not in FAULT_POINTS.
    """
    _arm(name, action or _raising(name), nth)
    try:
        yield
    finally:
        _armed.pop(name, None)


def _arm(name: str, action: Callable[[], None], nth: int) -> None:
    if name not in FAULT_POINTS:
        raise ValueError(f"no fault point is called {name!r}; expected one of {', '.join(sorted(FAULT_POINTS))}")
    left = nth

    def count_down() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            action()

    _armed[name] = count_down


def _raising(name: str) -> Callable[[], None]:
    def fail() -> None:
        raise FaultInjected(name)

    return fail


def _kill() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    sys.stdout.write("crosstie: fault point reached\n")
    sys.stdout.flush()
    threading.Event().wait()


def _arm_from_environment(specification: str) -> None:
    for item in filter(None, specification.split(",")):
        name, _, rest = item.partition("=")
        verb, _, nth = rest.partition(":")
        actions = {"kill": _kill, "raise": _raising(name), "hang": _hang}
        if verb not in actions:
            raise ValueError(f"CROSSTIE_FAULTS: {item!r}: expected name=kill, name=raise or name=hang")
        _arm(name, actions[verb], int(nth or 1))


_arm_from_environment(os.environ.get("CROSSTIE_FAULTS", ""))
