"""What may be done about orphans, how many of them at most, and what became of each; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from crosstie.orm.integrity import AuditResult, AuditState, Key

__all__ = ["Cap", "Outcome", "Policy", "RepairReport", "RepairedRow"]


class Policy(StrEnum):
    """What a repair does about an orphan."""

    REPORT = "report"
    """Nothing."""
    SET_NULL = "set_null"
    """The row stays, its foreign key becomes NULL."""
    DELETE = "delete"
    """The row is deleted as `record.delete()` does it, with callbacks."""
    RECREATE = "recreate"
    """A parent is made by a function that is registered for the reference."""
    QUARANTINE = "quarantine"
    """The row is moved into `crosstie_quarantine`, without callbacks."""


class Outcome(StrEnum):
    """What became of one orphan."""

    PLANNED = "planned"
    """It would be repaired: this was a dry run."""
    REPAIRED = "repaired"
    SPARED = "spared"
    """It was no orphan any more, or somebody had it in his hands; the reason tells."""
    FAILED = "failed"


@dataclass(frozen=True)
class RepairedRow:
    """One child row, by primary key, that referred to `parent_key`; `reason` tells why it was spared or failed."""

    child_key: dict[str, Any]
    parent_key: Key
    outcome: Outcome
    reason: str | None = None


@dataclass(frozen=True)
class Cap:
    """A repair of more rows than this, or of a greater share of those that have a foreign key, is refused as a whole.

    Many orphans at once are seldom orphans: the parents' database is empty, restored from yesterday, or another one.
    """

    rows: int = 1_000
    percent: float = 10.0

    def refusal(self, found: AuditResult, *, empty: Sequence[str]) -> str | None:
        """Why these findings must not be repaired; None where they may. `empty` are the columns without any parent."""
        if found.state is AuditState.INCOMPLETE:
            return f"the audit is incomplete ({found.reason}), so nobody knows which rows are orphans. Remove the cause"
        if not found.orphan_rows:
            return None
        if empty:
            return (
                f"the table of {' and of '.join(empty)} has no rows at all, so every child whose parent was there "
                "looks like an orphan. Expected at least one parent: look whether the connection leads to the right "
                "database, or repair by hand"
            )
        if found.orphan_rows > self.rows:
            return (
                f"expected at most {self.rows:,} orphan rows and found {found.orphan_rows:,}. If they are orphans "
                "indeed, allow as many with --max-rows"
            )
        share = 100.0 * found.orphan_rows / max(found.child_rows, found.orphan_rows)
        if share > self.percent:
            return (
                f"expected orphans to be at most {self.percent:g} % of the rows and found {share:.3g} % "
                f"({found.orphan_rows:,} of {found.child_rows:,}). If they are orphans indeed, allow it with "
                "--max-percent"
            )
        return None


@dataclass(frozen=True)
class RepairReport:
    """What a repair of one reference has done; a dry run has `repair_id` None.

    `rows` are the orphans that were looked at, those of `audit` at most.
    """

    repair_id: str | None
    policy: Policy
    audit: AuditResult
    rows: tuple[RepairedRow, ...]

    def count(self, outcome: Outcome) -> int:
        """How many rows ended so."""
        return sum(row.outcome is outcome for row in self.rows)

    @property
    def exit_status(self) -> int:
        """0 where no orphan is known to be left, 1 where some are."""
        left = self.audit.orphan_rows - len(self.rows)
        return 0 if left <= 0 and all(row.outcome is Outcome.REPAIRED for row in self.rows) else 1

    def as_document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "version": 1,
            "repair_id": self.repair_id,
            "reference": self.audit.reference,
            "policy": self.policy.value,
            "dry_run": self.repair_id is None,
            "orphan_rows": self.audit.orphan_rows,
            "exit_status": self.exit_status,
            **{outcome.value: self.count(outcome) for outcome in Outcome},
            "rows": [
                {
                    "child_key": row.child_key,
                    "parent_key": row.parent_key,
                    "outcome": row.outcome.value,
                    "reason": row.reason,
                }
                for row in self.rows
            ],
        }
