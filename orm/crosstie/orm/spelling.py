"""How a key is spelt where keys of different databases are compared: in the records of sagas, and by audits."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import Any

__all__ = ["spell"]


def spell(value: Any) -> str | None:
    """The spelling that records of sagas give a key value; None for a type whose spelling depends on the database.

    UUIDs, in whatever form, become 32 hexadecimal digits; the padding of CHAR is dropped.
    """
    if isinstance(value, uuid.UUID):
        return value.hex
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        return None
    text = str(value).rstrip(" ")
    if len(text) in {32, 36}:
        try:
            return uuid.UUID(text).hex
        except ValueError:
            return text
    return text
