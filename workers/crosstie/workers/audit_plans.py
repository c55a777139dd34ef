"""How audits would read, without reading: the plan of each reference, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity import AuditedReference, AuditPlan, plan_audit
from crosstie.workers.audit_references import select_references

__all__ = ["PlannedAudit", "planned_audits"]


@dataclass(frozen=True)
class PlannedAudit:
    """The plan of one reference; without one, `refusal` says why it cannot be audited."""

    reference: str
    plan: AuditPlan | None = None
    refusal: str | None = None

    def as_document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plan = self.plan
        return {
            "reference": self.reference,
            "strategy": None if plan is None else plan.strategy.value,
            "keys": None if plan is None else plan.keys,
            "rows": None if plan is None else plan.rows,
            "reasons": [] if plan is None else list(plan.reasons),
            "notes": [] if plan is None else list(plan.notes),
            "refusal": self.refusal,
        }


def planned_audits(
    chosen: Sequence[AuditedReference | str] | None = None,
    *,
    include_local: bool = False,
    chunk_size: int | None = None,
) -> list[PlannedAudit]:
    """Plan the references as an audit would. Raises UnknownReference."""
    page_size = chunk_size or ConnectionManager.settings().audit.chunk_size
    found = []
    for reference in select_references(chosen, include_local=include_local):
        try:
            found.append(PlannedAudit(reference.name, plan_audit(reference, page_size=page_size)))
        except CrosstieError as error:
            found.append(PlannedAudit(reference.name, refusal=str(error)))
    return found
