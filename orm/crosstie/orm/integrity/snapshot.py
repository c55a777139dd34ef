"""One short transaction whose statements all see the same state of the database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa

from crosstie.orm.database import Database

__all__ = ["snapshot"]

_BEGIN: Final[dict[str, tuple[str, ...]]] = {
    # Deferred: `engine` would take the only write lock for a read.
    "sqlite": ("BEGIN",),
    "postgresql": ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",),
    "mysql": (
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
    ),
}


@contextmanager
def snapshot(database: Database) -> Iterator[sa.Connection]:
    """A connection inside such a transaction; ended with the block. Raises DatabaseUnavailable."""
    with database.mapped_errors(), database.autocommit.connect() as connection:
        for statement in _BEGIN["mysql" if database.kind == "mariadb" else database.kind]:
            connection.exec_driver_sql(statement)
        try:
            yield connection
        finally:
            if not connection.invalidated:
                connection.exec_driver_sql("ROLLBACK")
