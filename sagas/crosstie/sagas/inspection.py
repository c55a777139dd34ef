"""What the databases say about sagas: the unfinished ones, one in full, and what the protocol cannot have left."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import CrosstieError
from crosstie.outbox.batch import BLOCK_STEP, home_states
from crosstie.outbox.tables import effect as effects
from crosstie.outbox.tables import saga as records
from crosstie.sagas import image
from crosstie.sagas.effect import UNFINISHED, Effect, in_turn
from crosstie.sagas.owed import ENDED, branches_done
from crosstie.sagas.preparable import PREPARED, prepared_branches, prepared_header
from crosstie.sagas.record import UNSETTLED, SagaHeader, SagaRecord
from crosstie.sagas.row_lock import stale_locks

__all__ = [
    "LATE_S",
    "LEFTOVER_KINDS",
    "EffectState",
    "Leftover",
    "RecordState",
    "SagaState",
    "count_effects",
    "count_sagas",
    "find_leftovers",
    "find_saga",
    "find_unfinished",
]

UNDECIDED = "undecided"
OWED = "owed"
UNKNOWN = "unknown"
"""Home could not be asked."""
LATE_S: Final = 60.0
"""Seconds that a sweep may be late before what it should have ended counts as left over."""
COMMITTED_AT_ONCE: Final = 10_000
SAGAS_AT_ONCE: Final = 500


@dataclass(frozen=True)
class RecordState:
    """A record as its database has it; times are seconds of that database's clock, counted from now."""

    participant: str
    role: str
    state: str
    age_s: float
    changed_s: float
    """How long it has been in this state."""
    expires_in_s: float
    next_in_s: float
    attempts: int
    conflict: Mapping[str, Any] | None
    """Why the undo is quarantined: `conflict` (a text), `table`, `key`, `expected`, `found`.

    Where branches are owed: `conflict`, and `branches`, which has these of each.
    """
    undo: Sequence[Mapping[str, Any]]
    """The entries of the undo log; in home the redo log, whose entries say for which database (`in`)."""

    @property
    def quarantined(self) -> bool:
        """Whether only an operator can have the branch undone, or owed branches done."""
        return self.state in UNSETTLED and self.conflict is not None


@dataclass(frozen=True)
class EffectState:
    """An effect outside databases as its home has it; times as in RecordState."""

    effect: Effect
    age_s: float
    changed_s: float
    expires_in_s: float
    next_in_s: float
    """When it is tried again: after its backoff and after the lease of whoever is at it."""
    error: str | None
    """What its last attempt to compensate ended with."""


@dataclass(frozen=True)
class SagaState:
    """A saga as far as its participants could be asked; `errors` are those of the others."""

    header: SagaHeader
    decision: str
    """`undecided`, `committed`, `owed`, `aborted`, `finished`, or `unknown` where home could not be asked.

    `owed` is committed, too: branches may still have to follow.
    """
    records: Sequence[RecordState]
    errors: Mapping[str, str] = field(default_factory=dict)
    effects: Sequence[EffectState] = ()
    """In the order in which the saga had them."""
    owed: Sequence[str] = ()
    """The branches that are committed in home and not known to be done."""

    @property
    def quarantined(self) -> list[str]:
        """The branches that wait for an operator."""
        waiting: list[str] = []
        for one in self.records:
            if one.quarantined:
                noted = (one.conflict or {}).get("branches", self.owed)
                waiting += list(noted) if one.state == "owed" else [one.participant]
        return waiting

    def log_of(self, branch: str) -> list[Mapping[str, Any]]:
        """The entries about rows by which this branch is undone or redone."""
        return [
            entry
            for one in self.records
            for entry in one.undo
            if "key" in entry and entry.get("in", one.participant) == branch
        ]

    @property
    def quarantined_effects(self) -> list[Effect]:
        """The effects that do."""
        return [one.effect for one in self.effects if one.effect.state == "quarantined"]

    @property
    def age_s(self) -> float:
        """How long ago the first trace of it was written."""
        return max([one.age_s for one in self.records] + [one.age_s for one in self.effects])

    @property
    def expired(self) -> bool:
        """Whether a worker may end it for the process that began it."""
        still_open = [one.expires_in_s < 0 for one in self.effects if one.effect.state == "open"]
        waiting = any(one.state in {*UNSETTLED, PREPARED} and one.expires_in_s < 0 for one in self.records)
        return waiting or (bool(still_open) and all(still_open))


