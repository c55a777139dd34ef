"""Parents in several databases: a key is there if one of them has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from crosstie.orm.integrity.catalog import Equality
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.scan import KeyScan, Page
from crosstie.orm.integrity.storage import Raw

__all__ = ["ParentUnion", "UnionScan"]

_WIDTH: Final = {Equality.IDENTICAL: 0, Equality.PADDED: 1, Equality.WIDE: 2}


class ParentUnion(ParentColumn):
    """The same column in several databases; for statistics and reports it is the first of them.

    Its storage is that of the parent with the widest `=`. Every method raises DatabaseUnavailable.
    """

    def __init__(self, parents: Sequence[ParentColumn]) -> None:
        first = parents[0]
        super().__init__(first.end, max((one.storage for one in parents), key=lambda one: _WIDTH[one.equality]))
        self._parents = tuple(parents)

    @property
    def parents(self) -> tuple[ParentColumn, ...]:
        """One in each database."""
        return self._parents

    def absent(self, keys: Sequence[Key]) -> list[Key]:
        """Those of the keys that none of them has, each asked about what those before it lack."""
        left = list(keys)
        for one in self.parents:
            left = one.absent(left) if left else left
        return left

    def is_empty(self) -> bool:
        """Whether none of the tables has a row."""
        return all(one.is_empty() for one in self.parents)


class UnionScan:
    """A scan against the first parent, whose candidates the others are asked about."""

    def __init__(self, scan: KeyScan, others: Sequence[ParentColumn]) -> None:
        self._scan = scan
        self._others = others

    def read(self, after: Raw | None) -> Page:
        """As the scan reads."""
        return self._scan.read(after)

    def missing(self, page: Page) -> Sequence[Key]:
        """What the first lacks, and every other too."""
        left = self._scan.missing(page)
        for one in self._others:
            left = one.absent(left) if left else left
        return left
