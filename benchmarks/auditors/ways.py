"""Each way finds the orphaned keys of a case, and returns how many there are. ImportError: it is not installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import sqlalchemy as sa

from auditors import tables
from auditors.tables import Case


def crosstie(case: Case) -> int:
    """The audit with all its checks and confirmations."""
    from crosstie.orm import ConnectionManager
    from crosstie.orm.integrity import audit_reference

    ConnectionManager.configure({name: tables.url(name).render_as_string(hide_password=False) for name in tables.URLS})
    result = audit_reference(tables.reference(case))
    assert result.reason is None, result.reason
    return result.orphan_keys


def crosstie_words(case: Case) -> int:
    """The same, as bits."""
    from crosstie.orm import ConnectionManager
    from crosstie.orm.integrity import Strategy, audit_reference

    ConnectionManager.configure({name: tables.url(name).render_as_string(hide_password=False) for name in tables.URLS})
    result = audit_reference(tables.reference(case), strategy=Strategy.WORDS)
    assert result.reason is None, result.reason
    return result.orphan_keys


def crosstie_changes(case: Case) -> int:
    """An audit of what has changed since the last one; it tells of all orphans that are known."""
    from crosstie.orm.integrity import AuditScope
    from crosstie.workers.audit import run_audit

    _configure_all()
    (result,) = run_audit([tables.reference(case)], scope=AuditScope.CHANGES).results
    assert result.reason is None, result.reason
    assert result.scope is AuditScope.CHANGES, result.notes
    return result.orphan_keys


def change(case: Case) -> None:
    """Have everything audited and changes noted by triggers, then add children to be looked at."""
    from crosstie.orm import ConnectionManager
    from crosstie.orm.integrity import AuditScope
    from crosstie.outbox.tables import create_tables
    from crosstie.workers.audit import run_audit
    from crosstie.workers.audit_triggers import create_noting

    _configure_all()
    for name in ConnectionManager.names():
        create_tables(ConnectionManager.get(name))
    create_noting(tables.reference(case))
    (result,) = run_audit([tables.reference(case)], scope=AuditScope.CHANGES).results
    assert result.reason is None, result.reason
    child = f"{case.kind}_child"
    with tables.engine(case.child).connect() as connection:
        connection.exec_driver_sql(
            f"INSERT INTO {child} SELECT id + (SELECT max(id) FROM {child}), fk FROM {child}"  # noqa: S608
            f" WHERE id <= {CHANGED}"
        )


def _configure_all() -> None:
    from crosstie.orm import ConnectionManager

    ConnectionManager.configure({name: tables.url(name).render_as_string(hide_password=False) for name in tables.URLS})


def reladiff(case: Case) -> int:
    """The diff of two tables by bisection with checksums; the table of distinct keys that it needs is part of it."""
    import reladiff as library

    keys = f"{case.kind}_keys"
    with tables.engine(case.child).connect() as connection:
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {keys}")
        connection.exec_driver_sql(f"CREATE TABLE {keys} AS SELECT DISTINCT fk AS id FROM {case.kind}_child")  # noqa: S608
        connection.exec_driver_sql(f"CREATE UNIQUE INDEX {keys}_id ON {keys} (id)")
    ends = [
        library.connect_to_table(
            tables.url(name).set(drivername=driver).render_as_string(hide_password=False), table, "id"
        )
        for name, table in ((case.child, keys), (case.parent, f"{case.kind}_parent"))
        for driver in ("mysql" if name == "mariadb" else name,)
    ]
    return sum(sign == "-" for sign, _ in library.diff_tables(*ends))


def duckdb(case: Case) -> int:
    """Both databases attached; its extensions have to be installed, or to be had from their repository."""
    import duckdb as library

    connection = library.connect()
    for name in tables.URLS:
        url = tables.url(name)
        kind = "mysql" if name == "mariadb" else "postgres"
        words = {"host": url.host, "port": url.port, "user": url.username, "password": url.password}
        words["database" if kind == "mysql" else "dbname"] = url.database
        given = " ".join(f"{word}={value}" for word, value in words.items() if value is not None)
        connection.execute(f"INSTALL {kind}; LOAD {kind}; ATTACH '{given}' AS {name} (TYPE {kind}, READ_ONLY)")
    schema = {"postgresql": "postgresql.public", "mariadb": f"mariadb.{tables.NAME}"}
    found = connection.execute(
        f"SELECT count(DISTINCT c.fk) FROM {schema[case.child]}.{case.kind}_child c"  # noqa: S608
        f" ANTI JOIN {schema[case.parent]}.{case.kind}_parent p ON p.id = c.fk WHERE c.fk IS NOT NULL"
    ).fetchone()
    assert found is not None
    return int(found[0])


def connectorx(case: Case) -> int:
    """Distinct keys of both ends as Arrow tables, joined in memory by polars."""
    import connectorx as library
    import polars as pl

    def frame(name: str, query: str) -> pl.DataFrame:
        url = tables.url(name).set(drivername="mysql" if name == "mariadb" else name)
        given = url.render_as_string(hide_password=False)
        found = pl.from_arrow(library.read_sql(given, query, return_type="arrow"))
        assert isinstance(found, pl.DataFrame)
        return found

    children = frame(case.child, f"SELECT DISTINCT fk AS id FROM {case.kind}_child WHERE fk IS NOT NULL")  # noqa: S608
    return len(children.join(frame(case.parent, f"SELECT id FROM {case.kind}_parent"), on="id", how="anti"))  # noqa: S608


def not_exists(case: Case) -> int:
    """PostgreSQL alone, with both tables in it: 1.00."""
    with tables.engine("postgresql").connect() as connection:
        connection.execute(sa.text(tables.anti_join(case))).scalar_one()
    return -1


CHANGED: Final = 10_000
"""Children that are written before an audit of changes."""
PREPARATIONS: Final[dict[str, Callable[[Case], None]]] = {"crosstie-changes": change}
"""What comes before a way in each round, in a process of its own, and is not measured."""
IMPORTS: Final = {
    "not-exists": ("psycopg",),
    "crosstie": ("crosstie.orm", "crosstie.orm.integrity", "psycopg", "pymysql"),
    "crosstie-words": ("crosstie.orm", "crosstie.orm.integrity", "psycopg", "pymysql"),
    "crosstie-changes": ("crosstie.workers.audit", "psycopg", "pymysql"),
    "duckdb": ("duckdb",),
    "connectorx": ("connectorx", "polars", "pyarrow"),
    "reladiff": ("reladiff", "psycopg2", "mysql.connector"),
}
"""What a way needs, imported before the time and the memory count."""
WAYS: Final[dict[str, Callable[[Case], int]]] = {
    "not-exists": not_exists,
    "crosstie": crosstie,
    "crosstie-words": crosstie_words,
    "crosstie-changes": crosstie_changes,
    "duckdb": duckdb,
    "connectorx": connectorx,
    "reladiff": reladiff,
}
