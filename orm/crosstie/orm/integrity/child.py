"""The child's end: its foreign keys in pages, its rows by key, and the counts that prove a scan complete.

Outside a snapshot every statement runs on a connection that commits by itself, and sees what is durable by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from crosstie.orm.condition import member
from crosstie.orm.integrity.batch import batches, values_per_statement
from crosstie.orm.integrity.bulk import BulkQuery
from crosstie.orm.integrity.endpoint import Endpoint
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.packing import packs
from crosstie.orm.integrity.scope import within
from crosstie.orm.integrity.snapshot import snapshot
from crosstie.orm.integrity.storage import KeyStorage, Raw
from crosstie.orm.integrity.tiling import Tile, require_count

__all__ = ["ROWS_PER_KEY", "ChildColumn", "KeyRows", "RowKey"]

RowKey = tuple[Any, ...]
"""A child row's primary key, in the table's order."""

ROWS_PER_KEY: Final = 1_000
"""Of a key that more rows share, so many are looked at one by one; the others are counted."""
_ATTEMPTS: Final = 5
"""Reads of what a count finds, while others write."""
_T = TypeVar("_T")
_ROWS_PER_STATEMENT: Final = 20_000
_ROWS_AT_ONCE: Final = 5_000
"""Rows that are fetched without having been counted."""


@dataclass(frozen=True)
class KeyRows:
    """The rows that share a foreign key: how many, and the first of them by primary key."""

    total: int
    row_keys: tuple[RowKey, ...]


class ChildColumn:
    """A foreign key's column in the child's database. Every method raises DatabaseUnavailable."""

    def __init__(self, end: Endpoint, storage: KeyStorage, pinned: sa.Connection | None = None) -> None:
        self.end = end
        self.storage = storage
        self.database = end.database
        self._pinned = pinned
        self.typed = self._typed = storage.typed(end.column)
        self._distinct = storage.distinct(end.column)

    @property
    def packs(self) -> bool:
        """Whether the server can send many of its keys as one value."""
        return packs(self.database.kind) and self.storage.is_native

    @contextmanager
    def snapshot(self) -> Iterator[ChildColumn]:
        """The same column, all of whose reads see one state of the table; keep it short."""
        with snapshot(self.database) as connection:
            yield ChildColumn(self.end, self.storage, connection)

    # -- counts ---------------------------------------------------------------------------------------------

    def last(self) -> Raw | None:
        """The greatest key of this moment by the column's order; None where no row has one."""
        newest = sa.select(self._typed).where(self.end.column.is_not(None), *self.end.conditions)
        return next(iter(self._values(newest.order_by(self._typed.desc()).limit(1))), None)

    def first(self, after: Raw | None, upto: Raw) -> Raw | None:
        """The smallest key in (after, upto]; None where there is none."""
        oldest = sa.select(self._typed).where(*self._between(after, upto)).order_by(self._typed).limit(1)
        return next(iter(self._values(oldest)), None)

    def count_rows(self, after: Raw | None, upto: Raw) -> int:
        """Count the rows whose key is in (after, upto]."""
        rows = sa.select(sa.func.count()).select_from(self.end.table).where(*self._between(after, upto))
        return int(self._values(rows)[0])

    def next_or_end(self, read: Callable[[], _T | None], after: Raw | None, last: Raw) -> _T | None:
        """What `read` finds in (after, last]; None where a count finds nothing there either.

        Between the two somebody may write, so that what was counted is read again. Raises ScanIncomplete where it is
        counted and not read time and again.
        """
        counted = 0
        for _ in range(_ATTEMPTS):
            found = read()
            if found is not None:
                return found
            counted = self.count_keys(after, last)
            if counted == 0:
                break
        require_count(Tile(after, last, 0), counted)
        return None

    def count_keys(self, after: Raw | None, upto: Raw) -> int:
        """Count the distinct keys in (after, upto]."""
        return int(self._values(self._count_of(*self._between(after, upto)))[0])

    def _count_of(self, *conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
        keys = sa.select(self._distinct.label("key")).where(*conditions).distinct().subquery()
        return sa.select(sa.func.count()).select_from(keys)

    # -- pages ----------------------------------------------------------------------------------------------

    def page(self, after: Raw | None, last: Raw, limit: int) -> list[Raw]:
        """The next distinct keys after `after`, at most `limit`, in the column's order."""
        return self._values(self._pages(after, last).limit(limit))

    def groups(self, after: Raw | None, upto: Raw) -> sa.Select[Any]:
        """The query for the distinct keys in (after, upto], in the column's order, and how many rows have each."""
        return self._grouped(*self._between(after, upto))

    def groups_within(self) -> sa.Select[Any]:
        """The same for the keys between the query's parameters `lo` and `hi`, these included."""
        return self._grouped(within(self._typed), *self.end.conditions)

    def _grouped(self, *conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
        grouped = sa.select(self._typed.label("key"), sa.func.count().label("rows")).where(*conditions)
        return grouped.group_by(self._typed).order_by(self._typed)

    def boundary(self, after: Raw | None, last: Raw, limit: int) -> Raw | None:
        """Where a page of `limit` keys would end; None where fewer are left."""
        return next(iter(self._values(self._pages(after, last).offset(limit - 1).limit(1))), None)

    def keys(self, after: Raw | None, upto: Raw) -> list[Key]:
        """Every different key in (after, upto]: also those that the column's collation takes for one."""
        found = self._values(sa.select(self._distinct).where(*self._between(after, upto)).distinct())
        return [self.storage.key(raw) for raw in found]

    def _pages(self, after: Raw | None, last: Raw) -> sa.Select[Any]:
        return sa.select(self._typed).where(*self._between(after, last)).distinct().order_by(self._typed)

    def _between(self, after: Raw | None, upto: Raw) -> list[sa.ColumnElement[bool]]:
        return [*([] if after is None else [self._typed > after]), self._typed <= upto, *self.end.conditions]

    # -- rows -----------------------------------------------------------------------------------------------

    def rows(self, keys: Sequence[Key]) -> dict[Key, KeyRows]:
        """The rows that have these foreign keys now; a key without rows is absent."""
        found = self._few_rows(keys)
        return self._many_rows(keys) if found is None else found

    def counts(self, keys: Sequence[Key]) -> dict[Key, int]:
        """How many rows have each of these foreign keys now; a key without rows is absent."""
        return self._row_counts(keys)

    def _few_rows(self, keys: Sequence[Key]) -> dict[Key, KeyRows] | None:
        """By one statement for each list of keys; None where there are more rows than are looked at one by one."""
        found: dict[Key, list[RowKey]] = {}
        for wanted, values in self._lists(keys):
            # Sorted here: a limit would tempt a server to walk the primary key instead of looking the keys up.
            query = self._by_key().where(self._among(values)).order_by(None).limit(_ROWS_AT_ONCE)
            rows = self._rows(query)
            if len(rows) >= _ROWS_AT_ONCE:
                return None
            for row in rows:
                key = self.storage.key(row[0])
                if key in wanted:
                    found.setdefault(key, []).append(tuple(row[1:]))
        if any(len(rows) > ROWS_PER_KEY for rows in found.values()):
            return None
        return {key: KeyRows(len(rows), tuple(sorted(rows))) for key, rows in found.items()}

    def _many_rows(self, keys: Sequence[Key]) -> dict[Key, KeyRows]:
        totals = self._row_counts(keys)
        found: dict[Key, list[RowKey]] = {key: [] for key in totals}
        for group in _groups(totals):
            for key, row_key in self._row_keys(group, totals):
                found[key].append(row_key)
        return {key: KeyRows(max(totals[key], len(rows)), tuple(rows)) for key, rows in found.items() if rows}

    def _row_counts(self, keys: Sequence[Key]) -> dict[Key, int]:
        totals: dict[Key, int] = {}
        key = self._distinct.label("key")
        for wanted, values in self._lists(keys):
            query = sa.select(key, sa.func.count()).where(self._among(values), *self.end.conditions).group_by(key)
            for raw, rows in self._rows(query):
                found = self.storage.key(raw)
                if found in wanted:
                    totals[found] = totals.get(found, 0) + rows
        return totals

    def _row_keys(self, keys: Sequence[Key], totals: Mapping[Key, int]) -> Iterator[tuple[Key, RowKey]]:
        query = self._by_key()
        if len(keys) == 1 and totals[keys[0]] > ROWS_PER_KEY:
            only = query.where(self.storage.only(self.end.column, keys[0])).limit(ROWS_PER_KEY)
            statements = [({keys[0]}, only)]
        else:
            statements = [(wanted, query.where(self._among(values))) for wanted, values in self._lists(keys)]
        for wanted, statement in statements:
            for row in self._rows(statement):
                if (key := self.storage.key(row[0])) in wanted:
                    yield key, tuple(row[1:])

    def _by_key(self) -> sa.Select[Any]:
        columns = [column.label(f"k{number}") for number, column in enumerate(self.end.primary_key)]
        return sa.select(self._distinct, *columns).where(*self.end.conditions).order_by(*self.end.primary_key)

    def _lists(self, keys: Sequence[Key]) -> Iterator[tuple[set[Key], list[Raw]]]:
        """Keys that one statement asks about, and their spellings.

        Two lists may find the same row, by a collation that calls their keys equal: it counts for its own key only.
        """
        spellings = max((len(self.storage.spellings(key)) for key in keys), default=1)
        for some in batches(keys, values_per_statement(self.database) // max(spellings, 1)):
            yield set(some), [raw for key in some for raw in self.storage.spellings(key)]

    def _among(self, values: Sequence[Raw]) -> sa.ColumnElement[bool]:
        """The keys that one statement asks about; as one parameter where the driver takes long for many."""
        arrays = self.database.capabilities.array_parameters
        return member(self._typed, values, self.database) if arrays else self._typed.in_(values)

    # -- reading --------------------------------------------------------------------------------------------

    def fetch(self, query: sa.Select[Any]) -> Sequence[Sequence[Any]]:
        """All rows of a query on the table."""
        return self._rows(query)

    def bulk(self, query: BulkQuery, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """The one row of a query whose answer is many keys in one value."""
        return query.row(values, self._pinned)

    def _values(self, query: sa.Select[Any]) -> list[Any]:
        return [row[0] for row in self._rows(query)]

    def _rows(self, query: sa.Select[Any]) -> Sequence[Sequence[Any]]:
        with self.database.mapped_errors():
            if self._pinned is not None:
                return self._pinned.execute(query).all()
            with self.database.autocommit.connect() as connection:
                return connection.execute(query).all()


def _groups(totals: Mapping[Key, int]) -> Iterator[list[Key]]:
    """Keys whose rows are fetched together; a key with very many rows goes alone, for its first ones only."""
    group: list[Key] = []
    rows = 0
    for key, total in totals.items():
        if total > ROWS_PER_KEY:
            yield [key]
            continue
        if group and rows + total > _ROWS_PER_STATEMENT:
            yield group
            group, rows = [], 0
        group.append(key)
        rows += total
    if group:
        yield group
