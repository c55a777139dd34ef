"""What sagas have left over, as a part of an audit: what no working sweep leaves, and what the protocol forbids."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.integrity import AuditState
from crosstie.outbox.tables import has_tables
from crosstie.sagas.inspection import LATE_S, LEFTOVER_KINDS, Leftover, find_leftovers
from crosstie.workers.audit_guard import guarded
from crosstie.workers.audit_record import record_check, unrecordable

__all__ = ["CHECK", "AuditedLeftovers", "audit_leftovers"]

CHECK: Final = "sagas"
"""What this check is called in the rows of runs and in metrics."""


@dataclass(frozen=True)
class AuditedLeftovers:
    """What is left over in one database. Where `reason` says why it could not be told, `found` is empty."""

    database: str
    state: AuditState
    found: tuple[Leftover, ...] = ()
    reason: str | None = None

    @property
    def kinds(self) -> dict[str, int]:
        """How many there are of each kind, none included."""
        return dict.fromkeys(LEFTOVER_KINDS, 0) | Counter(one.kind for one in self.found)

    def as_document(self, sample: int | None) -> dict[str, Any]:
        """Plain values for JSON, with at most `sample` findings."""
        return {
            "database": self.database,
            "state": self.state.value,
            "reason": self.reason,
            "left_over": len(self.found),
            "kinds": self.kinds,
            "findings": [asdict(one) for one in self.found[:sample]],
        }


def audit_leftovers(run_id: str) -> tuple[AuditedLeftovers, ...]:
    """Look in every writable database that has crosstie's tables; what was found is kept there as a run of this id.

    A database that cannot be asked is INCOMPLETE, and keeps the others from nothing.
    """
    audited = (
        guarded(f"the sagas of {name}", partial(_audit, name, run_id), partial(_incomplete, name))
        for name in ConnectionManager.names(writable=True)
    )
    return tuple(one for one in audited if one is not None)


def _audit(name: str, run_id: str) -> AuditedLeftovers | None:
    started_at = datetime.now(UTC)
    database = ConnectionManager.get(name)
    if not has_tables(database):
        return None  # a saga that writes here has its record here
    found = tuple(find_leftovers(name, grace_s=LATE_S))
    audited = AuditedLeftovers(name, AuditState.FINDINGS if found else AuditState.OK, found)
    if unrecordable(database) is None:
        record_check(
            database,
            run_id,
            CHECK,
            state=audited.state,
            started_at=started_at,
            findings=len(found),
            detail={"kinds": audited.kinds},
        )
    return audited


def _incomplete(name: str, reason: str) -> AuditedLeftovers:
    return AuditedLeftovers(name, AuditState.INCOMPLETE, reason=reason)
