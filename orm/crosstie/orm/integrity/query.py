"""SQL to copy: what shows every row of an orphaned key in the child's database."""

from __future__ import annotations

import uuid
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine.default import DefaultDialect

from crosstie.orm.integrity.endpoint import Endpoint
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.storage import KeyStorage

__all__ = ["orphan_query"]

_DIALECTS: Final[dict[str, type[DefaultDialect]]] = {
    "sqlite": sqlite.dialect,
    "postgresql": postgresql.dialect,
    "mysql": mysql.dialect,
    "mariadb": mysql.dialect,
}


def orphan_query(child: Endpoint, storage: KeyStorage, key: Key) -> str:
    """One SELECT with its values written out; for people to read and run, crosstie itself never does."""
    values = [str(raw) if isinstance(raw, uuid.UUID) else raw for raw in storage.spellings(key)]
    kind: sa.types.TypeEngine[Any] = sa.BigInteger() if isinstance(key, int) else sa.String()
    column = sa.type_coerce(child.column, kind)
    condition = column == values[0] if len(values) == 1 else column.in_(values)
    # Named parameters: for others the compiler doubles every `%` in a literal.
    dialect = _DIALECTS[child.database.kind](paramstyle="named")
    where = condition.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    table = dialect.identifier_preparer.format_table(child.table)
    return f"SELECT * FROM {table} WHERE {where};"  # noqa: S608 - names and values are quoted by the dialect
