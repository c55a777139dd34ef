"""The saga's records: one row for each participant, whose primary key is a write-once register.

The first committed insert of a key wins, and an insert waits for one in flight. Every decision of the protocol is one
of these inserts; the other statements here only read, or move a record on from a state that they name.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.final_statement import FinalStatement
from crosstie.orm.prepared import Prepared
from crosstie.outbox.batch import BLOCK_STEP
from crosstie.outbox.durability import await_durable
from crosstie.outbox.tables import saga as records

__all__ = [
    "UNSETTLED",
    "Mode",
    "SagaHeader",
    "SagaRecord",
    "defer",
    "insert",
    "insert_all",
    "insertion",
    "later_logs",
    "lock",
    "lock_free",
    "move",
    "move_all",
    "new_saga_id",
    "quarantine",
    "read",
    "read_state",
    "release",
    "state_in",
    "states_in",
]


def new_saga_id() -> str:
    """A unique id that sorts by time, so that inserts into the register's index stay close together."""
    return f"{time.time_ns() // 1_000_000:012x}-{secrets.token_hex(10)}"


class Mode(StrEnum):
    """How a saga's databases end as one outcome."""

    BACKWARD = "backward"
    """Branches commit first; home's commit decides whether they are undone."""
    TWO_PHASE = "two_phase"
    """Branches are prepared; home's commit decides whether they commit."""
    FORWARD = "forward"
    """Home commits first, with what the branches are redone from; branches follow, and cannot be refused any more."""


@dataclass(frozen=True)
class SagaHeader:
    """What every record of a saga says, so that whoever finds one of them can finish the whole."""

    saga_id: str
    name: str
    home: str
    participants: tuple[str, ...]
    """All databases that the saga wrote, home among them."""
    mode: Mode = Mode.BACKWARD

    @property
    def branches(self) -> tuple[str, ...]:
        """The participants whose commit does not decide."""
        return tuple(name for name in self.participants if name != self.home)


@dataclass(frozen=True)
class SagaRecord:
    """A record as it was read."""

    header: SagaHeader
    participant: str
    state: str
    undo_log: str
    attempts: int
    quarantine: str | None
    created_at_ms: int = 0
    """By the participant's clock: in a branch, when its writes were all made and none of them could be seen yet."""

    @classmethod
    def from_row(cls, row: Any) -> SagaRecord:
        """From a row of `select(crosstie_saga)`."""
        header = SagaHeader(row.saga_id, row.name, row.home, tuple(json.loads(row.participants)), Mode(row.mode))
        return cls(header, row.participant, row.state, row.undo_log, row.attempts, row.quarantine, row.created_at_ms)

    @property
    def age(self) -> tuple[int, str]:
        """Sorts the records of one participant by their time: what was written later is undone first."""
        return self.created_at_ms, self.header.saga_id


_TIES_WAIT: Final = 3
"""Two branches of one millisecond may each take the other for the later one, and must not wait for ever."""
UNSETTLED: Final = ("applied", "owed")
"""States of a record whose quarantine an operator decides about."""

_GIVEN: Final = (
    "saga_id", "step", "participant", "role", "state", "name", "home", "participants", "mode", "undo_log",
)  # fmt: skip
_INSERT: Final = Prepared(
    sa.insert(records)
    .inline()
    .values(
        created_at_ms=now_ms(),
        updated_at_ms=now_ms(),
        expires_at_ms=now_ms() + sa.bindparam("expiry_ms", type_=sa.BigInteger()),
        next_at_ms=sa.literal_column("0"),
        attempts=sa.literal_column("0"),
    ),
    _GIVEN,
)


def insertion(
    header: SagaHeader, participant: str, state: str, *, undo_log: str = "[]", expiry_s: float = 0.0
) -> FinalStatement:
    """What inserts the record of a participant as its transaction's last statement, and is refused as `insert` is."""
    return FinalStatement(
        _INSERT,
        {
            "saga_id": header.saga_id,
            "step": BLOCK_STEP,
            "participant": participant,
            "role": "home" if participant == header.home else "branch",
            "state": state,
            "name": header.name,
            "home": header.home,
            "participants": json.dumps(header.participants),
            "mode": header.mode.value,
            "undo_log": undo_log,
            "expiry_ms": int(expiry_s * 1000),
        },
    )


def insert(connection: sa.Connection, header: SagaHeader, participant: str, state: str) -> None:
    """Insert the record, without a log. Raises the driver's duplicate-key error where the register is taken."""
    insertion(header, participant, state).run(connection)


def insert_all(connection: sa.Connection, headers: Iterable[SagaHeader], participant: str, state: str) -> None:
    """The same for the records of several sagas, without logs: all of them or none."""
    connection.execute(_INSERT.statement, [dict(insertion(one, participant, state).values) for one in headers])


def _key(saga_id: str, participant: str) -> sa.ColumnElement[bool]:
    return sa.and_(records.c.saga_id == saga_id, records.c.step == BLOCK_STEP, records.c.participant == participant)


def _keys(saga_ids: Collection[str], participant: str) -> sa.ColumnElement[bool]:
    return sa.and_(records.c.saga_id.in_(saga_ids), records.c.step == BLOCK_STEP, records.c.participant == participant)


