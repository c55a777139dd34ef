"""The bulk of an audit: read the child's keys chunk by chunk, and find those that the parent does not have.

A scan is a strategy: it owns both reads of a chunk, so that a faster one may ship keys packed, or as bits, and compare
them in its own way. What a scan calls missing is a candidate only; `confirmation.py` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.errors import ScanIncomplete
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.storage import IntegerStorage, KeyKind, Raw
from crosstie.orm.integrity.tiling import Tile

__all__ = ["Chunk", "IntegerScan", "KeyScan", "ScanFactory", "TextScan", "UuidScan", "choose_scan"]

Int64s = npt.NDArray[np.int64]

_WORTHWHILE_SHARE: Final = 16
"""A page of parents that settles fewer than one in so many of its rows costs more than asking for the keys."""


@dataclass(frozen=True)
class Chunk:
    """Keys read from one tile of the child's range, in whatever form the scan compares them."""

    tile: Tile
    keys: Any


class KeyScan(Protocol):
    """One way of scanning; each method may raise DatabaseUnavailable, UnexpectedKey or ScanIncomplete."""

    def chunk(self, child: ChildColumn, after: Raw | None) -> Chunk | None:
        """Read the child's next keys after `after`, through a snapshot of it; None where there are none."""

    def missing(self, chunk: Chunk) -> Sequence[Key]:
        """Read the parent's keys in the chunk's range, and return the child's that are not among them."""


ScanFactory = Callable[[ParentColumn, Raw, int], KeyScan]
"""Makes a scan of a parent, the last key of the child to read, and the number of distinct keys in a chunk."""


def choose_scan(parent: ParentColumn, last: Raw, chunk_size: int) -> KeyScan:
    """The scan for the kind of keys that both ends have."""
    scans: dict[KeyKind, ScanFactory] = {
        KeyKind.INTEGER: IntegerScan,
        KeyKind.UUID: UuidScan,
        KeyKind.TEXT: TextScan,
    }
    return scans[parent.storage.kind](parent, last, chunk_size)


class _Scan:
    def __init__(self, parent: ParentColumn, last: Raw, chunk_size: int) -> None:
        self.parent = parent
        self.last = last
        self.chunk_size = chunk_size


class IntegerScan(_Scan):
    """Sorted integers of both sides, compared in arrays: keys mean the same order everywhere."""

    def chunk(self, child: ChildColumn, after: Raw | None) -> Chunk | None:
        """Distinct keys, strictly ascending: anything else would leave a gap unseen."""
        keys = _int64(child.page(after, self.last, self.chunk_size))
        if not len(keys):
            return None
        if (after is not None and keys[0] <= after) or bool(np.any(np.diff(keys) <= 0)):
            raise ScanIncomplete(f"{child.end} was not read in the order of its keys after {after!r}")
        return Chunk(Tile(after, int(keys[-1]), len(keys)), keys)

    def missing(self, chunk: Chunk) -> Sequence[Key]:
        """Pages of parents; from each the walk leaps to the next child key, so gaps between children cost nothing."""
        keys: Int64s = chunk.keys
        found = np.zeros(len(keys), dtype=np.bool_)
        page_size = max(self.chunk_size, 1_000)
        position = 0
        while position < len(keys):
            page = _int64(self.parent.page(int(keys[position]), int(keys[-1]), page_size))
            full = len(page) >= page_size
            settled = int(np.searchsorted(keys, page[-1], side="right")) if full else len(keys)
            if len(page):
                part = keys[position:settled]
                at = np.minimum(np.searchsorted(page, part), len(page) - 1)
                found[position:settled] = page[at] == part
            sparse = full and settled - position < page_size // _WORTHWHILE_SHARE
            position = settled
            if sparse and position < len(keys):
                absent = set(self.parent.absent(keys[position:].tolist()))
                found[position:] = [key not in absent for key in keys[position:].tolist()]
                break
        missing: list[Key] = keys[~found].tolist()
        return missing


class UuidScan(_Scan):
    """UUIDs in the child's own order, looked up in the parent: no two servers need to sort them alike."""

    def chunk(self, child: ChildColumn, after: Raw | None) -> Chunk | None:
        """Distinct raw values; two spellings of one UUID are two of them."""
        raws = child.page(after, self.last, self.chunk_size)
        if not raws:
            return None
        keys = list(dict.fromkeys(child.storage.key(raw) for raw in raws))
        return Chunk(Tile(after, raws[-1], len(raws)), keys)

    def missing(self, chunk: Chunk) -> Sequence[Key]:
        """Asked of the parent, in lists."""
        return self.parent.absent(chunk.keys)


class TextScan(_Scan):
    """Text in the child's own collation, looked up in the parent by the parent's own collation.

    A chunk ends at a key of the child's order; within it every text that differs in any byte is a key, since the parent
    may tell apart what the child's collation calls equal.
    """

    def chunk(self, child: ChildColumn, after: Raw | None) -> Chunk | None:
        """All different texts up to the boundary of a page."""
        boundary = child.boundary(after, self.last, self.chunk_size)
        upto = self.last if boundary is None else boundary
        keys = child.keys(after, upto)
        if not keys and boundary is None:
            return None
        return Chunk(Tile(after, upto, len(keys)), keys)

    def missing(self, chunk: Chunk) -> Sequence[Key]:
        """Asked of the parent, in lists; it decides what equals what."""
        return self.parent.absent(chunk.keys)


def _int64(raws: list[Raw]) -> Int64s:
    IntegerStorage().keys(raws)  # numpy would cut 5.5 to 5 and read '5' as 5
    return np.array(raws, dtype=np.int64)
