"""Keys as events carry them: the JSON of a key's value, and the value again as a field's column takes it."""

from __future__ import annotations

from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from crosstie.orm.mapping import MappedField

__all__ = ["from_json", "to_json"]

_PLAIN: Final[dict[type, TypeAdapter[Any]]] = {
    kind: TypeAdapter(kind) for kind in (int, str, bool, float, UUID, Decimal, datetime, date, time)
}


def to_json(value: Any) -> Any:
    """The JSON of a key's value."""
    return to_jsonable_python(value, bytes_mode="hex")


def from_json(field: MappedField, key: Any) -> Any:
    """The value that this field's column is compared with."""
    if field.family is bytes:
        return bytes.fromhex(key.removeprefix("\\x"))  # so PostgreSQL spells bytes
    adapter = None if field.family is None else _PLAIN.get(field.family)
    # Not by the field's own rules, which a key that the database holds already need not meet.
    return field.coerce(key) if adapter is None else adapter.validate_python(key)