def find_unfinished(names: Iterable[str] | None = None, *, limit: int = 1000) -> tuple[list[SagaState], dict[str, str]]:
    """Sagas that these databases (default: all that are writable) have not seen the end of, the oldest first.

    At most `limit` records and effects of each database. The second value says which databases could not be asked, and
    why.
    """
    found = _Found()
    for name in ConnectionManager.names(writable=True) if names is None else names:
        found.ask(name, _UNFINISHED, effects.c.state.in_(UNFINISHED), limit)
        found.ask_prepared(name)
    states = _decisions(found.headers.values())
    done = branches_done([header for id_, header in found.headers.items() if states.get(id_) == OWED], set())
    sagas = [found.state(saga_id, states.get(saga_id, UNDECIDED), done.get(saga_id)) for saga_id in found.headers]
    return sorted(sagas, key=lambda one: -one.age_s), found.errors


def find_saga(saga_id: str) -> SagaState | None:
    """Everything that the databases have of one saga; None where none of them knows it."""
    found = _Found()
    for name in ConnectionManager.names(writable=True):
        found.ask(name, records.c.saga_id == saga_id, effects.c.saga_id == saga_id, 1000)
        found.ask_prepared(name, saga_id)
    if saga_id not in found.headers:
        return None
    decision = next((record.state for record in found.records[saga_id] if record.role == "home"), UNDECIDED)
    unknown = found.headers[saga_id].home in found.errors
    done = {one.participant for one in found.records[saga_id] if one.role == "branch" and one.state in ENDED}
    state = found.state(saga_id, UNKNOWN if unknown else decision, done if decision == OWED else None)
    return replace(state, errors=found.errors)


class _Found:
    """What was read of sagas, by their ids, in the order in which it was found."""

    def __init__(self) -> None:
        self.headers: dict[str, SagaHeader] = {}
        self.records: dict[str, list[RecordState]] = defaultdict(list)
        self.effects: dict[str, list[EffectState]] = defaultdict(list)
        self.errors: dict[str, str] = {}

    def ask(self, name: str, which: sa.ColumnElement[bool], which_effects: sa.ColumnElement[bool], limit: int) -> None:
        try:
            database = ConnectionManager.get(name)
            for header, record in _read(database, which, limit):
                # A record that was written for an effect alone knows home only.
                if len(header.participants) >= len(self._participants(header.saga_id)):
                    self.headers[header.saga_id] = header
                self.records[header.saga_id].append(record)
            for one in _read_effects(database, which_effects, limit):
                effect = one.effect
                self.effects[effect.saga_id].append(one)
                alone = SagaHeader(effect.saga_id, effect.saga_name, effect.home, (effect.home,))
                self.headers.setdefault(effect.saga_id, alone)
        except CrosstieError as error:
            self.errors[name] = str(error)

    def ask_prepared(self, name: str, saga_id: str | None = None) -> None:
        if name in self.errors:
            return
        try:
            for header, record in _prepared(ConnectionManager.get(name)):
                if saga_id in {None, header.saga_id}:
                    self.headers.setdefault(header.saga_id, header)
                    self.records[header.saga_id].append(record)
        except CrosstieError as error:
            self.errors[name] = str(error)

    def _participants(self, saga_id: str) -> tuple[str, ...]:
        known = self.headers.get(saga_id)
        return () if known is None else known.participants

    def state(self, saga_id: str, decision: str, done: Collection[str] | None) -> SagaState:
        """`done` are the branches to which nothing is owed; None where nothing can be."""
        header = self.headers[saga_id]
        owed = [] if done is None else [branch for branch in header.branches if branch not in done]
        return SagaState(header, decision, self.records[saga_id], effects=self.effects[saga_id], owed=owed)


_UNFINISHED = sa.or_(records.c.state.in_([*UNSETTLED, "aborted"]), records.c.quarantine.is_not(None))


def _read(database: Database, which: sa.ColumnElement[bool], limit: int) -> list[tuple[SagaHeader, RecordState]]:
    query = (
        sa.select(records, now_ms().label("now"))
        .where(records.c.step == BLOCK_STEP, which)
        .order_by(records.c.created_at_ms)
        .limit(limit)
    )
    with database.mapped_errors(), database.autocommit.connect() as connection:
        return [(SagaRecord.from_row(row).header, _state(row)) for row in connection.execute(query)]


