"""Values that are to be in one of several databases only: each guards its own rows, and nobody those of all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.clock import database_now_ms
from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity.batch import batches
from crosstie.orm.integrity.catalog import Equality
from crosstie.orm.integrity.child import ROWS_PER_KEY, ChildColumn, RowKey
from crosstie.orm.integrity.columns import columns_of
from crosstie.orm.integrity.endpoint import AuditedReference, Endpoint
from crosstie.orm.integrity.errors import KeysNotComparable
from crosstie.orm.integrity.fetch import PlainScan, TextScan
from crosstie.orm.integrity.findings import AuditPhase, AuditProgress, AuditState, Key, ProgressListener
from crosstie.orm.integrity.judgement import FINDING_LIMIT
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.scan import Ends
from crosstie.orm.integrity.storage import KeyKind
from crosstie.orm.integrity.suspicion import NO_SAGAS, Suspicion, TouchedKeys

__all__ = ["Duplicate", "UniqueColumn", "UniquenessResult", "audit_uniqueness"]

_KEYS_PER_LOOK: Final = 200
_WIDTH: Final = {Equality.IDENTICAL: 0, Equality.PADDED: 1, Equality.WIDE: 2}


@dataclass(frozen=True)
class UniqueColumn:
    """A column in several databases, none of whose values may be in two of them; `name` names it in reports."""

    name: str
    ends: tuple[Endpoint, ...]


@dataclass(frozen=True)
class Duplicate:
    """A value that rows of two databases have: by connection, the primary keys of the first such rows."""

    key: Key
    rows: Mapping[str, tuple[dict[str, Any], ...]]


@dataclass(frozen=True)
class UniquenessResult:
    """The answer for one column.

    `keys_checked` counts distinct values, but for those of one database, which is only asked. `duplicates` counts the
    values that two databases have, once for each two; `findings` are the first of them. `deferred` are those whose rows
    an unresolved saga has. `reason` says why the state is INCOMPLETE; what was found until then is kept.
    """

    name: str
    state: AuditState
    keys_checked: int = 0
    duplicates: int = 0
    deferred: int = 0
    findings: tuple[Duplicate, ...] = ()
    seconds: float = 0.0
    reason: str | None = None


def audit_uniqueness(
    unique: UniqueColumn,
    *,
    page_size: int = 50_000,
    suspects: TouchedKeys = NO_SAGAS,
    grace_s: float = 0.0,
    progress: ProgressListener | None = None,
    finding_limit: int = FINDING_LIMIT,
    wait: Callable[[float], None] = time.sleep,
    clock_s: Callable[[], float] = time.monotonic,
) -> UniquenessResult:
    """Find the values that two of the databases have, by the wider `=` of both; NULL is none.

    A row that moves is in two databases for a while. Rows that an unresolved saga has touched are deferred, and with
    `grace_s` whatever was found is looked at once more after so many seconds. Whatever keeps it from reading everything
    makes the state INCOMPLETE, with the reason.
    """
    start_s, keys, reason, pairs = clock_s(), 0, None, list[_Pair]()

    def tell(phase: AuditPhase) -> None:
        if progress is not None:
            progress(AuditProgress(unique.name, phase, keys, keys))

    try:
        tell(AuditPhase.COUNTING)
        columns = _columns(unique)
        for place, read in enumerate(columns[:-1]):
            own = [_Pair(unique.name, read, asked, suspects) for asked in columns[place + 1 :]]
            pairs += own
            after, last = None, read.last()
            scan = TextScan if read.storage.kind is KeyKind.TEXT else PlainScan
            while last is not None and after != last:
                tell(AuditPhase.SCANNING)
                since = _now(columns)
                page = scan(Ends(read, own[0].parent, last, page_size)).read(after)
                for pair in own:
                    pair.judge(pair.shared(page.keys), since)
                keys, after = keys + page.tile.keys, page.tile.hi
        if grace_s > 0 and any(pair.duplicates for pair in pairs):
            tell(AuditPhase.WAITING)
            wait(grace_s)
        tell(AuditPhase.CONFIRMING)
        for pair in pairs:
            pair.judge_again(_now(columns), everything=grace_s > 0)
    except CrosstieError as error:
        reason = str(error)
    found = [one for pair in pairs for one in pair.duplicates.values()]
    state = AuditState.FINDINGS if found else AuditState.OK
    return UniquenessResult(
        unique.name,
        state if reason is None else AuditState.INCOMPLETE,
        keys_checked=keys,
        duplicates=len(found),
        deferred=sum(len(pair.deferred) for pair in pairs),
        findings=tuple(found[:finding_limit]),
        seconds=clock_s() - start_s,
        reason=reason,
    )


def _columns(unique: UniqueColumn) -> list[ChildColumn]:
    """The columns, those with the widest `=` last: the later are asked about the values of the former.

    Raises KeysNotComparable, NoSuchTable, DatabaseUnavailable.
    """
    if len(unique.ends) < 2:
        raise KeysNotComparable(f"{unique.name}: expected a column in two databases at least, and found one.")
    first = unique.ends[0]
    columns = [columns_of(AuditedReference(unique.name, end, first))[0] for end in unique.ends]
    kinds = {column.storage.kind for column in columns}
    if len(kinds) > 1:
        raise KeysNotComparable(
            f"{unique.name}: expected values of one kind in all databases, and found {' and '.join(sorted(kinds))}. "
            "Give the columns one type."
        )
    return sorted(columns, key=lambda column: _WIDTH[column.storage.equality])


def _now(columns: Iterable[ChildColumn]) -> dict[str, int]:
    """This moment by each database's own clock."""
    return {one.database.name: database_now_ms(one.database) for one in columns}


