"""How a MariaDB database that has crosstie's tables is made like new, over the connection to the server's own."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

import pymysql

from bench import engines

__all__ = ["Look", "look", "restored"]

Results = list[tuple[tuple[Any, ...], ...]]

TABLES: Final = """
    SELECT table_name, table_type, auto_increment FROM information_schema.tables
     WHERE table_schema = database() ORDER BY table_name
"""
PROGRAMS: Final = """
    SELECT routine_name, routine_type FROM information_schema.routines WHERE routine_schema = database()
    UNION ALL SELECT event_name, 'EVENT' FROM information_schema.events WHERE event_schema = database()
"""
KINDS: Final = {"BASE TABLE": "TABLE", "SYSTEM VERSIONED": "TABLE"}


@dataclass(frozen=True)
class Look:
    """A furnished database as it was made."""

    own: list[str]
    """Its tables."""
    kept: list[str]
    """Those that had rows."""
    shown: Results
    """What the server tells about them, and those rows."""


def look(admin: pymysql.Connection[Any], name: str) -> Look:
    """How a database looks that has been furnished and not used yet."""
    with closing(admin.cursor()) as cursor:
        _, tables = _results(cursor, [f"USE `{name}`", TABLES])
        own = [str(table[0]) for table in tables]
        counts = _results(cursor, [f"SELECT count(*) FROM `{table}`" for table in own])
        kept = [table for table, ((count,),) in zip(own, counts, strict=True) if count]
        showing = _showing(name, own, kept)
        return Look(own, kept, _results(cursor, [*showing, "USE mysql"])[: len(showing)])


def restored(admin: pymysql.Connection[Any], name: str, look: Look) -> bool:
    """Clear away what is not crosstie's, empty its tables, and say whether the database looks as it did.

    Raises MySQLError, after which the connection is not to be used again.
    """
    engines.disconnect(admin, name)
    with closing(admin.cursor()) as cursor:
        _, tables, programs = _results(cursor, [f"USE `{name}`", TABLES, PROGRAMS])
        others = [(kind, table) for table, kind, _ in tables if table not in look.own]
        moved = [table for table, _, counter in tables if table in look.own and (counter or 1) > 1]
        emptied = [table for table in look.own if table not in look.kept and table not in moved]
        clearing = [
            f"SET SESSION lock_wait_timeout = {engines.LOCK_TIMEOUT_S}",
            f"SET SESSION innodb_lock_wait_timeout = {engines.LOCK_TIMEOUT_S}",
            "SET SESSION foreign_key_checks = OFF",
            *(f"DROP {KINDS.get(kind, kind)} `{other}`" for kind, other in others),
            *(f"DROP {kind} `{program}`" for program, kind in programs),
            # So this waits for any transaction with a row here, even a prepared one whose connection is gone.
            "SET SESSION autocommit = OFF",
            f"LOCK TABLES {', '.join(f'`{table}` WRITE' for table in look.own)}",
            *(f"DELETE FROM `{table}`" for table in emptied),
            "COMMIT",
            *(f"TRUNCATE `{table}`" for table in moved),
            "UNLOCK TABLES",
            "SET SESSION autocommit = ON",
        ]
        showing = _showing(name, look.own, look.kept)
        shown = _results(cursor, [*clearing, *showing, "USE mysql"])
        return shown[len(clearing) : -1] == look.shown


def _showing(name: str, own: list[str], kept: list[str]) -> list[str]:
    return [
        f"SHOW CREATE DATABASE `{name}`",
        TABLES,
        PROGRAMS,
        "SHOW TRIGGERS",
        *(f"SHOW CREATE TABLE `{table}`" for table in own),
        *(f"SELECT * FROM `{table}`" for table in kept),
    ]


def _results(cursor: pymysql.cursors.Cursor, statements: list[str]) -> Results:
    """Of several statements, in one round trip."""
    cursor.execute("; ".join(statements))
    results = [cursor.fetchall()]
    while cursor.nextset():
        results.append(cursor.fetchall())
    return results
