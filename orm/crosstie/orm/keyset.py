"""Key lists of any length, cut where a server would refuse the statement that holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.mapping import TableMapping

__all__ = ["divided", "portions"]

STATEMENT_BYTES: Final = 8_000_000
"""Half of the smallest max_allowed_packet in use, PyMySQL's and MariaDB's 16 MiB."""
_PLAIN_BYTES: Final = 40
"""A number, a time or a UUID as text, with its quotes and comma."""


def portions(mapping: TableMapping, values: Sequence[Any]) -> list[Sequence[Any]]:
    """The values in lists that one statement on this model can hold; nearly always one list, none of no values.

    PostgreSQL and SQLite take a list of any length as one parameter; PyMySQL writes it into the statement's text.
    """
    if values and ConnectionManager.get(mapping.connection).kind in {"mysql", "mariadb"}:
        return list(divided(values, STATEMENT_BYTES))
    return [values] if values else []


def divided(values: Sequence[Any], limit_bytes: int) -> Iterator[Sequence[Any]]:
    """Consecutive parts whose text is within the limit; a value that is longer makes a part of its own."""
    begin = size = 0
    for position, value in enumerate(values):
        added = _text_bytes(value)
        if size + added > limit_bytes and position > begin:
            yield values[begin:position]
            begin, size = position, 0
        size += added
    yield values[begin:]


def _text_bytes(value: Any) -> int:
    if isinstance(value, str):
        return 2 * len(value.encode()) + 4  # each character may need a backslash
    return 2 * len(value) + 12 if isinstance(value, bytes) else _PLAIN_BYTES
