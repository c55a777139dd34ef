"""How a saga was decided, and how far its branches have been brought to that."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from crosstie.orm.errors import CrosstieError
from crosstie.sagas.errors import SagaRecordConflict
from crosstie.sagas.record import SagaHeader

__all__ = ["Decision", "Manner", "Resolution", "understood"]


class Decision(Enum):
    """What home's register says, for good."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    FORGOTTEN = "forgotten"
    """It was decided and settled so long ago that its records are gone: there is nothing left to do."""


class Manner(Enum):
    """How an undo or a redo treats rows that somebody has changed since."""

    CHECKED = "checked"
    """They are a conflict, and nothing is written."""
    FORCED = "forced"
    """They are overwritten."""
    KEPT = "kept"
    """All rows stay as they are."""


@dataclass
class Resolution:
    """How far `resolve` came. A saga is finished when nothing is pending and nothing quarantined."""

    decision: Decision
    pending: dict[str, CrosstieError] = field(default_factory=dict)
    """Branches that could not be reached or were locked; try again later."""
    quarantined: dict[str, str] = field(default_factory=dict)
    """Branches whose undo or redo met somebody else's change; an operator decides."""

    @property
    def finished(self) -> bool:
        """Whether every branch stands where the decision wants it."""
        return not self.pending and not self.quarantined


def understood(header: SagaHeader, state: str) -> Decision:
    """What the state of home's record says. Raises SagaRecordConflict."""
    if state in {"committed", "owed"}:
        return Decision.COMMITTED
    if state in {"aborted", "finished"}:
        return Decision.ABORTED
    raise SagaRecordConflict(
        f"saga {header.saga_id} ({header.name!r}): expected home {header.home!r} to say owed, committed, aborted "
        f"or finished, found {state!r}. Somebody else wrote crosstie_saga; nothing was changed."
    )
