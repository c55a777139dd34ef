"""A set of UUIDs from which those that are met are struck out."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from crosstie.orm.integrity.findings import Key

__all__ = ["Halves", "UuidSet", "bounds", "halves", "joined"]

_Numbers = npt.NDArray[np.uint64]


class Halves(NamedTuple):
    """UUIDs as two arrays of numbers: their first eight bytes and their last."""

    high: _Numbers
    low: _Numbers

    @property
    def number(self) -> int:
        """How many UUIDs these are."""
        return len(self.high)


_CROWDED: Final = 16
"""Keys in one bucket, from which on they are not evenly spread."""
_EDGES: Final = 2**18
"""So many buckets are found at once, so that finding them takes less memory than the keys do."""


def halves(data: bytes) -> Halves:
    """UUIDs of which a server has sent the bytes, one after the other."""
    both = np.frombuffer(data, dtype=">u8").reshape(-1, 2)
    return Halves(both[:, 0].astype(np.uint64), both[:, 1].astype(np.uint64))


def joined(some: list[Halves]) -> Halves:
    """All of them, one or more, in their order. The list is emptied, so that memory has no more than one half twice."""
    high = np.concatenate([one.high for one in some])
    lows = [one.low for one in some]
    some.clear()
    return Halves(high, np.concatenate(lows))


def bounds(keys: Halves) -> tuple[bytes, bytes]:
    """The bytes of the smallest key and of the greatest; there must be one."""
    least, most = keys.high.min(), keys.high.max()
    ends = (least, keys.low[keys.high == least].min()), (most, keys.low[keys.high == most].max())
    first, last = (_uuid(int(one), int(other)).bytes for one, other in ends)
    return first, last


class UuidSet:
    """UUIDs, of which those that are met are struck out; what is left has not been met, to the last bit.

    A table of buckets: the keys of bucket b lie from starts[b] to starts[b + 1], and a key's bucket is the first bits
    of its first half. Where these are not evenly spread (times, numbers in a row), they are those of a mixture.
    """

    def __init__(self, keys: Halves) -> None:
        self._high, self._low = keys
        self._left = np.ones(keys.number, dtype=np.bool_)
        self._shift = 64 - max(keys.number.bit_length(), 1)
        self._mixes = False
        ascending = bool(np.all(self._high[1:] >= self._high[:-1]))
        if ascending:
            self._starts = self._bucketed(self._high)
        if not ascending or np.diff(self._starts).max() > _CROWDED:
            self._mixes = True
            mixed = _mixed(self._high, self._low)
            order = np.argsort(mixed)
            self._starts = self._bucketed(mixed[order])
            del mixed
            self._high = self._high[order]
            self._low = self._low[order]

    def _bucketed(self, spread: _Numbers) -> npt.NDArray[np.int32]:
        """Where each bucket begins among these numbers, which ascend; and where the last one ends."""
        buckets = 2 ** (64 - self._shift)
        starts = np.empty(buckets + 1, dtype=np.int32)
        for begin in range(0, buckets, _EDGES):
            edges = np.arange(begin, min(begin + _EDGES, buckets), dtype=np.uint64) << np.uint64(self._shift)
            starts[begin : begin + len(edges)] = np.searchsorted(spread, edges)
        starts[-1] = len(spread)
        return starts

    def strike(self, keys: Halves) -> None:
        """Strike these out, as far as they are there."""
        high, low = keys
        buckets = ((_mixed(high, low) if self._mixes else high) >> np.uint64(self._shift)).astype(np.int64)
        at, ends, asked = self._starts[buckets], self._starts[buckets + 1], np.arange(keys.number)
        while True:
            more = at < ends
            at, ends, asked = at[more], ends[more], asked[more]
            if not len(at):
                return
            alike = np.flatnonzero(self._high[at] == high[asked])
            met = at[alike]
            self._left[met[self._low[met] == low[asked[alike]]]] = False
            at = at + 1

    def left(self) -> Sequence[Key]:
        """Those not struck out, each once."""
        high, low = self._high[self._left].tolist(), self._low[self._left].tolist()
        return list(dict.fromkeys(_uuid(*both) for both in zip(high, low, strict=True)))


def _uuid(high: int, low: int) -> uuid.UUID:
    return uuid.UUID(int=(high << 64) + low)


def _mixed(high: _Numbers, low: _Numbers) -> _Numbers:
    """A number for each, evenly spread."""
    mixed = high * np.uint64(0x9E3779B97F4A7C15) + low * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(32)
    return mixed * np.uint64(0xD6E8FEB86659FD93)
