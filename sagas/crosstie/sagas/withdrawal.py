"""What a branch leaves beside its rows, its events and its locks, withdrawn together with the undo or when it settles.

The outbox has no index on the saga, which every event would pay for. So the branch's record says where its events are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.local_transaction import LocalTransaction
from crosstie.outbox.insertion import Place
from crosstie.outbox.publish import SAGA_EVENTS
from crosstie.outbox.tables import outbox, saga_lock
from crosstie.sagas.capture import undo_log

__all__ = ["EVENTS", "LOCKS", "complete_log", "release_locks", "withdraw"]

EVENTS: Final = "events"
"""The `op` of the entry that tells of events: `at` has a list of ids for each route and lane, if they are known."""
LOCKS: Final = "locks"
"""The `op` of the entry that says that the branch has locked rows."""
_PORTION: Final = 500


def complete_log(tx: LocalTransaction) -> list[dict[str, Any]]:
    """The undo log of a branch as its record is to have it; runs hooks that another branch's hooks have left here."""
    tx.run_before_commit()
    written = tx.ledger(SAGA_EVENTS)
    if not written:
        return undo_log(tx)
    if any(places is None for places in written):
        return [*undo_log(tx), {"op": EVENTS}]
    return [*undo_log(tx), {"op": EVENTS, "at": _by_lane(place for places in written for place in places)}]


def withdraw(connection: sa.Connection, entries: Iterable[Mapping[str, Any]], saga_id: str) -> None:
    """Delete the events that these entries of a branch's record tell of; the caller commits."""
    for entry in entries:
        if entry["op"] != EVENTS:
            continue
        if "at" not in entry:  # MySQL does not tell where it has put rows: all of the outbox is searched
            connection.execute(_of_saga(saga_id))
            continue
        for route, lane, ids in entry["at"]:
            for start in range(0, len(ids), _PORTION):
                at = sa.and_(
                    outbox.c.route == route, outbox.c.lane == lane, outbox.c.id.in_(ids[start : start + _PORTION])
                )
                connection.execute(_of_saga(saga_id).where(at))


def release_locks(connection: sa.Connection, saga_ids: Sequence[str], participant: str) -> None:
    """Delete the row locks that these sagas hold as this participant; the caller commits."""
    connection.execute(
        sa.delete(saga_lock).where(saga_lock.c.saga_id.in_(saga_ids), saga_lock.c.participant == participant)
    )


def _of_saga(saga_id: str) -> sa.Delete:
    return sa.delete(outbox).where(outbox.c.saga_id == saga_id)


def _by_lane(places: Iterable[Place]) -> list[tuple[str, int, list[int]]]:
    return [
        (*lane, [place.id for place in found]) for lane, found in groupby(sorted(places), key=lambda place: place[:2])
    ]
