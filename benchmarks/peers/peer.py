"""What an ORM has to do to be measured: one class with a method for each row of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import sqlalchemy as sa

__all__ = ["METADATA", "Peer", "Target"]


@dataclass(frozen=True)
class Target:
    """A database to measure on."""

    kind: str
    database: str
    host: str = ""
    port: int = 0
    user: str = ""
    password: str = ""


METADATA = sa.MetaData()
sa.Table(
    "bench_item",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(80), nullable=False),
    sa.Column("email", sa.String(120), nullable=False),
    sa.Column("age", sa.Integer, nullable=False),
    sa.Column("score", sa.Double, nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
)
sa.Table(
    "bench_author",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(80), nullable=False),
)
sa.Table(
    "bench_book",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("author_id", sa.Integer, nullable=False, index=True),
    sa.Column("title", sa.String(80), nullable=False),
)
sa.Table(
    "bench_note",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("title", sa.String(80), nullable=False),
    sa.Column("body", sa.String(200), nullable=False),
    sa.Column("n", sa.Integer, nullable=False),
)


class Peer:
    """One ORM, open on one database whose tables are there; a method does its row as the ORM's manual would.

    What a method returns is checked: an ORM that is fast because it did something else would show.
    """

    name: ClassVar[str]
    distribution: ClassVar[str]
    kinds: ClassVar[frozenset[str]] = frozenset({"postgresql", "mariadb", "sqlite"})

    def __init__(self, target: Target) -> None:
        raise NotImplementedError

    def load(self) -> Sequence[Any]:
        """All rows of bench_item as objects; what must live for them to live is kept by them or by the list."""
        raise NotImplementedError

    def eager(self) -> int:
        """All authors with their books, which are then walked through; returns the number of books."""
        raise NotImplementedError

    def get(self, keys: Sequence[int]) -> int:
        """One item by its key, again and again; returns the sum of their keys."""
        raise NotImplementedError

    def insert(self, count: int) -> None:
        """So many notes, each in a transaction of its own."""
        raise NotImplementedError

    def update(self, keys: Sequence[int]) -> None:
        """For each key: load the note, add 1 to `n`, save it, in a transaction of its own."""
        raise NotImplementedError

    def bulk(self, count: int) -> None:
        """So many notes, made as objects and stored in one transaction."""
        raise NotImplementedError

    def close(self) -> None:
        """Give connections back."""
