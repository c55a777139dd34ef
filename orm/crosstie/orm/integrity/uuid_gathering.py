"""The child's keys as they come in, and the parents that strike them out as they come in.

Where keys ascend, they are closed into a set each time that there are some: parents in its range strike at once, and
only those above wait for the sets to come. So most of the comparing is done while both ends are being read, in sets
that are small enough for a processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.uuid_set import Halves, UuidSet, joined, ordered

__all__ = ["Gathering"]

_WAITING: Final = 1_600_000
"""So many parents may wait: 26 MB of them."""
_LEAST: Final = np.uint64(0)
_MOST: Final = np.uint64(2**64 - 1)


class _Closed(NamedTuple):
    """A set that is complete, and between which first halves its keys lie."""

    lo: np.uint64
    hi: np.uint64
    keys: UuidSet


class Gathering:
    """Sets of so many keys each, where these `ascend` by their bytes, else one; and the parents met so far."""

    def __init__(self, keys_of_a_set: int, *, ascend: bool) -> None:
        self.number = 0
        """Of keys."""
        self._keys_of_a_set = keys_of_a_set
        self._ascend = ascend
        self._open: list[Halves] = []
        self._open_number = 0
        self._closed: list[_Closed] = []
        self._waiting: list[Halves] = []
        self._is_complete = False

    def add(self, keys: Halves) -> None:
        """Keys of the child, one or more, above those that were added before where they ascend."""
        self.number += keys.number
        self._open.append(keys)
        self._open_number += keys.number
        if self._ascend and self._open_number >= self._keys_of_a_set:
            self._close(self._open[-1].high[-1])

    def complete(self) -> None:
        """No key will be added any more."""
        if self._open:
            self._close(_MOST)
        self._is_complete = True
        self._waiting.clear()

    @property
    def takes_parents(self) -> bool:
        """Whether more parents may be met before other keys are added."""
        return sum(some.number for some in self._waiting) < _WAITING

    def meet(self, parents: Halves) -> None:
        """Strike out the keys that these are, now or once they are added."""
        parents = ordered(parents)
        for one in self._closed:
            one.keys.strike(_between(parents, one.lo, one.hi))
        self._wait(parents)

    def left(self) -> Sequence[Key]:
        """The keys that no parent was, each once; after `complete`."""
        return [key for one in self._closed for key in one.keys.left()]

    def _close(self, hi: np.uint64) -> None:
        # Keys of one first half may lie on either side of the end, so ranges share it.
        lo = self._closed[-1].hi if self._closed else _LEAST
        closed = _Closed(lo, hi, UuidSet(joined(self._open)))
        self._open_number = 0
        self._closed.append(closed)
        waiting, self._waiting = self._waiting, []
        for parents in waiting:
            closed.keys.strike(_between(parents, lo, hi))
            self._wait(parents)

    def _wait(self, parents: Halves) -> None:
        """Keep those that keys to come may be."""
        if self._is_complete:
            return
        if not self._closed:
            self._waiting.append(parents)
        elif self._closed[-1].hi < _MOST:
            above = _between(parents, self._closed[-1].hi, _MOST)
            if above.number:
                self._waiting.append(above)


def _between(ascending: Halves, lo: np.uint64, hi: np.uint64) -> Halves:
    """Those whose first halves are in this range, in an array of their own."""
    first, behind = np.searchsorted(ascending.high, lo), np.searchsorted(ascending.high, hi, "right")
    return Halves(ascending.high[first:behind].copy(), ascending.low[first:behind].copy())
