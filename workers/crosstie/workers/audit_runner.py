"""A run of an audit, carried by however many processes: each claims chunks, and one of them brings the run to its end.

Who began a run holds it under a lease. Others help with chunks, and once that lease has run out, one of them takes the
run over. Nothing but the rows of the run says how far it is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from crosstie.orm.configuration import AuditSettings
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.faults import fault_point
from crosstie.orm.integrity import (
    AuditedReference,
    AuditPhase,
    AuditPlan,
    AuditProgress,
    AuditResult,
    AuditScope,
    ProgressListener,
    TouchedKeys,
    audit_chunk,
    conclude_audit,
)
from crosstie.orm.statement_limit import limited_statements
from crosstie.workers import audit_chunks, tick
from crosstie.workers.audit_chunks import Claim
from crosstie.workers.audit_listeners import tell_of_audit
from crosstie.workers.audit_notes import RunNotes, end_run, look_at_notes
from crosstie.workers.audit_record import OpenRun, RunHeld, open_runs, renew_run, take_over
from crosstie.workers.audit_references import known_reference
from crosstie.workers.audit_report import AuditReport
from crosstie.workers.audit_sagas import TouchedBySagas
from crosstie.workers.audit_throttle import press, take_tokens
from crosstie.workers.errors import ChunkLost
from crosstie.workers.lease_keeper import LeaseKeeper
from crosstie.workers.tick import Tick

__all__ = ["ChunkWorker", "carry_out", "help_audits"]

logger = logging.getLogger(__name__)

PAUSE_S = 0.5
"""Between two looks for a chunk, a reader's place, or the end of a press."""


@dataclass(kw_only=True)
class ChunkWorker:
    """Works on the chunks of one run for one process."""

    reference: AuditedReference
    plan: AuditPlan
    run_id: str
    owner: str
    suspects: TouchedKeys
    settings: AuditSettings
    progress: ProgressListener | None = None
    require_run: Callable[[], None] = lambda: None
    """Raises where the run is this process's no longer."""

    @property
    def database(self) -> Database:
        """Where the rows of the run are."""
        return self.reference.child.database

    def work(self) -> bool:
        """Claim a chunk and audit it to its end; False where there was none, no reader's place, or a press.

        Raises DatabaseUnavailable, and what `require_run` raises. A lost chunk is another's, and no error.
        """
        readers = self.reference.databases
        lease_s = self.settings.lease_s
        why = next((found for one in readers if (found := press(one, self.settings))), None)
        if why is not None:
            logger.info("the audit of %s pauses: %s", self.reference.name, why)
            return False
        tokens = take_tokens(readers, concurrency=self.settings.concurrency, owner=self.owner, lease_s=lease_s)
        if tokens is None:
            return False
        try:
            held = audit_chunks.claim(
                self.database, self.run_id, self.reference.name, owner=self.owner, lease_s=lease_s
            )
            claimed = held is not None
            while held is not None:
                held = self._audit(held, tokens)
        except ChunkLost as error:
            logger.warning("%s", error)
            return True
        finally:
            for token in tokens:
                tick.release(token)
        return claimed

    def _audit(self, held: Claim, tokens: list[Tick]) -> Claim | None:
        def renew() -> None:
            audit_chunks.renew(held)
            for token in tokens:
                tick.renew(token)

        done = audit_chunks.progress_of(self.database, self.run_id, self.reference.name).keys
        with LeaseKeeper("audit-chunk", renew, lease_s=held.lease_s) as keeper:

            def tell(step: AuditProgress) -> None:
                keeper.require_held()
                self.require_run()
                if self.progress is not None:
                    keys = done + step.keys_done
                    self.progress(replace(step, keys_done=keys, keys_total=max(step.keys_total, keys)))

            fault_point("audit.chunk-claimed")
            result = audit_chunk(
                self.reference,
                self.plan,
                held.range,
                suspects=self.suspects,
                grace_s=self.settings.grace_s,
                budget_s=self.settings.chunk_s,
                progress=tell,
            )
            fault_point("audit.chunk-audited")
        rest = audit_chunks.finish(held, result)
        fault_point("audit.chunk-committed")
        return rest


def carry_out(
    reference: AuditedReference,
    plan: AuditPlan,
    held: RunHeld,
    *,
    owner: str,
    suspects: TouchedKeys,
    progress: ProgressListener | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> AuditResult:
    """Work on the run's chunks until none is left, whoever helps, and judge over them; its end is not yet written.

    Raises RunLost, DatabaseUnavailable.
    """
    settings, database = ConnectionManager.settings().audit, reference.child.database
    started_s = time.monotonic()
    with LeaseKeeper("audit-run", partial(renew_run, held), lease_s=held.lease_s) as keeper:
        worker = ChunkWorker(
            reference=reference,
            plan=plan,
            run_id=held.run_id,
            owner=owner,
            suspects=suspects,
            settings=settings,
            progress=progress,
            require_run=keeper.require_held,
        )
        while (left := audit_chunks.progress_of(database, held.run_id, reference.name)).ready:
            if not worker.work():
                if progress is not None:
                    progress(AuditProgress(reference.name, AuditPhase.WAITING, left.keys, max(plan.keys, left.keys)))
                wait(PAUSE_S)
            keeper.require_held()
        result = conclude_audit(
            reference,
            plan,
            audit_chunks.results(database, held.run_id, reference.name, plan.after),
            suspects=suspects,
            grace_s=settings.grace_s,
            progress=progress,
        )
        fault_point("audit.concluded")
    return replace(result, seconds=time.monotonic() - started_s)


def help_audits(database_name: str, *, owner: str) -> bool:
    """Work on one chunk of each run in this database that this process knows the reference of, if there is one free.

    A run whose process has vanished is brought to its end. Returns whether there was anything to do. Raises
    DatabaseUnavailable, NoSuchTable.
    """
    database, settings = ConnectionManager.get(database_name), ConnectionManager.settings().audit
    runs = open_runs(database)
    if not runs:
        return False
    with limited_statements(settings.statement_timeout_s):
        return _help(runs, database, settings, owner)


def _help(runs: Sequence[OpenRun], database: Database, settings: AuditSettings, owner: str) -> bool:
    worked = False
    for run in runs:
        reference, suspects = known_reference(run.reference), TouchedBySagas()
        if reference is None:
            continue
        if run.abandoned:
            held = take_over(database, run, owner=owner, lease_s=settings.lease_s)
            if held is not None:
                logger.warning("audit run %s of %s was abandoned and is taken over", run.run_id, run.reference)
                result = carry_out(reference, run.plan, held, owner=owner, suspects=suspects)
                notes = None
                if held.scope is not AuditScope.FULL:
                    notes = RunNotes.of(reference)
                    result = look_at_notes(reference, held, result, notes, suspects=suspects)
                end_run(held, result, notes)
                tell_of_audit(AuditReport(run.run_id, run.started_at, result.seconds, (result,), {}))
                worked = True
            continue
        left = audit_chunks.progress_of(database, run.run_id, run.reference)
        worker = ChunkWorker(
            reference=reference,
            plan=run.plan,
            run_id=run.run_id,
            owner=owner,
            suspects=suspects,
            settings=settings,
        )
        worked = (left.waiting > 0 and worker.work()) or worked
    return worked
