"""A statement as its database sees it: the plan that EXPLAIN answers with, and the SQL itself."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from crosstie.orm.database import Database

__all__ = ["plan_of", "sql_of"]


class _Explain(sa.Executable, sa.ClauseElement):
    inherit_cache = False

    def __init__(self, statement: sa.Select[Any]) -> None:
        self.statement = statement


@compiles(_Explain)
def _explain(element: _Explain, compiler: SQLCompiler, **options: Any) -> str:
    return f"EXPLAIN {compiler.process(element.statement, **options)}"


@compiles(_Explain, "sqlite")
def _explain_sqlite(element: _Explain, compiler: SQLCompiler, **options: Any) -> str:
    return f"EXPLAIN QUERY PLAN {compiler.process(element.statement, **options)}"


def plan_of(connection: sa.Connection, database: Database, statement: sa.Select[Any]) -> str:
    """The plan in the database's own words, a line for each row; MySQL's columns are named on the first line."""
    result = connection.execute(_Explain(statement))
    rows = result.all()
    if database.kind == "sqlite":
        return "\n".join(str(row[-1]) for row in rows)
    if database.kind == "postgresql":
        return "\n".join(str(row[0]) for row in rows)
    return "\n".join("\t".join(map(str, row)) for row in [result.keys(), *rows])


def sql_of(database: Database, statement: sa.Select[Any]) -> str:
    """The statement with placeholders where its values are sent."""
    return str(statement.compile(dialect=database.dialect, compile_kwargs={"render_postcompile": True}))
