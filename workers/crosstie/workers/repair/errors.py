"""Why a repair, or the undo of one, does not begin."""

from __future__ import annotations

from crosstie.orm.integrity import AuditError

__all__ = ["ParentPresent", "RepairRefused", "UnknownRepair"]


class RepairRefused(AuditError):
    """The repair would do harm, or cannot be carried out; nothing was written."""

    code = "audit.repair-refused"


class ParentPresent(AuditError):
    """The row's parent is there by now, so the row is no orphan."""

    code = "audit.parent-present"


class UnknownRepair(AuditError):
    """No database has rows that a repair of this id took."""

    code = "audit.unknown-repair"