def _read_effects(database: Database, which: sa.ColumnElement[bool], limit: int) -> list[EffectState]:
    query = (
        sa.select(effects, now_ms().label("now"))
        .where(which, effects.c.home == database.name)
        .order_by(effects.c.created_at_ms, effects.c.step)
        .limit(limit)
    )
    with database.mapped_errors(), database.autocommit.connect() as connection:
        return [
            EffectState(
                effect=Effect.from_row(row),
                age_s=(row.now - row.created_at_ms) / 1000,
                changed_s=(row.now - row.updated_at_ms) / 1000,
                expires_in_s=(row.expires_at_ms - row.now) / 1000,
                next_in_s=(max(row.next_at_ms, row.lease_until_ms) - row.now) / 1000,
                error=row.error,
            )
            for row in connection.execute(query)
        ]


def count_sagas(database: Database) -> dict[str, int]:
    """How many records here are in each state that somebody must still act upon. Raises DatabaseUnavailable.

    `applied`, `aborted`, `owed`, or, of either, `quarantined`.
    """
    state = sa.case((records.c.quarantine.is_not(None), "quarantined"), else_=records.c.state)
    counted = database.rows(sa.select(state, sa.func.count()).where(_UNFINISHED).group_by(state))
    return {"applied": 0, "aborted": 0, "owed": 0, "quarantined": 0} | {row[0]: row[1] for row in counted}


def count_effects(home: Database) -> dict[str, int]:
    """How many effects of this home are in each of the states of UNFINISHED. Raises DatabaseUnavailable."""
    query = (
        sa.select(effects.c.state, sa.func.count())
        .where(effects.c.state.in_(UNFINISHED), effects.c.home == home.name)
        .group_by(effects.c.state)
    )
    with home.mapped_errors(), home.autocommit.connect() as connection:
        return dict.fromkeys(UNFINISHED, 0) | {row[0]: row[1] for row in connection.execute(query)}


def _prepared(database: Database) -> list[tuple[SagaHeader, RecordState]]:
    """The prepared branches, as records: all that is known of them is in their names."""
    now = time.time()
    found: list[tuple[SagaHeader, RecordState]] = []
    for one in prepared_branches(database) or ():
        if one.branch == database.name:
            age_s = now - int(one.saga_id.partition("-")[0], 16) / 1000
            expires_in_s = one.expires_at_ms / 1000 - now
            record = RecordState(one.branch, "branch", PREPARED, age_s, age_s, expires_in_s, 0.0, 0, None, ())
            found.append((prepared_header(one), record))
    return found


def _state(row: Any) -> RecordState:
    return RecordState(
        participant=row.participant,
        role=row.role,
        state=row.state,
        age_s=(row.now - row.created_at_ms) / 1000,
        changed_s=(row.now - row.updated_at_ms) / 1000,
        expires_in_s=(row.expires_at_ms - row.now) / 1000,
        next_in_s=(row.next_at_ms - row.now) / 1000,
        attempts=row.attempts,
        conflict=_conflict(row.quarantine),
        undo=image.load(row.undo_log),
    )


def _conflict(note: str | None) -> Mapping[str, Any] | None:
    if note is None:
        return None
    try:
        read = json.loads(note)
    except ValueError:
        read = None
    # An operator may have quarantined it by hand, with a word of their own.
    return read if isinstance(read, dict) and "conflict" in read else {"conflict": note}


def _decisions(found: Iterable[SagaHeader]) -> dict[str, str]:
    """What the homes of these sagas say, asked once each; `unknown` where a home does not answer."""
    states: dict[str, str] = {}
    by_home: dict[str, set[str]] = defaultdict(set)
    for header in found:
        by_home[header.home].add(header.saga_id)
    for home, saga_ids in by_home.items():
        try:
            states |= home_states(ConnectionManager.get(home), saga_ids)
        except CrosstieError:
            states |= dict.fromkeys(saga_ids, UNKNOWN)
    return states


LEFTOVER_KINDS: Final = ("undecided", "unswept", "missing-branch", "stale-lock")


@dataclass(frozen=True)
class Leftover:
    """Something that should not be there; `kind` is one of LEFTOVER_KINDS."""

    kind: str
    database: str
    saga_id: str
    message: str


