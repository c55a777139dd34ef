"""Statements that are sent often: compiled once, and run by the driver's own cursor.

SQLAlchemy's way from a statement to a cursor costs more than the driver's from there to the answer, where the answer is
one row. What it does besides is kept: an error goes through its handling, and where anybody listens to the engine's
statements, or its log does, they take SQLAlchemy's way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy import event

from crosstie.orm.answer import Answer

__all__ = ["Prepared", "guard_statements", "is_watched"]

_NO_PARAMETERS: Final[Mapping[str, Any]] = {}

Bind = tuple[str, str, Callable[[Any], Any] | None, Any]
"""A parameter: its name in the SQL, its name among the values, what makes the driver's value, what it is by default."""


class _Compiled(NamedTuple):
    sql: str
    binds: Sequence[Bind]
    positional: bool
    as_given: bool
    """The values need nothing done to them."""

    def parameters(self, values: Mapping[str, Any]) -> Any:
        if self.as_given:
            return values
        if self.positional:
            return tuple([_value(bind, values) for bind in self.binds])
        return {bind[0]: _value(bind, values) for bind in self.binds}


def _value(bind: Bind, values: Mapping[str, Any]) -> Any:
    _, name, process, default = bind
    value = values.get(name, default)
    return value if process is None else process(value)


class Prepared:
    """A statement whose shape never changes; safe to share between threads.

    It has no lists that grow with their values, and an INSERT has a value for each of its columns.
    """

    __slots__ = ("_columns", "_compiled", "_numbered", "statement")

    def __init__(self, statement: sa.Executable, columns: Sequence[str] | None = None) -> None:
        """`columns` are those of an INSERT; without them all of the table's."""
        self.statement = statement
        self._columns = columns
        self._compiled: WeakKeyDictionary[sa.Dialect, _Compiled] = WeakKeyDictionary()
        self._numbered: WeakKeyDictionary[sa.Dialect, _Compiled] = WeakKeyDictionary()

    def fetch(self, connection: sa.Connection, values: Mapping[str, Any] = _NO_PARAMETERS) -> Answer:
        """Run the statement, a query or one with RETURNING, and read all of its rows."""
        if is_watched(connection.engine):
            result = connection.execute(self.statement, values)
            try:
                cursor: Any = result.cursor
                return Answer(cursor.fetchall(), cursor.description, cursor.rowcount, None)
            finally:
                result.close()
        return self._run(connection, values, rows=True)

    def run(self, connection: sa.Connection, values: Mapping[str, Any] = _NO_PARAMETERS) -> Answer:
        """Run the statement, which returns no rows."""
        if is_watched(connection.engine):
            result = connection.execute(self.statement, values)
            dialect: Any = connection.dialect
            numbered = result.is_insert and dialect.postfetch_lastrowid
            return Answer((), (), result.rowcount, result.lastrowid if numbered else None)
        return self._run(connection, values, rows=False)

    def rendered(self, dialect: sa.Dialect, values: Mapping[str, Any]) -> tuple[str, Any]:
        """The SQL and the parameters as the driver's cursor takes them."""
        compiled = self._compiled.get(dialect)
        if compiled is None:
            compiled = self._compiled[dialect] = _compile(self.statement, dialect, self._columns)
        return compiled.sql, compiled.parameters(values)

    def numbered(self, dialect: sa.Dialect, values: Mapping[str, Any]) -> tuple[str, Sequence[Any]]:
        """The same as PostgreSQL itself takes them: parameters are `$1`, `$2`, and so on."""
        compiled = self._numbered.get(dialect)
        if compiled is None:
            written: Any = type(dialect)
            ours = written(paramstyle="numeric_dollar")
            compiled = self._numbered[dialect] = _compile(self.statement, ours, self._columns)
        return compiled.sql, compiled.parameters(values)

    def _run(self, connection: sa.Connection, values: Mapping[str, Any], *, rows: bool) -> Answer:
        cursor: Any = None
        sql = ""
        try:
            if connection.dialect.driver == "psycopg":
                from crosstie.orm import pipeline  # needs the driver, which others do without

                if pipeline.is_possible(connection.connection.dbapi_connection):
                    sql, parameters = self.numbered(connection.dialect, values)
                    return pipeline.execute(connection, sql, parameters)
            sql, parameters = self.rendered(connection.dialect, values)
            cursor = connection.connection.cursor()
            cursor.execute(sql, parameters)
            answer = Answer(
                cursor.fetchall() if rows else (),
                cursor.description or (),
                cursor.rowcount,
                None if rows else getattr(cursor, "lastrowid", None),
            )
            cursor.close()
        except BaseException as error:  # noqa: BLE001 - raised again, as SQLAlchemy's own error
            connection._handle_dbapi_exception(error, sql, None, cursor, None)
        return answer


def _never() -> bool:
    return False


def guard_statements(
    engine: sa.Engine, guard: Callable[[sa.Connection, str], None], *, prepared: Callable[[], bool] = _never
) -> None:
    """Call `guard` with each statement of the engine before it runs; it may raise.

    With prepared ones only while `prepared` says so: they then take SQLAlchemy's way.
    """

    def before(connection: sa.Connection, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        guard(connection, statement)
        return statement, parameters

    _guards[before] = prepared
    # SQLAlchemy hands listeners that return nothing a wrapper in their place, which could not be told from others.
    event.listen(engine, "before_cursor_execute", before, retval=True)


_guards: Final[WeakKeyDictionary[Callable[..., Any], Callable[[], bool]]] = WeakKeyDictionary()


def _always() -> bool:
    return True


def is_watched(engine: sa.Engine) -> bool:
    """Whether anybody listens to this engine's statements, which then take SQLAlchemy's way."""
    listened: Any = engine.dispatch
    return bool(
        any(_guards.get(listener, _always)() for listener in listened.before_cursor_execute)
        or listened.after_cursor_execute
        or listened.before_execute
        or listened.after_execute
        or engine.dialect.dispatch.do_execute
        or engine.logger.isEnabledFor(logging.INFO)
    )


def _compile(statement: sa.Executable, dialect: sa.Dialect, columns: Sequence[str] | None) -> _Compiled:
    compiled: Any = statement.compile(dialect=dialect, column_keys=columns)  # type: ignore[attr-defined]
    assert not compiled.post_compile_params, f"{compiled} has parameters that grow with their values"
    assert not compiled.insert_prefetch, f"{compiled} leaves columns out that have defaults"
    assert not compiled.update_prefetch, f"{compiled} leaves columns out that have defaults"
    written = {name: compiled.escaped_bind_names.get(name, name) for name in compiled.binds}
    positional = bool(compiled.positional)
    names = compiled.positiontup if positional else list(compiled.binds)
    binds = [
        (written[name], name, _processor(compiled.binds[name], dialect), compiled.binds[name].value) for name in names
    ]
    as_given = not positional and all(
        name == key and process is None and compiled.binds[key].required for name, key, process, _ in binds
    )
    return _Compiled(compiled.string, binds, positional, as_given)


def _processor(bind: sa.BindParameter[Any], dialect: sa.Dialect) -> Callable[[Any], Any] | None:
    return bind.type.dialect_impl(dialect).bind_processor(dialect)
