"""The scan where the foreign key has no index: the child is read once, by primary key, into a compressed set."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyroaring
import sqlalchemy as sa

from crosstie.orm.integrity.bulk import BulkQuery
from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.endpoint import Endpoint
from crosstie.orm.integrity.errors import ScanIncomplete
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.integers import IntegerParents
from crosstie.orm.integrity.packing import Distances, IntegerPacking, distances, packs
from crosstie.orm.integrity.scan import Ends, Page
from crosstie.orm.integrity.storage import IntegerStorage, Raw
from crosstie.orm.integrity.tiling import Tile

__all__ = ["BitmapScan", "can_be_paged"]

_NARROW: Final = 2**32
_PAGE: Final = 100_000
"""Rows or keys in one value: 800 kB at most."""
_WORTHWHILE_SHARE: Final = 16
"""Once a page of parents settles fewer than one key in so many of its rows, the parent is asked about the others."""


def can_be_paged(end: Endpoint) -> bool:
    """Whether a table's rows can be read in the order of one column of integers."""
    return len(end.primary_key) == 1 and isinstance(end.primary_key[0].type, sa.Integer)


class BitmapScan:
    """Reads the whole child before it compares anything; a page on the way reaches nowhere and has no keys."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self.parents = IntegerParents(ends.parent, _PAGE, _WORTHWHILE_SHARE)
        self._rows: _Rows | None = None
        self._counted = 0
        self._keys: pyroaring.BitMap | pyroaring.BitMap64 = pyroaring.BitMap()

    def read(self, after: Raw | None) -> Page:
        """The next rows by primary key; with the last of them, all keys."""
        ends = self.ends
        if self._rows is None:
            first = ends.child.next_or_end(lambda: ends.child.first(after, ends.last), after, ends.last)
            if first is None:
                return Page(Tile(after, ends.last, 0, 0), ())
            ends.child.storage.key(first)
            self._rows = _Rows(ends.child, first, ends.last)
            self._keys = pyroaring.BitMap() if ends.last - first < _NARROW else pyroaring.BitMap64()
        keys = self._rows.next()
        self._keys.update(_plain(self._keys, np.sort(keys)))  # in order a set grows several times as fast
        self._counted += len(keys)
        if not self._rows.ended:
            return Page(Tile(after, after, 0, 0), ())
        return Page(Tile(after, ends.last, len(self._keys), self._counted), self._keys)

    def missing(self, page: Page) -> Sequence[Key]:
        """The set without the parents of its range, page by page."""
        assert self._rows is not None
        base, keys = self._rows.first, page.keys
        left = keys.copy()
        highest = keys.max()
        at, settled = keys.min(), 0
        while True:
            parents, reached = self.parents.page(base, base + at, base + highest)
            left.difference_update(_set(keys, parents))
            upto = highest if reached is None else reached - base
            before, settled = settled, keys.rank(upto)
            if settled == len(keys):
                break
            at = keys.next_set_bit(upto + 1)
            if settled - before < _PAGE // _WORTHWHILE_SHARE:
                return self._absent(left, base, at)
        return [base + distance for distance in left]

    def _absent(self, left: pyroaring.BitMap | pyroaring.BitMap64, base: int, asked_from: int) -> list[Key]:
        """What is left below a key, and from there on what the parent does not know when it is asked."""
        width = np.uint32 if isinstance(left, pyroaring.BitMap) else np.uint64
        keys: Distances = np.frombuffer(left.to_array(), dtype=width).astype(np.uint64)
        cut = int(np.searchsorted(keys, np.uint64(asked_from)))
        missing: list[Key] = [base + distance for distance in keys[:cut].tolist()]
        for start in range(cut, len(keys), _PAGE):
            some = keys[start : start + _PAGE]
            missing += [base + distance for distance in some[~self.parents.asked(base, some)].tolist()]
        return missing


class _Rows:
    """A child's rows in the order of their primary key, in pages, and those of their keys that lie in [first, last]."""

    def __init__(self, child: ChildColumn, first: int, last: int) -> None:
        self.child = child
        self.first = first
        (self._primary,) = child.end.primary_key
        self._upto = _last_row(child)
        self._after: int | None = None
        self._packing = IntegerPacking(child.database.kind, reach=last - first)
        self.ended = False
        counts = sa.and_(child.typed.between(first, last), *child.end.conditions)
        key = sa.case((counts, child.typed), else_=None)
        self._page = (
            sa.select(self._primary.label("row_key"), key.label("key"))
            .where(self._primary <= self._upto)
            .order_by(self._primary)
            .limit(_PAGE)
        )

    def next(self) -> Distances:
        """The keys of the next rows, as distances from the first; `ended` tells whether more may come."""
        reached, keys = self._read(self._after)
        if reached is None:
            self._require_none()
        self.ended = reached is None or reached >= self._upto
        self._after = reached
        return keys

    def _read(self, after: int | None) -> tuple[int | None, Distances]:
        if not packs(self.child.database.kind):
            page = self._page if after is None else self._page.where(self._primary > after)
            found = self.child.database.rows(page)
            keys = [row[1] for row in found if row[1] is not None]
            IntegerStorage().keys(keys)
            return found[-1][0] if found else None, distances(keys, self.first)
        reached, count, data = self._first_query.row() if after is None else self._query.row({"after": after})
        return reached, self._packing.unpack(data, count, self.first, self.child.end)

    @cached_property
    def _first_query(self) -> BulkQuery:
        return self._packed(self._page)

    @cached_property
    def _query(self) -> BulkQuery:
        return self._packed(self._page.where(self._primary > sa.bindparam("after", type_=self._primary.type)))

    def _packed(self, page: sa.Select[Any]) -> BulkQuery:
        inner = page.subquery()
        sent = sa.type_coerce(inner.c.key, sa.BigInteger())
        packed = self._packing.packed(sent, self.first)
        query = sa.select(sa.func.max(inner.c.row_key), sa.func.count(sent), packed).select_from(inner)
        return BulkQuery(self.child.database, query)

    def _require_none(self) -> None:
        """Where a page has found no more rows, there must be none. Raises ScanIncomplete."""
        above = [] if self._after is None else [self._primary > self._after]
        left = sa.select(sa.func.count()).select_from(self.child.end.table).where(*above, self._primary <= self._upto)
        (rows,) = self.child.database.rows(left)[0]
        if rows:
            raise ScanIncomplete(
                f"{self.child.end}: {rows} rows with {self._primary.name} above {self._after} were not read"
            )


def _last_row(child: ChildColumn) -> int:
    """The greatest primary key: rows that come later are left to the next audit."""
    (primary,) = child.end.primary_key
    return int(child.database.rows(sa.select(sa.func.max(primary)))[0][0])


def _plain(like: pyroaring.BitMap | pyroaring.BitMap64, keys: Distances) -> Any:
    """The array that the set takes as it is."""
    narrow = isinstance(like, pyroaring.BitMap)
    return array("I" if narrow else "Q", keys.astype(np.uint32 if narrow else np.uint64).tobytes())


def _set(like: pyroaring.BitMap | pyroaring.BitMap64, keys: Distances) -> Any:
    return type(like)(_plain(like, keys))
