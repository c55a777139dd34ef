"""Copies compared with their originals, and put right by events where they differ.

The two databases are read one after the other while others write, so a difference is believed only if it is still there
after a while, in which events that were under way arrive. What differs is never written here: an event has the row
aligned as any other.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.copies import CopyGroup
from crosstie.orm.departure import Departure
from crosstie.orm.page import After
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox.alignment import ChildRow, child_fields, child_rows, committed_originals, wanted
from crosstie.outbox.copies import tell_of_copies

__all__ = ["SETTLE_S", "ComparedCopies", "CopyDifference", "compare_copies"]

CHUNK_SIZE: Final = 1_000
SETTLE_S: Final = 2.0
SAMPLE: Final = 20


@dataclass(frozen=True)
class CopyDifference:
    """A row whose copies differ from their originals: its key, and the fields."""

    key: dict[str, Any]
    fields: tuple[str, ...]


@dataclass(frozen=True)
class ComparedCopies:
    """What was found in one group of copies.

    `differing`: rows whose copies are wrong; `differences`: some of them. `orphans`: rows that have copies though their
    foreign key leads nowhere; they keep what they had when the parent was deleted. `repairing`: events were written for
    the rows that differ.
    """

    name: str
    rows: int
    differing: int
    orphans: int
    differences: tuple[CopyDifference, ...]
    repairing: bool

    @property
    def is_right(self) -> bool:
        """Whether every copy equals its original."""
        return not self.differing


def compare_copies(
    group: CopyGroup,
    *,
    repair: bool = False,
    chunk_size: int = CHUNK_SIZE,
    settle_s: float = SETTLE_S,
    pause: Callable[[float], object] = time.sleep,
) -> ComparedCopies:
    """Compare every copy of the group with its original, in chunks of rows, both on their primaries.

    A row counts as differing if it still does `settle_s` seconds after it was first seen to. With `repair`, events have
    these rows aligned. Raises CopyUnrouted, DatabaseUnavailable.
    """
    return _Comparison(group, repair, settle_s, pause).run(chunk_size)


class _Comparison:
    def __init__(self, group: CopyGroup, repair: bool, settle_s: float, pause: Callable[[float], object]) -> None:
        self._group = group
        self._repair = repair
        self._settle_s = settle_s
        self._pause = pause
        self._suspects: deque[tuple[float, list[tuple[Any, ...]]]] = deque()
        self._differing = 0
        self._differences: list[CopyDifference] = []

    def run(self, chunk_size: int) -> ComparedCopies:
        """Look at every row once, and at those that differ once more."""
        rows = orphans = 0
        for chunk in self._chunks(chunk_size):
            differing, lost = self._judge(chunk)
            rows, orphans = rows + len(chunk), orphans + lost
            if differing:
                self._suspects.append((time.monotonic() + self._settle_s, [row.key for row, _ in differing]))
            while self._suspects and self._suspects[0][0] <= time.monotonic():
                self._look_again()
        while self._suspects:
            left_s = self._suspects[0][0] - time.monotonic()
            if left_s > 0:
                self._pause(left_s)
            self._look_again()
        repairing = self._repair and self._differing > 0
        return ComparedCopies(self._group.name, rows, self._differing, orphans, tuple(self._differences), repairing)

    def _chunks(self, size: int) -> Iterator[list[ChildRow]]:
        key = self._group.child.key
        ordered = self._query().order_by(*(field.column for field in key)).limit(size)
        query = ordered
        database = ConnectionManager.get(self._group.child.connection)
        while True:
            with database.mapped_errors(), database.autocommit.connect() as connection:
                rows = child_rows(self._group, connection, query)
            if rows:
                yield rows
            if len(rows) < size:
                return
            query = ordered.where(After(key, rows[-1].key).clause(database))

    def _query(self) -> sa.Select[Any]:
        return sa.select(*(field.column for field in child_fields(self._group)))

    def _judge(self, rows: Sequence[ChildRow]) -> tuple[list[tuple[ChildRow, tuple[Any, ...]]], int]:
        """The rows that differ, each with what its copies should be, and how many lead nowhere and have copies."""
        originals = committed_originals(self._group, (row.foreign for row in rows))
        differing, orphans = [], 0
        for row in rows:
            values = wanted(self._group, row, originals)
            if values is None:
                orphans += any(value is not None for value in row.copies)
            elif values != row.copies:
                differing.append((row, values))
        return differing, orphans

    def _look_again(self) -> None:
        _, keys = self._suspects.popleft()
        database = ConnectionManager.get(self._group.child.connection)
        found: list[ChildRow] = []
        with database.mapped_errors(), database.autocommit.connect() as connection:
            for condition in Departure(self._group.child, (), keys).conditions():
                found += child_rows(self._group, connection, self._query().where(condition(database)))
        differing, _ = self._judge(found)
        self._differing += len(differing)
        for row, values in differing[: SAMPLE - len(self._differences)]:
            named = zip(self._group.copies, row.copies, values, strict=True)
            fields = tuple(copy.field.name for copy, has, should in named if has != should)
            key = {field.name: part for field, part in zip(self._group.child.key, row.key, strict=True)}
            self._differences.append(CopyDifference(key, fields))
        if self._repair and differing:
            with detached_transaction(self._group.child.connection) as tx:
                tell_of_copies(tx, self._group, [row.key for row, _ in differing])
