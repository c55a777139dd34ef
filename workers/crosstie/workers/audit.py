"""Audits of the declared references: the engine, the records of sagas and the rows of runs put together."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity import (
    AuditedReference,
    AuditPhase,
    AuditProgress,
    AuditResult,
    AuditScope,
    AuditState,
    ProgressListener,
    audit_reference,
)
from crosstie.orm.reference import Reference
from crosstie.orm.statement_limit import limited_statements
from crosstie.workers.audit_copies import audit_copies
from crosstie.workers.audit_counters import audit_counters, declared_counters
from crosstie.workers.audit_guard import guarded
from crosstie.workers.audit_intent import Intent, intend
from crosstie.workers.audit_leftovers import audit_leftovers
from crosstie.workers.audit_listeners import on_audit, tell_of_audit
from crosstie.workers.audit_log import log_report
from crosstie.workers.audit_notes import RunNotes, end_run, look_at_notes
from crosstie.workers.audit_record import RunHeld, RunSummary, open_run, unrecordable
from crosstie.workers.audit_references import select_references
from crosstie.workers.audit_report import AuditReport
from crosstie.workers.audit_runner import carry_out
from crosstie.workers.audit_sagas import TouchedBySagas
from crosstie.workers.audit_standing import NOTHING
from crosstie.workers.audit_types import audit_type_columns
from crosstie.workers.audit_unique import audit_unique
from crosstie.workers.process import process_owner

__all__ = ["AuditReport", "on_audit", "run_audit", "run_scheduled_audit", "select_references"]

CHUNKS: Final = 32
"""Parts of a run that other processes may help with, at most; each is read and stored bit by bit."""


def run_audit(
    chosen: Iterable[Reference | AuditedReference | str] | None = None,
    *,
    include_local: bool = False,
    chunk_size: int | None = None,
    progress: ProgressListener | None = None,
    scope: AuditScope = AuditScope.FULL,
    parts: int | None = None,
    unique: Iterable[str] | None = None,
    counters: Iterable[str] | None = None,
    leftovers: bool | None = None,
) -> AuditReport:
    """Audit references, given or named, and the copies and counters that follow them, one after the other.

    Without any, every declared reference that crosses databases, and every denormalised column and counter.
    `include_local` adds those within one database; `chunk_size` (distinct keys), `parts` and the grace default to the
    settings. `unique` are columns whose values are to be in one database only; where nothing is given, those of the
    settings; and so are `counters`, besides those of the models. With another `scope` than FULL only what has changed
    is looked at, or the next of so many `parts` besides, and neither copies nor counters nor unique columns of the
    settings.
    With `leftovers`, which defaults to the setting where nothing is chosen, what sagas have left over is looked for.
    Each run is recorded in its child's database, where that has crosstie's tables. A reference that cannot be audited
    is INCOMPLETE in the report and keeps no other from being audited. Raises UnknownReference, and what resolving the
    declared relations raises.
    """
    settings = ConnectionManager.settings().audit
    run = _Run(chunk_size or settings.chunk_size, progress, scope, parts or settings.parts)
    started_at, start = datetime.now(UTC), time.monotonic()
    with limited_statements(settings.statement_timeout_s):
        wanted = select_references(chosen, include_local=include_local)
        results = tuple(run.audit(reference) for reference in wanted)
        compared = None if chosen is None else {one.name for one in wanted}
        full = scope is AuditScope.FULL
        copies = audit_copies(compared) if full else ()
        columns = unique if unique is not None else settings.unique if chosen is None and full else ()
        duplicates = audit_unique(columns, page_size=run.chunk_size, suspects=run.touched, progress=progress)
        given = counters if counters is not None else settings.counters if chosen is None and full else ()
        counted = audit_counters(
            [*(declared_counters(compared) if full else ()), *given],
            run.run_id,
            page_size=run.chunk_size,
            touched=run.touched,
            progress=progress,
        )
        types = audit_type_columns(wanted, suspects=run.touched)
        looks = leftovers if leftovers is not None else settings.leftovers and chosen is None
        left = audit_leftovers(run.run_id) if looks else ()
    seconds = time.monotonic() - start
    report = AuditReport(
        run.run_id, started_at, seconds, results, run.unrecorded, copies, duplicates, left, counted, types
    )
    tell_of_audit(report)
    return report


def run_scheduled_audit(names: Sequence[str] | None = None, *, scope: AuditScope = AuditScope.FULL) -> AuditReport:
    """The audit that a schedule asks for, of these references or of all: what it finds is recorded and logged."""
    report = run_audit(names, scope=scope)
    log_report(report)
    return report


class _Run:
    """One run over several references, under one id."""

    def __init__(self, chunk_size: int, progress: ProgressListener | None, scope: AuditScope, parts: int) -> None:
        self.run_id = str(uuid.uuid4())
        self.chunk_size = chunk_size
        self.progress = progress
        self.scope = scope
        self.parts = parts
        self.unrecorded: dict[str, str] = {}
        self.settings = ConnectionManager.settings().audit
        self.touched = TouchedBySagas()

    def audit(self, reference: AuditedReference) -> AuditResult:
        """Audit one reference between the beginning and the end of its row."""
        try:
            why = unrecordable(reference.child.database)
            if why is not None:
                return self._unrecorded(reference, why)
            intent, reason = self._intend(reference)
            held, superseded = open_run(
                reference.child.database,
                self.run_id,
                reference.name,
                None if intent is None else intent.plan,
                owner=_owner(),
                lease_s=self.settings.lease_s,
                scope=self.scope if intent is None else intent.scope,
                standing=NOTHING if intent is None else intent.standing,
            )
        except CrosstieError as error:
            self.unrecorded[reference.name] = str(error)
            return AuditResult(reference.name, AuditState.INCOMPLETE, reason=str(error))
        result = AuditResult(reference.name, AuditState.INCOMPLETE, reason=reason, scope=self.scope)
        if intent is not None:
            result = self._guarded(reference, lambda: self._shared(reference, intent, held))
        result = self._close(held, result, None if intent is None else intent.notes)
        remarks = () if intent is None else intent.remarks
        return _with_notes(result, [*remarks, *map(_superseded, superseded)])

    def _intend(self, reference: AuditedReference) -> tuple[Intent | None, str | None]:
        """What is to be read, or why that cannot be told."""
        if self.progress is not None:
            self.progress(AuditProgress(reference.name, AuditPhase.COUNTING, 0, 0))
        try:
            return intend(reference, self.scope, page_size=self.chunk_size, parts=self.parts, chunks=CHUNKS), None
        except CrosstieError as error:
            return None, str(error)

    def _shared(self, reference: AuditedReference, intent: Intent, held: RunHeld) -> AuditResult:
        found = None
        if intent.plan is not None:
            found = carry_out(
                reference, intent.plan, held, owner=_owner(), suspects=self.touched, progress=self.progress
            )
        if found is None or intent.scope is not AuditScope.FULL:
            found = look_at_notes(reference, held, found, intent.notes, suspects=self.touched, progress=self.progress)
        if self.progress is not None:
            self.progress(AuditProgress(reference.name, AuditPhase.DONE, found.keys_checked, found.keys_checked))
        return found

    def _unrecorded(self, reference: AuditedReference, why: str) -> AuditResult:
        self.unrecorded[reference.name] = why
        if self.scope is AuditScope.FULL:
            return _with_notes(self._alone(reference), [f"this run was not recorded: {why}"])
        reason = f"only an audit of everything goes without a record, and this one has none: {why}"
        return AuditResult(reference.name, AuditState.INCOMPLETE, reason=reason, scope=self.scope)

    def _alone(self, reference: AuditedReference) -> AuditResult:
        """Without rows of its run nobody can help."""
        return self._guarded(
            reference,
            lambda: audit_reference(
                reference,
                chunk_size=self.chunk_size,
                suspects=self.touched,
                grace_s=self.settings.grace_s,
                progress=self.progress,
            ),
        )

    def _guarded(self, reference: AuditedReference, audit: Callable[[], AuditResult]) -> AuditResult:
        def incomplete(reason: str) -> AuditResult:
            return AuditResult(reference.name, AuditState.INCOMPLETE, reason=reason, scope=self.scope)

        return guarded(reference.name, audit, incomplete)

    def _close(self, held: RunHeld, result: AuditResult, notes: RunNotes | None) -> AuditResult:
        try:
            end_run(held, result, notes)
        except CrosstieError as error:
            self.unrecorded[result.reference] = str(error)
            reason = result.reason or f"it was checked, but its end could not be recorded: {error}"
            return replace(result, state=AuditState.INCOMPLETE, reason=reason)
        return result


def _with_notes(result: AuditResult, notes: Iterable[str]) -> AuditResult:
    return replace(result, notes=(*result.notes, *notes))


def _superseded(run: RunSummary) -> str:
    return (
        f"run {run.run_id} of {run.started_at:%Y-%m-%d %H:%M} UTC never finished (killed, or still running beside this "
        "one); superseded"
    )


def _owner() -> str:
    return process_owner("audit")
