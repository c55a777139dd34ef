"""The undo of a repair: what it took is put back from the quarantine, row by row, the latest first.

A row is put back and marked as restored in one transaction, so a crash and a second undo both find what is left. A row
that somebody has changed since, or whose key is taken, stays in the quarantine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError, DatabaseUnavailable
from crosstie.orm.faults import fault_point
from crosstie.orm.statement_limit import limit_transaction, limited_statements
from crosstie.orm.transaction import detached_transaction
from crosstie.sagas.errors import UndoConflict
from crosstie.sagas.lock_wait import limit_lock_waits
from crosstie.sagas.reversal import take_back, tell_of_copies
from crosstie.workers.repair import quarantine
from crosstie.workers.repair.errors import UnknownRepair
from crosstie.workers.repair.quarantine import Taken

__all__ = ["RestoredRow", "UndoReport", "undo_repair"]


@dataclass(frozen=True)
class RestoredRow:
    """One row of a repair; `reason` says why it is not `restored`, `notes` what of it cannot be taken back."""

    child_key: dict[str, Any]
    parent_key: str
    restored: bool
    reason: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class UndoReport:
    """What an undo has restored; `before` counts the rows that an earlier one had."""

    repair_id: str
    reference: str
    policy: str
    before: int
    rows: tuple[RestoredRow, ...]

    @property
    def exit_status(self) -> int:
        """0 where everything is restored, 1 where something stays in the quarantine."""
        return 0 if all(row.restored for row in self.rows) else 1

    def as_document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "version": 1,
            "repair_id": self.repair_id,
            "reference": self.reference,
            "policy": self.policy,
            "exit_status": self.exit_status,
            "restored_before": self.before,
            "restored": sum(row.restored for row in self.rows),
            "rows": [
                {
                    "child_key": row.child_key,
                    "parent_key": row.parent_key,
                    "restored": row.restored,
                    "reason": row.reason,
                    "notes": list(row.notes),
                }
                for row in self.rows
            ],
        }


def undo_repair(repair_id: str) -> UndoReport:
    """Put back what this repair took, as far as nobody has changed it since; repeating it tries what is left.

    Raises UnknownRepair, StatementTimeout, DatabaseUnavailable; what was restored by then stays so.
    """
    with limited_statements(ConnectionManager.settings().audit.statement_timeout_s):
        found = quarantine.taken_by(repair_id)
        if not found:
            raise UnknownRepair(
                f"no database has rows that a repair {repair_id!r} took. `crosstie audit repairs` lists those that "
                "have."
            )
        rows = tuple(_restore(one) for one in found if not one.restored)
    return UndoReport(repair_id, found[0].reference, found[0].policy, len(found) - len(rows), rows)


def _restore(taken: Taken) -> RestoredRow:
    try:
        with detached_transaction(taken.database) as tx:
            limit_lock_waits(tx)
            limit_transaction(tx)
            tx.mark_written()
            if quarantine.claim(tx, taken):  # else another undo has done it meanwhile
                take_back(tx, taken.undo_log)
                tell_of_copies(tx, taken.undo_log)
            fault_point("repair.restored")
    except DatabaseUnavailable:
        raise
    except CrosstieError as error:
        if isinstance(error, UndoConflict):
            with detached_transaction(taken.database) as tx:
                limit_transaction(tx)
                tx.mark_written()
                quarantine.store_error(tx, taken, str(error))
        return RestoredRow(taken.child_key, taken.parent_key, False, str(error))
    return RestoredRow(taken.child_key, taken.parent_key, True, notes=tuple(taken.notes))
