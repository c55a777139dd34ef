"""Images of rows in the database's own representation, as JSON.

An image must come back exactly, in a worker that may not know the model, for columns that no model declares. So values
never pass through a model's types. PostgreSQL gives and takes every type as text; for the others the driver's own
value is kept, tagged where JSON has no such type. Images are compared in Python, value by value, read the same way
both times: no collation, padding or JSON formatting of a server decides whether a row was changed.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from crosstie.orm.database import Database
from crosstie.orm.spelling import spell

__all__ = ["Image", "decode", "dump", "encode", "key_text", "load", "plain_key", "projection"]

Image = dict[str, Any]
"""Column name → encoded value."""


def projection(database: Database, columns: Mapping[str, str]) -> list[sa.ColumnElement[Any]]:
    """The select list that reads these columns (name → the server's type name) in the database's representation."""
    return [_expression(database.kind, name, kind).label(name) for name, kind in columns.items()]


def _expression(dialect: str, name: str, kind: str) -> sa.ColumnElement[Any]:
    column: sa.ColumnElement[Any] = sa.column(name)
    if dialect == "postgresql":
        return sa.cast(column, sa.Text)
    if kind.lower() == "float" and dialect in {"mysql", "mariadb"}:
        # A single-precision FLOAT is printed with six digits and would come back as another number.
        return column + sa.literal_column("0e0")
    return column


def plain_key(database: Database, table: sa.Table, key: tuple[Any, ...]) -> Image | None:
    """The image of a primary key made of its Python values; None where only the server knows how it is represented."""
    image: Image = {}
    for column, value in zip(table.primary_key, key, strict=True):
        is_text = type(value) is str and isinstance(column.type, sa.String) and not isinstance(column.type, sa.Enum)
        if not is_text and not (type(value) is int and isinstance(column.type, sa.Integer)):
            return None
        image[column.name] = str(value) if database.kind == "postgresql" else value
    return image


def encode(value: Any) -> Any:
    """A driver's value as JSON. Raises TypeError for a type that would not come back the same."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, Decimal):
        return {"decimal": str(value)}
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytes": base64.b64encode(bytes(value)).decode("ascii")}
    if isinstance(value, datetime):
        return {"datetime": value.isoformat()}
    if isinstance(value, date):
        return {"date": value.isoformat()}
    if isinstance(value, time):
        return {"time": value.isoformat()}
    if isinstance(value, timedelta):
        return {"timedelta": [value.days, value.seconds, value.microseconds]}
    if isinstance(value, uuid.UUID):
        return {"uuid": str(value)}
    raise TypeError(f"expected a value that JSON can carry exactly, found {type(value).__name__}")


_DECODERS: dict[str, Any] = {
    "float": float.fromhex,
    "decimal": Decimal,
    "bytes": base64.b64decode,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda parts: timedelta(*parts),
    "uuid": uuid.UUID,
}


def decode(value: Any) -> Any:
    """The driver's value that `encode` was given."""
    if not isinstance(value, dict):
        return value
    ((tag, inner),) = value.items()
    return _DECODERS[tag](inner)


def dump(entries: Iterable[Mapping[str, Any]]) -> str:
    """Undo entries as the text of the `undo` column."""
    return json.dumps(list(entries), separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def load(text: str) -> list[dict[str, Any]]:
    """The entries that `dump` wrote."""
    loaded: list[dict[str, Any]] = json.loads(text)
    return loaded


def key_text(value: Any) -> str:
    """One spelling for a key value, however its database stores it: to match keys of different databases.

    UUIDs (native, CHAR(32), CHAR(36), BINARY(16)) become 32 hexadecimal digits; CHAR padding is dropped.
    """
    if isinstance(value, dict):
        value = decode(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    spelt = spell(value)
    return str(value) if spelt is None else spelt
