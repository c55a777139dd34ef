"""Chunks of a run of an audit as rows: claimed by whoever has time, under a lease, in the child's database.

Invariant: a chunk's result, and the rest that is left of its range, are written by one transaction that says
`WHERE epoch = mine`. So a kill costs the chunk in hand and nothing else, and one whose lease has lapsed writes nothing.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.database import Database
from crosstie.orm.integrity import ChunkResult, KeyRange
from crosstie.outbox.tables import audit_chunk as chunks
from crosstie.workers.errors import ChunkLost

__all__ = ["Claim", "Progress", "claim", "finish", "forget", "insert", "progress_of", "renew", "results"]

ATTEMPTS: Final = 5
"""A chunk that a database has refused so often ends the audit as incomplete."""
BACKOFF_S: Final = 1.0


@dataclass(frozen=True)
class Claim:
    """A chunk that this process holds until its lease runs out."""

    database: Database
    run_id: str
    reference: str
    chunk_id: str
    range: KeyRange
    epoch: int
    attempts: int
    owner: str
    lease_s: float


@dataclass(frozen=True)
class Progress:
    """How far a run is: `ready` chunks are left, of which `waiting` are held by nobody."""

    ready: int
    waiting: int
    keys: int


def insert(connection: sa.Connection, run_id: str, reference: str, ranges: Sequence[KeyRange]) -> None:
    """Write the chunks of a new run; the caller commits."""
    rows = [_row(run_id, reference, one) for one in ranges]
    if rows:
        connection.execute(sa.insert(chunks), rows)


def _row(run_id: str, reference: str, chunk: KeyRange) -> dict[str, Any]:
    document = chunk.as_document()
    return {
        "run_id": run_id,
        "reference": reference,
        "chunk_id": str(uuid.uuid4()),
        "lo": json.dumps(document["lo"]),
        "hi": json.dumps(document["hi"]),
        "state": "ready",
    }


def claim(database: Database, run_id: str, reference: str, *, owner: str, lease_s: float) -> Claim | None:
    """Claim a chunk that nobody holds; None where there is none now. Raises DatabaseUnavailable."""
    columns = chunks.c
    free = sa.and_(_of_run(run_id, reference), columns.state == "ready", columns.lease_until_ms <= now_ms())
    with database.mapped_errors(), database.autocommit.connect() as connection:
        for row in connection.execute(sa.select(chunks).where(free).limit(10)).all():
            claimed = connection.execute(
                sa.update(chunks)
                .where(free, columns.chunk_id == row.chunk_id, columns.epoch == row.epoch)
                .values(epoch=row.epoch + 1, owner=owner[:120], lease_until_ms=_until(lease_s))
            )
            if claimed.rowcount == 1:
                chunk = KeyRange.of({"lo": json.loads(row.lo), "hi": json.loads(row.hi)})
                held = row.chunk_id, chunk, row.epoch + 1, row.attempts
                return Claim(database, run_id, reference, *held, owner, lease_s)
    return None


def renew(held: Claim) -> None:
    """Prolong the lease to its full length from now. Raises ChunkLost, DatabaseUnavailable."""
    with held.database.mapped_errors(), held.database.autocommit.connect() as connection:
        _change(connection, held, lease_until_ms=_until(held.lease_s))


def finish(held: Claim, result: ChunkResult) -> Claim | None:
    """Store what the chunk has answered; returns its rest, held by this process too, or None.

    Where a database has refused in a way that may pass, what was covered is stored, and the rest is left to whoever
    comes later; after five attempts the reason stays. Raises ChunkLost, which stores nothing, and DatabaseUnavailable.
    """
    tries_again = result.reason is not None and result.retryable and held.attempts + 1 < ATTEMPTS
    if tries_again and result.covered.is_empty:
        with held.database.mapped_errors(), held.database.autocommit.connect() as connection:
            _change(connection, held, lease_until_ms=_until(BACKOFF_S), attempts=held.attempts + 1)
        return None
    complete = result.reason is None or tries_again
    stored = replace(result, reason=None) if tries_again else result
    rest = KeyRange(result.covered.hi, held.range.hi)
    row = _row(held.run_id, held.reference, rest) | {"owner": held.owner[:120], "epoch": 1}
    row["attempts"] = held.attempts + 1 if tries_again else 0
    with held.database.mapped_errors(), held.database.engine.begin() as connection:
        _change(
            connection,
            held,
            state="done",
            lease_until_ms=0,
            keys_checked=result.keys,
            result=json.dumps(stored.as_document()),
            **({"hi": row["lo"]} if complete else {}),
        )
        if complete and not rest.is_empty:
            until = _until(BACKOFF_S if tries_again else held.lease_s)
            connection.execute(sa.insert(chunks).values(row | {"lease_until_ms": until}))
    if not complete or tries_again or rest.is_empty:
        return None
    return replace(held, chunk_id=row["chunk_id"], range=rest, epoch=1, attempts=0)


def progress_of(database: Database, run_id: str, reference: str) -> Progress:
    """How far the run is. Raises DatabaseUnavailable."""
    columns = chunks.c
    ready = sa.case((columns.state == "ready", 1), else_=0)
    waiting = sa.case((sa.and_(columns.state == "ready", columns.lease_until_ms <= now_ms()), 1), else_=0)
    query = sa.select(sa.func.sum(ready), sa.func.sum(waiting), sa.func.sum(columns.keys_checked))
    (row,) = database.rows(query.where(_of_run(run_id, reference)))
    return Progress(*(int(value or 0) for value in row))


def results(database: Database, run_id: str, reference: str, after: Any = None) -> list[ChunkResult]:
    """The results of the chunks behind `after`, each following the one whose range ends where its own begins.

    A chunk that is not done has none, and ends the list. Raises DatabaseUnavailable.
    """
    rows = {row.lo: row for row in database.rows(sa.select(chunks).where(_of_run(run_id, reference)))}
    ordered: list[ChunkResult] = []
    row = rows.pop(json.dumps(KeyRange(after, after).as_document()["lo"]), None)
    while row is not None and row.state == "done":
        ordered.append(ChunkResult.of(json.loads(row.result)))
        row = rows.pop(row.hi, None)
    return ordered


def forget(connection: sa.Connection, run_id: str, reference: str) -> None:
    """Delete the chunks of a run that has ended, whoever holds one; the caller commits."""
    connection.execute(sa.delete(chunks).where(_of_run(run_id, reference)))


def _change(connection: sa.Connection, held: Claim, **values: Any) -> None:
    mine = sa.and_(
        _of_run(held.run_id, held.reference),
        chunks.c.chunk_id == held.chunk_id,
        chunks.c.epoch == held.epoch,
        chunks.c.state == "ready",
    )
    if connection.execute(sa.update(chunks).where(mine).values(**values)).rowcount != 1:
        raise ChunkLost(
            f"database {held.database.name!r}: chunk {held.chunk_id} of audit run {held.run_id} was held longer than "
            f"its lease of {held.lease_s:g} s, and another process has it, or the run has ended. Its result is refused."
        )


def _of_run(run_id: str, reference: str) -> sa.ColumnElement[bool]:
    return sa.and_(chunks.c.run_id == run_id, chunks.c.reference == reference)


def _until(lease_s: float) -> sa.ColumnElement[int]:
    return now_ms() + int(lease_s * 1000)
