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

import os
import threading
from typing import Final

from crosstie.outbox.batch import OutboxRow
from crosstie.outbox.errors import DeliveryFailed
from crosstie.outbox.lane import WARY_AT, Lease

__all__ = ["CONVICTED_AT", "HEARING_S", "KNOWN_ALONE", "Turn", "blame", "charged", "is_charged", "is_convicted"]

CHARGED_AT: Final = WARY_AT + 2
CONVICTED_AT: Final = CHARGED_AT + 1
"""The last step is no death, but the time in which no owner has said that it lives."""
KNOWN_ALONE: Final = -1
"""In place of the last suspect: only parked events of which workers have died before are tried alone."""
HEARING_S: Final = 10.0
"""At least so long, and as long as a lease, owners have for that."""


def charged(lease: Lease, row: OutboxRow, *, tried: int | None) -> int:
    """How many deaths to note for the event before it is tried; two more convict it, one if it has killed before."""
    if row.id == tried:
        return lease.deaths
    return CHARGED_AT - 1 if row.deaths else WARY_AT


def is_charged(lease: Lease, row: OutboxRow, *, tried: int | None) -> bool:
    """Whether as many owners let their lease run out after they had noted this event; they may yet live."""
    return row.id == tried and lease.deaths == CHARGED_AT


def is_convicted(lease: Lease, row: OutboxRow, *, tried: int | None) -> bool:
    """Whether enough owners died after they had noted this event, and nothing since, and none has come back."""
    return row.id == tried and lease.deaths >= CONVICTED_AT


def blame(lease: Lease, row: OutboxRow) -> DeliveryFailed:
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


def _forget_after_fork() -> None:
    Turn._taken = threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
