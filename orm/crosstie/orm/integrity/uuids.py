"""The scan of UUIDs: sent as their bytes, whatever their databases store, and compared as sets.

Where both ends sort by bytes, some pages of the child are compared with the parents between the smallest and the
greatest of their keys. Elsewhere no two servers need to sort alike (MariaDB puts the last bytes of some versions first,
text has several spellings): as many of the child's keys as memory holds are gathered while a thread reads all parents
in the parent's own order, and every parent strikes out what it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.errors import DatabaseError
from crosstie.orm.integrity.bulk import BulkQuery
from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.errors import ScanIncomplete
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.packing import concatenated, packs, whole
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.pipeline import Ahead, read_ahead
from crosstie.orm.integrity.scan import Ends, Page
from crosstie.orm.integrity.statistics import column_statistics
from crosstie.orm.integrity.storage import KeyStorage, Raw
from crosstie.orm.integrity.tiling import Tile, require_rows
from crosstie.orm.integrity.uuid_gathering import Gathering
from crosstie.orm.integrity.uuid_set import Halves, UuidSet, bounds, halves, joined
from crosstie.orm.integrity.uuid_storage import UuidStorage
from crosstie.orm.integrity.widths import PageWidth

__all__ = ["PackedUuidScan", "worth_a_chunk"]

_KEYS_OF_A_SET: Final = 500_000
"""Of the child: 8 MB."""
_GATHERED: Final = 2_000_000
"""Keys of the child that are compared with all parents at once: 32 MB of them."""
_PARENTS_AT_ONCE: Final = 200_000
"""Keys in one value: 3.2 MB, below every server's limit of a packet."""
_ASKED_FACTOR: Final = 16
"""Asking about a key costs a parent as much as sending so many of its own."""
_ATTEMPTS: Final = 5
"""How often a page is read again that had grown, or was gone, when it was read."""
_SIXTEEN: Final = 16
_EVERYTHING: Final = b"\0" * _SIXTEEN, b"\xff" * _SIXTEEN
_WORTH_FILTERING: Final = 0.9
"""Where keys span this share of all that are possible, parents outside of them are not worth looking for."""


def worth_a_chunk(child: ChildColumn, parent: ParentColumn) -> int:
    """So many keys a chunk needs: all parents are read for each, where the ends do not both sort by bytes."""
    return 1 if _aligned(child, parent.parents[0]) else _GATHERED


class PackedUuidScan:
    """Pages of the child, each between ends that are known before it is read, against the parents' keys."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self._children = _Children(ends.child, ends.last, ends.page_size, ends.expected_keys)
        self._parents = _Parents(ends.parent)
        self._aligned = _aligned(ends.child, ends.parent)

    def read(self, after: Raw | None) -> Page:
        """Some pages; each is one statement, which counts what it sends. If parents were read, only what is missing."""
        reached, rows, number = after, 0, 0
        read: list[Halves] = []
        with ExitStack() as stack:
            meeting: _Meeting | None = None
            for page in stack.enter_context(read_ahead(self._pages(after))):
                reached, rows, number = page.hi, rows + page.rows, number + page.keys.number
                read.append(page.keys)
                if meeting is None and not self._aligned and not self._is_asked(number):
                    between = self._parents.between(*self._children.spread(read[0]))
                    meeting = _Meeting(self._children.ascend, stack.enter_context(read_ahead(between)))
                if meeting is not None:
                    meeting.add(read)
            tile = Tile(after, reached if number >= self._most else self.ends.last, number, rows)
            if meeting is not None:
                return Page(tile, meeting.left())
            return Page(tile, joined(read) if read else ())

    @property
    def _most(self) -> int:
        return _KEYS_OF_A_SET if self._aligned else _GATHERED

    def _pages(self, after: Raw | None) -> Iterator[_ChildPage]:
        """The child's next pages: of so many keys as are compared at once, or up to the last one."""
        reached, number = after, 0
        while reached != self.ends.last and number < self._most:
            page = self.ends.child.next_or_end(partial(self._children.next, reached), reached, self.ends.last)
            if page is None:
                return
            reached, number = page.hi, number + page.keys.number
            yield page

    def missing(self, page: Page) -> Sequence[Key]:
        """Those of the page's keys that are left when all parents have been seen, or that the parent does not know."""
        if not isinstance(page.keys, Halves):
            missing: Sequence[Key] = page.keys
            return missing
        wanted = UuidSet(page.keys)
        if self._is_asked(page.keys.number):
            return self.ends.parent.absent(wanted.left())
        with read_ahead(self._parents.between(*bounds(page.keys))) as parents:
            for some in parents:
                wanted.strike(some)
        return wanted.left()

    def _is_asked(self, number: int) -> bool:
        """Whether the parent is better asked about so many keys than read."""
        return self._parents.expected > _ASKED_FACTOR * number


def _aligned(child: ChildColumn, parent: ParentColumn) -> bool:
    return _uuids(child.storage).sorts_by_bytes and _uuids(parent.storage).sorts_by_bytes


