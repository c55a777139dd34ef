"""Proof that an audit has seen the whole table: its chunks tile the range of keys, and the counts agree.

Pure decisions; `child.py` asks the database for the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crosstie.orm.integrity.errors import ScanIncomplete

__all__ = ["Tile", "require_count", "require_tiling"]


@dataclass(frozen=True)
class Tile:
    """The range (lo, hi] by the child's own order, and how many distinct keys were read from it; lo None: no bound."""

    lo: Any
    hi: Any
    keys: int


def require_tiling(tiles: Sequence[Tile], last: Any) -> None:
    """Each tile must begin where the one before ended, the first at the beginning, the final one at `last`.

    Raises ScanIncomplete naming the gap.
    """
    reached: Any = None
    for tile in tiles:
        if tile.lo != reached:
            raise ScanIncomplete(f"a chunk begins after key {tile.lo!r}, but keys were read only up to {reached!r}")
        reached = tile.hi
    if reached != last:
        raise ScanIncomplete(f"keys were read up to {reached!r}, but the table has keys up to {last!r}")


def require_count(tile: Tile, counted: int) -> None:
    """What was read from a tile must be what the database counts there. Raises ScanIncomplete."""
    if tile.keys != counted:
        raise ScanIncomplete(
            f"of the keys after {tile.lo!r} up to {tile.hi!r}, {tile.keys} were read, but there are {counted}"
        )
