"""How wide a page is: its ends are chosen before it is read, so that whatever lies between them can be counted.

A page that ends where so many keys were read would have to be counted again, to prove that none was left out.
"""

from __future__ import annotations

from typing import Final

__all__ = ["FACTOR", "PageWidth"]

FACTOR: Final = 8
"""A page is at most so many times as wide as the one before, and after one that was too wide so many times narrower."""


class PageWidth:
    """How many possible keys the next page spans, so that it has nearly `most` keys; the last one tells."""

    def __init__(self, most: int, possible: int, expected: int) -> None:
        """About `expected` keys lie among `possible` ones; a wrong guess costs some pages more."""
        self.most = most
        self.width = 0
        self._aim_at(possible * most // max(expected, 1))

    def found(self, width: int, keys: int) -> None:
        """A page of this width had so many keys."""
        self._aim_at(min(width * self.most // max(keys, 1), width * FACTOR))

    def too_many(self, width: int, keys: int) -> bool:
        """Whether a page had more keys than are read; the next one is narrower then."""
        if keys > self.most:
            self.width = max(width // FACTOR, self.most)
        return keys > self.most

    def _aim_at(self, width: int) -> None:
        # An eighth of room for keys that lie closer than those before; of `most` possible ones none can be too many.
        self.width = max(width - width // 8, self.most)
