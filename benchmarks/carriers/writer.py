"""A transaction of the ORM, with and without events."""

from __future__ import annotations

import time
from functools import cache

from carriers.workload import Booked
from crosstie.orm import ActiveRecord, transaction
from crosstie.orm.field import IntegerPKMixin
from crosstie.outbox import subscriber, sync_routes


class AtSource(IntegerPKMixin, ActiveRecord):
    __table_name__ = "bench_written"
    __connection__ = "source"

    id: int | None = None
    account: int
    amount: int
    note: str = ""


class AtTarget(IntegerPKMixin, ActiveRecord):
    __table_name__ = "bench_written"
    __connection__ = "target"

    id: int | None = None
    account: int
    amount: int
    note: str = ""


@cache
def _model(name: str) -> type[AtSource | AtTarget]:
    """The table is made and the event subscribed to when first asked for."""
    model = AtSource if name == "source" else AtTarget
    model.create_table()
    subscriber(Booked, database="source")(lambda event: None)
    assert not sync_routes(name).failed
    return model


def write(name: str, rows: int, *, events: int) -> None:
    """Insert so many rows, one by one, in one transaction, with an event for each of the last ones."""
    model = _model(name)
    with transaction(name):
        for number in range(rows):
            made = model(account=number, amount=1, note="a booking").save()
            if number >= rows - events:
                assert made.id is not None
                Booked(id=made.id, account=number, amount=1, at_s=time.time()).publish()
