"""Key lists of any length, cut where a server would refuse the statement that holds them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import InvalidQuery
from crosstie.orm.mapping import TableMapping

__all__ = ["MANY_VALUES", "divided", "portions", "require_packet"]

PACKET_BYTES: Final = 16 * 2**20
"""What MariaDB takes as one statement unless told otherwise (max_allowed_packet); MySQL takes four times as much."""
STATEMENT_BYTES: Final = PACKET_BYTES // 2
MANY_VALUES: Final = 10_000
"""So many are worth measuring."""
_PLAIN_BYTES: Final = 40
"""A number, a time or a UUID as text, with its quotes and comma."""


def portions(mapping: TableMapping, values: Sequence[Any]) -> list[Sequence[Any]]:
    """The values in lists that one statement on this model can hold; nearly always one list, none of no values.

    PostgreSQL and SQLite take a list of any length as one parameter; PyMySQL writes it into the statement's text.
    """
    if values and ConnectionManager.get(mapping.connection).kind in {"mysql", "mariadb"}:
        return list(divided(values, STATEMENT_BYTES))
    return [values] if values else []


def require_packet(column: str, values: Collection[Any]) -> None:
    """Raise InvalidQuery for values that MySQL and MariaDB would answer by closing the connection."""
    size = sum(map(_text_bytes, values))
    if size > PACKET_BYTES:
        raise InvalidQuery(
            f"{column}: expected a list of values whose text is at most {PACKET_BYTES} bytes, which is what MariaDB "
            f"takes as one statement, and found {len(values)} values of up to {size} bytes: divide the list."
        )


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
    if isinstance(value, int):
        return len(str(value)) + 2
    return 2 * len(value) + 12 if isinstance(value, bytes) else _PLAIN_BYTES
