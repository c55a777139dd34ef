"""Who keeps copies right: the layer above, which is told of every row whose originals or foreign keys were written.

What it does about rows in other databases is not this layer's affair; what it writes down is part of the writing
transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from crosstie.orm.copies import CopyGroup, copies_in, copies_of
from crosstie.orm.errors import ModelDefinitionError
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.mapping import TableMapping
from crosstie.orm.watch import RowChange, watch_with

__all__ = ["CopyKeeper", "keep_with"]


class CopyKeeper(Protocol):
    """Takes word of written rows to their copies."""

    def originals_written(self, tx: LocalTransaction, group: CopyGroup, changes: Sequence[RowChange]) -> None:
        """Rows of the parent are written in `tx`, whose originals or key are new."""

    def copies_written(self, tx: LocalTransaction, group: CopyGroup, changes: Sequence[RowChange]) -> None:
        """Rows of the child are written in `tx`, whose foreign key is new, and its copies with it."""


_keepers: list[CopyKeeper] = []


def keep_with(keeper: CopyKeeper) -> None:
    """Have copies kept by this keeper, in place of any other."""
    _keepers[:] = [keeper]


@dataclass(frozen=True)
class _Watcher:
    """Tells the keeper of the writes to one table."""

    fields: frozenset[str]
    written: tuple[tuple[CopyGroup, frozenset[str]], ...]
    """The groups whose originals are here, with the fields that they depend on."""
    copied: tuple[tuple[CopyGroup, frozenset[str]], ...]

    def changed(self, tx: LocalTransaction, mapping: TableMapping, changes: Sequence[RowChange]) -> None:
        """Tell of the rows that there are now. Raises ModelDefinitionError where nobody is there to be told."""
        if not _keepers:
            group, _ = (self.written or self.copied)[0]
            raise ModelDefinitionError(
                f"copies are declared for {group.name}, which the outbox keeps right, and it is not loaded: import "
                "crosstie.outbox where the models are defined."
            )
        for groups, tell in (
            (self.written, _keepers[0].originals_written),
            (self.copied, _keepers[0].copies_written),
        ):
            for group, fields in groups:
                concerned = [one for one in changes if _concerns(one, fields)]
                if concerned:
                    tell(tx, group, concerned)


def _concerns(change: RowChange, fields: frozenset[str]) -> bool:
    """Whether the row exists after the write with new values; copies of a deleted row stay as they are."""
    before, after = change.before, change.after
    return after is not None and (before is None or any(before[name] != after[name] for name in fields))


def _watcher(mapping: TableMapping) -> _Watcher | None:
    written = tuple(
        (group, _here(mapping, [group.link.far.column.name, *(one.original.column.name for one in group.copies)]))
        for group in copies_of(mapping)
    )
    copied = tuple((group, _here(mapping, [group.link.near.column.name])) for group in copies_in(mapping))
    if not written and not copied:
        return None
    return _Watcher(frozenset().union(*(fields for _, fields in written + copied)), written, copied)


def _here(mapping: TableMapping, columns: Sequence[str]) -> frozenset[str]:
    """The fields of these columns; another model of the same table may lack some, and cannot change them."""
    return frozenset(mapping.field_of_column[name].name for name in columns if name in mapping.field_of_column)


watch_with(_watcher)
