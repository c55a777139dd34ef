"""A transaction of the ORM, with and without events; and one by the driver alone."""

from __future__ import annotations

import time
from contextlib import closing
from functools import cache
from typing import Any, Self

from carriers.workload import Booked
from crosstie.orm import ActiveRecord, ConnectionManager, transaction
from crosstie.orm.field import IntegerPKMixin
from crosstie.outbox.envelope import Envelope
from crosstie.outbox.insertion import _COLUMNS, _row, _statement


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
    """The table is made when first asked for; the event has its one route, from either database, in `workload`."""
    model = AtSource if name == "source" else AtTarget
    model.create_table()
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


class RawWriter:
    """The statements that the ORM and the outbox send, on one connection of the driver."""

    def __init__(self, name: str) -> None:
        _model(name)
        database = ConnectionManager.get(name)
        self._pooled = database.engine.raw_connection()
        self._driver: Any = self._pooled.driver_connection
        compiled = _statement(database.kind, False, True).statement.compile(dialect=database.dialect)  # type: ignore[attr-defined]
        self._event = str(compiled)
        self._row = "INSERT INTO bench_written (account, amount, note) VALUES (%s, %s, %s)"
        self._row += " RETURNING id" * (database.kind == "postgresql")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pooled.close()

    def write(self, *, events: int) -> None:
        """A row, with an event or with none; its number is guessed, which costs nothing."""
        with closing(self._driver.cursor()) as cursor:
            cursor.execute(self._row, (1, 1, "a booking"))
            for _ in range(events):
                envelope = Envelope.of(Booked(id=1, account=1, amount=1, at_s=time.time()))
                cursor.execute(self._event, dict(zip(_COLUMNS, _row(envelope), strict=True)) | {"saga_id": None})
        self._driver.commit()
