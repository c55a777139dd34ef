"""Scans of integer keys page by page: the child's next distinct keys, compared with the parent's of the same range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.integers import ChildPage, ChildPages, IntegerParents
from crosstie.orm.integrity.scan import Ends, Page
from crosstie.orm.integrity.storage import Raw
from crosstie.orm.integrity.tiling import Tile

__all__ = ["PackedScan", "ProbeScan"]

_WORTHWHILE_SHARE: Final = 16
"""A page of parents that settles fewer than one in so many of its rows costs more than asking for the keys."""
_LARGEST_PAGE: Final = 200_000
"""Keys in one value: 3.2 MB at most, below every server's limit of a packet."""


class PackedScan:
    """Both ends send a page's keys as one value; integers mean the same order everywhere."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self.page_size = min(ends.page_size, _LARGEST_PAGE)
        self.children = ChildPages(ends.child, ends.last, self.page_size, ends.expected_keys)
        self.parents = IntegerParents(ends.parent, max(2 * self.page_size, 1_000), _WORTHWHILE_SHARE)

    def read(self, after: Raw | None) -> Page:
        """One statement, which counts what it sends."""
        page = self.ends.child.next_or_end(lambda: self.page(after), after, self.ends.last)
        if page is None:
            return Page(Tile(after, self.ends.last, 0, 0), ())
        return Page(Tile(after, page.hi, len(page.keys), page.rows), page)

    def page(self, after: Raw | None) -> ChildPage | None:
        """The child's next keys."""
        return self.children.next(after)

    def missing(self, page: Page) -> Sequence[Key]:
        """Not among the parent's keys from the page's first key to its last."""
        keys: ChildPage = page.keys
        return keys.chosen(~self.parents.present(keys))


class ProbeScan(PackedScan):
    """The parent is asked about the child's keys, which are far fewer than its own."""

    def missing(self, page: Page) -> Sequence[Key]:
        """Those that it does not know."""
        keys: ChildPage = page.keys
        return keys.chosen(~self.parents.asked(keys.base, keys.keys))
