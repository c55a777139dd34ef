"""crosstie's tables in a fresh database, faster than `create_tables` makes them.

What that sends to the first database of a kind is taken down and sent to the others as it was: most of its time goes
into asking what is there already. What it does with a database that is not empty is tested elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event

from bench import engines
from bench.engines import DatabaseKind

if TYPE_CHECKING:
    from bench.databases import TestDatabase

__all__ = ["fill", "fill_new_file", "make_tables"]

_sent: Final[dict[DatabaseKind, list[str]]] = {}
_files: Final[list[bytes]] = []
"""One SQLite file with nothing but crosstie's tables, once there is one."""


def make_tables(name: str, database: TestDatabase) -> None:
    """See to crosstie's tables in the database configured under this name, and have a connection to it pooled."""
    from crosstie.orm.connection import ConnectionManager
    from crosstie.outbox.tables import create_tables

    configured = ConnectionManager.get(name)
    if database.tables.asked_for:
        create_tables(configured)  # what the test has done to them since is not known
        return
    database.tables.asked_for = True
    if not database.tables.furnished:
        fill(database.direct)
    with configured.engine.connect():  # as `create_tables` leaves one
        pass


def fill(config: Mapping[str, Any]) -> None:
    """Make crosstie's tables in a database that has none of them; `config` is one of `TestDatabase`."""
    kind: DatabaseKind = config["driver"]
    if kind not in _sent:
        _sent[kind] = _recorded(config)
        return
    with closing(engines.connect(config)) as connection, closing(connection.cursor()) as cursor:
        if kind == "postgresql":  # in one round trip, which is one transaction
            cursor.execute(";".join(_sent[kind]))
        else:
            if kind == "sqlite":
                cursor.execute("PRAGMA synchronous = OFF")
                cursor.execute("BEGIN IMMEDIATE")
            for statement in _sent[kind]:
                cursor.execute(statement)
            if kind == "sqlite":
                cursor.execute("COMMIT")


def fill_new_file(config: Mapping[str, Any]) -> None:
    """Make a SQLite file that has crosstie's tables, in the journal mode that crosstie gives it when it connects."""
    if not _files:
        fill(config)
        with closing(engines.connect(config)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        _files.append(Path(config["database"]).read_bytes())
    else:
        Path(config["database"]).write_bytes(_files[0])


def _recorded(config: Mapping[str, Any]) -> list[str]:
    """Let `create_tables` make them, and return the statements with which it did."""
    from crosstie.orm.configuration import load_settings
    from crosstie.orm.database import Database
    from crosstie.outbox.tables import create_tables

    database = Database("default", load_settings({"default": dict(config)}).connections["default"])
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        if statement.lstrip().startswith(("CREATE", "INSERT", "ALTER")):
            statements.append(_with_values(statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        create_tables(database)
    finally:
        database.dispose()
    return statements


def _with_values(statement: str, parameters: Any) -> str:
    """Put the parameters into the text; there is one alone, the version."""
    if not parameters:
        return statement
    (value,) = parameters.values() if isinstance(parameters, dict) else parameters
    if not isinstance(value, int):
        raise TypeError(f"expected the number of a version in {statement!r}, found {value!r}")
    placeholder = f"%({next(iter(parameters))})s" if isinstance(parameters, dict) else "?"
    assert statement.count(placeholder) == 1, statement
    return statement.replace(placeholder, str(value))
