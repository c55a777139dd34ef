"""crosstie's tables in a fresh database, faster than `create_tables` makes them.

What that sends to the first database of a kind is taken down and sent to the others as it was: most of its time goes
into asking what is there already. What it does with a database that is not empty is tested elsewhere.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any, Final

from sqlalchemy import event

from bench.databases import TestDatabase
from bench.engines import DatabaseKind

__all__ = ["make_tables"]

_sent: Final[dict[DatabaseKind, list[str]]] = {}
_made: Final[set[str]] = set()


def make_tables(name: str, database: TestDatabase) -> None:
    """Make crosstie's tables in the database that is configured under this name, and have a connection to it pooled."""
    from crosstie.orm.connection import ConnectionManager
    from crosstie.outbox.tables import create_tables

    configured = ConnectionManager.get(name)
    if database.name in _made:
        create_tables(configured)  # it is not empty any more
        return
    _made.add(database.name)
    if database.kind not in _sent:
        _sent[database.kind] = _recorded(configured)
        return
    with configured.engine.connect():  # as `create_tables` leaves one
        pass
    with database.connect() as connection, closing(connection.cursor()) as cursor:
        if database.kind == "postgresql":  # in one round trip, which is one transaction
            cursor.execute(";".join(_sent[database.kind]))
        else:
            if database.kind == "sqlite":
                cursor.execute("PRAGMA synchronous = OFF")
                cursor.execute("BEGIN IMMEDIATE")
            for statement in _sent[database.kind]:
                cursor.execute(statement)
            if database.kind == "sqlite":
                cursor.execute("COMMIT")


def _recorded(database: Any) -> list[str]:
    """Let `create_tables` make them, and return the statements with which it did."""
    from crosstie.outbox.tables import create_tables

    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        if statement.lstrip().startswith(("CREATE", "INSERT", "ALTER")):
            statements.append(_with_values(statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        create_tables(database)
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
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
