"""Denormalised columns, kept right by events.

Two things make a copy wrong: its original is written, or its own row is, with a value that was read a moment too early.
Both write an event in the transaction that does it, and it holds no value: whoever applies it reads the original anew.
So every copy is aligned once more after the last write that concerns it, and that is all there is to the proof. No
version is kept; the events may come late, twice, and in any order.

A subscriber only notes what is due. The batch's events are applied together before its transaction commits, within a
bound on the rows; what is left goes on as another event, from the copies' own outbox to itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from crosstie.orm.copies import CopyGroup, copy_groups
from crosstie.orm.copy_keeper import keep_with
from crosstie.orm.local_transaction import LocalTransaction, current
from crosstie.orm.mapping import MappedField
from crosstie.orm.watch import RowChange
from crosstie.outbox.alignment import align_children, align_rows, keys_of_parents
from crosstie.outbox.copy_event import (
    KEYS_PER_EVENT,
    CopiesDue,
    OriginalsWritten,
    copies_due,
    directed_classes,
    due_type,
    group_of,
    originals_written,
    require_routed,
    written_type,
)
from crosstie.outbox.key_json import from_json, to_json
from crosstie.outbox.publish import enqueue
from crosstie.outbox.subscription import subscribe_with, subscriber

__all__ = ["ROWS_PER_TRANSACTION", "CopiesDue", "OriginalsWritten", "receive", "tell_of_copies", "tell_of_originals"]

ROWS_PER_TRANSACTION: Final = 1_000
"""Children that one transaction locks and aligns, however many events the relay hands over in it."""

_TOLD: Final = "outbox.copies.told"
_DUE: Final = "outbox.copies.due"


# -- writing down what was written ----------------------------------------------------------------------------


class _Told(NamedTuple):
    group: CopyGroup
    originals: bool
    """Whether the key is the parent's; else the child's."""
    key: tuple[Any, ...]
    """As JSON."""


class _Keeper:
    """Writes events for what the ORM writes."""

    def originals_written(self, tx: LocalTransaction, group: CopyGroup, changes: Sequence[RowChange]) -> None:
        """Have the copies aligned, wherever they are. Raises CopyUnrouted."""
        tell_of_originals(tx, group, [change.key for change in changes])

    def copies_written(self, tx: LocalTransaction, group: CopyGroup, changes: Sequence[RowChange]) -> None:
        """Have the rows looked at again: what was filled in may have changed before they are committed."""
        near = group.link.near.name
        tell_of_copies(tx, group, [one.key for one in changes if not _is_without_parent(one, near)])


def _is_without_parent(change: RowChange, foreign: str) -> bool:
    after = change.after
    return change.before is None and after is not None and foreign in after and after[foreign] is None


def tell_of_originals(tx: LocalTransaction, group: CopyGroup, keys: Iterable[tuple[Any, ...]]) -> None:
    """Have the copies of the parent's rows with these primary keys aligned, if `tx` commits. Raises CopyUnrouted."""
    require_routed(tx, group, written_type(group))
    _tell(tx, [_Told(group, True, tuple(map(to_json, key))) for key in keys])


def tell_of_copies(tx: LocalTransaction, group: CopyGroup, keys: Iterable[tuple[Any, ...]]) -> None:
    """Have the child's rows with these primary keys aligned, if `tx` commits. Raises CopyUnrouted."""
    require_routed(tx, group, due_type(group))
    _tell(tx, [_Told(group, False, tuple(map(to_json, key))) for key in keys])


def _tell(tx: LocalTransaction, told: Sequence[_Told]) -> None:
    tx.ledger(_TOLD).extend(told)
    # Registered again after a rolled-back savepoint has cut it away.
    if _write_told not in tx.ledger("before_commit"):
        tx.before_commit(_write_told)


