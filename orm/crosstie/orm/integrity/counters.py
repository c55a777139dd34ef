"""Counter caches: a column of the parent that is to be the number of its children, in whatever databases they are.

Parents are read page by page in the order of their keys, and of each page the children are counted, grouped by key.
What differs is a candidate: on live data child and counter are written one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import sqlalchemy as sa

from crosstie.orm.clock import database_now_ms
from crosstie.orm.counter_cache import Counter
from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity.batch import batches, values_per_statement
from crosstie.orm.integrity.catalog import Equality, column_facts
from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.columns import columns_of
from crosstie.orm.integrity.endpoint import AuditedReference, Endpoint
from crosstie.orm.integrity.errors import KeysNotComparable, ScanIncomplete
from crosstie.orm.integrity.findings import AuditPhase, AuditProgress, AuditState, Key, ProgressListener
from crosstie.orm.integrity.judgement import FINDING_LIMIT
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.preflight import key_kind
from crosstie.orm.integrity.storage import KeyKind, Raw
from crosstie.orm.integrity.suspicion import NO_SAGAS, Suspicion, TouchedKeys
from crosstie.orm.spelling import spell

__all__ = ["NO_VALUES", "CounterColumn", "CounterResult", "Miscount", "TouchedValues", "audit_counter"]

_KEYS_PER_LOOK: Final = 1_000
_INT64: Final = range(-(2**63), 2**63)
_HELD_LIMIT: Final = 100_000
"""Keys that are looked at once more; where there are more, the audit stops: the column means something else."""


class TouchedValues(Protocol):
    """Answers which values a saga that is open, or has ended since `since_ms`, has put into a column or taken from it.

    Spelt as `spell` does. None where that cannot be told.
    """

    def __call__(self, database_name: str, table: str, column: str, /, *, since_ms: int) -> Collection[str] | None:
        """`since_ms` is by that database's clock."""


def NO_VALUES(database_name: str, table: str, column: str, /, *, since_ms: int) -> Collection[str] | None:  # noqa: N802
    """Nobody runs sagas."""
    del database_name, table, column, since_ms
    return ()


@dataclass(frozen=True)
class CounterColumn:
    """The column `counter` of the table of `parent`, whose key the columns `children` refer to; `name` names it."""

    name: str
    parent: Endpoint
    counter: sa.Column[Any]
    children: tuple[Endpoint, ...]

    @classmethod
    def between(cls, parent: Endpoint, counter: sa.Column[Any], children: Sequence[Endpoint]) -> CounterColumn:
        """Named after its columns: "default.users.posts_count = count(secondary.posts.user_id)"."""
        column = Endpoint(parent.connection, parent.table, counter)
        where = [one.connection for one in children]
        counted = str(children[0]).removeprefix(where[0])
        of = where[0] if len(where) == 1 else f"{{{', '.join(where)}}}"
        return cls(f"{column} = count({of}{counted})", parent, counter, tuple(children))

    @classmethod
    def declared(cls, counter: Counter) -> CounterColumn:
        """That of a field `CounterCache`."""
        children = [Endpoint(name, counter.child_table, counter.child_column) for name in counter.child_connections]
        parent = Endpoint(counter.connection, counter.table, counter.key_column)
        return cls.between(parent, counter.counter_column, children)

    @property
    def ends(self) -> tuple[Endpoint, ...]:
        """The parent's key and what refers to it."""
        return (self.parent, *self.children)

    @property
    def references(self) -> tuple[str, ...]:
        """The names of the references that its children follow."""
        return tuple(f"{child} -> {self.parent}" for child in self.children)


@dataclass(frozen=True)
class Miscount:
    """A parent, by primary key, whose counter is `found` where it has `expected` children."""

    parent_key: dict[str, Any]
    expected: int
    found: Any


@dataclass(frozen=True)
class CounterResult:
    """The answer for one counter: `differing` parents, of which `findings` are the first.

    `deferred` ones are in the hands of an unresolved saga, or changed at each look. `reason` says why the state is
    INCOMPLETE; what was found until then is kept.
    """

    name: str
    state: AuditState
    parents_checked: int = 0
    differing: int = 0
    deferred: int = 0
    findings: tuple[Miscount, ...] = ()
    seconds: float = 0.0
    reason: str | None = None


