"""What unresolved sagas have in their hands, for audits and repairs; nothing, where there are no tables."""

from __future__ import annotations

from collections.abc import Collection

from crosstie.orm.connection import ConnectionManager
from crosstie.outbox.tables import has_tables
from crosstie.sagas.touched import touched_keys

__all__ = ["TouchedBySagas"]


class TouchedBySagas:
    """Answers as `touched_keys` does; nothing for a database without crosstie's tables, which it asks for once."""

    def __init__(self) -> None:
        self._has_tables: dict[str, bool] = {}

    def __call__(self, database_name: str, /, *, since_ms: int) -> Collection[tuple[str, tuple[str, ...]]]:
        """(table, primary key) of each row touched. Raises DatabaseUnavailable."""
        known = self._has_tables.get(database_name)
        if known is None:
            known = self._has_tables[database_name] = has_tables(ConnectionManager.get(database_name))
        # A saga that writes to a database leaves its record there: without the table there is no saga.
        return touched_keys(database_name, since_ms=since_ms) if known else ()
