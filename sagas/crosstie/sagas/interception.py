"""Writes of plain SQLAlchemy inside a saga: Core statements and sessions on the saga's connection.

Both arrive at the connection as the same constructs, so one pair of connection events captures them: an UPDATE or
DELETE of one table is read before it runs, by its own condition; an INSERT of values is read after it by its keys.
What cannot be understood, textual SQL first of all, is noted as such, and its database must be home.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.sql import visitors
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import ReleaseSavepointClause, RollbackToSavepointClause, SavepointClause

from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.recorder import WriteRecorder

__all__ = ["Interceptor"]

_ONLY_READS: Final = re.compile(r"\s*(?:SELECT|SHOW|SAVEPOINT|RELEASE|ROLLBACK\s+TO)\b", re.IGNORECASE)


class Interceptor:
    """Tells a transaction's recorder of what runs on its connection and is not crosstie's own."""

    def __init__(self, tx: LocalTransaction) -> None:
        self._tx = tx
        self._announced: list[object] = []
        self._savepoints: dict[str, dict[str, int]] = {}
        """The lengths of the transaction's ledgers at each savepoint that a session has set, by its name."""
        event.listen(tx.connection, "before_execute", self._before)
        event.listen(tx.connection, "after_execute", self._after)
        event.listen(tx.connection, "before_cursor_execute", self._before_cursor)

    def _recorder(self) -> WriteRecorder:
        self._tx.require_healthy()
        self._tx.mark_written()
        assert self._tx.recorder is not None, "a saga gives every transaction that writes a recorder"
        return self._tx.recorder

    def _before(
        self, _: sa.Connection, element: Any, many: Sequence[Mapping[str, Any]], one: Mapping[str, Any], _options: Any
    ) -> None:
        if self._tx.is_internal:
            return
        if not isinstance(element, RollbackToSavepointClause):
            self._tx.announce_statement()
        if _only_reads(element):
            return
        if isinstance(element, SavepointClause):
            self._tx.require_healthy()  # rolling the savepoint back would not take an earlier error back
            self._savepoints[element.ident] = self._tx.ledger_lengths()
            return
        self._announced.clear()  # of a statement that failed
        if isinstance(element, sa.TextClause):
            if not _ONLY_READS.match(element.text):
                self._recorder().uncaptured(self._tx, f"textual SQL ({_beginning(element.text)})")
            return
        recorder = self._recorder()
        reason = _why_not(element)
        if reason is not None:
            recorder.uncaptured(self._tx, reason)
            return
        parameters: Sequence[Mapping[str, Any]] = many or [one]
        if isinstance(element, sa.Update):
            columns = _updated_columns(element, parameters[0])
            for values in parameters:
                where = _condition(element.whereclause, values)
                self._announced.append(recorder.updating(self._tx, _table(element), where, columns))
        elif isinstance(element, sa.Delete):
            for values in parameters:
                recorder.deleting(self._tx, _table(element), _condition(element.whereclause, values))

    def _after(
        self,
        _: sa.Connection,
        element: Any,
        many: Sequence[Mapping[str, Any]],
        one: Mapping[str, Any],
        _options: Any,
        result: sa.CursorResult[Any],
    ) -> None:
        if isinstance(element, RollbackToSavepointClause) and element.ident in self._savepoints:
            self._tx.cut_back(self._savepoints[element.ident])
        if self._tx.is_internal or not isinstance(element, UpdateBase):
            return
        recorder = self._recorder()
        for token in self._announced:
            recorder.updated(self._tx, token)
        self._announced.clear()
        if isinstance(element, sa.Insert) and _why_not(element) is None:
            keys = _inserted_keys(_table(element), many or [one], result)
            if keys is None:
                recorder.uncaptured(self._tx, f"an INSERT into {_table(element).name!r} whose keys are not reported")
            else:
                recorder.inserted(self._tx, _table(element), keys, numbered=_is_numbered(element, many or [one]))

    def _before_cursor(self, _: sa.Connection, __: Any, sql: str, ___: Any, context: Any, ____: bool) -> None:
        # exec_driver_sql bypasses the events above.
        is_raw = context is not None and context.compiled is None and context.invoked_statement is None
        if not is_raw or self._tx.is_internal:
            return
        self._tx.announce_statement()
        if not _ONLY_READS.match(sql):
            self._recorder().uncaptured(self._tx, f"raw SQL ({_beginning(sql)})")


