"""The keys that a page is made of, as a condition whose ends are given when it runs."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

__all__ = ["within"]


def within(column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """The column lies between the parameters `lo` and `hi`, these included."""
    lo, hi = (sa.bindparam(name, type_=column.type) for name in ("lo", "hi"))
    return column.between(lo, hi)
