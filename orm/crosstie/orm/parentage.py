"""Validated references: whether the row that a record refers to exists, asked before the record is saved.

The primary of the parent's database answers, inside the thread's own transaction or saga there if one is open. Nothing
is locked, and no database can lock for another: the parent may be deleted right after the answer.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from crosstie.orm.errors import RecordInvalid
from crosstie.orm.prepared import Prepared
from crosstie.orm.reading import reading

if TYPE_CHECKING:
    from crosstie.orm.mapping import TableMapping
    from crosstie.orm.model import ActiveRecord
    from crosstie.orm.relation import Link

__all__ = ["require_parents"]


def require_parents(record: ActiveRecord, mapping: TableMapping, *, changed: Container[str] | None = None) -> None:
    """Raise RecordInvalid where a validated reference of the record leads nowhere; NULL leads nowhere on purpose.

    `changed` narrows the check to these fields; the others are what the row has already.
    """
    for relation in mapping.validated:
        link = relation.link(mapping.model)
        if changed is not None and link.near.name not in changed:
            continue
        key = record.__dict__[link.near.name]
        if key is not None and not _exists(link, key):
            raise RecordInvalid(
                f"{mapping.model.__qualname__}.{relation.name}: expected a {link.target.model.__qualname__} with "
                f"{link.far.name} = {key!r} in database {link.target.connection!r}, as {link.near.column!s} refers to "
                "it, and found none. Save it first, or assign the key of one that exists."
            )


def _exists(link: Link, key: Any) -> bool:
    target, far = link.target, link.far
    shape = ("exists", far.name)
    prepared: Prepared | None = target.statements.get(shape)
    if prepared is None:
        sought = sa.bindparam("sought", type_=far.column.type)
        statement: sa.Select[Any] = (
            sa.select(sa.literal_column("1")).select_from(target.table).where(far.column == sought)
        )
        prepared = target.statements[shape] = Prepared(statement.limit(sa.literal_column("1")))
    with reading(target, primary=True) as (connection, _):
        return bool(prepared.fetch(connection, {"sought": far.sought(key)}).rows)
