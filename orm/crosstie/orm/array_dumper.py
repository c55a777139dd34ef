"""Lists as arrays of PostgreSQL: psycopg writes them value by value, which for long ones takes longer than the server.

Here a list without lists in it is written at once.
https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
"""

from __future__ import annotations

from types import NoneType
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from psycopg.abc import Buffer
from psycopg.types.array import ListDumper
from sqlalchemy import event

__all__ = ["ArrayDumper", "write_arrays_at_once"]

_PLAIN: Final = frozenset({int, float, bool})
"""Nothing of these ever needs quotes."""
_NEXT: Final = b"\0,"
_NULL: Final = b"\0N"
"""No text of PostgreSQL has a zero byte, so these marks are in no value."""


class ArrayDumper(ListDumper):
    """Writes the arrays that psycopg's own writes, with quotes around every value that may need them."""

    def dump(self, obj: list[Any]) -> Buffer | None:
        """The array as text. Raises as psycopg's does."""
        types = set(map(type, obj)) - {NoneType}
        if self.sub_dumper is None or len(types) != 1 or issubclass(kind := types.pop(), list):
            return super().dump(obj)
        dump = self.sub_dumper.dump
        values = [_NULL if value is None or (data := dump(value)) is None else data for value in obj]
        if kind in _PLAIN:
            return b"{" + self.delimiter.join(values).replace(_NULL, b"NULL") + b"}"
        escaped = _NEXT.join(values).replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        quoted = b'"' + escaped.replace(_NEXT, b'"' + self.delimiter + b'"') + b'"'
        return b"{" + quoted.replace(b'"' + _NULL + b'"', b"NULL") + b"}"


def write_arrays_at_once(engine: sa.Engine) -> None:
    """Have new connections of an engine do so."""

    def connected(dbapi_connection: Any, _: object) -> None:
        if isinstance(dbapi_connection, psycopg.Connection):
            dbapi_connection.adapters.register_dumper(list, ArrayDumper)

    event.listen(engine, "connect", connected)
