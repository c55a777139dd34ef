"""A set of UUIDs from which those that are met are struck out."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from crosstie.orm.integrity.findings import Key

__all__ = ["Halves", "UuidSet", "bounds", "halves", "joined", "ordered"]

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
"""Keys with the same first half, from which on they are sought by a mixture of both."""


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


def ordered(keys: Halves) -> Halves:
    """The same keys with their first halves ascending."""
    if _ascend(keys.high):
        return keys
    order = np.argsort(keys.high)
    return Halves(keys.high[order], keys.low[order])


class UuidSet:
    """UUIDs, of which those that are met are struck out; what is left has not been met, to the last bit.

    A key is sought by its first half among these in order, and where many keys share one (times, numbers in a row), by
    a mixture of both halves. What is sought is put in order too: neighbours then lie in the processor's cache.
    """

    def __init__(self, keys: Halves) -> None:
        high, low = ordered(keys)
        sought = high
        self._mixes = _longest_run(high) > _CROWDED
        if self._mixes:
            mixed = _mixed(high, low)
            order = np.argsort(mixed)
            sought, high, low = mixed[order], high[order], low[order]
        self._sought, self._high, self._low = sought, high, low
        self._left = np.ones(keys.number, dtype=np.bool_)

    def strike(self, keys: Halves) -> None:
        """Strike these out, as far as they are there."""
        high, low = keys
        seek = _mixed(high, low) if self._mixes else high
        if not _ascend(seek):
            order = np.argsort(seek)
            seek, high, low = seek[order], high[order], low[order]
        at, asked = np.searchsorted(self._sought, seek), np.arange(keys.number)
        while len(asked):
            inside = at < len(self._sought)
            at, asked = at[inside], asked[inside]
            near = self._sought[at] == seek[asked]
            at, asked = at[near], asked[near]
            met = (self._low[at] == low[asked]) & (self._high[at] == high[asked])
            self._left[at[met]] = False
            at = at + 1  # a key may be there in several spellings

    def left(self) -> Sequence[Key]:
        """Those not struck out, each once."""
        high, low = self._high[self._left].tolist(), self._low[self._left].tolist()
        return list(dict.fromkeys(_uuid(*both) for both in zip(high, low, strict=True)))


def _uuid(high: int, low: int) -> uuid.UUID:
    return uuid.UUID(int=(high << 64) + low)


def _ascend(numbers: _Numbers) -> bool:
    return bool(np.all(numbers[1:] >= numbers[:-1]))


def _longest_run(ascending: _Numbers) -> int:
    """How many neighbours are equal at most."""
    if not len(ascending):
        return 0
    begins = np.flatnonzero(ascending[1:] != ascending[:-1]) + 1
    return int(np.diff(begins, prepend=0, append=len(ascending)).max())


def _mixed(high: _Numbers, low: _Numbers) -> _Numbers:
    """A number for each, evenly spread."""
    mixed = high * np.uint64(0x9E3779B97F4A7C15) + low * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(32)
    return mixed * np.uint64(0xD6E8FEB86659FD93)
