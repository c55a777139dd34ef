"""Reads of integer keys at both ends of a reference, as distances from the first key of a page.

The ends of a page are known before it is read. So one statement counts what lies between them and sends it, and there
is nothing to be read twice: no order, and no limit, decides what belongs to the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from crosstie.orm.integrity.bulk import BulkQuery
from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.errors import ScanIncomplete
from crosstie.orm.integrity.packing import Distances, IntegerPacking, distances, packs
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.storage import IntegerStorage
from crosstie.orm.integrity.tiling import Tile, require_rows
from crosstie.orm.integrity.widths import PageWidth

__all__ = ["ChildPage", "ChildPages", "IntegerParents", "among"]

_QUESTION: Final = 5_000
"""Keys that one statement asks about."""
_ATTEMPTS: Final = 5
"""How often a page is read again whose keys were gone when it was read."""
_TABLE: Final = 32
"""A set of keys is a table of booleans where it has fewer than so many possible keys for each."""


@dataclass(frozen=True)
class ChildPage:
    """Distinct keys in ascending order, as distances from `base`; nothing else lies up to `hi`.

    `rows` is how many rows have them, None where that is not counted.
    """

    base: int
    keys: Distances
    hi: int
    rows: int | None

    def chosen(self, which: Any) -> list[int]:
        """The keys at which an array of booleans is true."""
        return [self.base + distance for distance in self.keys[which].tolist()]


class ChildPages:
    """The child's keys, page by page. Raises DatabaseUnavailable, ScanIncomplete, UnexpectedKey."""

    def __init__(self, child: ChildColumn, last: int, page_size: int, expected: int) -> None:
        """Keys up to `last`, about `page_size` of `expected` ones at a time."""
        self.child = child
        self.last = last
        self.page_size = page_size
        self._expected = expected
        self._width: PageWidth | None = None
        self._queries: dict[int, BulkQuery] = {}

    def next(self, after: int | None) -> ChildPage | None:
        """The next keys above `after`; None where there are none."""
        if not packs(self.child.database.kind):
            return self._fetched(after)
        for _ in range(_ATTEMPTS):
            first = self.child.first(after, self.last)
            if first is None:
                return None
            self.child.storage.key(first)
            page = self._within(first)
            if len(page.keys):
                return page
        raise ScanIncomplete(f"{self.child.end}: there are keys after {after!r}, and reading them has found none")

    def _within(self, first: int) -> ChildPage:
        """The keys from `first` on, as far as there are not too many."""
        possible = self.last - first + 1
        if self._width is None:
            self._width = PageWidth(self.page_size, possible, self._expected)
        while True:
            width = min(self._width.width, possible)
            count, rows, data = self._query(width).row({"lo": first, "hi": first + width - 1, "base": first})
            if not self._width.too_many(width, count):
                break
        self._width.found(width, count)
        keys = self._packing(width).unpack(data, count, first, self.child.end)
        return ChildPage(first, self._ascending(keys, width), first + width - 1, int(rows or 0))

    def _ascending(self, keys: Distances, width: int) -> Distances:
        if not bool(np.all(keys[1:] > keys[:-1])):
            keys = np.sort(keys)
        if bool(np.any(keys[1:] == keys[:-1])) or (len(keys) and int(keys[-1]) >= width):
            raise ScanIncomplete(f"{self.child.end} was read otherwise than asked for: keys twice, or out of order")
        return keys

    def _packing(self, width: int) -> IntegerPacking:
        return IntegerPacking(self.child.database.kind, reach=width - 1)

    def _query(self, width: int) -> BulkQuery:
        packing = self._packing(width)
        query = self._queries.get(packing.width)
        if query is None:
            # In order and with a limit, MariaDB groups by walking its index, and not by a table of its own.
            group = self.child.groups_within().limit(self.page_size + 1).subquery()
            key = sa.type_coerce(group.c.key, sa.BigInteger())
            rows = sa.cast(sa.func.sum(group.c.rows), sa.BigInteger())
            packed = packing.packed(key, sa.bindparam("base", type_=sa.BigInteger()))
            query = BulkQuery(self.child.database, sa.select(sa.func.count(), rows, packed).select_from(group))
            self._queries[packing.width] = query
        return query

    def _fetched(self, after: int | None) -> ChildPage | None:
        """As rows, which are counted once more in the same snapshot: here the server's limit ends the page."""
        with self.child.snapshot() as frozen:
            found = frozen.fetch(frozen.groups(after, self.last).limit(self.page_size))
            keys = [row[0] for row in found]
            IntegerStorage().keys(keys)  # SQLite keeps text and fractions in an INTEGER column
            if not keys:
                return None
            tile = Tile(after, keys[-1], len(keys), sum(row[1] for row in found))
            require_rows(tile, frozen.count_rows(after, keys[-1]))
        ascending = self._ascending(distances(keys, keys[0]), keys[-1] - keys[0] + 1)
        return ChildPage(keys[0], ascending, keys[-1], tile.rows)


