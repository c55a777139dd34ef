"""From candidates to orphans, on live data, without a false alarm.

Between the first and the last commit of a saga others see half of it. So a candidate counts only if, in this order, no
unresolved saga has its row or its parent, its row is still there with the same foreign key, its parent is still
missing, its row is there again, and again no saga has them, those included that ended since the child was read. A
saga's record becomes visible in the same commit as its writes: one that could mislead any of the reads is seen by one
of the two looks at the records. Everything is read from primaries, outside any transaction.

A saga that commits in two phases has no record of its rows. But it prepares its branches before home's commit shows
any of its writes. So what is prepared at the other end, once one end has been read, is waited for before the other end
is read; if it does not end, the candidates wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from crosstie.orm.clock import database_now_ms
from crosstie.orm.database import Database
from crosstie.orm.integrity.batch import batches
from crosstie.orm.integrity.child import ChildColumn, KeyRows, RowKey
from crosstie.orm.integrity.endpoint import AuditedReference
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.suspicion import OutlastsPrepared, Suspicion, TouchedKeys

__all__ = ["Confirmation", "Confirmed", "Deferred", "Moment", "Verdict", "judge"]

_KEYS_PER_ROUND: Final = 2_000
_KEYS_PER_LOOK: Final = 1_000

Moment = Mapping[str, int]
"""A point in time as each database's own clock gave it: connection name → milliseconds."""


@dataclass(frozen=True)
class Confirmed:
    """A foreign key that no parent has, and the rows that have it; `total` counts rows beyond those listed too."""

    key: Key
    total: int
    row_keys: tuple[RowKey, ...]


@dataclass(frozen=True)
class Deferred:
    """A foreign key that looks orphaned, in so many rows that cannot be judged while a saga has them or the parent."""

    key: Key
    rows: int


@dataclass
class Verdict:
    """What became of the candidates; those in neither list were no orphans."""

    orphans: list[Confirmed] = field(default_factory=list)
    deferred: list[Deferred] = field(default_factory=list)


class Confirmation:
    """Confirms candidates of one reference; each method raises DatabaseUnavailable."""

    def __init__(
        self, reference: AuditedReference, child: ChildColumn, parent: ParentColumn, touched: TouchedKeys
    ) -> None:
        self.reference = reference
        self.child = child
        self.parent = parent
        self.touched = touched

    def now(self) -> Moment:
        """This moment, to be taken before the child is read: t1."""
        return {database.name: database_now_ms(database) for database in self.reference.databases}

    def settle(self, candidates: Sequence[Key], since: Moment) -> Verdict:
        """Confirm candidates whose rows were read after `since`."""
        verdict = Verdict()
        for keys in batches(candidates, _KEYS_PER_ROUND):
            self._settle(keys, since, verdict)
        return verdict

    def _settle(self, keys: Sequence[Key], since: Moment, verdict: Verdict) -> None:
        suspicion = self.suspicion(since)
        stable: dict[Key, KeyRows] = {}
        half_seen: set[Key] = set()
        for some in batches(keys, _KEYS_PER_LOOK):
            before = self.child.rows(some)
            whole = not before or self._outlast_prepared(*(end.database for end in self.reference.parents))
            absent = self.parent.absent(list(before))
            whole = whole and (not absent or self._outlast_prepared(self.child.database))
            after = self.child.rows(absent)
            stable |= {key: _in_both(before[key], rows) for key, rows in after.items()}
            if not whole:
                half_seen.update(absent)
        suspicion |= self.suspicion(since)
        for key, rows in stable.items():
            confirmed, deferred = judge(key, rows, suspicion)
            if confirmed is not None and key in half_seen:
                confirmed, deferred = None, Deferred(key, rows.total)
            if confirmed is not None:
                verdict.orphans.append(confirmed)
            if deferred is not None:
                verdict.deferred.append(deferred)

    def _outlast_prepared(self, *databases: Database) -> bool:
        """Whether all that is prepared there now has ended, a moment later at most."""
        if not isinstance(self.touched, OutlastsPrepared):
            return True
        return all(self.touched.outlast_prepared(name) for name in {database.name for database in databases})

    def suspicion(self, since: Moment) -> Suspicion:
        """What sagas have in their hands at both ends, or had since then."""
        touched = {name: self.touched(name, since_ms=at_ms) for name, at_ms in since.items()}
        parents = [row for end in self.reference.parents for row in touched[end.database.name]]
        return Suspicion.of(self.reference, self.parent.storage, touched[self.child.database.name], parents)


def judge(key: Key, rows: KeyRows, suspicion: Suspicion) -> tuple[Confirmed | None, Deferred | None]:
    """Decide on a key that has these rows and no parent: what is an orphan, and what must wait."""
    if not rows.row_keys:
        return None, None
    if suspicion.touches_parent(key):
        return None, Deferred(key, rows.total)
    sure = tuple(row_key for row_key in rows.row_keys if not suspicion.touches_row(row_key))
    waiting = len(rows.row_keys) - len(sure)
    confirmed = Confirmed(key, rows.total - waiting, sure) if sure else None
    return confirmed, Deferred(key, waiting if sure else rows.total) if waiting else None


def _in_both(before: KeyRows, after: KeyRows) -> KeyRows:
    known = set(before.row_keys)
    stable = tuple(row_key for row_key in after.row_keys if row_key in known)
    unlisted = after.total - len(after.row_keys)
    return KeyRows(len(stable) + unlisted, stable)