class _Meeting:
    """The child's keys and all parents, each taken when it is there."""

    def __init__(self, ascend: bool, parents: Ahead[Halves]) -> None:
        self._gathering = Gathering(_KEYS_OF_A_SET, ascend=ascend)
        self._parents = parents

    def add(self, read: list[Halves]) -> None:
        """Keys of the child, which are taken from the list, and what parents have come meanwhile."""
        for some in read:
            self._gathering.add(some)
        read.clear()
        while self._gathering.takes_parents and self._parents.is_ready:
            self._gathering.meet(next(self._parents))

    def left(self) -> Sequence[Key]:
        """What no parent was, once all of them have come."""
        self._gathering.complete()
        for some in self._parents:
            self._gathering.meet(some)
        return self._gathering.left()


@dataclass(frozen=True)
class _ChildPage:
    """Every key up to `hi` that was not read before, and how many rows have one of them."""

    hi: Raw
    keys: Halves
    rows: int


class _Children:
    """The child's keys in its own order, as often as they are spelt."""

    def __init__(self, child: ChildColumn, last: Raw, page_size: int, expected: int) -> None:
        self.child = child
        self.last = last
        self.page_size = page_size
        self._storage = _uuids(child.storage)
        self._expected = expected
        self._width: PageWidth | None = None

    @property
    def ascend(self) -> bool:
        """Whether they come in the order of their bytes."""
        return self._storage.sorts_by_bytes and packs(self.child.database.kind)

    def spread(self, first: Halves) -> tuple[bytes, bytes]:
        """Between which bytes the keys from this page on lie, as far as the child's order tells."""
        if not self.ascend:
            return _EVERYTHING
        least, most = bounds(first)[0], self._storage.bytes_of_child([self.last])
        share = (int.from_bytes(most) - int.from_bytes(least)) / 2 ** (8 * _SIXTEEN)
        return (least, most) if share < _WORTH_FILTERING else _EVERYTHING

    def next(self, after: Raw | None) -> _ChildPage | None:
        """The next keys above `after`; None where there are none.

        Raises ScanIncomplete, UnexpectedKey, DatabaseUnavailable.
        """
        if not packs(self.child.database.kind):
            return self._fetched(after)
        for _ in range(_ATTEMPTS):
            first = self.child.first(after, self.last)
            if first is None:
                return None
            page = self._counted(first) if self._storage.sorts_by_bytes else self._bounded(after, first)
            if page is not None:
                return page
        raise ScanIncomplete(f"{self.child.end}: there are keys after {after!r}, and reading them has found none")

    def _counted(self, first: Raw) -> _ChildPage | None:
        """Where keys are sorted by bytes, the end of a page is a sum."""
        start, last = (int.from_bytes(self._storage.bytes_of_child([raw])) for raw in (first, self.last))
        possible = last - start + 1
        if self._width is None:
            self._width = PageWidth(self.page_size, possible, self._expected)
        while True:
            width = min(self._width.width, possible)
            hi = self._storage.raw((start + width - 1).to_bytes(_SIXTEEN))
            count, rows, data = self._answer(first, hi)
            if not self._width.too_many(width, count):
                break
        self._width.found(width, count)
        return self._page(first, hi, count, rows, data)

    def _bounded(self, after: Raw | None, first: Raw) -> _ChildPage | None:
        """Elsewhere the server is asked where so many keys end, and then for what lies up to there."""
        end = self.child.boundary(after, self.last, self.page_size)
        hi = self.last if end is None else end
        count, rows, data = self._answer(first, hi)
        return None if count > self.page_size else self._page(first, hi, count, rows, data)

    def _answer(self, lo: Raw, hi: Raw) -> tuple[int, Any, bytes | None]:
        try:
            count, rows, data = self._query.row({"lo": lo, "hi": hi})
        except DatabaseError as error:
            if _is_of_data(error):
                self._require_keys(lo, hi)
            raise
        return count, rows, data

    def _page(self, lo: Raw, hi: Raw, count: int, rows: Any, data: bytes | None) -> _ChildPage | None:
        if len(data or b"") != count * _SIXTEEN:
            self._require_keys(lo, hi)
        keys = halves(whole(data, count, _SIXTEEN, self.child.end))
        return _ChildPage(hi, keys, int(rows)) if count else None

    def _require_keys(self, lo: Raw, hi: Raw) -> None:
        """Raise UnexpectedKey for a value that is no UUID, if that is why the server has not sent them all."""
        conditions = self.child.typed.between(lo, hi), *self.child.end.conditions
        between = sa.select(self.child.typed).where(*conditions).distinct()
        self._storage.bytes_of_child(row[0] for row in self.child.fetch(between))

    def _fetched(self, after: Raw | None) -> _ChildPage | None:
        """As rows, which are counted once more in the same snapshot: here the limit ends the page."""
        with self.child.snapshot() as frozen:
            found = frozen.fetch(frozen.groups(after, self.last).limit(self.page_size))
            if not found:
                return None
            hi = found[-1][0]
            tile = Tile(after, hi, len(found), sum(row[1] for row in found))
            require_rows(tile, frozen.count_rows(after, hi))
        return _ChildPage(hi, halves(self._storage.bytes_of_child(row[0] for row in found)), tile.rows or 0)

    @cached_property
    def _query(self) -> BulkQuery:
        # In order and with a limit, MariaDB groups by walking its index, and not by a table of its own.
        group = self.child.groups_within().limit(self.page_size + 1).subquery()
        rows = sa.cast(sa.func.sum(group.c.rows), sa.BigInteger())
        packed = concatenated(self.child.database.kind, self._storage.sixteen(group.c.key, of_child=True))
        return BulkQuery(self.child.database, sa.select(sa.func.count(), rows, packed).select_from(group))


