"""Row locks of a query: taken inside a transaction, and held until it ends."""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa

from crosstie.orm.errors import InvalidQuery
from crosstie.orm.local_transaction import current
from crosstie.orm.mapping import TableMapping
from crosstie.orm.transaction import active_unit

__all__ = ["RowLock"]


class RowLock(NamedTuple):
    """How rows are locked; SQLite, whose transactions exclude all other writers, needs no such words."""

    skip_locked: bool
    nowait: bool

    def added_to(self, statement: sa.Select[Any], *, of: sa.Table | None = None) -> sa.Select[Any]:
        """The statement, taking the locks; of one table alone, where the server can tell them apart (MariaDB not)."""
        return statement.with_for_update(skip_locked=self.skip_locked, nowait=self.nowait, of=of)

    @staticmethod
    def require_transaction(mapping: TableMapping) -> None:
        """Raise InvalidQuery where the locks would be gone before the caller sees the rows."""
        if current(mapping.connection) is None and active_unit() is None:
            name = mapping.model.__qualname__
            raise InvalidQuery(
                f"for_update() locks rows until the transaction ends, and there is none on {mapping.connection!r}: "
                f"wrap it in `with {name}.transaction():` or a saga."
            )
