"""A depot in two databases; run as a script it is a business process that may be killed, and knows no subscriber.

`depot.py saga COUNT` sends parcels in sagas; `depot.py publish FIRST COUNT` publishes each in a plain transaction and
says so; `depot.py ring` rings for both directions. With `--ringing` before the command it has doorbells.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from crosstie.orm import ActiveRecord, ConnectionManager, transaction
from crosstie.orm.field import IntegerPKMixin
from crosstie.outbox import Event
from crosstie.sagas import saga


class Parcel(IntegerPKMixin, ActiveRecord):
    """Lives in `default`."""

    __table_name__ = "parcels"
    __connection__ = "default"

    id: int | None = None
    number: int


class Shelf(IntegerPKMixin, ActiveRecord):
    """Lives in `secondary`."""

    __table_name__ = "shelves"
    __connection__ = "secondary"

    id: int | None = None
    number: int


class Arrival(IntegerPKMixin, ActiveRecord):
    """Lives in `secondary`: one row for each time that an event took effect."""

    __table_name__ = "arrivals"
    __connection__ = "secondary"

    id: int | None = None
    number: int


class Receipt(IntegerPKMixin, ActiveRecord):
    """Lives in `default`: one row for each time that the answer to an event took effect."""

    __table_name__ = "receipts"
    __connection__ = "default"

    id: int | None = None
    number: int


class ParcelSent(Event):
    """From `default` to `secondary`."""

    __event_type__ = "depot.parcel-sent"
    __key__ = "number"

    number: int


class ParcelArrived(Event):
    """From `secondary` back to `default`."""

    __event_type__ = "depot.parcel-arrived"
    __key__ = "number"

    number: int


def arrive(event: ParcelSent) -> None:
    """Note the arrival, and answer."""
    Arrival(number=event.number).save()
    ParcelArrived(number=event.number).publish("secondary")


def receive(event: ParcelArrived) -> None:
    """Note the answer."""
    Receipt(number=event.number).save()


def create_depot() -> None:
    """Create the tables of both databases."""
    for model in (Parcel, Shelf, Arrival, Receipt):
        model.create_table()


def send_in_saga(number: int) -> None:
    """A parcel in one database, its place in the other, and an event."""
    with saga("send", expiry_s=0.001):
        Parcel(number=number).save()
        Shelf(number=number).save()
        ParcelSent(number=number).publish()


def publish(number: int) -> None:
    """An event in a transaction of its own."""
    with transaction("default"):
        ParcelSent(number=number).publish()


def _main(arguments: list[str]) -> None:
    ConnectionManager.configure()
    if arguments[0] == "--ringing":
        from crosstie.workers import doorbell  # it listens for commits from now on

        _work(arguments[1:])
        doorbell._bell.flush(60)  # longer than a process waits that ends: the test waits for what is rung
    else:
        _work(arguments)


def _work(arguments: list[str]) -> None:
    command, *rest = arguments
    if command == "saga":
        for number in range(int(rest[0])):
            send_in_saga(number)
    elif command == "ring":
        from crosstie.workers import doorbell

        doorbell.ring_for_drain("default", "secondary")
        doorbell.ring_for_drain("secondary", "default")
    else:
        first, count = map(int, rest)
        for number in range(first, first + count):
            publish(number)
            sys.stdout.write(f"published {number}\n")


if __name__ == "__main__":
    _main(sys.argv[1:])
