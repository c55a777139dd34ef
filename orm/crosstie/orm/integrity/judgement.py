"""From candidates to findings: what was confirmed is listed and counted, what cannot be told yet is held.

Every audit of a reference, of a chunk, of named keys or over all of its chunks, judges by one `Judgement`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, TypedDict

from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.columns import columns_of
from crosstie.orm.integrity.confirmation import Confirmation, Confirmed, Moment
from crosstie.orm.integrity.endpoint import AuditedReference
from crosstie.orm.integrity.findings import AuditPhase, AuditProgress, Finding, Key, ProgressListener
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.query import OrphanQuery
from crosstie.orm.integrity.suspicion import NO_SAGAS, TouchedKeys

__all__ = ["FINDING_LIMIT", "Judgement", "JudgementOptions", "Tally"]

FINDING_LIMIT: Final = 10_000
"""So many orphan rows are listed; the others are counted."""
_HELD_LIMIT: Final = 10_000


@dataclass
class Tally:
    """What was found so far.

    `reported` are the orphaned keys that may be met again, because they have spellings; `deferred` are the deferred
    keys, but for those of which a chunk has told the number only.
    """

    orphan_keys: int = 0
    orphan_rows: int = 0
    findings: list[Finding] = field(default_factory=list)
    deferred_keys: int = 0
    deferred_rows: int = 0
    deferred: list[Key] = field(default_factory=list)
    reported: set[Key] = field(default_factory=set)

    def open_keys(self) -> tuple[Key, ...] | None:
        """The keys that are orphaned or deferred; None where some of them are not listed."""
        orphaned = dict.fromkeys(one.parent_key for one in self.findings)
        if len(orphaned) < self.orphan_keys or len(self.deferred) < self.deferred_keys:
            return None
        return tuple(orphaned | dict.fromkeys(self.deferred))


class JudgementOptions(TypedDict, total=False):
    """What any audit may be told of how to judge; the defaults are those of `Judgement`."""

    suspects: TouchedKeys
    """Tells what unresolved sagas touch; such rows are deferred, not reported."""
    grace_s: float
    """Orphans are confirmed once more after so many seconds, for writers outside sagas that write the child first."""
    progress: ProgressListener | None
    """Is told what the audit is about to do; what it raises goes to the audit's caller."""
    finding_limit: int
    """So many orphan rows are listed; the others are counted."""
    wait: Callable[[float], None]
    """Lets the grace pass."""
    clock_s: Callable[[], float]


@dataclass(kw_only=True)
class Judgement:
    """Judges candidates of one reference, adds what became of them to a tally, and tells how far the audit is."""

    reference: AuditedReference
    suspects: TouchedKeys = NO_SAGAS
    grace_s: float = 0.0
    progress: ProgressListener | None = None
    finding_limit: int = FINDING_LIMIT
    wait: Callable[[float], None] = time.sleep
    clock_s: Callable[[], float] = time.monotonic
    tally: Tally = field(default_factory=Tally)
    keys: int = 0
    """Distinct keys that were compared so far."""
    expected: int = 0
    """As an estimate."""
    held: list[Key] = field(default_factory=list)
    """Keys to be looked at once more: a saga had them, or their grace runs."""
    held_since_s: float = 0.0

    @cached_property
    def columns(self) -> tuple[ChildColumn, ParentColumn]:
        """Both ends. Raises KeysNotComparable, NoSuchTable, DatabaseUnavailable."""
        return columns_of(self.reference)

    @cached_property
    def confirmation(self) -> Confirmation:
        """Raises what `columns` does."""
        return Confirmation(self.reference, *self.columns, self.suspects)

    @cached_property
    def _queries(self) -> OrphanQuery:
        child, _ = self.columns
        return OrphanQuery(child.end, child.storage)

    def tell(self, phase: AuditPhase) -> None:
        """Tell the audit's listener what comes next."""
        if self.progress is not None:
            self.progress(AuditProgress(self.reference.name, phase, self.keys, max(self.expected, self.keys)))

    def judge(self, candidates: Sequence[Key], since: Moment) -> None:
        """Confirm candidates whose rows were read after `since`. Raises DatabaseUnavailable."""
        self.tell(AuditPhase.CONFIRMING)
        verdict = self.confirmation.settle(candidates, since)
        later = [one.key for one in verdict.deferred]
        deferred = set(later)
        for orphan in verdict.orphans:
            if orphan.key in deferred:
                continue  # judged as a whole, once its saga is done with it
            if self.grace_s > 0:
                later.append(orphan.key)
            else:
                self._report(orphan)
        self.hold(later)
        if len(self.held) >= _HELD_LIMIT:
            self.settle_held()

    def hold(self, keys: Iterable[Key]) -> None:
        """Keys to be looked at once more, whose grace begins now."""
        before = len(self.held)
        self.held += keys
        if len(self.held) > before:
            self.held_since_s = self.clock_s()

    def settle_held(self) -> None:
        """Look once more at what could not be told at once; what cannot be told now stays deferred."""
        if not self.held:
            return
        left_s = self.held_since_s + self.grace_s - self.clock_s()
        if self.grace_s > 0 and left_s > 0:
            self.tell(AuditPhase.WAITING)
            self.wait(left_s)
        self.tell(AuditPhase.CONFIRMING)
        held = list(dict.fromkeys(self.held))
        self.held.clear()
        verdict = self.confirmation.settle(held, self.confirmation.now())
        self.tally.deferred_keys += len(verdict.deferred)
        self.tally.deferred_rows += sum(one.rows for one in verdict.deferred)
        self.tally.deferred += [one.key for one in verdict.deferred]
        for orphan in verdict.orphans:
            self._report(orphan)

    def _report(self, orphan: Confirmed) -> None:
        (child, _), tally = self.columns, self.tally
        if len(child.storage.spellings(orphan.key)) > 1:
            # Other spellings of the key lie in other pages, and its rows were found by all of them.
            if orphan.key in tally.reported:
                return
            tally.reported.add(orphan.key)
        tally.orphan_keys += 1
        tally.orphan_rows += orphan.total
        room = self.finding_limit - len(tally.findings)
        if room <= 0:
            return
        names = [column.name for column in child.end.primary_key]
        query = self._queries.of(orphan.key)
        tally.findings += [
            Finding(dict(zip(names, row_key, strict=True)), orphan.key, query) for row_key in orphan.row_keys[:room]
        ]