def _only_reads(element: Any) -> bool:
    # PostgreSQL writes in a CTE of a SELECT, too.
    if isinstance(element, ReleaseSavepointClause | RollbackToSavepointClause):
        return True
    is_query = isinstance(element, sa.SelectBase)
    return is_query and not any(isinstance(part, UpdateBase) for part in visitors.iterate(element))


def _beginning(sql: str) -> str:
    words = sql.split()
    return " ".join(words[:3]) + (" …" if len(words) > 3 else "")


def _table(element: Any) -> sa.Table:
    table: sa.Table = element.table
    return table


def _why_not(element: Any) -> str | None:
    """Why a construct cannot be captured; None if it can."""
    if not isinstance(element, sa.Insert | sa.Update | sa.Delete):
        return f"a {type(element).__name__} statement"
    name = getattr(element.table, "name", "?")
    kind = "INSERT" if isinstance(element, sa.Insert) else "UPDATE" if isinstance(element, sa.Update) else "DELETE"
    if not isinstance(element.table, sa.Table) or not element.table.primary_key.columns:
        return f"an {kind} of {name!r}, which has no primary key"
    if element._independent_ctes:
        return f"an {kind} of {name!r} with a CTE"
    if isinstance(element, sa.Insert):
        if element.select is not None:
            return f"an INSERT … SELECT into {name!r}"
        return f"an upsert into {name!r}" if element._post_values_clause is not None else None
    others = (
        [part for part in visitors.iterate(element.whereclause) if isinstance(part, sa.Table)]
        if (element.whereclause is not None)
        else []
    )
    if element._extra_froms if isinstance(element, sa.Delete) else any(one is not element.table for one in others):
        return f"an {kind} of {name!r} that uses other tables"
    return None


def _condition(where: sa.ColumnElement[bool] | None, values: Mapping[str, Any]) -> sa.ColumnElement[bool]:
    if where is None:
        return sa.true()

    def given(part: Any, **_: Any) -> Any:
        if isinstance(part, sa.BindParameter) and part.key in values:
            return sa.bindparam(None, values[part.key], type_=part.type, unique=True)
        return None

    bound: sa.ColumnElement[bool] = visitors.replacement_traverse(where, {}, cast("Any", given))
    return bound


def _updated_columns(element: sa.Update, values: Mapping[str, Any]) -> list[str]:
    table = _table(element)
    where = element.whereclause
    used = (
        {part.key for part in visitors.iterate(where) if isinstance(part, sa.BindParameter)}
        if where is not None
        else set()
    )
    given = [*(element._values or ()), *values]
    names = [key if isinstance(key, str) else key.key for key in given]
    stamped = [column.key for column in table.columns if column.onupdate is not None]
    return list(
        dict.fromkeys(table.c[name].name for name in [*names, *stamped] if name in table.c and name not in used)
    )


def _is_numbered(element: sa.Insert, parameters: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the database may have made a part of the new rows' keys; a default of Python's is made here."""
    fixed = {key if isinstance(key, str) else key.key for key in element._values or ()}
    return any(
        column is _table(element).autoincrement_column or column.server_default is not None
        for column in _table(element).primary_key.columns
        if column.key not in fixed and not all(column.key in values for values in parameters)
    )


def _inserted_keys(
    table: sa.Table, parameters: Sequence[Mapping[str, Any]], result: sa.CursorResult[Any]
) -> list[tuple[Any, ...]] | None:
    names = [column.key for column in table.primary_key.columns]
    if all(name in values for values in parameters for name in names):
        keys = [tuple(values[name] for name in names) for values in parameters]
    else:
        try:
            keys = [tuple(row or ()) for row in result.inserted_primary_key_rows]
        except sa.exc.InvalidRequestError:
            return None
    return None if not keys or any(part is None for key in keys for part in key) else keys
