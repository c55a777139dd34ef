"""A lane's next events, and which of them may leave: those of a saga wait for its decision."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.database import Database
from crosstie.orm.prepared import Prepared
from crosstie.outbox.durability import await_durable
from crosstie.outbox.envelope import Envelope
from crosstie.outbox.errors import EventUnreadable
from crosstie.outbox.tables import lane as lanes
from crosstie.outbox.tables import outbox, parked
from crosstie.outbox.tables import saga as records

__all__ = ["BLOCK_STEP", "OutboxRow", "Verdict", "home_states", "not_paused", "read_batch", "sort_out", "undecided"]

BLOCK_STEP: Final = 0
"""The step of an undivided saga block in crosstie_saga; the steps of longer sagas count on from it."""


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """An event as it waits in its lane, with what its own database knew of its saga at that same moment.

    `saga_state` is the branch record's; None where there is none any more, or the event belongs to no saga.
    """

    id: int
    uid: str
    key: str
    type: str
    schema_version: int
    payload: str = field(repr=False)
    headers: str = field(repr=False)
    saga_id: str | None = None
    saga_state: str | None = None
    home: str | None = None
    age_ms: int = 0
    """How long before it was read it was written, by its database's clock."""
    attempts: int = 0
    """How often it has failed, if it was parked."""
    deaths: int = 0
    """How many workers have died while they applied it, if it was parked."""

    def envelope(self) -> Envelope:
        """The event as it was published. Raises EventUnreadable."""
        try:
            headers = json.loads(self.headers)
        except ValueError:
            raise EventUnreadable(
                f"the headers of event {self.id} are no JSON; nothing of crosstie wrote them."
            ) from None
        return Envelope(self.uid, self.key, self.type, self.schema_version, self.payload, headers)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with the rows of a batch.

    `apply`: in this order. `drop`: ids of events whose saga was aborted; nobody may ever see them. `held`: the row
    before which the lane stops, because its saga is not decided.
    """

    apply: Sequence[OutboxRow]
    drop: Sequence[int]
    held: OutboxRow | None


def read_batch(source: Database, route: str, lane: int, *, after: int, limit: int) -> tuple[list[OutboxRow], bool]:
    """The first `limit` events of a lane behind the id `after`, unlocked, each with its saga's record.

    And whether the lane has parked ones. None of a lane that is paused; with no events, nothing is said of parked ones.
    Raises DatabaseUnavailable.

    One statement, so one snapshot. With two, a reader could pause between them: it has read the event, then the saga
    is aborted, which deletes the event together with its undo, and the record goes too; the reader would then find no
    record and take that for a commit. In one snapshot, an event without a record is one whose saga committed.
    """
    parameters = {"route": route, "lane": lane, "after": after, "limit": limit}
    found = source.prepared(_BATCH, parameters).rows
    return [OutboxRow(*row[:-1]) for row in found], any(row[-1] is not None for row in found[:1])


def _in_lane(table: sa.Table) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.route == sa.bindparam("route"), table.c.lane == sa.bindparam("lane"))


def not_paused(route: sa.ColumnElement[str], lane: sa.ColumnElement[int]) -> sa.ColumnElement[bool]:
    """That nobody has paused this lane: looked up once, not for each row."""
    paused = sa.select(lanes.c.paused_at_ms).where(lanes.c.route == route, lanes.c.lane == lane)
    return paused.scalar_subquery().is_(None)


def _record(column: sa.ColumnElement[str]) -> sa.ScalarSelect[str]:
    # Not joined by the participant's name: where two configured names mean one database, two branches of a saga have
    # their records here, and both obey one decision. Of several states the greatest in the alphabet says most:
    # applied (not known here) < done (committed) < refused, undone (aborted).
    return (
        sa.select(sa.func.max(column))
        .where(records.c.saga_id == outbox.c.saga_id, records.c.step == BLOCK_STEP, records.c.role == "branch")
        .correlate(outbox)
        .scalar_subquery()
    )


_BATCH: Final = Prepared(
    sa.select(
        outbox.c.id,
        outbox.c.uid,
        outbox.c.key,
        outbox.c.type,
        outbox.c.schema_version,
        outbox.c.payload,
        outbox.c.headers,
        outbox.c.saga_id,
        _record(records.c.state).label("saga_state"),
        _record(records.c.home).label("home"),
        (now_ms() - outbox.c.created_at_ms).label("age_ms"),
        sa.literal_column("0").label("attempts"),
        # With the rows and not before them: another owner, not dead but slow, may have parked an event meanwhile.
        sa.select(parked.c.id).where(_in_lane(parked)).limit(1).scalar_subquery().label("any_parked"),
    )
    .where(
        _in_lane(outbox), outbox.c.id > sa.bindparam("after"), not_paused(sa.bindparam("route"), sa.bindparam("lane"))
    )
    .order_by(outbox.c.id)
    .limit(sa.bindparam("limit"))
)


def undecided(rows: Iterable[OutboxRow]) -> dict[str, set[str]]:
    """The sagas whose decision this database does not know, by the home that knows it."""
    wanted: dict[str, set[str]] = {}
    for row in rows:
        if row.saga_id is not None and row.saga_state == "applied" and row.home is not None:
            wanted.setdefault(row.home, set()).add(row.saga_id)
    return wanted


def home_states(home: Database, saga_ids: Iterable[str]) -> dict[str, str]:
    """The state of home's record of each of these sagas that has one, durable there: one query.

    Raises DatabaseUnavailable.
    """
    parameters = {"saga_ids": sorted(saga_ids)}
    with home.mapped_errors(), home.autocommit.connect() as connection:
        states = {row.saga_id: row.state for row in connection.execute(_HOME, parameters)}
    if states:
        await_durable(home)
    return states


_HOME: Final = sa.select(records.c.saga_id, records.c.state).where(
    records.c.saga_id.in_(sa.bindparam("saga_ids", expanding=True)),
    records.c.step == BLOCK_STEP,
    records.c.role == "home",
)


def sort_out(rows: Iterable[OutboxRow], decisions: Mapping[str, str]) -> Verdict:
    """Decide what happens to each row; `decisions` are the states of home's records, by saga.

    Home's `finished` is no answer here: it ends an abort, so the branch's record has moved on since it was read, and
    the next look at both tells more.
    """
    apply: list[OutboxRow] = []
    drop: list[int] = []
    for row in rows:
        state = decisions.get(row.saga_id or "") if row.saga_state == "applied" else row.saga_state
        if row.saga_id is None or row.saga_state in {None, "done"} or state == "committed":
            apply.append(row)
        elif state in {"undone", "refused", "aborted"}:
            drop.append(row.id)
        else:
            return Verdict(apply, drop, row)
    return Verdict(apply, drop, None)
