"""The database's own clock, as milliseconds since 1970-01-01 UTC.

Leases and expiries compare times of one database with each other, never with the clock of a client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from crosstie.orm.prepared import Prepared

if TYPE_CHECKING:
    from crosstie.orm.database import Database

__all__ = ["database_now_ms", "now_ms"]


class now_ms(FunctionElement[int]):  # noqa: N801 - reads as the SQL function that it is
    """Milliseconds since the epoch by the database's clock at the time of the statement."""

    type = BigInteger()
    inherit_cache = True


@compiles(now_ms)
def _unknown(element: now_ms, compiler: SQLCompiler, **_: Any) -> str:
    raise NotImplementedError(f"now_ms() has no form for the dialect {compiler.dialect.name!r}")


@compiles(now_ms, "postgresql")
def _postgresql(element: now_ms, compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"


@compiles(now_ms, "mysql")
@compiles(now_ms, "mariadb")
def _mysql(element: now_ms, compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)"


@compiles(now_ms, "sqlite")
def _sqlite(element: now_ms, compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)"


_NOW: Final = Prepared(select(now_ms()))


def database_now_ms(database: Database) -> int:
    """What its clock says. Raises DatabaseUnavailable."""
    return int(database.prepared(_NOW, {}).rows[0][0])
