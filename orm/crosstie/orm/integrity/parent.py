"""The parent's end: which keys it has, by its own idea of equality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.integrity.batch import batches, values_per_statement
from crosstie.orm.integrity.catalog import Equality
from crosstie.orm.integrity.endpoint import Endpoint
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.storage import KeyStorage, Raw

__all__ = ["ParentColumn"]

_QUESTIONS_PER_STATEMENT: Final = 200


class ParentColumn:
    """A referenced column in the parent's database. Every method raises DatabaseUnavailable."""

    def __init__(self, end: Endpoint, storage: KeyStorage) -> None:
        self.end = end
        self.storage = storage
        self.database = end.database
        self._typed = storage.typed(end.column)

    def page(self, lowest: Raw, highest: Raw, limit: int) -> list[Raw]:
        """Keys between both, these included, at most `limit`, in the column's order."""
        between = sa.and_(self._typed >= lowest, self._typed <= highest)
        return self._values(sa.select(self._typed).where(between).order_by(self._typed).limit(limit))

    def absent(self, keys: Sequence[Key]) -> list[Key]:
        """Those of the keys that no parent has at this moment, in their order.

        Keys that come back as they went are there; where the column's `=` is wider than that, it decides on the others.
        """
        present = self._present(keys)
        missing = [key for key in keys if key not in present]
        if not missing or self.storage.equality is Equality.IDENTICAL:
            return missing
        equalled = self._equalled([key for key in missing if self.storage.spellings(key)])
        return [key for key in missing if key not in equalled]

    def _present(self, keys: Sequence[Key]) -> set[Key]:
        spelt = [raw for key in keys for raw in self.storage.spellings(key)]
        distinct = self.storage.distinct(self.end.column)
        present: set[Key] = set()
        for values in batches(spelt, values_per_statement(self.database)):
            found = self._values(sa.select(distinct).where(self._typed.in_(values)))
            present.update(self.storage.key(raw) for raw in found)
        return present

    def _equalled(self, keys: Sequence[Key]) -> set[Key]:
        """Ask the server about each key by itself: an IN list does not tell which of its values it matched."""
        equalled: set[Key] = set()
        for group in batches(keys, _QUESTIONS_PER_STATEMENT):
            questions = [
                sa.exists(sa.select(sa.literal_column("1")).where(self._equals(key))).label(f"q{number}")
                for number, key in enumerate(group)
            ]
            with self.database.mapped_errors(), self.database.autocommit.connect() as connection:
                answers = connection.execute(sa.select(*questions)).one()
            equalled.update(key for key, answer in zip(group, answers, strict=True) if answer)
        return equalled

    def _equals(self, key: Key) -> sa.ColumnElement[bool]:
        return sa.or_(*(self._typed == raw for raw in self.storage.spellings(key)))

    def is_empty(self) -> bool:
        """Whether the table has no row at all."""
        return not self._values(sa.select(sa.literal_column("1")).select_from(self.end.table).limit(1))

    def _values(self, query: sa.Select[Any]) -> list[Any]:
        with self.database.mapped_errors(), self.database.autocommit.connect() as connection:
            return list(connection.execute(query).scalars().all())
