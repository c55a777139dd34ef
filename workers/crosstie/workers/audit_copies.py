"""Denormalised columns as a part of an audit: each group of copies is right, differs, or could not be compared."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from crosstie.orm.copies import CopyGroup, copy_groups
from crosstie.orm.integrity import AuditState
from crosstie.outbox.comparison import ComparedCopies, compare_copies
from crosstie.workers.audit_guard import guarded

__all__ = ["AuditedCopies", "audit_copies"]


@dataclass(frozen=True)
class AuditedCopies:
    """The copies that follow one reference, whose name they have. `found` is None where `reason` says why."""

    name: str
    state: AuditState
    found: ComparedCopies | None = None
    reason: str | None = None

    def as_document(self, sample: int | None) -> dict[str, Any]:
        """Plain values for JSON, with at most `sample` differing rows."""
        found = {} if self.found is None else asdict(self.found)
        differences: Sequence[Any] = found.get("differences", ())
        return {
            "reference": self.name,
            "state": self.state.value,
            "reason": self.reason,
            "rows": found.get("rows", 0),
            "differing": found.get("differing", 0),
            "orphans": found.get("orphans", 0),
            "differences": list(differences)[:sample],
        }


def audit_copies(names: Collection[str] | None = None) -> tuple[AuditedCopies, ...]:
    """Compare the copies that follow references of these names; without names, all that are declared.

    Rows that differ only while an event is under way are looked at again. Raises what resolving the declared relations
    raises.
    """
    return tuple(_audit(group) for group in copy_groups() if names is None or group.name in names)


def _audit(group: CopyGroup) -> AuditedCopies:
    def compare() -> AuditedCopies:
        found = compare_copies(group)
        return AuditedCopies(group.name, AuditState.OK if found.is_right else AuditState.FINDINGS, found)

    def incomplete(reason: str) -> AuditedCopies:
        return AuditedCopies(group.name, AuditState.INCOMPLETE, reason=reason)

    return guarded(f"the copies by {group.name}", compare, incomplete)
