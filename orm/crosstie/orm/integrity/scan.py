"""The bulk of an audit: read the child's keys page by page, and find those that the parent does not have.

A scan is a strategy: it owns both reads of a page, so that a faster one may ship keys packed, or as bits, and compare
them in its own way. What a scan calls missing is a candidate only; `confirmation.py` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.plan import Strategy
from crosstie.orm.integrity.storage import Raw
from crosstie.orm.integrity.tiling import Tile

__all__ = ["Ends", "KeyScan", "Page", "ScanFactory"]


@dataclass(frozen=True)
class Page:
    """Keys read from one tile of the child's range, in whatever form the scan compares them."""

    tile: Tile
    keys: Any


@dataclass(frozen=True)
class Ends:
    """What a scan reads: both columns, up to which key of the child (this included), and how many keys at a time.

    `expected_keys` is an estimate of how many there are, 0 where nobody knows.
    """

    child: ChildColumn
    parent: ParentColumn
    last: Raw
    page_size: int
    expected_keys: int = 0


class KeyScan(Protocol):
    """One way of scanning; each method may raise DatabaseUnavailable, UnexpectedKey or ScanIncomplete.

    The two are called in threads of their own, `read` for the next page while `missing` works on the one before. A scan
    whose `missing` may be called for so many pages at once says so in an attribute `questions`.
    """

    def read(self, after: Raw | None) -> Page:
        """The child's next keys after `after`; a page without keys reaches to the last one.

        A page proves itself: what was read is what the database counts there.
        """

    def missing(self, page: Page) -> Sequence[Key]:
        """Read the parent's keys in the page's range, and return the child's that are not among them."""


ScanFactory = Callable[[Ends, Strategy], KeyScan]
