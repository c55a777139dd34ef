"""The scan of UUIDs that both servers know as such: sent as their bytes, and compared as sets.

No two servers need to sort them alike (MariaDB puts the last bytes of some versions first), so a page of the child's
keys, in the child's order, is compared with all parents, page by page in the parent's own order: a page is large for
that. Only where both sort by bytes are the parents of a page those of its range.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from crosstie.orm.integrity.bulk import BulkQuery
from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.errors import ScanIncomplete
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.packing import concatenated, whole
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.pipeline import read_ahead
from crosstie.orm.integrity.scan import Ends, Page
from crosstie.orm.integrity.statistics import column_statistics
from crosstie.orm.integrity.storage import Raw
from crosstie.orm.integrity.tiling import Tile
from crosstie.orm.integrity.widths import PageWidth

__all__ = ["PackedUuidScan", "UuidSet"]

Halves = npt.NDArray[np.uint64]
"""UUIDs as rows of two numbers: their first eight bytes and their last."""

_PAGES_TOGETHER: Final = 10
"""So many pages of the child are compared with the parents at once: 16 MB of keys, where a page has 100,000."""
_PARENTS_AT_ONCE: Final = 200_000
"""Keys in one value: 3.2 MB, below every server's limit of a packet."""
_ASKED_FACTOR: Final = 16
"""Asking about a key costs a parent as much as sending so many of its own."""
_CROWDED: Final = 16
"""Keys in one bucket, from which on they are not evenly spread."""
_ATTEMPTS: Final = 5
"""How often a page is read again that had grown, or was gone, when it was read."""


class PackedUuidScan:
    """Pages of the child, each between ends that are known before it is read, against the parents' keys."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self._children = _Children(ends.child, ends.last, ends.page_size, ends.expected_keys)
        self._parents = _Parents(ends.parent)
        self._by_bytes = ends.child.database.kind == ends.parent.database.kind == "postgresql"

    def read(self, after: Raw | None) -> Page:
        """Some pages; each is one statement, which counts what it sends."""
        reached, keys, rows = after, list[Halves](), 0
        first: Raw | None = None
        while reached != self.ends.last and len(keys) < _PAGES_TOGETHER:
            page = self.ends.child.next_or_end(partial(self._children.next, reached), reached, self.ends.last)
            if page is None:
                reached = self.ends.last
                break
            first = page.lo if first is None else first
            reached, rows = page.hi, rows + page.rows
            keys.append(page.keys)
        read = np.concatenate(keys) if keys else np.zeros((0, 2), dtype=np.uint64)
        return Page(Tile(after, reached, len(read), rows), (first, read))

    def missing(self, page: Page) -> Sequence[Key]:
        """Those of the page's keys that are left when all parents have been seen, or that the parent does not know."""
        first, read = page.keys
        if self._parents.expected > _ASKED_FACTOR * len(read):
            return self.ends.parent.absent(UuidSet(read).left())
        every = self._parents.between(first, page.tile.hi) if self._by_bytes else self._parents.all()
        with read_ahead(every) as pages:
            wanted = UuidSet(read)
            for parents in pages:
                wanted.strike(parents)
        return wanted.left()


@dataclass(frozen=True)
class _ChildPage:
    """Every key from `lo` to `hi`, and how many rows have one of them."""

    lo: Raw
    hi: Raw
    keys: Halves
    rows: int


class _Children:
    """The child's keys in its own order."""

    def __init__(self, child: ChildColumn, last: Raw, page_size: int, expected: int) -> None:
        self.child = child
        self.last = last
        self.page_size = page_size
        self._expected = expected
        self._width: PageWidth | None = None

    def next(self, after: Raw | None) -> _ChildPage | None:
        """The next keys above `after`; None where there are none. Raises ScanIncomplete, DatabaseUnavailable."""
        for _ in range(_ATTEMPTS):
            first = self.child.first(after, self.last)
            if first is None:
                return None
            page = self._counted(first) if self.child.database.kind == "postgresql" else self._bounded(after, first)
            if page is not None:
                return page
        raise ScanIncomplete(f"{self.child.end}: there are keys after {after!r}, and reading them has found none")

    def _counted(self, first: uuid.UUID) -> _ChildPage | None:
        """PostgreSQL sorts by bytes: the end of a page is a sum."""
        possible = self.last.int - first.int + 1
        if self._width is None:
            self._width = PageWidth(self.page_size, possible, self._expected)
        while True:
            width = min(self._width.width, possible)
            hi = uuid.UUID(int=first.int + width - 1)
            count, rows, data = self._query.row({"lo": first, "hi": hi})
            if not self._width.too_many(width, count):
                break
        self._width.found(width, count)
        return self._page(first, hi, count, rows, data)

    def _bounded(self, after: Raw | None, first: Raw) -> _ChildPage | None:
        """Elsewhere the server is asked where so many keys end, and then for what lies up to there."""
        end = self.child.boundary(after, self.last, self.page_size)
        hi = self.last if end is None else end
        count, rows, data = self._query.row({"lo": first, "hi": hi})
        return None if count > self.page_size else self._page(first, hi, count, rows, data)

    def _page(self, lo: Raw, hi: Raw, count: int, rows: Any, data: bytes | None) -> _ChildPage | None:
        keys = _halves(whole(data, count, 16, self.child.end))
        return _ChildPage(lo, hi, keys, int(rows)) if count else None

    @cached_property
    def _query(self) -> BulkQuery:
        # In order and with a limit, MariaDB groups by walking its index, and not by a table of its own.
        group = self.child.groups_within().limit(self.page_size + 1).subquery()
        rows = sa.cast(sa.func.sum(group.c.rows), sa.BigInteger())
        packed = _packed(self.child.database.kind, group.c.key)
        return BulkQuery(self.child.database, sa.select(sa.func.count(), rows, packed).select_from(group))