def _write_told(tx: LocalTransaction) -> None:
    """Write all that the transaction has told as few events, each row once."""
    told = tx.ledger(_TOLD)
    collected: dict[tuple[str, bool], tuple[CopyGroup, dict[tuple[Any, ...], None]]] = {}
    for group, originals, key in told:
        collected.setdefault((group.name, originals), (group, {}))[1][key] = None
    told.clear()
    for (_, originals), (group, keys) in collected.items():
        enqueue(tx, originals_written(group, list(keys)) if originals else copies_due(group, rows=list(keys)))


# -- applying -------------------------------------------------------------------------------------------------


def receive(event: OriginalsWritten | CopiesDue) -> None:
    """Note what is due. Raises EventUnreadable for copies that no model declares."""
    group = group_of(event)
    tx = current(group.child.connection)
    assert tx is not None, "the relay runs subscribers in a transaction of their database"
    tx.ledger(_DUE).append((group, event))
    if _align_due not in tx.ledger("before_commit"):
        tx.before_commit(_align_due)


def _align_due(tx: LocalTransaction) -> None:
    """Align all that is due, within the bound, and write events for the rest."""
    due = tx.ledger(_DUE)
    by_group: dict[str, _Work] = {}
    for group, event in due:
        by_group.setdefault(group.name, _Work(group)).add(event)
    due.clear()
    limit = ROWS_PER_TRANSACTION
    for work in by_group.values():
        limit = work.do(tx, limit)
        if work.left:
            require_routed(tx, work.group, due_type(work.group))
            enqueue(tx, work.left)


class _Work:
    """What the events of a batch ask for in one group, each row and each key once."""

    def __init__(self, group: CopyGroup) -> None:
        self.group = group
        self.left: list[CopiesDue] = []
        self._parents: dict[tuple[Any, ...], None] = {}
        self._rows: dict[tuple[Any, ...], None] = {}
        self._keys: dict[Any, None] = {}
        self._continued: list[tuple[list[Any], tuple[Any, ...]]] = []

    def add(self, event: OriginalsWritten | CopiesDue) -> None:
        """Take in one event."""
        child, near = self.group.child.key, self.group.link.near
        if isinstance(event, OriginalsWritten):
            self._parents.update(dict.fromkeys(_values(self.group.parent.key, key) for key in event.keys))
            return
        self._rows.update(dict.fromkeys(_values(child, key) for key in event.rows))
        keys = [from_json(near, key) for key in event.keys]
        if event.after is None:
            self._keys.update(dict.fromkeys(keys))
        else:
            self._continued.append((keys, _values(child, event.after)))

    def do(self, tx: LocalTransaction, limit: int) -> int:
        """Align at most `limit` rows; returns what remains of it. What is not done is in `left` then."""
        near = self.group.link.near
        rows = list(self._rows)
        now, later = rows[:limit], rows[limit:]
        if now:
            align_rows(tx, self.group, now)
        self.left += copies_due(self.group, rows=_as_json(later))
        limit -= len(now)
        parents = keys_of_parents(self.group, list(self._parents)) if self._parents else []
        keys = list(self._keys | dict.fromkeys(from_json(near, to_json(key)) for key in parents))
        chunks = [keys[start : start + KEYS_PER_EVENT] for start in range(0, len(keys), KEYS_PER_EVENT)]
        begun: list[tuple[list[Any], tuple[Any, ...] | None]] = [*self._continued, *((chunk, None) for chunk in chunks)]
        for chunk, after in begun:
            last = after
            if limit > 0:
                found, last = align_children(tx, self.group, chunk, after=after, limit=limit)
                limit -= found
                if last is None:
                    continue
            self.left += copies_due(
                self.group, keys=[to_json(key) for key in chunk], after=None if last is None else _as_json([last])[0]
            )
        return limit


def _values(fields: Sequence[MappedField], key: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(from_json(field, part) for field, part in zip(fields, key, strict=True))


def _as_json(keys: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [tuple(map(to_json, key)) for key in keys]


def _subscribe_declared() -> None:
    """Subscribe to the events of the copies that are declared."""
    for group in copy_groups():
        for kind in directed_classes(group):
            subscriber(kind, database=group.child.connection)(receive)


keep_with(_Keeper())
subscribe_with(_subscribe_declared)