@dataclass
class _Pair:
    """Two of the databases: the values of one are read, and the other is asked about them."""

    name: str
    read: ChildColumn
    asked: ChildColumn
    touched: TouchedKeys
    duplicates: dict[Key, Duplicate] = field(default_factory=dict)
    deferred: set[Key] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.parent = ParentColumn(self.asked.end, self.asked.storage)

    def shared(self, keys: Sequence[Key]) -> list[Key]:
        """Those of the values that the other database has too."""
        absent = set(self.parent.absent(keys))
        return [key for key in keys if key not in absent]

    def judge(self, keys: Sequence[Key], since: Mapping[str, int]) -> None:
        """Add the duplicates among values that were read after `since`, and those that cannot be judged yet.

        The order is that of all confirmations: sagas, the rows of both, those of the first again, sagas again.
        """
        for some in batches(keys, _KEYS_PER_LOOK):
            before = self._touched_rows(since)
            first = self._rows_read(some)
            second = self._rows_asked(list(first))
            again = self._rows_read(list(second))
            suspicions = *before, *self._touched_rows(since)
            for key, rows in again.items():
                stable = [row for row in rows if row in first[key]]
                sure = self._sure(stable, suspicions[::2]), self._sure(second[key], suspicions[1::2])
                if all(sure):
                    self.duplicates[key] = Duplicate(
                        key,
                        {end.end.connection: _named(end, kept) for end, kept in zip(self._ends(), sure, strict=True)},
                    )
                elif stable:
                    self.deferred.add(key)

    def judge_again(self, since: Mapping[str, int], *, everything: bool) -> None:
        """What was deferred, and where `everything` counts, what was found."""
        keys = sorted(self.deferred, key=str)
        self.deferred.clear()
        if everything:
            keys += self.duplicates
            self.duplicates.clear()
        self.judge(keys, since)

    def _ends(self) -> tuple[ChildColumn, ChildColumn]:
        return self.read, self.asked

    def _touched_rows(self, since: Mapping[str, int]) -> tuple[Suspicion, Suspicion]:
        first, second = (
            Suspicion.of(
                AuditedReference(self.name, one.end, one.end),
                one.storage,
                self.touched(one.database.name, since_ms=since[one.database.name]),
                (),
            )
            for one in self._ends()
        )
        return first, second

    @staticmethod
    def _sure(rows: Sequence[RowKey], suspicions: Sequence[Suspicion]) -> list[RowKey]:
        return [row for row in rows if not any(one.touches_row(row) for one in suspicions)]

    def _rows_read(self, keys: Sequence[Key]) -> dict[Key, tuple[RowKey, ...]]:
        return {key: rows.row_keys for key, rows in self.read.rows(keys).items()}

    def _rows_asked(self, keys: Sequence[Key]) -> dict[Key, tuple[RowKey, ...]]:
        """By the asked database's own `=`, which may match what is spelt otherwise."""
        if self.asked.storage.equality is Equality.IDENTICAL:
            return {key: rows.row_keys for key, rows in self.asked.rows(keys).items()}
        end, storage = self.asked.end, self.asked.storage
        found = {}
        for key in keys:
            equal = sa.or_(*(storage.typed(end.column) == raw for raw in storage.spellings(key)))
            rows = self.asked.fetch(sa.select(*end.primary_key).where(equal).limit(ROWS_PER_KEY))
            if rows:
                found[key] = tuple(tuple(row) for row in rows)
        return found


def _named(column: ChildColumn, rows: Sequence[RowKey]) -> tuple[dict[str, Any], ...]:
    names = [one.name for one in column.end.primary_key]
    return tuple(dict(zip(names, row, strict=True)) for row in rows)
