"""Where a record was loaded from, kept for models whose database is decided for each statement.

Two tenants have rows of the same key: a record of one that is saved, or whose relations are followed, while the other
is chosen would write or show somebody else's row. It is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import sqlalchemy as sa

from crosstie.orm.condition import Condition
from crosstie.orm.errors import WrongTenant
from crosstie.orm.mapping import TableMapping, mapping_of

if TYPE_CHECKING:
    from crosstie.orm.database import Database
    from crosstie.orm.model import ActiveRecord

__all__ = ["SameOrigin", "mark_origin", "origin_of", "require_origin"]


def origin_of(record: ActiveRecord) -> str | None:
    """The name of the connection that has the record's row; None where the model has one database, or no row is."""
    try:
        name: str = object.__getattribute__(record, "_origin")
    except AttributeError:
        return None
    return name


def mark_origin(records: Iterable[ActiveRecord], name: str) -> None:
    """These records' rows are in the database of this name."""
    for record in records:
        object.__setattr__(record, "_origin", name)


def require_origin(record: ActiveRecord, mapping: TableMapping) -> None:
    """Raise WrongTenant where the record's row is in another database than the one that is chosen now."""
    if not mapping.is_placed or record.is_new:
        return
    name, origin = mapping.connection, origin_of(record)
    if origin is not None and origin != name:
        raise WrongTenant(
            f"this {mapping.model.__qualname__} was loaded from database {origin!r}, and {name!r} is chosen here: the "
            "row of the same key there is another one. Use the record inside the connected_to() that it was loaded in."
        )


class SameOrigin(Condition):
    """Met by any row, as long as the query is sent while the record's own database is chosen."""

    def __init__(self, record: ActiveRecord) -> None:
        self._record = record

    def clause(self, database: Database) -> sa.ColumnElement[bool]:
        """No condition at all. Raises WrongTenant."""
        require_origin(self._record, mapping_of(type(self._record)))
        return sa.true()
