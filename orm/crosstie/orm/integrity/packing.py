"""Keys on the wire: one value of bytes for a page of them, with the count that proves it whole.

An integer is sent as its distance from a base below all keys of its page: in three bytes while no distance exceeds 23
bits, in four while none exceeds 31, and in eight otherwise. Each dialect packs in the way that costs its server least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from crosstie.orm.integrity.endpoint import Endpoint
from crosstie.orm.integrity.errors import ScanIncomplete

__all__ = ["Distances", "IntegerPacking", "concatenated", "distances", "packs", "whole"]

Distances = npt.NDArray[np.uint64]
"""Keys as their distances from a base."""

_NARROW: Final = 2**31
"""Distances below this are sent in four bytes."""
_NARROWEST: Final = 2**23
"""Distances below this are sent in three."""
_FLAGS: Final = {3: _NARROWEST, 4: _NARROW}
_MASK: Final = 2**64 - 1

_Base = int | sa.ColumnElement[Any]


def packs(kind: str) -> bool:
    """Whether a database of this kind can pack; SQLite runs in this process, so fetching rows is as good."""
    return kind != "sqlite"


class IntegerPacking:
    """Packs integer keys as distances from a base, none of which is greater than `reach`; `width` bytes for each."""

    def __init__(self, kind: str, *, reach: int = _NARROW - 1) -> None:
        self.width = 3 if reach < _NARROWEST else 4 if reach < _NARROW else 8
        self._kind = kind

    def packed(self, key: sa.ColumnElement[Any], base: _Base) -> sa.ColumnElement[Any]:
        """The aggregate of all keys of a query; NULLs are left out."""
        if self._kind == "postgresql":
            if self.width == 8:
                return concatenated(self._kind, sa.func.int8send(key))
            sent = sa.func.int4send(sa.cast(key - base, sa.Integer()))
            return concatenated(self._kind, sent if self.width == 4 else sa.func.substr(sent, sa.literal_column("2")))
        if self.width == 8:
            return concatenated(self._kind, _hexadecimal(key))
        # CHAR gives as many bytes as a number needs: with the highest bit set, always as many as the width.
        return concatenated(self._kind, sa.func.char(key - base + _FLAGS[self.width]))

    def words(self, word: sa.ColumnElement[Any], bits: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """The aggregate of words of 64 bits, each behind its number, which is below 2^31."""
        if self._kind == "postgresql":
            sent: sa.ColumnElement[Any] = sa.func.int4send(sa.cast(word, sa.Integer())).concat(sa.func.int8send(bits))
        else:
            sent = sa.func.concat(sa.func.char(word + _NARROW), _hexadecimal(bits))
        return concatenated(self._kind, sent)

    def unpack(self, data: bytes | None, count: int, base: int, end: Endpoint) -> Distances:
        """The distances of `count` keys. Raises ScanIncomplete where the bytes are not so many."""
        raw = whole(data, count, self.width, end)
        if self.width == 8:
            return np.frombuffer(raw, dtype=">u8").astype(np.uint64) - np.uint64(base & _MASK)
        if self.width == 3:
            padded = np.zeros((count, 4), dtype=np.uint8)
            padded[:, 1:] = np.frombuffer(raw, dtype=np.uint8).reshape(count, 3)
            raw = padded.tobytes()
        return np.frombuffer(raw, dtype=">u4").astype(np.uint64) - self._flag(self.width)

    def unpack_words(self, data: bytes | None, count: int, end: Endpoint) -> tuple[Distances, Distances]:
        """The numbers of `count` words and the words. Raises ScanIncomplete where the bytes are not so many."""
        pairs = np.frombuffer(whole(data, count, 12, end), dtype=[("word", ">u4"), ("bits", ">u8")])
        return pairs["word"].astype(np.uint64) - self._flag(4), pairs["bits"].astype(np.uint64)

    def _flag(self, width: int) -> np.uint64:
        return np.uint64(0 if self._kind == "postgresql" else _FLAGS[width])


def distances(keys: Sequence[int], base: int) -> Distances:
    """Of keys that were not packed."""
    return np.array([key - base for key in keys], dtype=np.uint64)


def concatenated(kind: str, sent: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """The aggregate of bytes, one after the other; NULLs are left out."""
    if kind == "postgresql":
        return sa.func.string_agg(sent, sa.literal_column("''::bytea", sa.LargeBinary()), type_=sa.LargeBinary())
    separated = sent.op("SEPARATOR")(sa.literal_column("''"))
    return sa.func.group_concat(separated, type_=sa.LargeBinary())


def whole(data: bytes | None, count: int, width: int, end: Endpoint) -> bytes:
    """The bytes of `count` keys of `width` bytes each. Raises ScanIncomplete where they are not so many."""
    raw = bytes(data or b"")
    if len(raw) != count * width:
        raise ScanIncomplete(
            f"{end}: {count} keys were counted and {len(raw) / width:g} arrived: the server has cut its answer short"
        )
    return raw


def _hexadecimal(number: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.func.unhex(sa.func.lpad(sa.func.hex(number), 16, "0"))