class IntegerParents:
    """The parent's keys where the child's may be. Raises DatabaseUnavailable, ScanIncomplete, UnexpectedKey."""

    def __init__(self, parent: ParentColumn, page_size: int, worthwhile: int) -> None:
        """`page_size` keys at a time; one that settles fewer than one key in `worthwhile` is not worth another."""
        self.parent = parent
        self.page_size = page_size
        self.worthwhile = worthwhile
        self._queries: dict[tuple[int, bool], BulkQuery] = {}

    def page(self, base: int, lowest: int, highest: int) -> tuple[Distances, int | None]:
        """Keys between both, these included, and the greatest of them where there may be more."""
        if not packs(self.parent.database.kind):
            keys = [row[0] for row in self.parent.database.rows(self._keys(), {"lo": lowest, "hi": highest})]
            IntegerStorage().keys(keys)
            return distances(keys, base), keys[-1] if len(keys) >= self.page_size else None
        packing = IntegerPacking(self.parent.database.kind, reach=highest - base)
        # So few are possible that they need no limit, which would cost MariaDB a table.
        all_of_them = self.parent.is_unique and highest - lowest < self.page_size
        query = self._queries.get((packing.width, all_of_them))
        if query is None:
            query = self._queries[packing.width, all_of_them] = self._packed(packing, limited=not all_of_them)
        count, last, data = query.row({"lo": lowest, "hi": highest, "base": base})
        keys_there = packing.unpack(data, count, base, self.parent.end)
        return keys_there, int(last) if count >= self.page_size and not all_of_them else None

    def _keys(self, *, limited: bool = True) -> sa.Select[Any]:
        keys = self.parent.keys_within()
        return keys.limit(self.page_size) if limited else keys.order_by(None)

    def _packed(self, packing: IntegerPacking, *, limited: bool) -> BulkQuery:
        inner = self._keys(limited=limited).subquery()
        key = sa.type_coerce(inner.c.key, sa.BigInteger())
        packed = packing.packed(key, sa.bindparam("base", type_=sa.BigInteger()))
        return BulkQuery(self.parent.database, sa.select(sa.func.count(), sa.func.max(key), packed).select_from(inner))

    def present(self, page: ChildPage) -> Any:
        """Which of a page's keys a parent has, as an array of booleans.

        Pages of parents are read from one child key on, and the walk leaps to the next child key that is not settled.
        Once a page settles too few, the parent is asked about the others.
        """
        keys = page.keys
        found = np.zeros(len(keys), dtype=np.bool_)
        position = 0
        while position < len(keys):
            lowest, highest = page.base + int(keys[position]), page.base + int(keys[-1])
            parents, reached = self.page(page.base, lowest, highest)
            settled = len(keys)
            if reached is not None:
                settled = int(np.searchsorted(keys, np.uint64(reached - page.base), side="right"))
            found[position:settled] = among(keys[position:settled], parents)
            sparse = reached is not None and settled - position < self.page_size // self.worthwhile
            position = settled
            if sparse and position < len(keys):
                found[position:] = self.asked(page.base, keys[position:])
                break
        return found

    def asked(self, base: int, keys: Distances) -> Any:
        """Which of the keys a parent has, asked about each."""
        present = np.ones(len(keys), dtype=np.bool_)
        for start in range(0, len(keys), _QUESTION):
            some = [base + distance for distance in keys[start : start + _QUESTION].tolist()]
            absent = set(self.parent.absent(some))
            if absent:
                present[start : start + _QUESTION] = [key not in absent for key in some]
        return present


def among(keys: Distances, others: Distances) -> Any:
    """Which of some ascending keys are among the others, as an array of booleans."""
    if not len(keys):
        return np.zeros(0, dtype=np.bool_)
    lowest, possible = keys[0], int(keys[-1]) - int(keys[0]) + 1
    if possible > _TABLE * len(keys):
        return np.isin(keys, others, kind="sort")
    table = np.zeros(possible, dtype=np.bool_)
    offsets = others - lowest  # what lies below wraps, and is too great
    table[offsets[offsets < np.uint64(possible)]] = True
    return table[keys - lowest]
