"""INSERT of many rows in as few statements as the database's limits allow, and the numbers that it gave them.

The rows of one statement get rising numbers in the order in which they are given: PostgreSQL draws them in the order of
the SELECT, SQLite and InnoDB in that of the VALUES. So sorting what RETURNING answers, which has no promised order,
tells which row got which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from crosstie.orm.mapping import MappedField, TableMapping
from crosstie.orm.prepared import Prepared
from crosstie.orm.writing import Write

__all__ = ["insert_all", "insert_rows"]

ROWS_OF_ARRAYS: Final = 5_000
ROWS_OF_VALUES: Final = 1_000
_NAMED: Final = re.compile(r"%\(\w+\)s")


def insert_rows(
    write: Write,
    mapping: TableMapping,
    fields: Sequence[MappedField],
    columns: Sequence[Sequence[Any]],
    *,
    numbered: MappedField | None,
) -> list[int]:
    """Insert rows whose values are given by column, in the order of `fields`, and return what `numbered` got.

    Without it nothing is returned. Raises what the database answers; then rows of an earlier statement may be there.
    """
    arrays = write.database.capabilities.array_parameters
    if arrays and all(_fits_into_array(field.column.type) for field in fields):
        return _by_arrays(write.connection, mapping, fields, columns, numbered)
    return _by_values(write, mapping, fields, columns, numbered)


def insert_all(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows of the same columns into a table without a model, in few round trips; the caller commits.

    A default that is an expression of SQL is asked for once: with one in each row, PyMySQL would send them one by one.
    Raises what SQLAlchemy does.
    """
    if not rows:
        return
    defaults: dict[str, Any] = {column.key: column.default for column in table.columns if column.key not in rows[0]}
    asked = {
        name: default.arg for name, default in defaults.items() if default is not None and default.is_clause_element
    }
    if asked:
        answer = connection.execute(sa.select(*asked.values())).one()
        same = dict(zip(asked, answer, strict=True))
        rows = [{**row, **same} for row in rows]
    if connection.dialect.name != "postgresql":  # the other drivers do so by themselves
        connection.execute(sa.insert(table), rows)
        return
    columns = [table.c[name] for name in rows[0]]
    for start in range(0, len(rows), ROWS_OF_ARRAYS):
        some = rows[start : start + ROWS_OF_ARRAYS]
        listed = {f"c{i}": [row[column.key] for row in some] for i, column in enumerate(columns)}
        connection.execute(_from_arrays(table, columns, None, defaults=True), listed)


def _fits_into_array(kind: sa.types.TypeEngine[Any]) -> bool:
    """An array of arrays has no elements of its own, and an expression around each value has no place in it."""
    return not isinstance(kind, sa.ARRAY) and kind.bind_expression(sa.bindparam("value", type_=kind)) is None


def _by_arrays(
    connection: sa.Connection,
    mapping: TableMapping,
    fields: Sequence[MappedField],
    columns: Sequence[Sequence[Any]],
    numbered: MappedField | None,
) -> list[int]:
    """One parameter for each column: the statement is as short for ten thousand rows as for two."""
    shape = ("insert arrays", numbered is not None)
    prepared: Prepared | None = mapping.statements.get(shape)
    if prepared is None:
        prepared = mapping.statements[shape] = Prepared(
            _from_arrays(mapping.table, [field.column for field in fields], numbered)
        )
    numbers: list[int] = []
    for start in range(0, len(columns[0]), ROWS_OF_ARRAYS):
        values = {f"c{i}": list(column[start : start + ROWS_OF_ARRAYS]) for i, column in enumerate(columns)}
        if numbered is None:
            prepared.run(connection, values)
        else:
            numbers += sorted(number for (number,) in prepared.fetch(connection, values).rows)
    return numbers


def _from_arrays(
    table: sa.Table, columns: Sequence[sa.Column[Any]], numbered: MappedField | None, *, defaults: bool = False
) -> sa.Insert:
    types = [column.type for column in columns]
    arrays = [sa.bindparam(f"c{i}", type_=postgresql.ARRAY(kind, dimensions=1)) for i, kind in enumerate(types)]
    names = [sa.column(f"c{i}", kind) for i, kind in enumerate(types)]
    given = sa.func.unnest(*arrays).table_valued(*names, with_ordinality="position", name="given").render_derived()
    rows = sa.select(*(given.c[column.name] for column in names)).order_by(given.c.position)
    statement = sa.insert(table).from_select(list(columns), rows, include_defaults=defaults)
    return statement if numbered is None else statement.returning(numbered.column)


def _by_values(
    write: Write,
    mapping: TableMapping,
    fields: Sequence[MappedField],
    columns: Sequence[Sequence[Any]],
    numbered: MappedField | None,
) -> list[int]:
    connection, database, _ = write
    head, row, tail = _parts(connection.dialect, mapping, fields, numbered)
    raw = [_raw(field, values, connection.dialect) for field, values in zip(fields, columns, strict=True)]
    size = max(1, min(ROWS_OF_VALUES, database.capabilities.parameter_limit // len(fields)))
    numbers: list[int] = []
    for start in range(0, len(raw[0]), size):
        rows = list(zip(*(values[start : start + size] for values in raw), strict=True))
        sql = f"{head}{', '.join([row] * len(rows))}{tail}"
        result = connection.exec_driver_sql(sql, tuple([value for one in rows for value in one]))
        if numbered is not None:
            numbers += sorted(result.scalars().all())
    return numbers


def _parts(
    dialect: sa.Dialect, mapping: TableMapping, fields: Sequence[MappedField], numbered: MappedField | None
) -> tuple[str, str, str]:
    """An INSERT of one row: up to its row of placeholders, that row, and what follows it."""
    shape = ("insert values", numbered is not None, dialect)
    parts: tuple[str, str, str] | None = mapping.statements.get(shape)
    if parts is None:
        names = [field.column.name for field in fields]
        plain = sa.insert(mapping.table).inline()
        sql = plain.compile(dialect=dialect, column_keys=names).string
        returning = plain if numbered is None else plain.returning(numbered.column)
        full = returning.compile(dialect=dialect, column_keys=names).string
        before, word, row = sql.partition(" VALUES ")
        assert word
        assert full.startswith(sql), f"expected {full!r} to begin with {sql!r}"
        parts = mapping.statements[shape] = (before + word, _NAMED.sub("%s", row), full.removeprefix(sql))
    return parts


def _raw(field: MappedField, values: Sequence[Any], dialect: sa.Dialect) -> Sequence[Any]:
    process = field.column.type.dialect_impl(dialect).bind_processor(dialect)
    return values if process is None else [process(value) for value in values]
