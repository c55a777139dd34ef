"""Events that kill their workers: how the relay comes to know which one it is.

A subscriber that raises is heard of; one that ends its process (a crash in a library, the kernel for want of memory) is
not. All that remains is a lane whose owner let its lease run out. After three of these in a row the next owner is
*wary*: it applies one event at a time, and writes down beforehand which. An event with which two owners died in this
way is parked. What is no more than slow is not blamed: its owner holds the lock on the target's inbox, so nobody gets
as far as another trial, and an owner that comes back to find its lane taken says that it lives. For this it has some
time before the event is parked.

Whoever dies takes other lanes of its process along. So a process makes its trials one after the other, and one that
kills it does not meet another lane's.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from typing import Final

from crosstie.orm.database import Database
from crosstie.outbox.batch import OutboxRow, read_batch
from crosstie.outbox.errors import DeliveryFailed
from crosstie.outbox.lane import WARY_AT, Lease, Suspects, reassure, suspect, suspects

__all__ = ["CONVICTED_AT", "HEARING_S", "HearingBegun", "Trials", "Turn"]

logger = logging.getLogger(__name__)

CHARGED_AT: Final = WARY_AT + 2
CONVICTED_AT: Final = CHARGED_AT + 1
"""The last step is no death, but the time in which no owner has said that it lives."""
KNOWN_ALONE: Final = -1
"""In place of the last suspect: only parked events of which workers have died before are tried alone."""
HEARING_S: Final = 10.0
"""At least so long, and as long as a lease, owners have for that."""


class HearingBegun(Exception):
    """Owners that have tried the event alone have time to say that they live; nobody tries it meanwhile."""


def _charged(lease: Lease, row: OutboxRow, *, tried: int | None) -> int:
    """How many deaths to note for the event before it is tried; two more convict it, one if it has killed before."""
    if row.id == tried:
        return lease.deaths
    return CHARGED_AT - 1 if row.deaths else WARY_AT


def _is_charged(lease: Lease, row: OutboxRow, *, tried: int | None) -> bool:
    """Whether as many owners let their lease run out after they had noted this event; they may yet live."""
    return row.id == tried and lease.deaths == CHARGED_AT


def _is_convicted(lease: Lease, row: OutboxRow, *, tried: int | None) -> bool:
    """Whether enough owners died after they had noted this event, and nothing since, and none has come back."""
    return row.id == tried and lease.deaths >= CONVICTED_AT


def _blame(lease: Lease, row: OutboxRow) -> DeliveryFailed:
    """The failure of an event that is convicted."""
    deaths = 1 if row.deaths else lease.deaths - 1
    return DeliveryFailed(
        f"event {row.id} of type {row.type!r} (uid {row.uid}): {row.deaths + deaths} workers died while they applied "
        "it, the last of them with nothing else in hand: killed, out of memory, crashed, or ended because they hung. "
        "See their logs and the system's.",
        deaths=deaths,
    )


class Turn:
    """The right of one thread of the process to try events alone."""

    _taken: threading.Lock = threading.Lock()

    def __init__(self) -> None:
        self.mine = False

    def take(self) -> bool:
        """Take it without waiting; True where this one has it by now."""
        self.mine = self.mine or Turn._taken.acquire(blocking=False)
        return self.mine

    def end(self) -> None:
        """Let others have it."""
        if self.mine:
            self.mine = False
            Turn._taken.release()


class Trials:
    """What one owner of a lane does while it is wary: it tries one event at a time, and notes beforehand which.

    What earlier owners have noted is read when it begins. Its methods raise LeaseLost and DatabaseUnavailable.
    """

    def __init__(self, source: Database, *, batch_size: int) -> None:
        self._source = source
        self._batch_size = batch_size
        self._turn = Turn()
        self._suspects = Suspects()

    @property
    def under_way(self) -> bool:
        """Whether this owner is wary now."""
        return self._turn.mine

    @property
    def only_known(self) -> bool:
        """Whether no event is suspect but the parked ones of which workers have died before."""
        return self.under_way and self._suspects.up_to == KNOWN_ALONE

    def are_over(self, rows: Sequence[OutboxRow]) -> bool:
        """Whether none of the lane's next rows is suspect."""
        return not rows or rows[0].id > (self._suspects.up_to or 0)

    def begin(self, lease: Lease) -> bool:
        """Be wary from now on; False where this process is so in another lane just now."""
        if not self._turn.take():
            return False
        self._suspects = suspects(self._source, lease)
        if self._suspects.up_to is None:
            logger.warning(
                "lane %d of route %r in %r: workers have died with its events in hand; they are tried one at a time",
                *(lease.lane, lease.route, self._source.name),
            )
            self._suspects = Suspects(self._suspects.trying, self._last_suspect(lease))
        return True

    def _last_suspect(self, lease: Lease) -> int:
        """The last event that can have been in a batch of which owners have died; 0 where only parked ones can."""
        if lease.deaths < WARY_AT:
            return KNOWN_ALONE
        rows, _ = read_batch(self._source, lease.route, lease.lane, after=lease.emptied_to, limit=self._batch_size)
        return rows[-1].id if rows else 0

    def note(self, lease: Lease, row: OutboxRow) -> tuple[Lease, DeliveryFailed | None]:
        """Note that this event is tried alone; with the lease so prolonged comes a failure where it is convicted.

        Raises HearingBegun.
        """
        trying, up_to = self._suspects
        if _is_charged(lease, row, tried=trying):
            self._write(lease, row.id, up_to, deaths=CONVICTED_AT)
            raise HearingBegun
        if _is_convicted(lease, row, tried=trying):
            return self._write(lease, None, up_to, deaths=WARY_AT), _blame(lease, row)
        return self._write(lease, row.id, up_to, deaths=_charged(lease, row, tried=trying)), None

    def _write(self, lease: Lease, trying: int | None, up_to: int | None, *, deaths: int) -> Lease:
        noted = Suspects(trying, up_to)
        lease = suspect(self._source, lease, noted, deaths=deaths)
        self._suspects = noted
        return lease

    def end(self, lease: Lease) -> Lease:
        """Be wary no longer: all that may have killed others was tried."""
        lease = reassure(self._source, lease)
        self.leave()
        return lease

    def leave(self) -> None:
        """Let another lane of this process have its trials; what was noted stays."""
        self._turn.end()


def _forget_after_fork() -> None:
    Turn._taken = threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
