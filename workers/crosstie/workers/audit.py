"""Audits of the declared references: the engine, the records of sagas and the rows of runs put together."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from crosstie.orm.configuration import nearest
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity import (
    AuditedReference,
    AuditResult,
    AuditState,
    ProgressListener,
    UnknownReference,
    audit_reference,
)
from crosstie.orm.reference import Reference, references
from crosstie.outbox.tables import has_tables
from crosstie.sagas.touched import touched_keys
from crosstie.workers.audit_record import close_run, open_run, unrecordable
from crosstie.workers.audit_report import AuditReport

__all__ = ["AuditReport", "run_audit", "run_scheduled_audit", "select_references"]

logger = logging.getLogger(__name__)


def run_audit(
    chosen: Iterable[Reference | AuditedReference | str] | None = None,
    *,
    include_local: bool = False,
    chunk_size: int | None = None,
    progress: ProgressListener | None = None,
) -> AuditReport:
    """Audit references, given or named, one after the other; without any, every declared one that crosses databases.

    `include_local` adds those within one database; `chunk_size` (distinct keys) and the grace default to the settings.
    Each run is recorded in its child's database, where that has crosstie's tables. A reference that cannot be audited
    is INCOMPLETE in the report and keeps no other from being audited. Raises UnknownReference, and what resolving the
    declared relations raises.
    """
    wanted = select_references(chosen, include_local=include_local)
    run = _Run(chunk_size or ConnectionManager.settings().audit.chunk_size, progress)
    started_at, start = datetime.now(UTC), time.monotonic()
    results = tuple(run.audit(reference) for reference in wanted)
    return AuditReport(run.run_id, started_at, time.monotonic() - start, results, run.unrecorded)


def run_scheduled_audit() -> AuditReport:
    """The audit that a schedule asks for: what it finds is recorded and logged."""
    report = run_audit()
    if not report.results:
        logger.warning("the scheduled audit checked nothing: no imported model declares a reference across databases")
    for result in report.results:
        if result.state is AuditState.OK:
            logger.info(
                "audit of %s: ok, %d keys, %d deferred", result.reference, result.keys_checked, result.deferred_keys
            )
        elif result.state is AuditState.FINDINGS:
            logger.warning("audit of %s: %d orphan rows, run %s", result.reference, result.orphan_rows, report.run_id)
        else:
            logger.error("audit of %s is incomplete: %s", result.reference, result.reason)
    return report


def select_references(
    chosen: Iterable[Reference | AuditedReference | str] | None = None, *, include_local: bool = False
) -> list[AuditedReference]:
    """The references to audit, each once.

    A name may be cut down to its child ("secondary.posts.user_id", "posts.user_id") as long as one reference has it.
    Raises UnknownReference, with the nearest name.
    """
    if chosen is None:
        return [AuditedReference.declared(one) for one in references(crossing_only=not include_local)]
    found: dict[str, AuditedReference] = {}
    for one in chosen:
        selected = _named(one) if isinstance(one, str) else one
        if isinstance(selected, Reference):
            selected = AuditedReference.declared(selected)
        found.setdefault(selected.name, selected)
    return list(found.values())


def _named(name: str) -> Reference:
    declared = {one.name: one for one in references()}
    exact = declared.get(name)
    if exact is not None:
        return exact
    matches = [one for full, one in declared.items() if _short_for(name, full)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UnknownReference(
            f"{name!r} may mean {' or '.join(repr(one.name) for one in matches)}: write the whole name, quoted."
        )
    if not declared:
        raise UnknownReference(
            f"no reference is called {name!r}, because no imported model declares one. Name the modules of your models "
            "in the setting `imports`, or with --import."
        )
    raise UnknownReference(f"no reference is called {name!r}.{_nearest(name, list(declared))}")


def _short_for(name: str, full: str) -> bool:
    child = full.partition(" -> ")[0]
    return bool(name) and (child == name or child.endswith(f".{name}"))


def _nearest(name: str, declared: Sequence[str]) -> str:
    """Compared by its child alone where only that was written."""
    if "->" in name:
        return nearest(name, list(declared))
    by_child = {full.partition(" -> ")[0]: full for full in declared}
    short = {".".join(child.split(".")[-1 - name.count(".") :]): full for child, full in by_child.items()}
    return nearest(name, list(short) if name.count(".") < 2 else list(by_child))


class _Run:
    """One run over several references, under one id."""

    def __init__(self, chunk_size: int, progress: ProgressListener | None) -> None:
        self.run_id = str(uuid.uuid4())
        self.chunk_size = chunk_size
        self.progress = progress
        self.unrecorded: dict[str, str] = {}
        self._has_tables: dict[str, bool] = {}

    def audit(self, reference: AuditedReference) -> AuditResult:
        """Audit one reference between the beginning and the end of its row."""
        try:
            notes = self._open(reference)
            result = self._audit(reference)
        except CrosstieError as error:
            self.unrecorded[reference.name] = str(error)
            return AuditResult(reference.name, AuditState.INCOMPLETE, reason=str(error))
        return self._close(reference, replace(result, notes=(*result.notes, *notes)))

    def _audit(self, reference: AuditedReference) -> AuditResult:
        try:
            return audit_reference(
                reference,
                chunk_size=self.chunk_size,
                suspects=self._touched,
                grace_s=ConnectionManager.settings().audit.grace_s,
                progress=self.progress,
            )
        except Exception as error:
            # A fault of ours in one audit must neither look like OK nor cost the others.
            logger.exception("the audit of %s failed", reference.name)
            reason = f"unexpected {type(error).__name__}: {error}"
            return AuditResult(reference.name, AuditState.INCOMPLETE, reason=reason)

    def _touched(self, database_name: str, /, *, since_ms: int) -> Collection[tuple[str, tuple[str, ...]]]:
        known = self._has_tables.get(database_name)
        if known is None:
            known = self._has_tables[database_name] = has_tables(ConnectionManager.get(database_name))
        # A saga that writes to a database leaves its record there: without the table there is no saga.
        return touched_keys(database_name, since_ms=since_ms) if known else ()

    def _open(self, reference: AuditedReference) -> list[str]:
        """Begin the row of the run; returns what is to be noted in the result."""
        database = reference.child.database
        why = unrecordable(database)
        if why is not None:
            self.unrecorded[reference.name] = why
            return [f"this run was not recorded: {why}"]
        return [
            f"run {one.run_id} of {one.started_at:%Y-%m-%d %H:%M} UTC never finished (killed, or still running beside "
            "this one); superseded"
            for one in open_run(database, self.run_id, reference.name)
        ]

    def _close(self, reference: AuditedReference, result: AuditResult) -> AuditResult:
        if reference.name in self.unrecorded:
            return result
        try:
            close_run(reference.child.database, self.run_id, result)
        except CrosstieError as error:
            self.unrecorded[reference.name] = str(error)
            reason = result.reason or f"it was checked, but its end could not be recorded: {error}"
            return replace(result, state=AuditState.INCOMPLETE, reason=reason)
        return result
