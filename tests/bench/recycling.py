"""PostgreSQL databases are emptied, renamed and used again: making one costs three hundred files each time.

A database is used again only where that cannot be noticed: nobody is connected any more, and after its schemas are
dropped nothing is left in its catalogs. Under its new name, whoever still has the old one can reach nothing.
"""

from __future__ import annotations

import atexit
import os
from contextlib import closing
from typing import Any, Final

import psycopg
from psycopg import sql

from bench import engines
from bench.leftovers import owner_pid
from bench.waiting import eventually

__all__ = ["give_back", "take"]

DEPARTURE_S: Final = 0.5
"""How long a backend may take to notice that its client has closed the connection."""

LEFT_IN_CATALOGS: Final = """
    SELECT (SELECT count(*) FROM pg_namespace WHERE oid >= 16384 AND nspname <> 'public' AND nspname !~ '^pg_')
         + (SELECT count(*) FROM pg_class WHERE oid >= 16384)
         + (SELECT count(*) FROM pg_extension WHERE oid >= 16384)
         + (SELECT count(*) FROM pg_event_trigger)
         + (SELECT count(*) FROM pg_foreign_data_wrapper)
         + (SELECT count(*) FROM pg_largeobject_metadata)
         + (SELECT count(*) FROM pg_publication)
         + (SELECT count(*) FROM pg_db_role_setting AS s JOIN pg_database AS d ON d.oid = s.setdatabase
             WHERE d.datname = current_database())
"""
USER_SCHEMAS: Final = "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"

_idle: list[tuple[dict[str, Any], str]] = []


def take(server: dict[str, Any], name: str) -> None:
    """Make an empty database of this name, out of an idle one where there is one."""
    with closing(engines.connect(server)) as admin:
        while _idle:
            where, idle = _idle.pop()
            if where == server and owner_pid(idle) == os.getpid() and _renamed(admin, idle, name):
                return
        engines.create("postgresql", admin, name)


def give_back(server: dict[str, Any], name: str) -> None:
    """Keep the database for another test if it can be made like new; drop it otherwise."""
    with closing(engines.connect(server)) as admin:
        if _deserted(admin, name) and _emptied(server | {"database": name}):
            _idle.append((server, name))
        else:
            engines.drop("postgresql", admin, name)


@atexit.register
def drop_idle() -> None:
    """Drop what this process keeps; a fork's copy of the list is not its own."""
    while _idle:
        server, name = _idle.pop()
        if owner_pid(name) == os.getpid():
            with closing(engines.connect(server)) as admin:
                engines.drop("postgresql", admin, name)


def _renamed(admin: Any, old: str, new: str) -> bool:
    statement = sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(old), sql.Identifier(new))
    try:
        admin.execute(statement)
    except psycopg.errors.ObjectInUse:  # a leaked pool has connected to it again
        engines.drop("postgresql", admin, old)
        return False
    return True


def _deserted(admin: Any, name: str) -> bool:
    """Whether everybody has left; a client that has closed its connection may still be on its way out."""
    others = """
        SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname = %(name)s)
             + (SELECT count(*) FROM pg_prepared_xacts WHERE database = %(name)s)
    """

    def empty() -> bool:
        return bool(admin.execute(others, {"name": name}).fetchone()[0] == 0)

    try:
        return eventually(empty, within_s=DEPARTURE_S)
    except AssertionError:
        return False


def _emptied(config: dict[str, Any]) -> bool:
    """Drop all schemas, and say whether nothing is left."""
    with closing(engines.connect(config)) as inside:
        schemas = [row[0] for row in inside.execute(USER_SCHEMAS).fetchall()]
        drops = [sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)) for schema in schemas]
        inside.execute(sql.SQL("; ").join([*drops, sql.SQL("CREATE SCHEMA public")]))
        return bool(inside.execute(LEFT_IN_CATALOGS).fetchone()[0] == 0)
