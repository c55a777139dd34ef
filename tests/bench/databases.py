"""A fresh database for each test, read back through connections that the code under test has no part in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

from sqlalchemy.engine import URL

from bench import engines, recycling, schema
from bench.engines import KINDS, DatabaseKind
from bench.leftovers import unique_name
from bench.servers import require

__all__ = [
    "CONNECTION_NAMES",
    "KINDS",
    "DatabaseKind",
    "DatabaseSet",
    "HasPort",
    "Pair",
    "Solo",
    "TestDatabase",
    "Trio",
    "fresh_database",
]

CONNECTION_NAMES: Final = ("default", "secondary", "tertiary")
URL_DRIVERS: Final = {
    "sqlite": "sqlite+pysqlite",
    "postgresql": "postgresql+psycopg",
    "mariadb": "mariadb+pymysql",
}


class HasPort(Protocol):
    """What `proxied` needs of a proxy: it listens at 127.0.0.1 on this port."""

    @property
    def port(self) -> int:
        """The TCP port."""


@dataclass
class Tables:
    """Whether a database has crosstie's tables: from the start, and since a configuration asked for them."""

    furnished: bool = False
    asked_for: bool = False


@dataclass(frozen=True)
class TestDatabase:
    """One database, a test's own as long as it runs.

    `config` is what `ConnectionManager.configure` takes for a connection. Statements run here use a raw
    connection of their own in autocommit, so they see only what is durable; placeholders are `%s` on every kind.
    """

    __test__ = False

    kind: DatabaseKind
    name: str
    config: dict[str, Any]
    direct: dict[str, Any] = field(repr=False)
    tables: Tables = field(default_factory=Tables, repr=False)

    @property
    def url(self) -> str:
        """The SQLAlchemy URL, password included."""
        parts = {key: value for key, value in self.config.items() if key != "driver"}
        return URL.create(URL_DRIVERS[self.kind], **parts).render_as_string(hide_password=False)

    @contextmanager
    def connect(self) -> Iterator[Any]:
        """A raw driver connection in autocommit, past any proxy, closed at the end of the block."""
        with closing(engines.connect(self.direct)) as connection:
            yield connection

    def execute(self, statement: str, params: Sequence[object] = ()) -> int:
        """Run one statement durably and return how many rows it touched."""
        with self.connect() as connection, closing(connection.cursor()) as cursor:
            self._run(cursor, statement, params)
            return int(cursor.rowcount)

    def execute_many(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row, all in one transaction: for seeding."""
        with self.connect() as connection, closing(connection.cursor()) as cursor:
            cursor.execute("BEGIN")
            cursor.executemany(self._with_placeholders(statement), list(rows))
            cursor.execute("COMMIT")

    def rows(self, statement: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self.connect() as connection, closing(connection.cursor()) as cursor:
            self._run(cursor, statement, params)
            return [tuple(row) for row in cursor.fetchall()]

    def scalar(self, statement: str, params: Sequence[object] = ()) -> Any:
        """The first column of the first row; None where there is no row."""
        rows = self.rows(statement, params)
        return rows[0][0] if rows else None

    def end_sessions(self) -> None:
        """Have the server end every connection to this database but the one that asks."""
        if self.kind == "sqlite":
            raise ValueError("a SQLite file has no server that could end a session")
        with self.connect() as connection:
            if self.kind == "postgresql":
                others = "datname = current_database() AND pid <> pg_backend_pid()"
                connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
            else:
                engines.disconnect(connection, self.name)

    def proxied(self, proxy: HasPort) -> TestDatabase:
        """The same database reached through a proxy; statements run here still go past the proxy."""
        if self.kind == "sqlite":
            raise ValueError("a SQLite file is not reached over TCP: no proxy can stand before it")
        return replace(self, config=self.config | {"host": "127.0.0.1", "port": proxy.port})

    def _run(self, cursor: Any, statement: str, params: Sequence[object]) -> None:
        if params:
            cursor.execute(self._with_placeholders(statement), tuple(params))
        else:  # so a `%` in a statement without parameters needs no doubling
            cursor.execute(statement)

    def _with_placeholders(self, statement: str) -> str:
        return statement.replace("%s", "?") if self.kind == "sqlite" else statement


class DatabaseSet:
    """Several databases of one test under the connection names `default`, `secondary`, `tertiary`."""

    __test__ = False

    @property
    def databases(self) -> tuple[TestDatabase, ...]:
        """In the order of the connection names."""
        raise NotImplementedError

    @property
    def by_name(self) -> dict[str, TestDatabase]:
        """The databases by connection name."""
        return dict(zip(CONNECTION_NAMES, self.databases, strict=False))

    @property
    def configuration(self) -> dict[str, dict[str, Any]]:
        """What `ConnectionManager.configure` takes."""
        return {name: database.config for name, database in self.by_name.items()}

    @property
    def environment(self) -> dict[str, str]:
        """The same for a child process."""
        return {"CROSSTIE_CONNECTIONS": json.dumps(self.configuration)}


@dataclass(frozen=True)
class Solo(DatabaseSet):
    """One database, configured as `default`."""

    first: TestDatabase

    @property
    def databases(self) -> tuple[TestDatabase, ...]:
        """The one."""
        return (self.first,)


@dataclass(frozen=True)
class Pair(DatabaseSet):
    """Two databases: `first` is configured as `default`, `second` as `secondary`."""

    first: TestDatabase
    second: TestDatabase

    @property
    def databases(self) -> tuple[TestDatabase, ...]:
        """Both."""
        return (self.first, self.second)


@dataclass(frozen=True)
class Trio(DatabaseSet):
    """Three databases: `first` is configured as `default`, `second` as `secondary`, `third` as `tertiary`."""

    first: TestDatabase
    second: TestDatabase
    third: TestDatabase

    @property
    def databases(self) -> tuple[TestDatabase, ...]:
        """All three."""
        return (self.first, self.second, self.third)


@contextmanager
def fresh_database(kind: DatabaseKind, folder: Path, *, furnished: bool = False) -> Iterator[TestDatabase]:
    """A database that nobody else has, empty or with crosstie's tables alone; dropped or made like new at the end.

    SQLite files lie in `folder`. Skips the test (fails it in CI) where the server is missing.
    """
    tables = Tables(furnished)
    if kind == "sqlite":
        name = unique_name()
        file = {"driver": "sqlite", "database": str(folder / f"{name}.sqlite3")}
        if furnished:
            schema.fill_new_file(file)
        yield TestDatabase(kind, name, file, file, tables)
        return
    server = engines.server_config(kind, require(kind))
    name = recycling.take(server, furnished=furnished)
    config = server | {"database": name}
    try:
        yield TestDatabase(kind, name, config, config, tables)
    finally:
        recycling.give_back(server, name)