class _Parents:
    """The parent's keys in its own order. One that is left out is a candidate more, which is confirmed to be there."""

    def __init__(self, parent: ParentColumn) -> None:
        self.parent = parent
        self._queries: dict[bool, BulkQuery] = {}

    @cached_property
    def expected(self) -> int:
        """About how many there are."""
        return column_statistics(self.parent.end).rows

    def all(self) -> Iterator[Halves]:
        """From the first key to the last."""
        first = self.parent.first()
        if first is not None:
            yield from self.between(first, None)

    def between(self, lo: Raw, hi: Raw | None) -> Iterator[Halves]:
        """From one key to another, page by page; the last key of each is the first of the next."""
        while True:
            count, data = self._query(bounded=hi is not None).row({"lo": lo, "hi": hi})
            page = _halves(whole(data, count, 16, self.parent.end))
            yield page
            if count < _PARENTS_AT_ONCE:
                return
            after, (lo,) = lo, self.parent.storage.spellings(_uuid(*page[-1].tolist()))
            if lo == after:
                raise ScanIncomplete(f"{self.parent.end} was not read in the order of its keys from {lo} on")

    def _query(self, *, bounded: bool) -> BulkQuery:
        query = self._queries.get(bounded)
        if query is None:
            inner = self.parent.keys_within(bounded=bounded).limit(_PARENTS_AT_ONCE).subquery()
            packed = _packed(self.parent.database.kind, inner.c.key)
            query = BulkQuery(self.parent.database, sa.select(sa.func.count(), packed).select_from(inner))
            self._queries[bounded] = query
        return query


class UuidSet:
    """Distinct UUIDs, of which those that are met are struck out; what is left has not been met, to the last bit.

    A table of buckets: the keys of bucket b lie from starts[b] to starts[b + 1], and a key's bucket is the first bits
    of its first half. Where these are not evenly spread (times, numbers in a row), they are those of a mixture.
    """

    def __init__(self, keys: Halves) -> None:
        self._high, self._low = np.ascontiguousarray(keys[:, 0]), np.ascontiguousarray(keys[:, 1])
        self._left = np.ones(len(keys), dtype=np.bool_)
        self._shift = np.uint64(63 - len(keys).bit_length())
        self._mixes = False
        ascending = bool(np.all(self._high[1:] >= self._high[:-1]))
        sizes = self._sizes(self._high)
        if not ascending or sizes.max() > _CROWDED:
            self._mixes = True
            mixed = _mixed(self._high, self._low)
            order = np.argsort(mixed)
            self._high, self._low = self._high[order], self._low[order]
            sizes = self._sizes(mixed)
        self._starts = np.zeros(len(sizes) + 1, dtype=np.int32)
        np.cumsum(sizes, out=self._starts[1:])

    def _sizes(self, spread: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        buckets = (spread >> self._shift).astype(np.int64)
        return np.bincount(buckets, minlength=2 ** (64 - int(self._shift)))

    def strike(self, keys: Halves) -> None:
        """Strike these out, as far as they are there."""
        high, low = np.ascontiguousarray(keys[:, 0]), np.ascontiguousarray(keys[:, 1])
        spread = _mixed(high, low) if self._mixes else high
        buckets = (spread >> self._shift).astype(np.int64)
        at, ends, asked = self._starts[buckets], self._starts[buckets + 1], np.arange(len(keys))
        while True:
            more = at < ends
            at, ends, asked = at[more], ends[more], asked[more]
            if not len(at):
                return
            met = at[(self._high[at] == high[asked]) & (self._low[at] == low[asked])]
            self._left[met] = False
            at = at + 1

    def left(self) -> list[Key]:
        """Those not struck out."""
        return [
            _uuid(*halves)
            for halves in zip(self._high[self._left].tolist(), self._low[self._left].tolist(), strict=True)
        ]


def _uuid(high: int, low: int) -> uuid.UUID:
    return uuid.UUID(int=(high << 64) + low)


def _mixed(high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A number for each, evenly spread."""
    mixed = high * np.uint64(0x9E3779B97F4A7C15) + low * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(32)
    return mixed * np.uint64(0xD6E8FEB86659FD93)


def _halves(data: bytes) -> Halves:
    return np.frombuffer(data, dtype=">u8").reshape(-1, 2).astype(np.uint64)


def _packed(kind: str, key: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    if kind == "postgresql":
        return concatenated(kind, sa.func.uuid_send(key))
    # SQLAlchemy's own CAST leaves the length out.
    sixteen = key.op("AS")(sa.literal_column("BINARY(16)"))
    return concatenated(kind, sa.sql.functions.Function[bytes]("CAST", sixteen))
