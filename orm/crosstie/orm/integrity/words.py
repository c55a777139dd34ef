"""The scan that sends bits: where keys are dense, a word of 64 bits stands for 64 of them, on either side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from crosstie.orm.integrity.bulk import BulkQuery
from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.errors import ScanIncomplete
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.packing import Distances, IntegerPacking
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.scan import Ends, Page
from crosstie.orm.integrity.storage import Raw
from crosstie.orm.integrity.tiling import Tile

__all__ = ["WordScan"]

_WORD: Final = 64
_SPAN_PER_KEY: Final = 8
"""A page spans so many possible keys for each that a page of keys has; what is sparser should not be sent as bits."""


@dataclass(frozen=True)
class Words:
    """Bits of the keys from `first` on: the bit `(key - first) % 64` of word `(key - first) // 64`, in ascending order.

    Words without any bit are left out.
    """

    first: int
    numbers: Distances
    bits: Distances


class WordScan:
    """Pages of a fixed span from the next child key on, as bits of both ends."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self.span = max(ends.page_size * _SPAN_PER_KEY // _WORD, 1) * _WORD
        groups = ends.child.groups_within().order_by(None).subquery()
        self._child = BulkQuery(ends.child.database, _words(ends.child, groups, groups.c.rows))
        keys = ends.parent.keys_within().order_by(None).subquery()
        self._parent = BulkQuery(ends.parent.database, _words(ends.parent, keys, sa.literal_column("1", sa.Integer())))

    def read(self, after: Raw | None) -> Page:
        """One statement, which counts the words and the distinct keys that it sends, and their rows."""
        child, last = self.ends.child, self.ends.last
        page = child.next_or_end(lambda: self._page(after), after, last)
        return Page(Tile(after, last, 0, 0), ()) if page is None else page

    def _page(self, after: Raw | None) -> Page | None:
        child, last = self.ends.child, self.ends.last
        first = child.first(after, last)
        if first is None:
            return None
        child.storage.key(first)
        upto = min(first + self.span - 1, last)
        words, keys, rows = _unpacked(child, first, self._child.row({"lo": first, "hi": upto}))
        if not keys:  # it was there a moment ago
            return None
        if int(np.bitwise_count(words.bits).sum()) != keys:
            raise ScanIncomplete(f"{child.end}: {keys} keys were counted from {first} to {upto}, and their bits differ")
        return Page(Tile(after, upto, keys, rows), words)

    def missing(self, page: Page) -> Sequence[Key]:
        """The child's bits without the parent's."""
        child: Words = page.keys
        answer = self._parent.row({"lo": child.first, "hi": page.tile.hi})
        parent, _, _ = _unpacked(self.ends.parent, child.first, answer)
        held = np.zeros(self.span // _WORD, dtype=np.uint64)
        held[parent.numbers] = parent.bits
        left = child.bits & ~held[child.numbers]
        missing: list[Key] = []
        for number, bits in zip(child.numbers[left != 0].tolist(), left[left != 0].tolist(), strict=True):
            missing += [child.first + number * _WORD + bit for bit in range(_WORD) if bits >> bit & 1]
        return missing


def _words(column: ChildColumn | ParentColumn, keys: sa.Subquery, rows: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """The query for the words of keys from its parameter `lo` on: how many words, keys and `rows`, and the words."""
    kind = column.database.kind
    distance = sa.type_coerce(keys.c.key, sa.BigInteger()) - sa.bindparam("lo", type_=sa.BigInteger())
    # Grouped by a name: PostgreSQL would not see that two expressions with parameters are one.
    numbered = sa.select(
        distance.op(">>")(sa.literal_column("6")).label("word"), _bit(kind, distance).label("bit"), rows.label("rows")
    ).select_from(keys)
    each = numbered.subquery()
    grouped = sa.select(
        each.c.word,
        sa.func.bit_or(each.c.bit, type_=sa.BigInteger()).label("bits"),
        sa.func.count().label("distinct_keys"),
        sa.func.sum(each.c.rows).label("rows"),
    ).group_by(each.c.word)
    word = grouped.subquery()
    return sa.select(
        sa.func.count(),
        sa.cast(sa.func.coalesce(sa.func.sum(word.c.distinct_keys), 0), sa.BigInteger()),
        sa.cast(sa.func.coalesce(sa.func.sum(word.c.rows), 0), sa.BigInteger()),
        IntegerPacking(kind).words(sa.type_coerce(word.c.word, sa.BigInteger()), word.c.bits),
    ).select_from(word)


def _unpacked(column: ChildColumn | ParentColumn, first: int, answer: tuple[Any, ...]) -> tuple[Words, int, int]:
    count, keys, rows, data = answer
    packing = IntegerPacking(column.database.kind)
    return Words(first, *packing.unpack_words(data, count, column.end)), int(keys), int(rows)


def _bit(kind: str, distance: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    position = distance.op("&")(sa.literal_column("63"))
    if kind == "postgresql":
        return sa.literal_column("1::bigint").op("<<")(sa.cast(position, sa.Integer()))
    return sa.literal_column("1").op("<<")(position)