def find_leftovers(name: str, *, grace_s: float) -> list[Leftover]:
    """What no working sweep leaves in this database, and what the protocol forbids. Raises DatabaseUnavailable.

    `unswept`: applied, owed or aborted, not quarantined, and past its expiry and its next look for more than
    `grace_s`; or with an effect that is due for as long and that nobody compensates.
    `missing-branch`: home says `committed`, and a branch has no record although retention cannot have removed it.
    `stale-lock`: a row is locked for a saga that has no applied record here; a sweep drops it.
    `undecided`: prepared, and past its expiry for more than `grace_s`.
    """
    database = ConnectionManager.get(name)
    late = now_ms() - int(grace_s * 1000)
    unswept = sa.and_(
        records.c.state.in_([*UNSETTLED, "aborted"]),
        records.c.quarantine.is_(None),
        records.c.expires_at_ms < late,
        records.c.next_at_ms < late,
    )
    found = [
        Leftover(
            "unswept",
            name,
            header.saga_id,
            f"saga {header.name!r} has been {record.state} for {record.changed_s:.0f} s and nobody ends it: does a "
            f"worker run, and reach {', '.join(header.participants)}?",
        )
        for header, record in _read(database, unswept, 1000)
    ]
    other = effects.alias()
    alive = sa.select(other.c.step).where(
        other.c.saga_id == effects.c.saga_id, other.c.state == "open", other.c.expires_at_ms >= late
    )
    found += [
        Leftover(
            "undecided",
            name,
            header.saga_id,
            f"a branch of this saga has been prepared for {record.age_s:.0f} s, keeps its locks, and nobody ends it: "
            f"does a worker run, and reach home {header.home!r}?",
        )
        for header, record in _prepared(database)
        if record.expires_in_s < -grace_s
    ]
    late_effect = sa.and_(
        sa.or_(
            sa.and_(effects.c.state == "due", in_turn()),
            sa.and_(effects.c.state == "open", effects.c.expires_at_ms < late, ~alive.exists()),
        ),
        *(column < late for column in (effects.c.updated_at_ms, effects.c.next_at_ms, effects.c.lease_until_ms)),
    )
    found += [
        Leftover(
            "unswept",
            name,
            one.effect.saga_id,
            f"effect {one.effect.step} of saga {one.effect.saga_name!r} has been {one.effect.state} for "
            f"{one.changed_s:.0f} s and nobody compensates it: does a worker run, and import the module of "
            f"compensation {one.effect.compensation!r}?",
        )
        for one in _read_effects(database, late_effect, 1000)
    ]
    for committed in _young_committed(database):
        found += _missing_branches(name, committed)
    stale = stale_locks(database)
    return found + [
        Leftover(
            "stale-lock",
            name,
            lock.saga_id,
            f"the row {lock.row_key} of {lock.table_name!r} is locked for a saga of which no record is left to release "
            "it: was one deleted by hand? A worker's sweep drops the lock.",
        )
        for lock in stale
    ]


def _young_committed(database: Database) -> Iterator[dict[str, SagaHeader]]:
    """The sagas that this home has committed and whose records retention has not taken yet, page by page."""
    young = records.c.updated_at_ms > now_ms() - int(ConnectionManager.settings().saga.retention_s * 1000)
    query = (
        sa.select(records)
        .where(records.c.step == BLOCK_STEP, records.c.state == "committed", young)
        .order_by(records.c.saga_id)
        .limit(COMMITTED_AT_ONCE)
    )
    after: sa.ColumnElement[bool] = sa.true()
    while True:
        rows = database.rows(query.where(after))
        yield {row.saga_id: SagaRecord.from_row(row).header for row in rows}
        if len(rows) < COMMITTED_AT_ONCE:
            return
        after = records.c.saga_id > rows[-1].saga_id


def _missing_branches(home: str, committed: Mapping[str, SagaHeader]) -> list[Leftover]:
    by_branch: dict[str, list[str]] = defaultdict(list)
    for saga_id, header in committed.items():
        for branch in header.branches:
            by_branch[branch].append(saga_id)
    return [
        Leftover(
            "missing-branch",
            branch,
            saga_id,
            f"saga {committed[saga_id].name!r} is committed in {home!r}, and {branch!r} has no record of it: its "
            "writes there are missing. Was a backup restored?",
        )
        for branch, saga_ids in by_branch.items()
        for there in [_recorded(branch, saga_ids)]
        for saga_id in saga_ids
        if saga_id not in there
    ]


def _recorded(branch: str, saga_ids: Sequence[str]) -> set[str]:
    """Those of the sagas of which the branch has a record, be it one that comes with a prepared commit."""
    database = ConnectionManager.get(branch)
    there = {header.saga_id for header, _ in _prepared(database)}
    with database.mapped_errors(), database.autocommit.connect() as connection:
        for start in range(0, len(saga_ids), SAGAS_AT_ONCE):
            some = records.c.saga_id.in_(saga_ids[start : start + SAGAS_AT_ONCE])
            there.update(
                connection.execute(sa.select(records.c.saga_id).where(some, records.c.participant == branch)).scalars()
            )
    return there