def read_state(connection: sa.Connection, saga_id: str, participant: str) -> str | None:
    """The state of a participant's record as last committed; None where there is no record."""
    return connection.execute(sa.select(records.c.state).where(_key(saga_id, participant))).scalar_one_or_none()


def state_in(saga_id: str, participant: str) -> str | None:
    """The same, asked on a connection of its own, and durable there. Raises UnknownConnection, DatabaseUnavailable."""
    database = ConnectionManager.get(participant)
    with database.mapped_errors(), database.autocommit.connect() as connection:
        state = read_state(connection, saga_id, participant)
    if state is not None:
        await_durable(database)
    return state


def states_in(saga_ids: Collection[str], participant: str) -> dict[str, str]:
    """The states of a participant's records in these sagas; those without one are left out. A crash may forget them.

    Raises UnknownConnection, DatabaseUnavailable.
    """
    query = sa.select(records.c.saga_id, records.c.state).where(_keys(saga_ids, participant))
    return {row.saga_id: row.state for row in ConnectionManager.get(participant).rows(query)}


def read(saga_id: str, participant: str) -> SagaRecord | None:
    """A participant's record as last committed, durable there. Raises UnknownConnection, DatabaseUnavailable."""
    database = ConnectionManager.get(participant)
    rows = database.rows(sa.select(records).where(_key(saga_id, participant)))
    if not rows:
        return None
    await_durable(database)
    return SagaRecord.from_row(rows[0])


def lock(connection: sa.Connection, saga_id: str, participant: str) -> SagaRecord | None:
    """A participant's record, locked until the transaction ends."""
    row = connection.execute(sa.select(records).where(_key(saga_id, participant)).with_for_update()).one_or_none()
    return None if row is None else SagaRecord.from_row(row)


def lock_free(connection: sa.Connection, saga_ids: Collection[str], participant: str) -> list[SagaRecord]:
    """A participant's records in these sagas that nobody else has locked, locked until the transaction ends."""
    query = sa.select(records).where(_keys(saga_ids, participant)).with_for_update(skip_locked=True)
    return [SagaRecord.from_row(row) for row in connection.execute(query)]


def later_logs(connection: sa.Connection, saga_id: str, participant: str, part: str) -> list[tuple[str, str]]:
    """Ids and logs of branches that came after this saga's, are applied, not quarantined, and have `part` in their log.

    Those of the same millisecond count as later, until this saga's record has been put off a few times.
    """
    own = records.alias("own")
    query = (
        sa.select(records.c.saga_id, records.c.undo_log)
        .join(own, sa.and_(own.c.saga_id == saga_id, own.c.step == BLOCK_STEP, own.c.participant == participant))
        .where(
            records.c.participant == participant,
            records.c.saga_id != saga_id,
            records.c.role == "branch",
            records.c.state == "applied",
            records.c.quarantine.is_(None),
            sa.or_(
                records.c.created_at_ms > own.c.created_at_ms,
                sa.and_(records.c.created_at_ms == own.c.created_at_ms, own.c.attempts < _TIES_WAIT),
            ),
            records.c.undo_log.contains(part, autoescape=True),
        )
    )
    return [(row.saga_id, row.undo_log) for row in connection.execute(query)]


def move(connection: sa.Connection, saga_id: str, participant: str, before: str, after: str) -> bool:
    """Move a record from one state to the next; False where it was no longer in `before`."""
    return move_all(connection, [saga_id], participant, before, after) == 1


def move_all(connection: sa.Connection, saga_ids: Collection[str], participant: str, before: str, after: str) -> int:
    """The same for a participant's records in several sagas; returns how many were in `before`."""
    # Not the bare column: by its index InnoDB would lock, and wait for, the records of all sagas in that state.
    in_state = sa.func.coalesce(records.c.state, "") == before
    return connection.execute(
        sa.update(records).where(_keys(saga_ids, participant), in_state).values(state=after, updated_at_ms=now_ms())
    ).rowcount


def defer(connection: sa.Connection, found: SagaRecord, delay_s: float) -> None:
    """Look at a record again after `delay_s`, if it is still in the state in which it was found."""
    connection.execute(
        sa.update(records)
        .where(_key(found.header.saga_id, found.participant), records.c.state == found.state)
        .values(next_at_ms=now_ms() + int(delay_s * 1000), attempts=records.c.attempts + 1)
    )


def quarantine(connection: sa.Connection, saga_id: str, participant: str, note: str) -> None:
    """Keep an applied branch from being undone, or owed ones from being redone, until an operator has seen `note`."""
    connection.execute(
        sa.update(records).where(_key(saga_id, participant), records.c.state.in_(UNSETTLED)).values(quarantine=note)
    )


def release(connection: sa.Connection, saga_id: str, participant: str) -> None:
    """Have the undo of an applied branch, or the redo of owed ones, tried again, now and by the next sweep."""
    connection.execute(
        sa.update(records)
        .where(_key(saga_id, participant), records.c.state.in_(UNSETTLED))
        .values(quarantine=None, next_at_ms=0, attempts=0)
    )
