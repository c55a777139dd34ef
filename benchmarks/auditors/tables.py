"""The same children and parents in a PostgreSQL and in a MariaDB database, so that either may be the child's.

Parents are numbered from 1; of every thousand one is missing. Children name them by a formula that both servers know,
so some 92 % of the parents have children, two and a half on average.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from crosstie.orm.integrity import AuditedReference, Endpoint

NAME: Final = os.environ.get("CROSSTIE_BENCH_DATABASE", "crosstie_bench_audit")
URLS: Final = {
    "postgresql": os.environ.get("CROSSTIE_BENCH_POSTGRESQL_URL", "postgresql://root@127.0.0.1:5432/test"),
    "mariadb": os.environ.get("CROSSTIE_BENCH_MARIADB_URL", "mariadb://root@127.0.0.1:3306/test"),
}
_DRIVERS: Final = {"postgresql": "postgresql+psycopg", "mariadb": "mariadb+pymysql"}
_GAP: Final = 1000


@dataclass(frozen=True)
class Case:
    """What is audited: the tables `<kind>_child` in one database and `<kind>_parent` in another."""

    title: str
    kind: str
    child: str
    parent: str
    promised: float
    """Ratio to PostgreSQL's own NOT EXISTS that an audit is to keep below."""


CASES: Final = {
    "integer": Case("integer keys, child in PostgreSQL", "integer", "postgresql", "mariadb", 0.60),
    "integer-mariadb": Case("integer keys, child in MariaDB", "integer", "mariadb", "postgresql", 0.80),
    "uuid": Case("UUID keys, child in PostgreSQL", "uuid", "postgresql", "mariadb", 0.90),
    "no-index": Case("no index on the foreign key", "bare", "postgresql", "mariadb", 3.0),
}


def url(database: str, *, driver: bool = False) -> sa.URL:
    """The benchmark's own database on a server; with `driver`, as SQLAlchemy wants it."""
    given = sa.make_url(URLS[database]).set(database=NAME)
    return given.set(drivername=_DRIVERS[database]) if driver else given


def engine(database: str) -> sa.Engine:
    """In autocommit, for what is done without crosstie."""
    arguments = {"ssl_disabled": True} if database == "mariadb" else {}
    return sa.create_engine(url(database, driver=True), isolation_level="AUTOCOMMIT", connect_args=arguments)


def create(children: int, kinds: set[str]) -> None:
    """Make both databases anew, filled, indexed and analysed."""
    drop()
    for database in URLS:
        _on_server(database, f"CREATE DATABASE {NAME}")
        with engine(database).connect() as connection:
            for kind in sorted(kinds):
                for statement in _statements(database, kind, children):
                    connection.exec_driver_sql(statement)


def drop() -> None:
    """Drop both databases, whoever is connected."""
    _on_server("postgresql", f"DROP DATABASE IF EXISTS {NAME} WITH (FORCE)")
    _on_server("mariadb", f"DROP DATABASE IF EXISTS {NAME}")


def reference(case: Case) -> AuditedReference:
    """The reference of a case; connections are called as their databases."""
    declared = sa.Uuid() if case.kind == "uuid" else sa.BigInteger()
    child = sa.Table(
        f"{case.kind}_child", sa.MetaData(), sa.Column("id", sa.BigInteger, primary_key=True), sa.Column("fk", declared)
    )
    parent = sa.Table(f"{case.kind}_parent", sa.MetaData(), sa.Column("id", declared, primary_key=True))
    return AuditedReference.between(Endpoint(case.child, child, child.c.fk), Endpoint(case.parent, parent, parent.c.id))


def anti_join(case: Case, what: str = "count(*)") -> str:
    """The question that a database can answer alone, if it has both tables."""
    child, parent = f"{case.kind}_child", f"{case.kind}_parent"
    return (
        f"SELECT {what} FROM {child} c WHERE c.fk IS NOT NULL"  # noqa: S608 - names of the benchmark's own
        f" AND NOT EXISTS (SELECT 1 FROM {parent} p WHERE p.id = c.fk)"
    )


def _statements(database: str, kind: str, children: int) -> list[str]:
    parents = children * 2 // 5
    source = "generate_series(1, {0}) n" if database == "postgresql" else "(SELECT seq AS n FROM seq_1_to_{0}) s"
    number = f"(1 + mod(mod(n * 2654435761, 4294967291), {parents}))"
    column = "UUID" if kind == "uuid" else "BIGINT"
    key, own = (_uuid(database, number), _uuid(database, "n")) if kind == "uuid" else (number, "n")
    analyze = "VACUUM ANALYZE {}" if database == "postgresql" else "ANALYZE TABLE {}"
    tables = [f"{kind}_child", f"{kind}_parent"]
    return [
        f"CREATE TABLE {tables[0]} (id BIGINT PRIMARY KEY, fk {column})",
        f"CREATE TABLE {tables[1]} (id {column} PRIMARY KEY)",
        f"INSERT INTO {tables[0]} SELECT n, {key} FROM {source.format(children)}",  # noqa: S608 - as above
        f"INSERT INTO {tables[1]} SELECT {own} FROM {source.format(parents)} WHERE mod(n, {_GAP}) <> 0",  # noqa: S608
        *([] if kind == "bare" else [f"CREATE INDEX {tables[0]}_fk ON {tables[0]} (fk)"]),
        *(analyze.format(table) for table in tables),
    ]


def _uuid(database: str, number: str) -> str:
    """A UUID that looks random, of version 4."""
    text = f"md5(({number})::bigint::text)" if database == "postgresql" else f"md5({number})"
    joined = f"concat(substr({text}, 1, 12), '4', substr({text}, 14, 3), 'a', substr({text}, 18))"
    return f"{joined}::uuid" if database == "postgresql" else joined


def _on_server(database: str, statement: str) -> None:
    given = sa.make_url(URLS[database]).set(drivername=_DRIVERS[database])
    arguments = {"ssl_disabled": True} if database == "mariadb" else {}
    server = sa.create_engine(given, isolation_level="AUTOCOMMIT", connect_args=arguments)
    with server.connect() as connection:
        connection.exec_driver_sql(statement)
    server.dispose()
