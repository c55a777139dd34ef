"""Copies made equal to their originals, in one set-based statement for each portion of rows.

Invariant: the original is read after the copy's row was locked. So of two workers, the one that locks last has read
last, and an event that is applied later, or twice, or out of order, never brings an older value. The values are read
outside of the target's transaction, on the primary: what is committed there at that moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from crosstie.orm.condition import Membership
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.copies import CopyGroup
from crosstie.orm.departure import Departure
from crosstie.orm.faults import fault_point
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.mapping import MappedField
from crosstie.orm.page import After
from crosstie.orm.writing import writing

__all__ = [
    "ChildRow",
    "align_children",
    "align_rows",
    "child_fields",
    "child_rows",
    "committed_originals",
    "keys_of_parents",
    "wanted",
]

ORIGINALS_PER_STATEMENT: Final = 400
"""SQLite joins at most 500 SELECTs with UNION ALL."""


class ChildRow(NamedTuple):
    """A row of the child under lock."""

    key: tuple[Any, ...]
    foreign: Any
    copies: tuple[Any, ...]


def align_rows(tx: LocalTransaction, group: CopyGroup, keys: Sequence[tuple[Any, ...]]) -> None:
    """Align the copies of the children with these primary keys."""
    for condition in Departure(group.child, (), keys).conditions():
        _align(tx, group, _locked(tx, group, condition(tx.database)))


def align_children(
    tx: LocalTransaction, group: CopyGroup, keys: Sequence[Any], *, after: tuple[Any, ...] | None, limit: int
) -> tuple[int, tuple[Any, ...] | None]:
    """Align the copies of at most `limit` children that refer to these keys, by primary key, from `after` on.

    Returns how many there were, and the last one's key where there may be more.
    """
    where = Membership(group.link.near, keys).clause(tx.database)
    if after is not None:
        where = sa.and_(where, After(group.child.key, after).clause(tx.database))
    rows = _locked(tx, group, where, limit=limit)
    _align(tx, group, rows)
    return len(rows), rows[-1].key if len(rows) == limit else None


def keys_of_parents(group: CopyGroup, keys: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What the children of the parents with these primary keys refer to."""
    parent, far = group.parent, group.link.far
    if parent.key == (far,):
        return [key[0] for key in keys]
    database = ConnectionManager.get(parent.connection)
    found: list[Any] = []
    with database.mapped_errors(), database.autocommit.connect() as connection:
        for condition in Departure(parent, (), keys).conditions():
            found += connection.execute(sa.select(far.column).where(condition(database))).scalars()
    return [key if far.convert is None else far.convert(key) for key in found if key is not None]


def committed_originals(group: CopyGroup, foreign: Iterable[Any]) -> dict[Any, tuple[Any, ...]]:
    """The originals for these foreign keys as they are committed now, by key as `link.hashable` has it."""
    sought = list(dict.fromkeys(group.link.far.sought(key) for key in foreign if key is not None))
    if not sought:
        return {}
    database = ConnectionManager.get(group.parent.connection)
    with database.mapped_errors(), database.autocommit.connect() as connection:
        return group.originals(connection, sought)


def child_rows(group: CopyGroup, connection: sa.Connection, query: sa.Select[Any]) -> list[ChildRow]:
    """What a query of `child_fields` finds."""
    fields = child_fields(group)
    width = len(group.child.key)
    rows = []
    for row in connection.execute(query):
        values = [v if f.convert is None else f.convert(v) for f, v in zip(fields, row, strict=True)]
        rows.append(ChildRow(tuple(values[:width]), values[width], tuple(values[width + 1 :])))
    return rows


def child_fields(group: CopyGroup) -> list[MappedField]:
    """The child's primary key, its foreign key, its copies."""
    return [*group.child.key, group.link.near, *(copy.field for copy in group.copies)]


def wanted(group: CopyGroup, row: ChildRow, originals: Mapping[Any, tuple[Any, ...]]) -> tuple[Any, ...] | None:
    """What the row's copies should be; None where the foreign key leads nowhere, and they stay as they are."""
    if row.foreign is None:
        return (None,) * len(group.copies)
    return originals.get(group.link.hashable(row.foreign))


def _locked(
    tx: LocalTransaction, group: CopyGroup, where: sa.ColumnElement[bool], *, limit: int | None = None
) -> list[ChildRow]:
    query = sa.select(*(field.column for field in child_fields(group))).where(where)
    # In one order, so that two workers wait for each other instead of deadlocking.
    query = query.order_by(*(field.column for field in group.child.key)).limit(limit).with_for_update()
    tx.mark_written()
    with tx.internal():
        return child_rows(group, tx.connection, query)


def _align(tx: LocalTransaction, group: CopyGroup, rows: Sequence[ChildRow]) -> None:
    fault_point("copies.locked")
    originals = committed_originals(group, (row.foreign for row in rows))
    differing: dict[Any, tuple[tuple[Any, ...], list[tuple[Any, ...]]]] = {}
    for row in rows:
        values = wanted(group, row, originals)
        if values is not None and values != row.copies:
            differing.setdefault(row.foreign, (values, []))[1].append(row.key)
    if None in differing:
        values, keys = differing.pop(None)
        _write(group, keys, dict(zip(_columns(group), values, strict=True)), sa.true())
    found = list(differing.items())
    for start in range(0, len(found), ORIGINALS_PER_STATEMENT):
        _write_from_originals(tx, group, dict(found[start : start + ORIGINALS_PER_STATEMENT]))
    fault_point("copies.aligned")


def _write_from_originals(
    tx: LocalTransaction, group: CopyGroup, differing: Mapping[Any, tuple[tuple[Any, ...], list[tuple[Any, ...]]]]
) -> None:
    near = group.link.near
    fields = [near, *(copy.field for copy in group.copies)]
    names = ["original_key", *(f"original_{place}" for place in range(len(group.copies)))]
    rows = [
        sa.select(*(_literal(tx, f, v).label(name) for f, v, name in zip(fields, row, names, strict=True)))
        for row in ((key, *values) for key, (values, _) in differing.items())
    ]
    originals = (sa.union_all(*rows) if len(rows) > 1 else rows[0]).subquery("originals")
    new = {column: originals.c[name] for column, name in zip(_columns(group), names[1:], strict=True)}
    keys = [key for _, keys in differing.values() for key in keys]
    _write(group, keys, new, near.column == originals.c.original_key)


def _literal(tx: LocalTransaction, field: MappedField, value: Any) -> sa.ColumnElement[Any]:
    if value is None and tx.database.kind == "postgresql":  # which takes NULL in a subquery for text
        return sa.cast(sa.null(), field.column.type)
    return sa.literal(value, field.column.type)


def _write(
    group: CopyGroup, keys: Sequence[tuple[Any, ...]], new: Mapping[str, Any], joined: sa.ColumnElement[bool]
) -> None:
    """Write copies without counting as the application's write: neither time stamps nor lock versions change."""
    table = group.child.table
    for condition in Departure(group.child, (), keys).conditions():
        with writing(group.child) as (connection, database, tx):
            where = condition(database)
            statement = sa.update(table).where(where, joined).values(new)
            token = None
            if tx is not None and tx.recorder is not None:  # other watchers of the child
                token = tx.recorder.updating(tx, table, where, list(new))
            connection.execute(statement)
            if tx is not None and tx.recorder is not None:
                tx.recorder.updated(tx, token)


def _columns(group: CopyGroup) -> list[str]:
    return [copy.field.column.name for copy in group.copies]
