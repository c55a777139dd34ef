"""The type column of a polymorphic reference: a value that means no model leads its rows nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.clock import database_now_ms
from crosstie.orm.database import Database
from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity.child import ROWS_PER_KEY
from crosstie.orm.integrity.endpoint import Endpoint, OfType
from crosstie.orm.integrity.findings import AuditState
from crosstie.orm.integrity.query import select_all
from crosstie.orm.integrity.suspicion import NO_SAGAS, Suspicion, TouchedKeys

__all__ = ["TypeColumn", "TypesResult", "UnknownType", "audit_types"]

_TYPES: Final = 1_000
"""So many unknown values are told apart."""


@dataclass(frozen=True)
class TypeColumn:
    """The column `types` beside the key `end`; `known` are the values that mean a model."""

    end: Endpoint
    types: sa.Column[Any]
    known: tuple[str, ...]

    @property
    def name(self) -> str:
        """`secondary.notes.subject_type`."""
        return str(Endpoint(self.end.connection, self.end.table, self.types))


@dataclass(frozen=True)
class UnknownType:
    """A value of the type column, None for NULL, that no reference is declared for, though its rows have a key.

    `rows` have it; `row_keys` are the primary keys of the first of them. `query` is SQL that shows them all.
    """

    value: Any
    rows: int
    row_keys: tuple[dict[str, Any], ...]
    query: str


@dataclass(frozen=True)
class TypesResult:
    """The answer for one type column; `deferred` rows are in the hands of an unresolved saga."""

    name: str
    state: AuditState
    findings: tuple[UnknownType, ...] = ()
    deferred: int = 0
    reason: str | None = None

    @property
    def rows(self) -> int:
        """How many rows have an unknown type."""
        return sum(one.rows for one in self.findings)


def audit_types(column: TypeColumn, *, suspects: TouchedKeys = NO_SAGAS) -> TypesResult:
    """Find the rows that have a key and a type that is not known; rows that an unresolved saga has are deferred.

    The values are walked in the column's order, so that an index that begins with it answers at once. What keeps it
    from reading them makes the state INCOMPLETE, with the reason.
    """
    search = _Search(column, suspects)
    reason = None
    try:
        search.run()
    except CrosstieError as error:
        reason = str(error)
    state = AuditState.FINDINGS if search.found else AuditState.OK
    return TypesResult(
        column.name,
        state if reason is None else AuditState.INCOMPLETE,
        tuple(search.found),
        search.deferred,
        reason,
    )


@dataclass
class _Search:
    column: TypeColumn
    suspects: TouchedKeys
    found: list[UnknownType] = field(default_factory=list)
    deferred: int = 0

    @property
    def database(self) -> Database:
        return self.column.end.database

    def run(self) -> None:
        """Raises DatabaseUnavailable."""
        end, types = self.column.end, self.column.types
        has_key = end.column.is_not(None)
        known = [OfType(types, value).condition() for value in self.column.known]
        unknown = sa.and_(has_key, ~sa.or_(*known))
        self._judge(None, sa.and_(has_key, types.is_(None)))
        after: list[sa.ColumnElement[bool]] = []
        for _ in range(_TYPES):
            (value,) = self.database.rows(sa.select(sa.func.min(types)).where(unknown, *after))[0]
            if value is None:
                return
            self._judge(value, sa.and_(has_key, types == value))
            after = [types > value]

    def _judge(self, value: Any, condition: sa.ColumnElement[bool]) -> None:
        end = self.column.end
        since_ms = database_now_ms(self.database)
        first = sa.select(*end.primary_key).where(condition).order_by(*end.primary_key).limit(ROWS_PER_KEY)
        rows = [tuple(row) for row in self.database.rows(first)]
        if not rows:
            return
        counted = sa.select(sa.func.count()).select_from(end.table).where(condition)
        total = max(int(self.database.rows(counted)[0][0]), len(rows))
        sure = self._untouched(rows, since_ms)
        self.deferred += len(rows) - len(sure)
        if sure:
            names = [column.name for column in end.primary_key]
            listed = tuple(dict(zip(names, row, strict=True)) for row in sure)
            unsure = len(rows) - len(sure)
            self.found.append(UnknownType(value, total - unsure, listed, select_all(end, condition)))

    def _untouched(self, rows: Sequence[tuple[Any, ...]], since_ms: int) -> list[tuple[Any, ...]]:
        """Those that no saga has which is open, or has ended since they were read."""
        suspicion = Suspicion.of_rows(self.column.end, self.suspects(self.database.name, since_ms=since_ms))
        return [row for row in rows if not suspicion.touches_row(row)]