def audit_counter(
    counter: CounterColumn,
    *,
    page_size: int = 50_000,
    suspects: TouchedKeys = NO_SAGAS,
    values: TouchedValues = NO_VALUES,
    grace_s: float = 0.0,
    progress: ProgressListener | None = None,
    finding_limit: int = FINDING_LIMIT,
    wait: Callable[[float], None] = time.sleep,
    clock_s: Callable[[], float] = time.monotonic,
) -> CounterResult:
    """Find the parents whose counter is not the number of their children; 0 for one that has none, NULL is no number.

    What differs counts if, in this order, no unresolved saga has the parent or one of its children, the counter is
    read, the children are counted, the counter is the same again, and again no saga has them, those included that have
    ended since. What cannot be told yet is looked at once more at the end, and with `grace_s` whatever differs, after
    so many seconds. Whatever keeps it from reading everything makes the state INCOMPLETE, with the reason.
    """
    start_s, checked, reason = clock_s(), 0, None
    judge = _Judge(counter, suspects, values)

    def tell(phase: AuditPhase) -> None:
        if progress is not None:
            progress(AuditProgress(counter.name, phase, checked, checked))

    try:
        tell(AuditPhase.COUNTING)
        reader = judge.reader = _Reader(counter)
        for page, hi in reader.pages(page_size):
            tell(AuditPhase.SCANNING)
            counts = reader.counted(page, hi, page_size)
            judge.settle([key for key, row in page.items() if row.value != counts.get(key, 0)])
            checked += len(page)
        if grace_s > 0 and judge.differing:
            tell(AuditPhase.WAITING)
            wait(grace_s)
        tell(AuditPhase.CONFIRMING)
        judge.look_again(everything=grace_s > 0)
    except CrosstieError as error:
        reason = str(error)
    state = AuditState.FINDINGS if judge.differing else AuditState.OK
    return CounterResult(
        counter.name,
        state if reason is None else AuditState.INCOMPLETE,
        parents_checked=checked,
        differing=len(judge.differing),
        deferred=len(judge.deferred),
        findings=tuple(judge.differing.values())[:finding_limit],
        seconds=clock_s() - start_s,
        reason=reason,
    )


@dataclass(frozen=True)
class _Parent:
    """A parent's row: its primary key, and the counter as the driver gives it."""

    row_key: tuple[Any, ...]
    value: Any


class _Reader:
    """Reads parents and counts children. Each method raises DatabaseUnavailable, UnexpectedKey, ScanIncomplete."""

    def __init__(self, counter: CounterColumn) -> None:
        ends = [columns_of(AuditedReference(counter.name, end, counter.parent)) for end in counter.children]
        self.counter = counter
        self.children = [child for child, _ in ends]
        self.parent: ParentColumn = ends[0][1]
        storages = [*(child.storage for child in self.children), self.parent.storage]
        if any(storage.equality is not Equality.IDENTICAL for storage in storages):
            raise KeysNotComparable(
                f"{counter.name}: expected keys that are equal only where they are spelt alike, and found text that "
                "its database compares otherwise: children cannot be counted by it. Use integers or UUIDs as keys."
            )
        if not self.parent.is_unique:
            raise KeysNotComparable(
                f"{counter.name}: expected a key of which {counter.parent.table.fullname!r} has no two rows alike, and "
                f"{counter.parent.column.name!r} is neither its primary key nor unique."
            )
        facts = column_facts(Endpoint(counter.parent.connection, counter.parent.table, counter.counter))
        if key_kind(facts) is not KeyKind.INTEGER:
            raise KeysNotComparable(
                f"{counter.name}: expected a counter of an integer type, and found {facts.type_name!r}."
            )
        self._key = self.parent.storage.typed(counter.parent.column)
        self._keys = ChildColumn(counter.parent, self.parent.storage)

    def pages(self, size: int) -> Iterator[tuple[dict[Key, _Parent], Raw]]:
        """All parents in the order of their keys, `size` at a time, each page with its last key as it is stored.

        A page is counted again in the snapshot that it was read in.
        """
        after: list[sa.ColumnElement[bool]] = [self._key.is_not(None)]
        while True:
            with self._keys.snapshot() as frozen:
                rows = frozen.fetch(self._rows().where(*after).order_by(self._key).limit(size))
                upto = [] if len(rows) < size else [self._key <= rows[-1][0]]
                (counted,) = frozen.fetch(
                    sa.select(sa.func.count()).select_from(self.counter.parent.table).where(*after, *upto)
                )[0]
            page = self._by_key(rows)
            if not len(rows) == len(page) == counted:
                raise ScanIncomplete(
                    f"{self.counter.parent}: {len(rows)} parents with {len(page)} keys were read, and {counted} are "
                    "there"
                )
            if rows:
                yield page, rows[-1][0]
            if len(rows) < size:
                return
            after = [self._key > rows[-1][0]]

    def parents(self, keys: Sequence[Key]) -> dict[Key, _Parent]:
        """The rows of these keys now; one that is gone is absent."""
        spelt = [raw for key in keys for raw in self.parent.storage.spellings(key)]
        found: dict[Key, _Parent] = {}
        for some in batches(spelt, values_per_statement(self.parent.database)):
            found |= self._by_key(self._keys.fetch(self._rows().where(self._key.in_(some))))
        return found

    def counted(self, page: Mapping[Key, _Parent], hi: Raw, size: int) -> dict[Key, int]:
        """How many children each parent of a page has; those without any may be absent."""
        if self.parent.storage.kind is not KeyKind.INTEGER:
            return self.counts(list(page))
        counts: dict[Key, int] = {}
        first = next(iter(page))
        lowest = first - 1 if isinstance(first, int) and first > _INT64.start else None
        for child in self.children:
            after, reached = lowest, False
            while not reached:
                rows = child.fetch(child.groups(after, hi).limit(2 * size))
                for raw, number in rows:
                    key = child.storage.key(raw)
                    if key in page:
                        counts[key] = counts.get(key, 0) + number
                reached = len(rows) < 2 * size
                after = after if reached else rows[-1][0]
        return counts

    def counts(self, keys: Sequence[Key]) -> dict[Key, int]:
        """How many children have each of these keys."""
        counts: dict[Key, int] = {}
        for child in self.children:
            for key, number in child.counts(keys).items():
                counts[key] = counts.get(key, 0) + number
        return counts

    def now(self) -> dict[str, int]:
        """This moment by each database's own clock."""
        databases = {end.database.name: end.database for end in self.counter.ends}
        return {name: database_now_ms(one) for name, one in databases.items()}

    def _rows(self) -> sa.Select[Any]:
        columns = [column.label(f"k{number}") for number, column in enumerate(self.counter.parent.primary_key)]
        # As the driver gives it: SQLite keeps text in an INTEGER column.
        return sa.select(self._key, sa.type_coerce(self.counter.counter, sa.types.NULLTYPE), *columns)

    def _by_key(self, rows: Sequence[Sequence[Any]]) -> dict[Key, _Parent]:
        return {self.parent.storage.key(row[0]): _Parent(tuple(row[2:]), row[1]) for row in rows}


