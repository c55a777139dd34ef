"""A set of UUIDs from which those that are met are struck out."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from crosstie.orm.integrity.findings import Key

__all__ = ["NO_UUIDS", "Halves", "UuidSet", "bounds", "halves"]

Halves = npt.NDArray[np.uint64]
"""UUIDs as rows of two numbers: their first eight bytes and their last."""

NO_UUIDS: Final[Halves] = np.zeros((0, 2), dtype=np.uint64)
_CROWDED: Final = 16
"""Keys in one bucket, from which on they are not evenly spread."""


def halves(data: bytes) -> Halves:
    """UUIDs of which a server has sent the bytes, one after the other."""
    return np.frombuffer(data, dtype=">u8").reshape(-1, 2).astype(np.uint64)


def bounds(keys: Halves) -> tuple[bytes, bytes]:
    """The bytes of the smallest key and of the greatest; there must be one."""
    high, low = keys[:, 0], keys[:, 1]
    least, most = high.min(), high.max()
    ends = (least, low[high == least].min()), (most, low[high == most].max())
    first, last = (_uuid(int(one), int(other)).bytes for one, other in ends)
    return first, last


class UuidSet:
    """UUIDs, of which those that are met are struck out; what is left has not been met, to the last bit.

    A table of buckets: the keys of bucket b lie from starts[b] to starts[b + 1], and a key's bucket is the first bits
    of its first half. Where these are not evenly spread (times, numbers in a row), they are those of a mixture.
    """

    def __init__(self, keys: Halves) -> None:
        self._high, self._low = np.ascontiguousarray(keys[:, 0]), np.ascontiguousarray(keys[:, 1])
        self._left = np.ones(len(keys), dtype=np.bool_)
        self._shift = np.uint64(63 - len(keys).bit_length())
        self._mixes = False
        ascending = bool(np.all(self._high[1:] >= self._high[:-1]))
        sizes = self._sizes(self._high)
        if not ascending or sizes.max() > _CROWDED:
            self._mixes = True
            mixed = _mixed(self._high, self._low)
            order = np.argsort(mixed)
            self._high, self._low = self._high[order], self._low[order]
            sizes = self._sizes(mixed)
        self._starts = np.zeros(len(sizes) + 1, dtype=np.int32)
        np.cumsum(sizes, out=self._starts[1:])

    def _sizes(self, spread: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        buckets = (spread >> self._shift).astype(np.int64)
        return np.bincount(buckets, minlength=2 ** (64 - int(self._shift)))

    def strike(self, keys: Halves) -> None:
        """Strike these out, as far as they are there."""
        high, low = np.ascontiguousarray(keys[:, 0]), np.ascontiguousarray(keys[:, 1])
        spread = _mixed(high, low) if self._mixes else high
        buckets = (spread >> self._shift).astype(np.int64)
        at, ends, asked = self._starts[buckets], self._starts[buckets + 1], np.arange(len(keys))
        while True:
            more = at < ends
            at, ends, asked = at[more], ends[more], asked[more]
            if not len(at):
                return
            met = at[(self._high[at] == high[asked]) & (self._low[at] == low[asked])]
            self._left[met] = False
            at = at + 1

    def left(self) -> Sequence[Key]:
        """Those not struck out, each once."""
        high, low = self._high[self._left].tolist(), self._low[self._left].tolist()
        return list(dict.fromkeys(_uuid(*both) for both in zip(high, low, strict=True)))


def _uuid(high: int, low: int) -> uuid.UUID:
    return uuid.UUID(int=(high << 64) + low)


def _mixed(high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A number for each, evenly spread."""
    mixed = high * np.uint64(0x9E3779B97F4A7C15) + low * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(32)
    return mixed * np.uint64(0xD6E8FEB86659FD93)
