"""Those who audit the forum until killed: one begins runs, others help with their chunks and finish sagas.

Between any two looks of an audit some time may pass, so that writers come in between. `STORM_BREAK` names a look that
is left out, or an order that is wrong: a storm that finds nothing then has proved nothing.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, Final, TypeVar

from crosstie.orm import ConnectionManager, CrosstieError
from crosstie.orm.integrity import AuditScope, Key, Strategy, audit_chunk
from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.confirmation import Confirmation, Confirmed, Moment, Verdict
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.scan import Ends, KeyScan, Page
from crosstie.orm.integrity.strategies import choose_scan
from crosstie.sagas import sweep_sagas
from crosstie.workers import audit, audit_runner, doorbell
from crosstie.workers.audit import run_audit
from crosstie.workers.audit_record import open_runs
from crosstie.workers.audit_runner import help_audits
from crosstie.workers.audit_sagas import TouchedBySagas
from storm.forum import PARENTS
from storm.mill import grind
from storm.stream import pause

__all__ = ["BREAKS", "audit_forum", "help_forum"]

T = TypeVar("T")
PAGE: Final = 30
"""Distinct keys of a page, so that a run has many chunks."""
LONGEST_LOOK_S: Final = 0.25
_delays: Final = random.Random()


def _say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def _dally() -> None:
    """As a slow network, or a server that is busy with others."""
    if _delays.random() < 0.4:
        pause(_delays.uniform(0, LONGEST_LOOK_S))


def _late(look: Callable[..., T]) -> Callable[..., T]:
    @wraps(look)
    def looks(*arguments: Any, **options: Any) -> T:
        _dally()
        return look(*arguments, **options)

    return looks


class _LateScan:
    """A scan whose look at the parents comes a while after that at the children."""

    def __init__(self, ends: Ends, strategy: Strategy) -> None:
        self._scan: KeyScan = choose_scan(ends, strategy)

    def read(self, after: Any) -> Page:
        return self._scan.read(after)

    def missing(self, page: Page) -> Sequence[Key]:
        _dally()
        return self._scan.missing(page)


def _without_any_second_look(self: Confirmation, candidates: Sequence[Key], since: Moment) -> Verdict:
    del since
    rows = self.child.rows(list(candidates))
    return Verdict([Confirmed(key, found.total, found.row_keys) for key, found in rows.items() if found.row_keys])


def _parents_before_children(self: Confirmation, candidates: Sequence[Key], since: Moment) -> Verdict:
    suspicion = self.suspicion(since)
    absent = self.parent.absent(list(candidates))
    rows = self.child.rows(absent)
    suspicion |= self.suspicion(since)
    return Verdict(
        [
            Confirmed(key, found.total, found.row_keys)
            for key, found in rows.items()
            if found.row_keys
            and not suspicion.touches_parent(key)
            and not any(suspicion.touches_row(row_key) for row_key in found.row_keys)
        ]
    )


def _without_sagas(*_: Any, **__: Any) -> tuple[()]:
    return ()


BREAKS: Final[dict[str, tuple[type, str, Callable[..., Any]]]] = {
    "no-second-look": (Confirmation, "settle", _without_any_second_look),
    "parents-before-children": (Confirmation, "settle", _parents_before_children),
    "no-look-at-sagas": (TouchedBySagas, "__call__", _without_sagas),
}
"""What to put in the place of what, for an audit that is wrong on live data."""


def _prepare(seed: int) -> None:
    doorbell.deliver_locally(lambda _: None)
    _delays.seed(seed)
    broken = os.environ.get("STORM_BREAK")
    if broken:
        owner, name, wrong = BREAKS[broken]
        setattr(owner, name, wrong)
    for owner, name in ((ChildColumn, "rows"), (ParentColumn, "absent"), (TouchedBySagas, "__call__")):
        setattr(owner, name, _late(getattr(owner, name)))
    Confirmation.settle = _counted(Confirmation.settle)  # type: ignore[method-assign]
    audit_runner.audit_chunk = partial(audit_chunk, scan=_LateScan)  # type: ignore[attr-defined]
    audit.open_run = _told(audit.open_run)  # type: ignore[attr-defined]
    audit.intend = _timed(audit.intend)  # type: ignore[attr-defined]


def _counted(settle: Callable[..., Verdict]) -> Callable[..., Verdict]:
    def settles(self: Confirmation, candidates: Sequence[Key], since: Moment) -> Verdict:
        verdict = settle(self, candidates, since)
        waiting = {one.key for one in verdict.deferred}
        orphans = {one.key for one in verdict.orphans} - waiting
        _say("judged", len(candidates), "candidates", len(orphans), "orphans", len(waiting), "deferred")
        return verdict

    return settles


_begun_at_ms = 0


def _timed(intend: Callable[..., T]) -> Callable[..., T]:
    def intends(*arguments: Any, **options: Any) -> T:
        global _begun_at_ms  # noqa: PLW0603 - one audit at a time
        _begun_at_ms = int(time.time() * 1000)
        return intend(*arguments, **options)

    return intends


def _told(open_run: Callable[..., T]) -> Callable[..., T]:
    def opens(database: Any, run_id: str, reference: str, *arguments: Any, **options: Any) -> T:
        _say("begins", run_id, _begun_at_ms, reference)
        return open_run(database, run_id, reference, *arguments, **options)

    return opens


def _audit(number: int, seed: int) -> int:
    """Begin one run after another, each once all others have ended: also those of a process that was killed."""
    del number
    _prepare(seed)
    choose = random.Random(seed)
    scopes = [AuditScope.FULL, AuditScope.FULL, AuditScope.CHANGES, AuditScope.PART]
    while True:
        try:
            if not any(open_runs(ConnectionManager.get(name)) for name in PARENTS):
                run_audit(chunk_size=PAGE, scope=choose.choice(scopes), parts=3)
        except CrosstieError as error:
            _say("error", type(error).__name__)
        pause(0.05)


def _help(number: int, seed: int) -> int:
    _prepare(seed)
    while True:
        for name in PARENTS:
            try:
                sweep_sagas(name)
                help_audits(name, owner=f"helper {number}")
            except CrosstieError as error:
                _say("error", type(error).__name__)
        pause(0.02)


def audit_forum(seed: int) -> None:
    """Keep one process that begins runs."""
    ConnectionManager.configure()
    grind(_audit, 1, seed)


def help_forum(count: int, seed: int) -> None:
    """Keep so many helpers."""
    ConnectionManager.configure()
    grind(_help, count, seed)
