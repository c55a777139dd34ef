"""Keys of several columns, under SQL's MATCH SIMPLE: a row with NULL in any of them refers to nothing.

Each column is stored and compared as it would be alone; a key is the tuple of their keys, and a raw value that of
their raw values. Pages follow the lexicographic order that an index on the columns has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.integrity.batch import batches, values_per_statement
from crosstie.orm.integrity.catalog import Equality
from crosstie.orm.integrity.child import ROWS_PER_KEY, ChildColumn, KeyRows, RowKey
from crosstie.orm.integrity.endpoint import Endpoint
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.snapshot import snapshot
from crosstie.orm.integrity.storage import KeyKind, KeyStorage, Raw

__all__ = ["CompositeChild", "CompositeParent", "CompositeStorage"]

_ROWS_AT_ONCE: Final = 5_000
"""Rows that are fetched without having been counted."""


class CompositeStorage:
    """How each of the columns stores its part of a key."""

    kind = KeyKind.COMPOSITE
    is_native = False

    def __init__(self, columns: Sequence[sa.Column[Any]], parts: Sequence[KeyStorage]) -> None:
        self.columns = tuple(columns)
        self.parts = tuple(parts)
        self.equality = max((part.equality for part in parts), key=lambda one: one.value)
        self.spells_keys = all(part.spells_keys for part in parts)

    def typed(self, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
        """The leading column alone; `typed_parts` has all of them."""
        return self.parts[0].typed(column)

    def distinct(self, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
        """The leading column alone; `distinct_parts` has all of them."""
        return self.parts[0].distinct(column)

    def typed_parts(self) -> list[sa.ColumnElement[Any]]:
        """Each column as keyset pages order and compare it."""
        return [part.typed(column) for part, column in zip(self.parts, self.columns, strict=True)]

    def distinct_parts(self) -> list[sa.ColumnElement[Any]]:
        """Each column such that two different keys never count as one."""
        return [part.distinct(column) for part, column in zip(self.parts, self.columns, strict=True)]

    def key(self, raw: Raw) -> Key:
        """The key of one raw value for each column. Raises UnexpectedKey."""
        keys = [part.key(value) for part, value in zip(self.parts, raw, strict=True)]
        return tuple(key for key in keys if not isinstance(key, tuple))

    def spellings(self, key: Key) -> tuple[Raw, ...]:
        """Every combination of the parts' spellings."""
        return tuple(product(*self._spelt(key)))

    def only(self, column: sa.Column[Any], key: Key) -> sa.ColumnElement[bool]:
        """Each part by its own rule, whatever `column` is."""
        del column
        return sa.and_(
            *(part.only(one, value) for part, one, value in zip(self.parts, self.columns, _parts(key), strict=True))
        )

    def equals(self, key: Key) -> sa.ColumnElement[bool]:
        """Each part by its column's own `=`."""
        spelt = zip(self.typed_parts(), self._spelt(key), strict=True)
        return sa.and_(*(sa.or_(sa.false(), *(typed == raw for raw in raws)) for typed, raws in spelt))

    def _spelt(self, key: Key) -> list[tuple[Raw, ...]]:
        return [part.spellings(value) for part, value in zip(self.parts, _parts(key), strict=True)]


