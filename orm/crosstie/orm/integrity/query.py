"""SQL to copy: what shows every row of an orphaned key in the child's database."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine.default import DefaultDialect

from crosstie.orm.integrity.endpoint import Endpoint
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.storage import KeyStorage

__all__ = ["OrphanQuery", "select_all"]

_DIALECTS: Final[dict[str, type[DefaultDialect]]] = {
    "sqlite": sqlite.dialect,
    "postgresql": postgresql.dialect,
    "mysql": mysql.dialect,
    "mariadb": mysql.dialect,
}

_PLAIN: Final = re.compile(r"[0-9A-Za-z_-]+", re.ASCII)
"""In every dialect the same between quotes, and ten times as fast so."""


def select_all(end: Endpoint, condition: sa.ColumnElement[bool]) -> str:
    """One SELECT of all rows that meet the condition, with its values written out."""
    query: sa.Select[Any] = sa.select(sa.literal_column("*")).select_from(end.table).where(condition)
    dialect = _DIALECTS[end.database.kind](paramstyle="named")
    return " ".join(str(query.compile(dialect=dialect, compile_kwargs={"literal_binds": True})).split()) + ";"


class OrphanQuery:
    """One SELECT for each key, with its values written out; for people to read and run, crosstie itself never does."""

    def __init__(self, child: Endpoint, storage: KeyStorage) -> None:
        self._storage = storage
        # Named parameters: for others the compiler doubles every `%` in a literal.
        self._dialect = _DIALECTS[child.database.kind](paramstyle="named")
        preparer = self._dialect.identifier_preparer
        table = preparer.format_table(child.table)
        self._of_type = ""
        if child.of_type is not None:
            condition = child.of_type.condition()
            written = condition.compile(dialect=self._dialect, compile_kwargs={"literal_binds": True})
            self._of_type = f" AND {written}"
        self._start = f"SELECT * FROM {table} WHERE "  # noqa: S608 - quoted
        self._columns = [f"{table}.{preparer.format_column(column)}" for column in child.columns]

    def of(self, key: Key) -> str:
        """What shows every row of an orphaned key in the child's database."""
        spelt = self._storage.spellings(key)
        raws = zip(*spelt, strict=True) if isinstance(key, tuple) else (spelt,)
        pairs = zip(self._columns, raws, strict=True)
        equal = (self._equal(column, tuple(dict.fromkeys(one))) for column, one in pairs)
        return f"{self._start}{' AND '.join(equal)}{self._of_type};"

    def _equal(self, column: str, raws: Sequence[Any]) -> str:
        written = [self._literal(raw) for raw in raws]
        return f"{column} = {written[0]}" if len(written) == 1 else f"{column} IN ({', '.join(written)})"

    def _literal(self, raw: Any) -> str:
        if isinstance(raw, int):
            return str(raw)
        if isinstance(raw, bytes):
            return f"'\\x{raw.hex()}'" if self._dialect.name == "postgresql" else f"x'{raw.hex()}'"
        text = str(raw)
        if _PLAIN.fullmatch(text):
            return f"'{text}'"
        value = sa.literal(text, sa.String())
        return str(value.compile(dialect=self._dialect, compile_kwargs={"literal_binds": True}))
