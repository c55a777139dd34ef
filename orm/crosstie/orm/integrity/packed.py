"""Scans of integer keys page by page: the child's next distinct keys, compared with the parent's of the same range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from crosstie.orm.integrity.errors import ScanIncomplete
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.integers import ChildPage, IntegerReads
from crosstie.orm.integrity.scan import Ends, Page
from crosstie.orm.integrity.storage import Raw
from crosstie.orm.integrity.tiling import Tile

__all__ = ["PackedScan", "ProbeScan"]

_WORTHWHILE_SHARE: Final = 16
"""A page of parents that settles fewer than one in so many of its rows costs more than asking for the keys."""
_LARGEST_PAGE: Final = 200_000
"""Keys in one value: 1.6 MB at most, below every server's limit of a packet."""


class PackedScan:
    """Both ends send a page's keys as one value; integers mean the same order everywhere."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self.page_size = min(ends.page_size, _LARGEST_PAGE)
        self._reads: IntegerReads | None = None

    @property
    def reads(self) -> IntegerReads:
        """Known once the first page is read."""
        assert self._reads is not None
        return self._reads

    def read(self, after: Raw | None) -> Page:
        """One statement, which counts what it sends: distinct keys, strictly ascending, and their rows in two ways."""
        ends = self.ends
        if self._reads is None:
            first = ends.child.first(after, ends.last)
            if first is None:
                return self._end(after)
            ends.child.storage.key(first)
            self._reads = IntegerReads(ends.child, ends.parent, first, ends.last)
        page = self.page(after)
        if page is None:
            return self._end(after)
        keys = np.sort(page.keys)
        if (after is not None and self.reads.base + int(keys[0]) <= after) or bool(np.any(keys[1:] == keys[:-1])):
            raise ScanIncomplete(f"{ends.child.end} was not read in the order of its keys after {after!r}")
        return Page(Tile(after, page.last, len(keys), page.rows), keys)

    def _end(self, after: Raw | None) -> Page:
        self.ends.child.require_end(after, self.ends.last)
        return Page(Tile(after, self.ends.last, 0, 0), ())

    def page(self, after: Raw | None) -> ChildPage | None:
        """The child's next keys."""
        return self.reads.child_page(after, self.ends.last, self.page_size)

    def missing(self, page: Page) -> Sequence[Key]:
        """Not among the parent's keys from the page's first key to its last."""
        found = self.reads.present(page.keys, max(2 * self.page_size, 1_000), _WORTHWHILE_SHARE)
        return self.reads.keys(page.keys[~found])


class ProbeScan(PackedScan):
    """The parent is asked about the child's keys, which are far fewer than its own."""

    def missing(self, page: Page) -> Sequence[Key]:
        """Those that it does not know."""
        return self.reads.keys(page.keys[~self.reads.asked(page.keys)])