class CompositeChild(ChildColumn):
    """A foreign key's columns in the child's database; a bound of a range is a tuple, and so is a raw value."""

    def __init__(self, end: Endpoint, storage: CompositeStorage, pinned: sa.Connection | None = None) -> None:
        super().__init__(end, storage, pinned)
        self._keys = storage
        self._parts = storage.typed_parts()
        self._exact = storage.distinct_parts()

    @contextmanager
    def snapshot(self) -> Iterator[ChildColumn]:
        """As that of one column."""
        with snapshot(self.database) as connection:
            yield CompositeChild(self.end, self._keys, connection)

    def last(self) -> Raw | None:
        """The greatest key by the columns' order; None where no row has all of its parts."""
        newest = sa.select(*self._parts).where(*self._whole()).order_by(*(part.desc() for part in self._parts)).limit(1)
        return next(iter(self._tuples(newest)), None)

    def first(self, after: Raw | None, upto: Raw) -> Raw | None:
        """The smallest key in (after, upto]; None where there is none."""
        oldest = sa.select(*self._parts).where(*self._between(after, upto)).order_by(*self._parts).limit(1)
        return next(iter(self._tuples(oldest)), None)

    def page(self, after: Raw | None, last: Raw, limit: int) -> list[Raw]:
        """The next distinct keys after `after`, at most `limit`, in the columns' order."""
        return self._tuples(self._pages(after, last).limit(limit))

    def boundary(self, after: Raw | None, last: Raw, limit: int) -> Raw | None:
        """Where a page of `limit` keys would end; None where fewer are left."""
        return next(iter(self._tuples(self._pages(after, last).offset(limit - 1).limit(1))), None)

    def keys(self, after: Raw | None, upto: Raw) -> list[Key]:
        """Every different key in (after, upto]: also those that a collation takes for one."""
        found = self._tuples(sa.select(*self._exact).where(*self._between(after, upto)).distinct())
        return [self.storage.key(raw) for raw in found]

    def rows(self, keys: Sequence[Key]) -> dict[Key, KeyRows]:
        """The rows that have these foreign keys now; a key without rows is absent."""
        found: dict[Key, list[RowKey]] = {}
        for some in _lists(self._keys, keys, values_per_statement(self.database)):
            query = self._with_rows(_among(self._keys, some)).limit(_ROWS_AT_ONCE)
            rows = self._rows(query)
            if len(rows) >= _ROWS_AT_ONCE:
                return {key: one for key in keys if (one := self._of(key)).total}
            for key, row_key in self._split(rows):
                if key in some:
                    found.setdefault(key, []).append(row_key)
        return {key: KeyRows(len(rows), tuple(sorted(rows))) for key, rows in found.items()}

    def _of(self, key: Key) -> KeyRows:
        only = self._keys.only(self.end.column, key)
        counted = sa.select(sa.func.count()).select_from(self.end.table).where(only, *self.end.conditions)
        (total,) = self._values(counted)
        rows = self._rows(self._with_rows(only).order_by(*self.end.primary_key).limit(ROWS_PER_KEY))
        listed = tuple(row_key for _, row_key in self._split(rows))
        return KeyRows(max(int(total), len(listed)), listed)

    def _with_rows(self, condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
        named = [part.label(f"f{number}") for number, part in enumerate(self._exact)]
        row_key = [column.label(f"k{number}") for number, column in enumerate(self.end.primary_key)]
        return sa.select(*named, *row_key).where(condition, *self.end.conditions)

    def _split(self, rows: Sequence[Sequence[Any]]) -> Iterator[tuple[Key, RowKey]]:
        width = len(self._parts)
        return ((self.storage.key(tuple(row[:width])), tuple(row[width:])) for row in rows)

    def _count_of(self, *conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
        named = [part.label(f"f{number}") for number, part in enumerate(self._exact)]
        return sa.select(sa.func.count()).select_from(sa.select(*named).where(*conditions).distinct().subquery())

    def _pages(self, after: Raw | None, last: Raw) -> sa.Select[Any]:
        named = [part.label(f"f{number}") for number, part in enumerate(self._parts)]
        return sa.select(*named).where(*self._between(after, last)).distinct().order_by(*named)

    def _between(self, after: Raw | None, upto: Raw) -> list[sa.ColumnElement[bool]]:
        lower = [] if after is None else [_beyond(self._parts, after)]
        return [*self._whole(), *lower, self._parts[0] <= upto[0], sa.not_(_beyond(self._parts, upto))]

    def _whole(self) -> list[sa.ColumnElement[bool]]:
        return [*(column.is_not(None) for column in self.end.columns), *self.end.conditions]

    def _tuples(self, query: sa.Select[Any]) -> list[Raw]:
        return [tuple(row) for row in self._rows(query)]


class CompositeParent(ParentColumn):
    """The referenced columns in the parent's database."""

    def __init__(self, end: Endpoint, storage: CompositeStorage) -> None:
        super().__init__(end, storage)
        self._keys = storage

    def absent(self, keys: Sequence[Key]) -> list[Key]:
        """Those of the keys that no parent has at this moment, by each column's own `=`."""
        present: set[Key] = set()
        exact = self._keys.distinct_parts()
        for some in _lists(self._keys, keys, values_per_statement(self.database)):
            query = sa.select(*exact).select_from(self.end.table).where(_among(self._keys, some))
            present.update(self.storage.key(tuple(row)) for row in self.database.rows(query))
        missing = [key for key in keys if key not in present]
        if not missing or self.storage.equality is Equality.IDENTICAL:
            return missing
        equalled = self._equalled(missing)
        self.alike.add(equalled)
        return [key for key in missing if key not in equalled]

    def _equals(self, key: Key) -> sa.ColumnElement[bool]:
        return self._keys.equals(key)


def _parts(key: Key) -> tuple[Any, ...]:
    assert isinstance(key, tuple)
    return key


def _lists(storage: CompositeStorage, keys: Sequence[Key], values: int) -> Iterator[set[Key]]:
    """Keys that one statement asks about."""
    spellings = max((len(storage.spellings(key)) for key in keys), default=1)
    each = max(spellings, 1) * len(storage.parts)
    return (set(some) for some in batches(keys, values // each))


def _among(storage: CompositeStorage, keys: set[Key]) -> sa.ColumnElement[bool]:
    typed = storage.typed_parts()
    values = [raw for key in keys for raw in storage.spellings(key)]
    return sa.tuple_(*typed, types=[part.type for part in typed]).in_(values) if values else sa.false()


def _beyond(parts: Sequence[sa.ColumnElement[Any]], bound: Raw) -> sa.ColumnElement[bool]:
    """Whether the parts come behind a bound, written out: few servers use an index for a comparison of tuples."""
    equal = [part == value for part, value in zip(parts, bound, strict=True)]
    steps = [sa.and_(*equal[:number], parts[number] > bound[number]) for number in range(len(parts))]
    return sa.and_(parts[0] >= bound[0], sa.or_(*steps))
