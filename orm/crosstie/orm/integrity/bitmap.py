"""The scan where the foreign key has no index: the child is read once, by primary key, into a compressed set."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyroaring
import sqlalchemy as sa

from crosstie.orm.integrity.bulk import bulk_row
from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.endpoint import Endpoint
from crosstie.orm.integrity.errors import ScanIncomplete
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.integers import IntegerReads
from crosstie.orm.integrity.packing import Distances, IntegerPacking, packs
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
        self._row: int | None = None
        self._last_row = 0
        self._rows = 0
        self._reads: IntegerReads | None = None
        self._keys: pyroaring.BitMap | pyroaring.BitMap64 = pyroaring.BitMap()

    def read(self, after: Raw | None) -> Page:
        """The next rows by primary key; with the last of them, all keys."""
        ends = self.ends
        if self._reads is None:
            first = ends.child.first(after, ends.last)
            if first is None:
                ends.child.require_end(after, ends.last)
                return Page(Tile(after, ends.last, 0, 0), ())
            ends.child.storage.key(first)
            self._reads = IntegerReads(ends.child, ends.parent, first, ends.last)
            self._keys = pyroaring.BitMap() if ends.last - first < _NARROW else pyroaring.BitMap64()
            self._last_row = _last_row(ends.child)
        reached, keys = _rows_after(ends.child, self._row, self._last_row, self._reads.base, ends.last)
        self._keys.update(_plain(self._keys, keys))
        self._rows += len(keys)
        if reached is None:
            _require_no_rows(ends.child, self._row, self._last_row)
        elif reached < self._last_row:
            self._row = reached
            return Page(Tile(after, after, 0, 0), ())
        return Page(Tile(after, ends.last, len(self._keys), self._rows), self._keys)

    def missing(self, page: Page) -> Sequence[Key]:
        """The set without the parents of its range, page by page."""
        assert self._reads is not None
        reads, keys = self._reads, page.keys
        left = keys.copy()
        highest = keys.max()
        at, settled = keys.min(), 0
        while True:
            parents, reached = reads.parent_page(reads.base + at, reads.base + highest, _PAGE)
            left.difference_update(_set(keys, parents))
            upto = highest if reached is None else reached - reads.base
            before, settled = settled, keys.rank(upto)
            if settled == len(keys):
                break
            at = keys.next_set_bit(upto + 1)
            if settled - before < _PAGE // _WORTHWHILE_SHARE:
                return self._absent(left, at)
        return [reads.base + distance for distance in left]

    def _absent(self, left: pyroaring.BitMap | pyroaring.BitMap64, asked_from: int) -> list[Key]:
        """What is left below a key, and from there on what the parent does not know when it is asked."""
        assert self._reads is not None
        width = np.uint32 if isinstance(left, pyroaring.BitMap) else np.uint64
        distances: Distances = np.frombuffer(left.to_array(), dtype=width).astype(np.uint64)
        cut = int(np.searchsorted(distances, np.uint64(asked_from)))
        missing: list[Key] = [*self._reads.keys(distances[:cut])]
        for start in range(cut, len(distances), _PAGE):
            some = distances[start : start + _PAGE]
            missing += self._reads.keys(some[~self._reads.asked(some)])
        return missing


def _last_row(child: ChildColumn) -> int:
    """The greatest primary key: rows that come later are left to the next audit."""
    (primary,) = child.end.primary_key
    return int(child.database.rows(sa.select(sa.func.max(primary)))[0][0])


def _require_no_rows(child: ChildColumn, after: int | None, upto: int) -> None:
    """Where a page has found no more rows, there must be none. Raises ScanIncomplete."""
    (primary,) = child.end.primary_key
    left = sa.select(sa.func.count()).select_from(child.end.table).where(*_between(primary, after, upto))
    (rows,) = child.database.rows(left)[0]
    if rows:
        raise ScanIncomplete(f"{child.end}: {rows} rows with {primary.name} above {after} were not read")


def _between(primary: sa.Column[Any], after: int | None, upto: int) -> list[sa.ColumnElement[bool]]:
    return [*([] if after is None else [primary > after]), primary <= upto]


def _rows_after(
    child: ChildColumn, after: int | None, upto: int, first: int, last: int
) -> tuple[int | None, Distances]:
    """The primary key of the last of the next rows, None where there are no more, and their keys in [first, last]."""
    (primary,) = child.end.primary_key
    key = sa.case((child.typed.between(first, last), child.typed), else_=None)
    page = (
        sa.select(primary.label("row_key"), key.label("key"))
        .where(*_between(primary, after, upto))
        .order_by(primary)
        .limit(_PAGE)
    )
    packing = IntegerPacking(child.database.kind, first, last)
    if not packs(child.database.kind):
        found = child.database.rows(page)
        keys = [row[1] for row in found if row[1] is not None]
        IntegerStorage().keys(keys)
        return found[-1][0] if found else None, packing.distances(keys)
    inner = page.subquery()
    sent = sa.type_coerce(inner.c.key, sa.BigInteger())
    packed = sa.select(sa.func.max(inner.c.row_key), sa.func.count(sent), packing.packed(sent)).select_from(inner)
    reached, count, data = bulk_row(child.database, packed)
    return reached, packing.unpack(data, count, child.end)


def _plain(like: pyroaring.BitMap | pyroaring.BitMap64, keys: Distances) -> Any:
    """The array that the set takes as it is."""
    narrow = isinstance(like, pyroaring.BitMap)
    return array("I" if narrow else "Q", keys.astype(np.uint32 if narrow else np.uint64).tobytes())


def _set(like: pyroaring.BitMap | pyroaring.BitMap64, keys: Distances) -> Any:
    return type(like)(_plain(like, keys))
