"""Reads of integer keys at both ends of a reference, as distances from the child's first key of a scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from crosstie.orm.integrity.bulk import bulk_row
from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.packing import Distances, IntegerPacking, packs
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.storage import IntegerStorage, Raw
from crosstie.orm.integrity.tiling import Tile, require_rows

__all__ = ["ChildPage", "IntegerReads"]

_QUESTION: Final = 5_000
"""Keys that one statement asks about."""


@dataclass(frozen=True)
class ChildPage:
    """Distinct keys, and how many rows have them, None where that is not counted; `last` is the greatest."""

    keys: Distances
    last: int
    rows: int | None


class IntegerReads:
    """Both columns' keys from `base` up to `last`. Methods raise DatabaseUnavailable, ScanIncomplete, UnexpectedKey."""

    def __init__(self, child: ChildColumn, parent: ParentColumn, base: int, last: int) -> None:
        self.child = child
        self.parent = parent
        self.base = base
        self._child_packing = IntegerPacking(child.database.kind, base, last)
        self._parent_packing = IntegerPacking(parent.database.kind, base, last)

    def child_page(self, after: Raw | None, upto: Raw, limit: int) -> ChildPage | None:
        """The next distinct keys in (after, upto], at most `limit`; None where there are none.

        Their rows are counted once more in the same snapshot, so the counts must agree however fast the table changes.
        """
        with self.child.snapshot() as frozen:
            groups = frozen.groups(after, upto).limit(limit)
            page = self._packed(frozen, groups) if packs(frozen.database.kind) else self._fetched(frozen, groups)
            if page is not None:
                tile = Tile(after, page.last, len(page.keys), page.rows)
                require_rows(tile, frozen.count_rows(after, page.last))
        return page

    def _packed(self, child: ChildColumn, groups: sa.Select[Any]) -> ChildPage | None:
        group = groups.subquery()
        key = sa.type_coerce(group.c.key, sa.BigInteger())
        rows = sa.cast(sa.func.sum(group.c.rows), sa.BigInteger())
        packed = self._child_packing.packed(key)
        count, last, read, data = child.bulk(
            sa.select(sa.func.count(), sa.func.max(key), rows, packed).select_from(group)
        )
        if not count:
            return None
        return ChildPage(self._child_packing.unpack(data, count, child.end), int(last), int(read))

    def _fetched(self, child: ChildColumn, groups: sa.Select[Any]) -> ChildPage | None:
        found = child.fetch(groups)
        keys = [row[0] for row in found]
        IntegerStorage().keys(keys)  # SQLite keeps text and fractions in an INTEGER column
        if not keys:
            return None
        return ChildPage(self._child_packing.distances(keys), keys[-1], sum(row[1] for row in found))

    def parent_page(self, lowest: int, highest: int, limit: int) -> tuple[Distances, int | None]:
        """Keys between both, these included, and the greatest of them where there may be more than these `limit`."""
        page = self.parent.keys_between(lowest, highest).limit(limit)
        if not packs(self.parent.database.kind):
            keys = [row[0] for row in self.parent.database.rows(page)]
            IntegerStorage().keys(keys)
            return self._parent_packing.distances(keys), keys[-1] if len(keys) >= limit else None
        inner = page.subquery()
        key = sa.type_coerce(inner.c.key, sa.BigInteger())
        count, last, data = bulk_row(
            self.parent.database,
            sa.select(sa.func.count(), sa.func.max(key), self._parent_packing.packed(key)).select_from(inner),
        )
        keys_there = self._parent_packing.unpack(data, count, self.parent.end)
        return keys_there, int(last) if count >= limit else None

    def present(self, keys: Distances, page_size: int, worthwhile: int) -> Any:
        """Which of the child's ascending keys a parent has, as an array of booleans.

        Pages of parents are read from one child key on, and the walk leaps to the next child key that is not settled.
        Once a page settles fewer than one key in `worthwhile` of its rows, the parent is asked about the others.
        """
        found = np.zeros(len(keys), dtype=np.bool_)
        position = 0
        while position < len(keys):
            lowest, highest = self.base + int(keys[position]), self.base + int(keys[-1])
            parents, reached = self.parent_page(lowest, highest, page_size)
            settled = (
                len(keys)
                if reached is None
                else int(np.searchsorted(keys, np.uint64(reached - self.base), side="right"))
            )
            found[position:settled] = np.isin(keys[position:settled], parents)
            sparse = reached is not None and settled - position < page_size // worthwhile
            position = settled
            if sparse and position < len(keys):
                found[position:] = self.asked(keys[position:])
                break
        return found

    def asked(self, keys: Distances) -> Any:
        """Which of the keys a parent has, asked about each."""
        present = np.ones(len(keys), dtype=np.bool_)
        for start in range(0, len(keys), _QUESTION):
            some = self.keys(keys[start : start + _QUESTION])
            absent = set(self.parent.absent(some))
            if absent:
                present[start : start + _QUESTION] = [key not in absent for key in some]
        return present

    def distances(self, keys: Sequence[int]) -> Distances:
        """Of keys that were not packed."""
        return self._child_packing.distances(keys)

    def keys(self, distances: Distances) -> list[int]:
        """The keys again."""
        return self._child_packing.keys(distances)
