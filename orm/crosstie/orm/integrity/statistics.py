"""What a planner wants to know of a column, from the server's own statistics and a few keys read from its index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from crosstie.orm.integrity.endpoint import Endpoint

__all__ = ["ColumnStatistics", "column_statistics", "round_trip_s"]

_PINGS: Final = 5


@dataclass(frozen=True)
class ColumnStatistics:
    """`rows` of the table, and `distinct` keys other than NULL; None where the server does not know."""

    rows: int
    distinct: int | None


def column_statistics(end: Endpoint) -> ColumnStatistics:
    """As far as the server has gathered them; a table that it knows nothing of is counted. Raises DatabaseUnavailable.

    They may be old: they decide how an audit reads, never what it finds.
    """
    database = end.database
    with database.mapped_errors(), database.autocommit.connect() as connection:
        rows, distinct = _READERS[database.kind](connection, end)
        if rows is None:
            rows = connection.execute(sa.select(sa.func.count()).select_from(end.table)).scalar_one()
    return ColumnStatistics(int(rows), None if distinct is None else max(round(distinct), 1))


def round_trip_s(end: Endpoint) -> float:
    """Seconds that the database takes to answer nothing. Raises DatabaseUnavailable."""
    return min(end.database.ping() for _ in range(_PINGS))  # whatever else the machine does only adds to it


def _postgresql(connection: sa.Connection, end: Endpoint) -> tuple[float | None, float | None]:
    name = connection.dialect.identifier_preparer.format_table(end.table)
    row = connection.execute(
        sa.text(
            "SELECT cls.reltuples, stat.n_distinct FROM pg_class cls"
            " JOIN pg_namespace nsp ON nsp.oid = cls.relnamespace"
            " LEFT JOIN pg_stats stat ON stat.schemaname = nsp.nspname AND stat.tablename = cls.relname"
            " AND stat.attname = :column AND NOT stat.inherited"
            " WHERE cls.oid = to_regclass(:name) AND cls.relkind = 'r'"
        ),
        {"name": name, "column": end.column.name},
    ).one_or_none()
    # A partitioned table's own statistics say nothing; -1 is never analysed, 0 may be that too.
    if row is None or row[0] <= 0:
        return None, None
    rows, distinct = row
    if distinct is None:
        return rows, None
    # Negative: a share of the rows, which grows with them.
    return rows, distinct if distinct >= 0 else -distinct * rows


def _mysql(connection: sa.Connection, end: Endpoint) -> tuple[float | None, float | None]:
    where = {"schema": end.table.schema, "name": end.table.name, "column": end.column.name}
    rows = connection.execute(
        sa.text(
            "SELECT table_rows FROM information_schema.tables"
            " WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :name"
        ),
        {"schema": end.table.schema, "name": end.table.name},
    ).scalar_one_or_none()
    distinct = connection.execute(
        sa.text(
            "SELECT max(cardinality) FROM information_schema.statistics"
            " WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :name AND column_name = :column"
            " AND seq_in_index = 1"
        ),
        where,
    ).scalar_one_or_none()
    return rows or None, distinct


def _sqlite(connection: sa.Connection, end: Endpoint) -> tuple[float | None, float | None]:
    del connection, end  # ANALYZE is seldom run, and counting happens in this process
    return None, None


_READERS: Final[dict[str, Callable[[sa.Connection, Endpoint], tuple[float | None, float | None]]]] = {
    "postgresql": _postgresql,
    "mysql": _mysql,
    "mariadb": _mysql,
    "sqlite": _sqlite,
}
