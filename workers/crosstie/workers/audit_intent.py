"""What a run is going to read of a reference: everything, the next part, or nothing but what was noted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from crosstie.orm.clock import database_now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity import AuditedReference, AuditPlan, AuditScope, part_of_plan, plan_audit
from crosstie.workers.audit_notes import RunNotes
from crosstie.workers.audit_record import last_standing
from crosstie.workers.audit_standing import Standing, next_standing, why_everything
from crosstie.workers.audit_triggers import Noting, noting_of

__all__ = ["Intent", "intend"]


@dataclass(frozen=True)
class Intent:
    """`plan` is None where nothing but notes is looked at; `standing` will be achieved, and `remarks` be reported."""

    scope: AuditScope
    plan: AuditPlan | None
    notes: RunNotes
    standing: Standing
    remarks: tuple[str, ...] = ()


def intend(reference: AuditedReference, scope: AuditScope, *, page_size: int, parts: int, chunks: int) -> Intent:
    """Decide on it; changes alone are not always enough. Raises what `plan_audit` does."""
    database, settings = reference.child.database, ConnectionManager.settings().audit
    at_ms = database_now_ms(database)
    standing, noting = last_standing(database, reference.name), _noting(reference)
    # What is noted later than this may be noted because of what the run does not see.
    notes = RunNotes.of(reference)
    remarks: tuple[str, ...] = ()
    if scope is AuditScope.CHANGES:
        why = why_everything(
            standing, noting, whole_table=notes.whole_table, at_ms=at_ms, full_every_s=settings.full_every_s
        )
        if why is None and standing.basis is not None:
            since = datetime.fromtimestamp(standing.basis.at_ms / 1000, UTC)
            remarks = (f"only keys that have changed since everything was read at {since:%Y-%m-%d %H:%M} UTC",)
        else:
            scope, remarks = AuditScope.FULL, (f"everything was read: {why}",)
    plan = None
    if scope is AuditScope.FULL:
        plan = plan_audit(reference, page_size=page_size, chunks=chunks)
    elif scope is AuditScope.PART:
        after = None if standing.position is None else standing.position.upto
        whole = plan_audit(reference, page_size=page_size, chunks=chunks)
        plan = part_of_plan(reference, whole, after=after, parts=parts, chunks=chunks)
        remarks = (_told(plan),)
    achieved = next_standing(
        standing,
        scope,
        noting,
        whole_table=notes.whole_table,
        at_ms=at_ms,
        part=plan if scope is AuditScope.PART else None,
    )
    return Intent(scope, plan, notes, achieved, remarks)


def _noting(reference: AuditedReference) -> Noting:
    """Without an answer nothing is taken for noted; the plan will meet the same error, and tell it."""
    try:
        return noting_of(reference)
    except CrosstieError as error:
        return Noting(None, str(error))


def _told(part: AuditPlan) -> str:
    if part.after is None and part.ends:
        return "one part, which is everything: the keys are few, or can only be read at once"
    begin = "from the first key" if part.after is None else f"behind {part.after}"
    end = "to the last key, and the next part begins anew" if part.ends else f"up to {part.last}"
    return f"only the part {begin} {end}, and keys noted for this audit"
