"""The scan for dense parents: the child is asked only about the keys that the parent lacks.

Where nearly every number between the parent's first and last key is one of its keys, an orphan can only lie in the few
gaps. So the child's keys, which are most of what an audit reads, are not read at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from crosstie.orm.integrity.errors import ScanIncomplete
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.integers import ChildPages, IntegerParents, among
from crosstie.orm.integrity.packed import PackedScan
from crosstie.orm.integrity.scan import Ends, Page
from crosstie.orm.integrity.scope import within
from crosstie.orm.integrity.storage import INT64, Raw
from crosstie.orm.integrity.tiling import Tile
from crosstie.orm.integrity.widths import FACTOR
from crosstie.orm.prepared import Prepared

__all__ = ["GapScan", "counts_rows"]

_POSSIBLE_PER_KEY: Final = 2
"""A page spans so many possible keys for each that a page of keys has: nothing but the parent's keys is sent."""
_LARGEST: Final = 200_000
_ROWS: Final = 1_000_000
"""A page has about so many child rows at most, where they are counted."""
_MANY: Final = 16
"""Where one in so many possible keys is missing, or more, the child's own keys are read,"""
_PACKED_PAGES: Final = 8
"""and those of so many pages behind it."""


def counts_rows(kind: str) -> bool:
    """Whether a database of this kind counts rows for much less than sending their keys costs: InnoDB does not."""
    return kind == "postgresql"


@dataclass(frozen=True)
class _Range:
    """Possible keys from `first` to `upto`, both included."""

    first: int
    upto: int

    @property
    def width(self) -> int:
        """How many there are."""
        return self.upto - self.first + 1


class GapScan:
    """Pages of possible keys from the next child key on; how many distinct keys the child has there is an estimate.

    Where a page turns out to have many gaps, the next ones are read as `PackedScan` reads them.
    """

    questions = 2
    """The parent is what the scan waits for, and one statement keeps one processor of its server busy."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self._widest = min(ends.page_size * _POSSIBLE_PER_KEY, _LARGEST)
        self._width = self._widest
        self._density: float | None = None
        self._parents = IntegerParents(ends.parent, self._widest, worthwhile=self._widest)
        self._packed = PackedScan(ends)
        self._packed_pages = 0
        rows = sa.select(sa.func.count()).select_from(ends.child.end.table)
        self._rows = Prepared(rows.where(within(ends.child.typed), *ends.child.end.conditions))

    def read(self, after: Raw | None) -> Page:
        """A page whose ends are known before; what is in it is counted at most."""
        if self._packed_pages:
            self._packed_pages -= 1
            return self._packed.read(after)
        child, last = self.ends.child, self.ends.last
        first = child.next_or_end(lambda: child.first(after, last), after, last)
        if first is None:
            return Page(Tile(after, last, 0, 0), ())
        child.storage.key(first)
        if self._density is None:
            self._density = self.ends.expected_keys / (last - first + 1)
        page = _Range(first, min(first + self._width - 1, last))
        rows = self._count(page) if counts_rows(child.database.kind) else None
        if rows is not None:
            self._width = min(max(page.width * _ROWS // max(rows, 1), 1), page.width * FACTOR, self._widest)
        return Page(Tile(after, page.upto, max(int(page.width * self._density), 1), rows), page)

    def _count(self, page: _Range) -> int:
        values = {"lo": page.first, "hi": page.upto}
        return int(self.ends.child.database.prepared(self._rows, values).rows[0][0])

    def missing(self, page: Page) -> Sequence[Key]:
        """What no parent has: where that is little, whether children have it or not, which their confirmation asks."""
        if not isinstance(page.keys, _Range):
            return self._packed.missing(page)
        possible = page.keys
        held = self._held(possible)
        gaps = np.flatnonzero(~held)
        if len(gaps) * _MANY < possible.width:
            return [possible.first + gap for gap in gaps.tolist()]
        self._packed_pages = _PACKED_PAGES
        after = possible.first - 1 if possible.first > INT64.start else None
        children = ChildPages(self.ends.child, possible.upto, possible.width, possible.width).next(after)
        if children is None:
            return ()
        parents = np.flatnonzero(held).astype(np.uint64) - np.uint64(children.base - possible.first)
        return children.chosen(~among(children.keys, parents))

    def _held(self, possible: _Range) -> Any:
        """Which of the possible keys a parent has, as an array of booleans."""
        held = np.zeros(possible.width, dtype=np.bool_)
        at: int | None = possible.first
        while at is not None and at <= possible.upto:
            keys, reached = self._parents.page(possible.first, at, possible.upto)
            if len(keys) and int(keys.max()) >= possible.width:
                raise ScanIncomplete(f"{self.ends.parent.end} was read otherwise than asked for: keys beyond the page")
            held[keys] = True
            at = None if reached is None else reached + 1
        return held
