"""What the bank's workers import."""

from __future__ import annotations

from crosstie.outbox import subscriber
from storm.bank import HEARS, Heard, Transferred

__all__ = ["hear"]


@subscriber(Transferred, database=HEARS)
def hear(event: Transferred) -> None:
    """Write down what it tells of."""
    Heard(transfer=event.transfer, saga=event.saga).save()
