"""What crosstie carries: an event, and its subscriber in two forms, of which CROSSTIE_BENCH_FORM names one.

Worker processes import it; the source needs the event alone.
"""

from __future__ import annotations

import os
import time

from carriers.place import ACCOUNTS, UPSERT
from crosstie.orm.transaction import statement_connection, transaction
from crosstie.outbox import Event, subscriber

PER_TRANSACTION = 1000


class Booked(Event):
    """An amount is booked to an account."""

    __event_type__ = "bench.booked"
    __key__ = "account"

    id: int
    account: int
    amount: int
    at_s: float


def _row(event: Booked) -> dict[str, float]:
    waited_ms = (time.time() - event.at_s) * 1000
    return {"id": event.id, "account": event.account, "amount": event.amount, "waited_ms": waited_ms}


if os.environ.get("CROSSTIE_BENCH_FORM") == "each":

    @subscriber(Booked, database="target")
    def book(event: Booked) -> None:
        """One statement for each event."""
        with statement_connection("target", write=True) as connection:
            connection.execute(UPSERT, _row(event))

else:

    @subscriber(Booked, database="target", batch=True)
    def book_all(events: list[Booked]) -> None:
        """One statement for all events that the relay has read."""
        with statement_connection("target", write=True) as connection:
            connection.execute(UPSERT, [_row(event) for event in events])


def publish(first: int, count: int) -> None:
    """Commit events with these numbers, many in each transaction."""
    for start in range(first, first + count, PER_TRANSACTION):
        with transaction("source"):
            for number in range(start, min(start + PER_TRANSACTION, first + count)):
                Booked(id=number, account=number % ACCOUNTS, amount=1, at_s=time.time()).publish()