@dataclass
class _Judge:
    """Confirms candidates, on live data."""

    counter: CounterColumn
    suspects: TouchedKeys
    values: TouchedValues
    differing: dict[Key, Miscount] = field(default_factory=dict)
    deferred: set[Key] = field(default_factory=set)
    reader: _Reader = field(init=False)

    def settle(self, candidates: Sequence[Key]) -> None:
        """Add those that differ, and those of which it cannot be told yet."""
        for keys in batches(candidates, _KEYS_PER_LOOK):
            since = self.reader.now()
            before = self._sagas(since)
            first = self.reader.parents(keys)
            counts = self.reader.counts(list(first))
            second = self.reader.parents(list(first))
            sagas = (before, self._sagas(since))
            for key, parent in second.items():
                expected = counts.get(key, 0)
                if any(one.has(key) for one in sagas) or parent != first[key]:
                    self.deferred.add(key)
                elif parent.value != expected:
                    self.differing[key] = self._found(parent, expected)
        if len(self.deferred) > _HELD_LIMIT:
            raise ScanIncomplete(
                f"{self.counter.name}: of more than {_HELD_LIMIT:,} parents it cannot be told yet whether the counter "
                "is right: it changes all the time, or sagas that are not resolved have them. Resolve these, and audit "
                "again."
            )

    def look_again(self, *, everything: bool) -> None:
        """What was deferred, and where `everything` counts, what differed."""
        keys = sorted(self.deferred, key=str)
        self.deferred.clear()
        if everything:
            keys += self.differing
            self.differing.clear()
        self.settle(keys)

    def _found(self, parent: _Parent, expected: int) -> Miscount:
        names = [column.name for column in self.counter.parent.primary_key]
        return Miscount(dict(zip(names, parent.row_key, strict=True)), expected, parent.value)

    def _sagas(self, since: Mapping[str, int]) -> _Touched:
        end = self.counter.parent
        name = end.database.name
        rows = self.suspects(name, since_ms=since[name])
        parents = Suspicion.of(AuditedReference(self.counter.name, end, end), self.reader.parent.storage, (), rows)
        children = [
            self.values(one.database.name, one.table.name, one.column.name, since_ms=since[one.database.name])
            for one in self.counter.ends
        ]
        known = [one for one in children if one is not None]
        return _Touched(parents, frozenset().union(*known) if len(known) == len(children) else None)


@dataclass(frozen=True)
class _Touched:
    """What sagas have in their hands: parents, and keys that children have or had; None where any may be."""

    parents: Suspicion
    keys: frozenset[str] | None

    def has(self, key: Key) -> bool:
        """Whether this parent or one of its children may be among them."""
        return self.keys is None or spell(key) in self.keys or self.parents.touches_parent(key)
