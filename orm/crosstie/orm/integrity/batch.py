"""How many keys one statement carries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, TypeVar

from crosstie.orm.database import Database

__all__ = ["batches", "rounds", "values_per_statement"]

T = TypeVar("T")

_VALUES: Final = {
    # From 1,000 values on MariaDB turns IN into a join with a derived table, which has other rules of collation.
    "mariadb": 900,
    "mysql": 900,
}


def values_per_statement(database: Database) -> int:
    """How many values an IN list may have: below the driver's limit of parameters, and quick to plan."""
    return _VALUES.get(database.kind, min(database.capabilities.parameter_limit, 5_000))


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Slices of at most `size` items (at least one)."""
    size = max(size, 1)
    for start in range(0, len(items), size):
        yield items[start : start + size]


def rounds(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """As many items as there are, `size` at a time, without holding more of them."""
    left = iter(items)
    while some := list(islice(left, size)):
        yield some
