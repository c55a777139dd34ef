"""How a PostgreSQL database is made like new: emptied and renamed, because making one costs three hundred files.

A furnished one keeps crosstie's tables, unless anybody has changed a row of the catalogs about them. Their own rows are
deleted: TRUNCATE would make all files anew.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

from bench import engines
from bench.waiting import eventually

__all__ = ["Look", "deserted", "emptied", "look", "renamed", "restored"]

DEPARTURE_S: Final = 0.5
"""How long a backend may take to notice that its client has closed the connection."""

OTHERS: Final = """
    SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname = %(name)s)
         + (SELECT count(*) FROM pg_prepared_xacts WHERE database = %(name)s)
"""
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

RELATIONS: Final = """
    SELECT relname, relkind::text, CASE WHEN relkind = 'r' THEN pg_relation_size(oid) END
      FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'f', 'v', 'm', 'S')
     ORDER BY relkind = 'S'  -- those of identity columns go with their tables, and cannot go alone
"""
ROUTINES: Final = "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
KINDS: Final = {"f": "FOREIGN TABLE", "v": "VIEW", "m": "MATERIALIZED VIEW", "S": "SEQUENCE"}
MANY_BYTES: Final = 200_000
"""Of one table, whose deleted rows leave their pages behind."""

CATALOGS: Final = {
    "pg_attribute": "attrelid >= 16384",
    "pg_class": "oid >= 16384",
    "pg_constraint": "oid >= 16384",
    "pg_default_acl": "true",
    "pg_depend": "objid >= 16384",
    "pg_foreign_data_wrapper": "true",
    "pg_index": "indexrelid >= 16384",
    "pg_largeobject_metadata": "true",
    "pg_namespace": "nspname !~ '^pg_'",
    "pg_publication": "true",
    "pg_sequence": "true",
    "pg_statistic": "starelid >= 16384",
}
"""Where whatever a test may make or change has a row, mostly in pg_depend; and which rows are not the server's own."""
# Whoever writes a row leaves the number of a later transaction in it, so the sum is another even if a change is undone.
# Vacuum alone writes its estimates in place.
LOOK: Final = (
    "SELECT 'estimates', sum(relpages), sum(reltuples)::bigint FROM pg_class WHERE oid >= 16384"
    " UNION ALL SELECT 'settings', count(*), 0 FROM pg_db_role_setting AS s JOIN pg_database AS d"
    " ON d.oid = s.setdatabase WHERE d.datname = current_database()"
) + "".join(
    f" UNION ALL SELECT '{catalog}', count(*), sum(xmin::text::bigint) FROM {catalog} WHERE {condition}"
    for catalog, condition in CATALOGS.items()
)


@dataclass(frozen=True)
class Look:
    """A furnished database as it was made."""

    own: list[str]
    """Its tables and sequences."""
    kept: list[str]
    """Those that had rows."""
    rows: list[tuple[Any, ...]]
    """What the catalogs count, and those rows."""


def renamed(admin: psycopg.Connection[Any], old: str, new: str) -> bool:
    """Rename a database; False where somebody is connected to it."""
    if not deserted(admin, old):  # whoever made it like new may be on the way out; the server would wait for long
        return False
    statement = sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(old), sql.Identifier(new))
    try:
        admin.execute(statement)
    except psycopg.errors.ObjectInUse:
        return False
    return True


def deserted(admin: psycopg.Connection[Any], name: str) -> bool:
    """Whether everybody has left; a client that has closed its connection may still be on its way out."""

    def empty() -> bool:
        row = admin.execute(OTHERS, {"name": name}).fetchone()
        return row is not None and row[0] == 0

    try:
        return eventually(empty, within_s=DEPARTURE_S)
    except AssertionError:
        return False


def emptied(config: dict[str, Any]) -> bool:
    """Drop all schemas, and say whether nothing is left."""
    with closing(engines.connect(config)) as inside:
        schemas = [row[0] for row in inside.execute(USER_SCHEMAS).fetchall()]
        drops = [sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)) for schema in schemas]
        inside.execute(sql.SQL("; ").join([*drops, sql.SQL("CREATE SCHEMA public")]))
        return bool(inside.execute(LEFT_IN_CATALOGS).fetchone()[0] == 0)


def look(config: dict[str, Any]) -> Look:
    """How a database looks that has been furnished and not used yet."""
    with closing(engines.connect(config)) as inside:
        own = [name for name, _, _ in inside.execute(RELATIONS).fetchall()]
        kept = [name for name in own if inside.execute(f"SELECT EXISTS (SELECT FROM {name})").fetchone()[0]]
        return Look(own, kept, _rows(inside, kept))


def restored(config: dict[str, Any], look: Look) -> bool:
    """Clear away what is not crosstie's, empty its tables, and say whether the database looks as it did."""
    with closing(engines.connect(config)) as inside:
        statements: list[sql.Composable] = []
        for name, kind, size in inside.execute(RELATIONS).fetchall():
            if name not in look.own:
                drop = sql.SQL("DROP {} IF EXISTS {} CASCADE")  # another's CASCADE may have reached it
                statements.append(drop.format(sql.SQL(KINDS.get(kind, "TABLE")), sql.Identifier(name)))
            elif kind == "S":
                statements.append(sql.SQL("SELECT setval({}, 1, false)").format(name))
            elif size > MANY_BYTES:
                return False
            elif size and name not in look.kept:
                statements.append(sql.SQL("DELETE FROM {}").format(sql.Identifier(name)))
        routines = inside.execute(ROUTINES).fetchall()
        statements += [sql.SQL(f"DROP ROUTINE IF EXISTS {signature} CASCADE") for (signature,) in routines]
        inside.execute(sql.SQL("; ").join(statements))
        return _rows(inside, look.kept) == look.rows


def _rows(inside: psycopg.Connection[Any], kept: list[str]) -> list[tuple[Any, ...]]:
    rows = inside.execute(LOOK).fetchall()
    return rows + [row for name in kept for row in inside.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall()]