class _Parents:
    """The parent's keys in its own order. One that is left out is a candidate more, which is confirmed to be there."""

    def __init__(self, parent: ParentColumn) -> None:
        self.parent = parent
        self._storage = _uuids(parent.storage)
        self._packs = packs(parent.database.kind)

    @cached_property
    def expected(self) -> int:
        """About how many there are."""
        return column_statistics(self.parent.end).rows

    def between(self, least: bytes, most: bytes) -> Iterator[Halves]:
        """The keys between these two, page by page; the last one of a page is the first of the next."""
        if self._storage.sorts_by_bytes:
            lo, hi = self._storage.raw(least), self._storage.raw(most)
        else:
            lo, hi = self.parent.first(), None
        while lo is not None:
            before = lo
            keys, lo = self._page(lo, hi, least, most)
            yield keys
            if lo == before:
                raise ScanIncomplete(f"{self.parent.end} was not read in the order of its keys from {before!r} on")

    def _page(self, lo: Raw, hi: Raw | None, least: bytes, most: bytes) -> tuple[Halves, Raw | None]:
        """The keys from `lo` on, and the last of as many as one page has; None where no more can come."""
        if not self._packs:
            return self._fetched(lo, hi)
        try:
            if hi is not None:
                count, data = self._range.row({"lo": lo, "hi": hi})
                keys = halves(whole(data, count, _SIXTEEN, self.parent.end))
                return keys, self._storage.raw(data[-_SIXTEEN:]) if count >= _PARENTS_AT_ONCE else None
            if (least, most) == _EVERYTHING:
                read, last, count, data = self._everything.row({"lo": lo})
            else:
                read, last, count, data = self._filtered.row({"lo": lo, "least": least, "most": most})
        except DatabaseError as error:
            if not _is_of_data(error):
                raise
            return self._fetched(lo, hi)
        return halves(whole(data, count, _SIXTEEN, self.parent.end)), last if read >= _PARENTS_AT_ONCE else None

    def _fetched(self, lo: Raw, hi: Raw | None) -> tuple[Halves, Raw | None]:
        query = self.parent.keys_within(bounded=hi is not None).limit(_PARENTS_AT_ONCE)
        raws = [row[0] for row in self.parent.database.rows(query, {"lo": lo, "hi": hi})]
        return halves(self._storage.bytes_of_parent(raws)), raws[-1] if len(raws) >= _PARENTS_AT_ONCE else None

    @cached_property
    def _range(self) -> BulkQuery:
        inner = self.parent.keys_within().limit(_PARENTS_AT_ONCE).subquery()
        packed = concatenated(self.parent.database.kind, self._storage.sixteen(inner.c.key, of_child=False))
        return BulkQuery(self.parent.database, sa.select(sa.func.count(), packed).select_from(inner))

    @cached_property
    def _everything(self) -> BulkQuery:
        inner = self._sixteens()
        return self._sent(inner, inner.c.sixteen)

    @cached_property
    def _filtered(self) -> BulkQuery:
        inner = self._sixteens()
        least, most = (sa.bindparam(name, type_=sa.LargeBinary()) for name in ("least", "most"))
        return self._sent(inner, sa.case((inner.c.sixteen.between(least, most), inner.c.sixteen), else_=None))

    def _sixteens(self) -> sa.Subquery:
        # Worked out within the limit, and so once for each key, however often it is named.
        sixteen = self._storage.sixteen(self.parent.typed, of_child=False).label("sixteen")
        return self.parent.keys_within(bounded=False).add_columns(sixteen).limit(_PARENTS_AT_ONCE).subquery()

    def _sent(self, inner: sa.Subquery, sent: sa.ColumnElement[Any]) -> BulkQuery:
        packed = concatenated(self.parent.database.kind, sent)
        query = sa.select(sa.func.count(), sa.func.max(inner.c.key), sa.func.count(sent), packed)
        return BulkQuery(self.parent.database, query.select_from(inner))


def _is_of_data(error: DatabaseError) -> bool:
    """Whether a server, PostgreSQL, refuses to read some text as bytes."""
    return isinstance(error.__cause__, sa.exc.DataError)


def _uuids(storage: KeyStorage) -> UuidStorage:
    assert isinstance(storage, UuidStorage)
    return storage
