"""What sagas have left over, as a part of an audit: what no working sweep leaves, and what the protocol forbids."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from rich.text import Text

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity import AuditState
from crosstie.outbox.tables import has_tables
from crosstie.sagas.inspection import LATE_S, LEFTOVER_KINDS, Leftover, find_leftovers
from crosstie.workers import presentation
from crosstie.workers.audit_record import record_check, unrecordable

__all__ = ["CHECK", "AuditedLeftovers", "audit_leftovers", "show_leftovers"]

logger = logging.getLogger(__name__)

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
    audited = (_audit(name, run_id) for name in ConnectionManager.names(writable=True))
    return tuple(one for one in audited if one is not None)


def _audit(name: str, run_id: str) -> AuditedLeftovers | None:
    started_at = datetime.now(UTC)
    try:
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
    except CrosstieError as error:
        return AuditedLeftovers(name, AuditState.INCOMPLETE, reason=str(error))
    except Exception as error:
        # A fault of ours in one database must neither look like OK nor cost the others.
        logger.exception("the sagas of %r could not be looked at", name)
        return AuditedLeftovers(name, AuditState.INCOMPLETE, reason=f"unexpected {type(error).__name__}: {error}")
    return audited


def show_leftovers(audited: Sequence[AuditedLeftovers], sample: int) -> None:
    """For people: nothing where nothing is left over."""
    console = presentation.console()
    if any(one.state is not AuditState.OK for one in audited):
        console.print()
    for one in audited:
        if one.reason is not None:
            console.print(Text(f"the sagas of {one.database} were not looked at: {one.reason}"), soft_wrap=True)
        for found in one.found[:sample]:
            console.print(
                Text(f"left over in {one.database}: {found.kind}: {found.saga_id}: {found.message}"), soft_wrap=True
            )
        if len(one.found[:sample]) < len(one.found):
            left = len(one.found) - len(one.found[:sample])
            console.print(Text(f"  and {left:,} more (crosstie sagas leftovers)", style="dim"))
