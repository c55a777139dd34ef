"""Backfill: a walk over all parents that has their copies aligned, by the same events as any change of theirs.

For copies that were declared when there were rows already, and for originals that were written past the ORM. It needs
no lock and no quiet: an event holds no value, so writers that are active meanwhile are neither overtaken nor kept out.
The position is kept in crosstie_audit_run, in the transaction that writes the events, so a walk that was killed goes
on where it was.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.copies import CopyGroup
from crosstie.orm.faults import fault_point
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.page import After
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox.copies import tell_of_originals
from crosstie.outbox.copy_event import due_type, written_type
from crosstie.outbox.errors import BackfillOvertaken
from crosstie.outbox.key_json import from_json, to_json
from crosstie.outbox.tables import audit_run, outbox

__all__ = ["LIMIT_WAITING", "backfill"]

CHUNK_SIZE: Final = 500
LIMIT_WAITING: Final = 100
PAUSE_S: Final = 0.2


@dataclass(frozen=True)
class _Run:
    run_id: str
    walked: int
    after: list[Any] | None


def backfill(
    group: CopyGroup,
    *,
    restart: bool = False,
    chunk_size: int = CHUNK_SIZE,
    limit_waiting: int = LIMIT_WAITING,
    pause: Callable[[float], object] = time.sleep,
    progress: Callable[[int], object] | None = None,
) -> int:
    """Have the copies of every parent aligned; returns how many parents there were, those of an interrupted walk too.

    Goes on where an unfinished walk was, unless `restart`. No chunk of parents is told of while `limit_waiting` events
    of these copies wait for workers. `progress` is called with the number of parents so far.

    Raises CopyUnrouted, BackfillOvertaken where another process walks too, DatabaseUnavailable.
    """
    run = _open(group, restart=restart)
    while True:
        while _waiting(group) >= limit_waiting:
            pause(PAUSE_S)
        with detached_transaction(group.parent.connection) as tx:
            keys = _next_keys(tx, group, run.after, chunk_size)
            if keys:
                tell_of_originals(tx, group, keys)
            run = _note(tx, run, keys)
        if not keys:
            return run.walked
        fault_point("backfill.chunk-committed")
        if progress is not None:
            progress(run.walked)


def _open(group: CopyGroup, *, restart: bool) -> _Run:
    """The unfinished walk, or a new one."""
    name = f"backfill {group.name}"
    unfinished = sa.and_(audit_run.c.reference == name, audit_run.c.state == "running")
    with detached_transaction(group.parent.connection) as tx:
        tx.mark_written()
        if restart:
            ended = {"state": "incomplete", "finished_at_ms": now_ms()}
            tx.connection.execute(sa.update(audit_run).where(unfinished).values(ended))
        query = sa.select(audit_run.c.run_id, audit_run.c.rows_checked, audit_run.c.detail).where(unfinished)
        found = tx.connection.execute(query.order_by(audit_run.c.started_at_ms.desc()).limit(1)).first()
        if found is not None:
            return _Run(found.run_id, found.rows_checked, json.loads(found.detail)["after"])
        run = _Run(str(uuid.uuid4()), 0, None)
        row = {"run_id": run.run_id, "reference": name, "state": "running", "detail": json.dumps({"after": None})}
        tx.connection.execute(sa.insert(audit_run).values(row))
    return run


def _next_keys(tx: LocalTransaction, group: CopyGroup, after: list[Any] | None, limit: int) -> list[tuple[Any, ...]]:
    key = group.parent.key
    columns = [field.column for field in key]
    query = sa.select(*columns).order_by(*columns).limit(limit)
    if after is not None:
        values = [from_json(field, part) for field, part in zip(key, after, strict=True)]
        query = query.where(After(key, values).clause(tx.database))
    return [tuple(row) for row in tx.connection.execute(query)]


def _note(tx: LocalTransaction, run: _Run, keys: list[tuple[Any, ...]]) -> _Run:
    """Keep the position, or the end; in the transaction that writes the events."""
    tx.mark_written()
    after = [to_json(part) for part in keys[-1]] if keys else run.after
    values: dict[str, Any] = {"rows_checked": run.walked + len(keys), "detail": json.dumps({"after": after})}
    if not keys:
        values |= {"state": "ok", "finished_at_ms": now_ms()}
    mine = (audit_run.c.run_id == run.run_id, audit_run.c.state == "running", audit_run.c.rows_checked == run.walked)
    if tx.connection.execute(sa.update(audit_run).where(*mine).values(values)).rowcount != 1:
        raise BackfillOvertaken(
            f"backfill {run.run_id} of {tx.database.name!r}: expected to be the only walk, and its position has moved "
            "on: another process walks too, or was told to restart. It needs no help; nothing was lost."
        )
    return _Run(run.run_id, run.walked + len(keys), after)


def _waiting(group: CopyGroup) -> int:
    """How many events of these copies nobody has applied yet."""
    total = 0
    for name, type_ in ((group.parent.connection, written_type(group)), (group.child.connection, due_type(group))):
        database = ConnectionManager.get(name)
        query = sa.select(sa.func.count()).select_from(outbox)
        query = query.where(outbox.c.route == group.child.connection, outbox.c.type == type_)
        with database.mapped_errors(), database.autocommit.connect() as connection:
            total += int(connection.execute(query).scalar_one())
    return total
