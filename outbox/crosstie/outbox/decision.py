"""Which events of a batch may leave, asking the homes of sagas that this database knows to be undecided."""

from __future__ import annotations

from collections.abc import Sequence

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError
from crosstie.outbox.batch import OutboxRow, Verdict, home_states, sort_out, undecided
from crosstie.outbox.errors import TargetFailed

__all__ = ["decide"]


def decide(rows: Sequence[OutboxRow]) -> tuple[Verdict, TargetFailed | None]:
    """Sort the rows out, asking each home once; the error says why the held row could not be decided."""
    decisions: dict[str, str] = {}
    silent: dict[str, CrosstieError] = {}
    for home, saga_ids in undecided(rows).items():
        try:
            decisions |= home_states(ConnectionManager.get(home), saga_ids)
        except CrosstieError as error:
            silent[home] = error
    verdict = sort_out(rows, decisions)
    held = verdict.held
    if held is None or held.home not in silent:
        return verdict, None
    return verdict, TargetFailed(
        f"event {held.id} waits for the decision of saga {held.saga_id}, and its home cannot be asked: "
        f"{silent[held.home]}"
    )
