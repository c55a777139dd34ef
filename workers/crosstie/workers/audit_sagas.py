"""What unresolved sagas have in their hands, for audits and repairs; nothing, where there are no tables."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from crosstie.orm.connection import ConnectionManager
from crosstie.outbox.tables import has_tables
from crosstie.sagas.touched import outlast_prepared, touched_keys, touched_values

__all__ = ["PREPARED_WAIT_S", "TouchedBySagas"]

PREPARED_WAIT_S: Final = 1.0
"""A saga ends what it has prepared within milliseconds, unless its process or a server has died."""


class TouchedBySagas:
    """Answers as `touched_keys` and `touched_values` do; nothing for a database without crosstie's tables.

    For these it asks once.
    """

    def __init__(self) -> None:
        self._has_tables: dict[str, bool] = {}

    def __call__(self, database_name: str, /, *, since_ms: int) -> Collection[tuple[str, tuple[str, ...]]]:
        """(table, primary key) of each row touched. Raises DatabaseUnavailable."""
        return touched_keys(database_name, since_ms=since_ms) if self._knows(database_name) else ()

    def values(self, database_name: str, table: str, column: str, /, *, since_ms: int) -> Collection[str] | None:
        """What was put into the column or taken from it; None where nobody can tell. Raises DatabaseUnavailable."""
        if not self._knows(database_name):
            return ()
        return touched_values(database_name, table, column, since_ms=since_ms)

    def outlast_prepared(self, database_name: str, /) -> bool:
        """As the function of this name. Raises DatabaseUnavailable."""
        return not self._knows(database_name) or outlast_prepared(database_name, within_s=PREPARED_WAIT_S)

    def _knows(self, database_name: str) -> bool:
        """A saga that writes to a database leaves its record there: without the table there is no saga."""
        known = self._has_tables.get(database_name)
        if known is None:
            known = self._has_tables[database_name] = has_tables(ConnectionManager.get(database_name))
        return known
