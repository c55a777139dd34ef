"""Where a table's keys lie, by a sample of its rows: keys may crowd in a corner of their range.

Rows are looked up by primary key at evenly spread places, a few hundred look-ups whatever the table holds. What comes
of it decides how evenly the chunks of an audit are filled, never what they find: they tile the range anyhow.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.integrity.bitmap import can_be_paged
from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.storage import KeyKind, Raw

__all__ = ["quantiles"]

_PER_PART: Final = 16
"""Rows looked up for each part."""
_AT_ONCE: Final = 64
"""Look-ups of one statement."""


def quantiles(child: ChildColumn, last: Raw, parts: int) -> list[Raw] | None:
    """At most `parts - 1` keys up to `last`, in the column's order, that part its rows about evenly.

    None where a sample tells too little: the primary key is no integer, or most rows have no key. Raises
    DatabaseUnavailable.
    """
    if type(child) is not ChildColumn or not can_be_paged(child.end):
        return None
    found = [raw for raw in _sampled(child, parts * _PER_PART) if raw is not None]
    if len(found) < parts * _PER_PART // 2:
        return None
    if child.storage.kind is KeyKind.INTEGER:
        ordered = sorted(raw for raw in found if raw <= last) or [last]
        return list(dict.fromkeys(ordered[len(ordered) * part // parts] for part in range(1, parts)))
    # Only the server knows their order.
    typed = child.typed
    distinct = sa.select(typed).where(typed.in_(set(found)), typed <= last).distinct().order_by(typed)
    ascending = [row[0] for row in child.fetch(distinct)] or [last]
    return list(dict.fromkeys(ascending[len(ascending) * part // parts] for part in range(1, parts)))


def _sampled(child: ChildColumn, rows: int) -> list[Raw | None]:
    (primary,) = child.end.primary_key
    bounds = child.fetch(sa.select(sa.func.min(primary), sa.func.max(primary)))[0]
    if bounds[0] is None:
        return []
    lowest, highest = int(bounds[0]), int(bounds[1])
    # Of a row that does not count, NULL: to look for the next that does may mean to read the whole table.
    counted: sa.ColumnElement[Any] = child.typed
    if child.end.conditions:
        counted = sa.case((sa.and_(*child.end.conditions), child.typed), else_=None)
    found: list[Raw | None] = []
    for start in range(0, rows, _AT_ONCE):
        places = [lowest + (highest - lowest) * number // rows for number in range(start, min(start + _AT_ONCE, rows))]
        looked_up = [
            sa.select(counted).where(primary >= place).order_by(primary).limit(1).scalar_subquery().label(f"s{number}")
            for number, place in enumerate(places)
        ]
        found += child.fetch(sa.select(*looked_up))[0]
    return found
