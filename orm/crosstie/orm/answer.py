"""What a statement was answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["Answer"]


class Answer(NamedTuple):
    """`rows` are the driver's own tuples, and the first two of each column's `description` its name and type code."""

    rows: Sequence[Any]
    description: Sequence[Sequence[Any]]
    rowcount: int
    lastrowid: Any = None
    tag: str = ""
    """Of PostgreSQL, that of the last command."""
