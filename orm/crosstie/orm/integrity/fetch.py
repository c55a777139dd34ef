"""Scans of keys that have no order of their own: fetched from the child, and the parent is asked about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.errors import KeysNotComparable
from crosstie.orm.integrity.findings import Key, key_text
from crosstie.orm.integrity.scan import Ends, Page
from crosstie.orm.integrity.storage import Raw
from crosstie.orm.integrity.tiling import Tile, require_count

__all__ = ["PlainScan", "TextScan"]


class _Fetch:
    """Reads a page and counts it again in another way, both in one snapshot, so that the counts must agree."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self.parent = ends.parent

    def read(self, after: Raw | None) -> Page:
        """Whatever was written between two statements is in neither."""
        with self.ends.child.snapshot() as frozen:
            page = self._page(frozen, after)
            tile = page.tile
            require_count(tile, frozen.count_keys(tile.lo, tile.hi))
            return Page(replace(tile, rows=frozen.count_rows(tile.lo, tile.hi)), page.keys)

    def _page(self, child: ChildColumn, after: Raw | None) -> Page:
        raise NotImplementedError

    def _end(self, after: Raw | None) -> Page:
        return Page(Tile(after, self.ends.last, 0), ())


class PlainScan(_Fetch):
    """UUIDs and integers in the child's own order, looked up in the parent: no two servers need to sort them alike."""

    def _page(self, child: ChildColumn, after: Raw | None) -> Page:
        """Distinct raw values; two spellings of one UUID are two of them."""
        raws = child.page(after, self.ends.last, self.ends.page_size)
        if not raws:
            return self._end(after)
        keys = list(dict.fromkeys(child.storage.key(raw) for raw in raws))
        return Page(Tile(after, raws[-1], len(raws)), keys)

    def missing(self, page: Page) -> Sequence[Key]:
        """Asked of the parent, in lists."""
        return self.parent.absent(page.keys)


_FEW: Final = 1_000
_ONE_IN: Final = 100
"""More keys than one in so many, and than a few, in another spelling than their parent's: their collations differ."""


class TextScan(_Fetch):
    """Text in the child's own collation, looked up in the parent by the parent's own collation.

    A page ends at a key of the child's order; within it every text that differs in any byte is a key, since the parent
    may tell apart what the child's collation calls equal.
    """

    def _page(self, child: ChildColumn, after: Raw | None) -> Page:
        """All different texts up to the boundary of a page."""
        boundary = child.boundary(after, self.ends.last, self.ends.page_size)
        upto = self.ends.last if boundary is None else boundary
        keys = child.keys(after, upto)
        return Page(Tile(after, upto, len(keys)), keys)

    def missing(self, page: Page) -> Sequence[Key]:
        """Asked of the parent, in lists; it decides what equals what.

        Raises KeysNotComparable where it finds many keys in another spelling only, which the child tells apart.
        """
        absent = self.parent.absent(page.keys)
        for parent in self.parent.parents:
            alike, child = parent.alike, self.ends.child
            alike.compared += len(page.keys)
            if not parent.storage.equality.is_wider_than(child.storage.equality):
                continue
            if alike.number > max(_FEW, alike.compared // _ONE_IN):
                raise KeysNotComparable(
                    f"expected texts that are spelt alike at both ends, and {alike.number:,} of {alike.compared:,} "
                    f"keys of {child.end} have a parent in another spelling only, such as {key_text(alike.some[0])!r}: "
                    f"the collation of {parent.end} takes for equal what that of {child.end} tells apart. Give both "
                    "columns collations that agree, or store keys in one spelling."
                )
        return absent
