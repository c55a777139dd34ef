"""Proof that an audit has seen the whole table: its chunks tile the range of keys, and the counts agree.

Pure decisions; `child.py` asks the database for the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from crosstie.orm.integrity.errors import ScanIncomplete

__all__ = ["Tile", "require_count", "require_rows", "require_tiling", "sum_known"]


@dataclass(frozen=True)
class Tile:
    """The range (lo, hi] by the child's own order, and what was read from it; lo None: no bound.

    `keys` are distinct; `rows` is None where they were not counted.
    """

    lo: Any
    hi: Any
    keys: int
    rows: int | None = None


def require_tiling(tiles: Sequence[Tile], last: Any, after: Any = None) -> None:
    """Each tile must begin where the one before ended, the first behind `after`, the final one at `last`.

    Raises ScanIncomplete naming the gap.
    """
    reached = after
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


def sum_known(numbers: Iterable[int | None]) -> int | None:
    """The sum; None where one of the numbers is not known."""
    known = list(numbers)
    return None if None in known else sum(number for number in known if number is not None)


def require_rows(tile: Tile, counted: int) -> None:
    """The rows read from a tile must be as many as the same statement counts there. Raises ScanIncomplete."""
    if tile.rows != counted:
        raise ScanIncomplete(
            f"of the rows with keys after {tile.lo!r} up to {tile.hi!r}, {tile.rows} were read, but there are {counted}"
        )
