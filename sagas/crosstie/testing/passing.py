"""Time that passes when a test says so.

What a database has stored is set back instead of its clock being put forward: every time in crosstie's own tables, such
as expiries, retries and leases, moves into the past. To crosstie that is the same, and no server need be told.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox.tables import METADATA
from crosstie.sagas import deadline

__all__ = ["TIMES", "VirtualTime", "pass_in_databases", "virtual_time"]

TIMES: Final = ("_at_ms", "_until_ms", "deadline_ms")
"""How the columns of crosstie's tables end that hold a time; `delay_ms` holds a duration."""


@dataclass
class VirtualTime:
    """How far time has been moved inside `virtual_time`."""

    passed_s: float = 0.0

    def advance(self, seconds: float) -> None:
        """Let time pass: for this process's sagas with a `timeout_s`, and for all databases. Raises ValueError."""
        if seconds <= 0:
            raise ValueError(f"expected a positive number of seconds and found {seconds!r}: time does not go back")
        self.passed_s += seconds
        pass_in_databases(seconds)


@contextmanager
def virtual_time() -> Iterator[VirtualTime]:
    """Have `advance` move time until the end of the block.

    The clocks themselves go on: columns of your own, `NOW()` and `current_time()` of models tell the real time.
    """
    moved = VirtualTime()
    before = deadline.monotonic
    deadline.monotonic = lambda: time.monotonic() + moved.passed_s
    try:
        yield moved
    finally:
        deadline.monotonic = before


def pass_in_databases(seconds: float, *, besides: Collection[sa.Table] = ()) -> None:
    """Set every time in crosstie's tables back, `besides` those in some, in each database that can be written."""
    milliseconds = int(seconds * 1000)
    for name in ConnectionManager.names(writable=True):
        with detached_transaction(name) as tx:
            for table in METADATA.sorted_tables:
                times = [column for column in table.columns if column.name.endswith(TIMES)]
                if times and table not in besides:
                    tx.mark_written()
                    tx.connection.execute(sa.update(table).values({one: one - milliseconds for one in times}))
