"""Which child rows and parent keys unresolved sagas have in their hands, so that an audit does not judge them yet.

Pure: told by table and primary key which rows are touched, it answers for a child row or a parent key. Where it cannot
tell, the answer is "touched": an orphan is then reported by the next audit, and nothing is reported that is none.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from crosstie.orm.integrity.catalog import Equality
from crosstie.orm.integrity.endpoint import AuditedReference, Endpoint
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.storage import KeyStorage
from crosstie.orm.spelling import spell

__all__ = ["NO_SAGAS", "OutlastsPrepared", "Suspicion", "TouchedKeys"]


class TouchedKeys(Protocol):
    """Answers (table, primary key as text) of each row touched by a saga that is open or has ended since `since_ms`."""

    def __call__(self, database_name: str, /, *, since_ms: int) -> Collection[tuple[str, tuple[str, ...]]]:
        """`since_ms` is by that database's clock."""


@runtime_checkable
class OutlastsPrepared(Protocol):
    """What an answerer of touched keys may know besides: transactions decided elsewhere and not seen here yet."""

    def outlast_prepared(self, database_name: str, /) -> bool:
        """Wait a moment until what is prepared in this database now has ended; whether it has."""


def NO_SAGAS(database_name: str, /, *, since_ms: int) -> Collection[tuple[str, tuple[str, ...]]]:  # noqa: N802
    """Nobody runs sagas: nothing is ever touched."""
    del database_name, since_ms
    return ()


@dataclass(frozen=True)
class Suspicion:
    """What sagas touch at both ends of one reference."""

    child_rows: frozenset[tuple[str, ...]]
    parent_rows: frozenset[tuple[str, ...]]
    parent_key_is_enough: bool
    """Whether a parent's key alone tells whether its row is touched."""

    @classmethod
    def of(
        cls,
        reference: AuditedReference,
        storage: KeyStorage,
        child: Collection[tuple[str, tuple[str, ...]]],
        parent: Collection[tuple[str, tuple[str, ...]]],
    ) -> Suspicion:
        """Sort what the sagas of both databases touch; `storage` is the parent's."""
        end = reference.parent
        return cls(
            child_rows=_rows_of(reference.child, child),
            parent_rows=_rows_of(end, parent),
            # A deleted row's other columns are gone, and a wide `=` matches keys that are spelt otherwise.
            parent_key_is_enough=storage.equality is not Equality.WIDE
            and storage.spells_keys
            and [one.name for one in end.primary_key] == [one.name for one in end.columns],
        )

    @classmethod
    def of_rows(cls, end: Endpoint, touched: Collection[tuple[str, tuple[str, ...]]]) -> Suspicion:
        """What the sagas of one database touch of one table."""
        return cls(child_rows=_rows_of(end, touched), parent_rows=frozenset(), parent_key_is_enough=True)

    def __or__(self, other: Suspicion) -> Suspicion:
        return Suspicion(
            self.child_rows | other.child_rows,
            self.parent_rows | other.parent_rows,
            self.parent_key_is_enough and other.parent_key_is_enough,
        )

    def touches_row(self, row_key: tuple[Any, ...]) -> bool:
        """Whether a saga has this child row in its hands."""
        if not self.child_rows:
            return False
        spelt = tuple(spell(value) for value in row_key)
        return None in spelt or spelt in self.child_rows

    def touches_parent(self, key: Key) -> bool:
        """Whether a saga has the parent of this key in its hands, there or just deleted."""
        if not self.parent_rows:
            return False
        parts = key if isinstance(key, tuple) else (key,)
        return not self.parent_key_is_enough or tuple(map(spell, parts)) in self.parent_rows


def _rows_of(end: Endpoint, touched: Collection[tuple[str, tuple[str, ...]]]) -> frozenset[tuple[str, ...]]:
    # MySQL on some systems, and SQLite, do not tell the case of a table's name.
    name = end.table.name.lower()
    return frozenset(key for table, key in touched if table.rpartition(".")[2].lower() == name)
