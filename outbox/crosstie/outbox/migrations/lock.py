"""One process at a time changes crosstie's tables in a database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa

from crosstie.orm.errors import LockTimeout

__all__ = ["alone"]

WAIT_S: Final = 60


@contextmanager
def alone(connection: sa.Connection) -> Iterator[None]:
    """Keep other processes from changing at the same time; IF NOT EXISTS does not save the loser from an error.

    May be nested. On PostgreSQL the lock lasts until the caller's transaction ends; on MySQL and MariaDB, where DDL has
    committed anyway, the rest is committed before it is given back. Raises LockTimeout.
    """
    if connection.dialect.name == "sqlite":
        yield  # the transaction has the database to itself
    elif connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext("crosstie tables"))))
        yield
    else:
        # DDL commits on MySQL and MariaDB, so the lock is the session's. It counts for the whole server.
        name = sa.func.concat("crosstie_tables_", sa.func.md5(sa.func.database()))
        if connection.execute(sa.select(sa.func.get_lock(name, WAIT_S))).scalar_one() != 1:
            raise LockTimeout(
                f"expected to change crosstie's tables alone, and another process has been at it for {WAIT_S} s: "
                "let it finish, or end its session in the database, and repeat."
            )
        try:
            yield
            # Else the next process would find the tables made and the note of their version not yet there. SQLAlchemy
            # must not end its transaction, which may be the caller's block.
            connection.exec_driver_sql("COMMIT")
        finally:
            connection.execute(sa.select(sa.func.release_lock(name)))
