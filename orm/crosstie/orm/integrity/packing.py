"""Integer keys on the wire: one value of bytes for a page of them, with the count that proves it whole.

A key is sent as its distance from a base below all keys of a scan, in four bytes while no distance exceeds 31 bits and
in eight otherwise. Each dialect packs in the way that costs its server least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from crosstie.orm.integrity.endpoint import Endpoint
from crosstie.orm.integrity.errors import ScanIncomplete

__all__ = ["Distances", "IntegerPacking", "packs"]

Distances = npt.NDArray[np.uint64]
"""Keys as their distances from a base."""

_NARROW: Final = 2**31
_MASK: Final = 2**64 - 1


def packs(kind: str) -> bool:
    """Whether a database of this kind can pack; SQLite runs in this process, so fetching rows is as good."""
    return kind != "sqlite"


class IntegerPacking:
    """Packs keys of one column that lie in [base, last]; all that is unpacked is a distance from `base`."""

    def __init__(self, kind: str, base: int, last: int) -> None:
        self.base = base
        self.narrow = last - base < _NARROW
        self._postgresql = kind == "postgresql"

    def packed(self, key: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """The aggregate of all keys of a query; NULLs are left out."""
        if self._postgresql:
            distance = sa.cast(key - self.base, sa.Integer())
            sent = sa.func.int4send(distance) if self.narrow else sa.func.int8send(key)
            return sa.func.string_agg(sent, sa.literal(b"", sa.LargeBinary()), type_=sa.LargeBinary())
        # CHAR gives as many bytes as a number needs: with the highest bit set, always four.
        return _group_concat(sa.func.char(key - self.base + _NARROW) if self.narrow else _hexadecimal(key))

    def words(self, word: sa.ColumnElement[Any], bits: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """The aggregate of words of 64 bits, each behind its number, which is below 2**31."""
        if self._postgresql:
            sent: sa.ColumnElement[Any] = sa.func.int4send(sa.cast(word, sa.Integer())).concat(sa.func.int8send(bits))
            return sa.func.string_agg(sent, sa.literal(b"", sa.LargeBinary()), type_=sa.LargeBinary())
        return _group_concat(sa.func.concat(sa.func.char(word + _NARROW), _hexadecimal(bits)))

    def unpack(self, data: bytes | None, count: int, end: Endpoint) -> Distances:
        """The distances of `count` keys. Raises ScanIncomplete where the bytes are not so many."""
        raw = _whole(data, count, 4 if self.narrow else 8, end)
        if self.narrow:
            flag = 0 if self._postgresql else _NARROW
            return np.frombuffer(raw, dtype=">u4").astype(np.uint64) - np.uint64(flag)
        return np.frombuffer(raw, dtype=">u8").astype(np.uint64) - np.uint64(self.base & _MASK)

    def unpack_words(self, data: bytes | None, count: int, end: Endpoint) -> tuple[Distances, Distances]:
        """The numbers of `count` words and the words. Raises ScanIncomplete where the bytes are not so many."""
        pairs = np.frombuffer(_whole(data, count, 12, end), dtype=[("word", ">u4"), ("bits", ">u8")])
        flag = 0 if self._postgresql else _NARROW
        return pairs["word"].astype(np.uint64) - np.uint64(flag), pairs["bits"].astype(np.uint64)

    def distances(self, keys: Sequence[int]) -> Distances:
        """Of keys that were not packed."""
        return np.array([key - self.base for key in keys], dtype=np.uint64)

    def keys(self, distances: Distances) -> list[int]:
        """The keys again."""
        return [self.base + distance for distance in distances.tolist()]


def _hexadecimal(number: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.func.unhex(sa.func.lpad(sa.func.hex(number), 16, "0"))


def _group_concat(sent: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    separated = sent.op("SEPARATOR")(sa.literal_column("''"))
    return sa.func.group_concat(separated, type_=sa.LargeBinary())


def _whole(data: bytes | None, count: int, width: int, end: Endpoint) -> bytes:
    raw = bytes(data or b"")
    if len(raw) != count * width:
        raise ScanIncomplete(
            f"{end}: {count} keys were counted and {len(raw) / width:g} arrived: the server has cut its answer short"
        )
    return raw
