"""What the databases say about sagas: the unfinished ones, one in full, and what the protocol cannot have left."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import CrosstieError
from crosstie.outbox.batch import BLOCK_STEP, home_states
from crosstie.outbox.tables import saga as records
from crosstie.sagas import image
from crosstie.sagas.record import SagaHeader, SagaRecord

__all__ = ["Leftover", "RecordState", "SagaState", "find_leftovers", "find_saga", "find_unfinished"]

UNDECIDED = "undecided"
UNKNOWN = "unknown"
"""Home could not be asked."""
MOST_COMMITTED: Final = 10_000
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
    """Why the undo is quarantined: `conflict` (a text), `table`, `key`, `expected`, `found`."""
    undo: Sequence[Mapping[str, Any]]
    """The entries of the undo log."""

    @property
    def quarantined(self) -> bool:
        """Whether only an operator can have the branch undone."""
        return self.state == "applied" and self.conflict is not None


@dataclass(frozen=True)
class SagaState:
    """A saga as far as its participants could be asked; `errors` are those of the others."""

    header: SagaHeader
    decision: str
    """`undecided`, `committed`, `aborted`, `finished`, or `unknown` where home could not be asked."""
    records: Sequence[RecordState]
    errors: Mapping[str, str] = field(default_factory=dict)

    @property
    def quarantined(self) -> list[str]:
        """The branches that wait for an operator."""
        return [one.participant for one in self.records if one.quarantined]

    @property
    def expired(self) -> bool:
        """Whether a worker may end it for the process that began it."""
        return any(one.state == "applied" and one.expires_in_s < 0 for one in self.records)


def find_unfinished(names: Iterable[str] | None = None, *, limit: int = 1000) -> tuple[list[SagaState], dict[str, str]]:
    """Sagas that these databases (default: all that are writable) have not seen the end of, the oldest first.

    At most `limit` records of each database. The second value says which databases could not be asked, and why.
    """
    errors: dict[str, str] = {}
    found: dict[str, list[tuple[SagaHeader, RecordState]]] = defaultdict(list)
    for name in ConnectionManager.names(writable=True) if names is None else names:
        try:
            for header, record in _read(ConnectionManager.get(name), _UNFINISHED, limit):
                found[header.saga_id].append((header, record))
        except CrosstieError as error:
            errors[name] = str(error)
    states = _decisions(found)
    sagas = [
        SagaState(rows[0][0], states.get(saga_id, UNDECIDED), [record for _, record in rows])
        for saga_id, rows in found.items()
    ]
    return sorted(sagas, key=lambda one: -max(record.age_s for record in one.records)), errors


def find_saga(saga_id: str) -> SagaState | None:
    """Everything that the databases have of one saga; None where none of them knows it."""
    errors: dict[str, str] = {}
    found: list[tuple[SagaHeader, RecordState]] = []
    for name in ConnectionManager.names(writable=True):
        try:
            found += _read(ConnectionManager.get(name), records.c.saga_id == saga_id, 100)
        except CrosstieError as error:
            errors[name] = str(error)
    if not found:
        return None
    header = found[0][0]
    decision = next((record.state for _, record in found if record.role == "home"), UNDECIDED)
    return SagaState(header, UNKNOWN if header.home in errors else decision, [record for _, record in found], errors)


_UNFINISHED = sa.or_(records.c.state.in_(["applied", "aborted"]), records.c.quarantine.is_not(None))


def _read(database: Database, which: sa.ColumnElement[bool], limit: int) -> list[tuple[SagaHeader, RecordState]]:
    query = (
        sa.select(records, now_ms().label("now"))
        .where(records.c.step == BLOCK_STEP, which)
        .order_by(records.c.created_at_ms)
        .limit(limit)
    )
    with database.mapped_errors(), database.autocommit.connect() as connection:
        return [(SagaRecord.from_row(row).header, _state(row)) for row in connection.execute(query)]


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


def _decisions(found: Mapping[str, Sequence[tuple[SagaHeader, RecordState]]]) -> dict[str, str]:
    """What the homes of these sagas say, asked once each; `unknown` where a home does not answer."""
    states: dict[str, str] = {}
    by_home: dict[str, set[str]] = defaultdict(set)
    for saga_id, rows in found.items():
        by_home[rows[0][0].home].add(saga_id)
    for home, saga_ids in by_home.items():
        try:
            states |= home_states(ConnectionManager.get(home), saga_ids)
        except CrosstieError:
            states |= dict.fromkeys(saga_ids, UNKNOWN)
    return states


@dataclass(frozen=True)
class Leftover:
    """Something that should not be there; `kind` is `unswept` or `missing-branch`."""

    kind: str
    database: str
    saga_id: str
    message: str


def find_leftovers(name: str, *, grace_s: float) -> list[Leftover]:
    """What no working sweep leaves in this database, and what the protocol forbids. Raises DatabaseUnavailable.

    `unswept`: applied or aborted, not quarantined, and past its expiry and its next look for more than `grace_s`.
    `missing-branch`: home says `committed`, and a branch has no record although retention cannot have removed it.
    """
    database = ConnectionManager.get(name)
    late = now_ms() - int(grace_s * 1000)
    unswept = sa.and_(
        records.c.state.in_(["applied", "aborted"]),
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
    young = records.c.updated_at_ms > now_ms() - int(ConnectionManager.settings().saga.retention_s * 1000)
    committed = {
        header.saga_id: header
        for header, _ in _read(database, sa.and_(records.c.state == "committed", young), MOST_COMMITTED)
    }
    by_branch: dict[str, list[str]] = defaultdict(list)
    for saga_id, header in committed.items():
        for branch in header.branches:
            by_branch[branch].append(saga_id)
    for branch, saga_ids in by_branch.items():
        there = _recorded(branch, saga_ids)
        found += [
            Leftover(
                "missing-branch",
                branch,
                saga_id,
                f"saga {committed[saga_id].name!r} is committed in {name!r}, and {branch!r} has no record of it: its "
                "writes there are missing. Was a backup restored?",
            )
            for saga_id in saga_ids
            if saga_id not in there
        ]
    return found


def _recorded(branch: str, saga_ids: Sequence[str]) -> set[str]:
    """Those of the sagas of which the branch has a record."""
    database = ConnectionManager.get(branch)
    there: set[str] = set()
    with database.mapped_errors(), database.autocommit.connect() as connection:
        for start in range(0, len(saga_ids), SAGAS_AT_ONCE):
            some = records.c.saga_id.in_(saga_ids[start : start + SAGAS_AT_ONCE])
            there.update(
                connection.execute(sa.select(records.c.saga_id).where(some, records.c.participant == branch)).scalars()
            )
    return there
