"""Which version of crosstie's tables a database has: the table `crosstie_schema`, one row for each version applied."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.outbox.migrations.ddl import create_missing, drop_existing
from crosstie.outbox.upsert import insert_if_absent

__all__ = ["forget", "history", "record", "recorded_version"]

# Older and newer versions of crosstie must be able to read it, so it has no versions itself and stays as it is.
history: Final = sa.Table(
    "crosstie_schema",
    sa.MetaData(),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("applied_at_ms", sa.BigInteger, nullable=False),
    mysql_engine="InnoDB",
    mysql_charset="utf8mb4",
    mysql_collate="utf8mb4_bin",
    mariadb_engine="InnoDB",
    mariadb_charset="utf8mb4",
    mariadb_collate="utf8mb4_bin",
)


def recorded_version(connection: sa.Connection) -> int:
    """The highest version that was applied and not taken back; 0 where there is none."""
    if not sa.inspect(connection).has_table(history.name):
        return 0
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(history.c.version), 0))).scalar_one())


def record(connection: sa.Connection, version: int) -> None:
    """Note that a version was applied; noted already, it stays as it was."""
    create_missing(connection, [history])
    insert_if_absent(connection, history, {"version": version, "applied_at_ms": now_ms()})


def forget(connection: sa.Connection, version: int) -> None:
    """Note that a version was taken back; with the first one the table goes too."""
    connection.execute(sa.delete(history).where(history.c.version == version))
    if version == 1:
        drop_existing(connection, [history])
