"""Runs of audits as rows: what was checked, when, and which orphans it found, in the child's own database.

A run is `running` until one transaction writes its end and its findings together. A run that was killed stays `running`
until the next run of the same reference supersedes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
import stamina

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import DeadlockDetected, LockTimeout, NoSuchTable
from crosstie.orm.integrity import AuditPlan, AuditResult, AuditScope, AuditState, Finding, key_text, noted
from crosstie.orm.multi_insert import insert_all
from crosstie.orm.prepared import Prepared
from crosstie.outbox.noting import Notes, add_notes
from crosstie.outbox.tables import audit_chunk, audit_key, audit_run, finding
from crosstie.workers import audit_chunks
from crosstie.workers.audit_standing import NOTHING, Standing, unlisted
from crosstie.workers.errors import RunLost

__all__ = [
    "RUNS_KEPT",
    "OpenRun",
    "RunHeld",
    "RunSummary",
    "close_run",
    "forget_runs",
    "history",
    "last_runs",
    "last_standing",
    "open_run",
    "open_runs",
    "record_check",
    "renew_run",
    "take_over",
    "unrecordable",
]

RUNS_KEPT: Final = 100
"""So many runs of a reference are kept; what is older is deleted when a run ends."""
_RUNS_AT_ONCE: Final = 500
_TABLES: Final = (audit_run, audit_chunk, finding, audit_key)
_NO_ROW: Final = Prepared(
    sa.union_all(
        *(sa.select(sa.literal_column("1")).select_from(table).where(sa.literal_column("1 = 0")) for table in _TABLES)
    )
)
"""Answers nothing, where all of them are there."""
_IS_AUDIT: Final = audit_run.c.epoch > 0
"""The walks of backfills keep their place in the same table, and hold no run under an epoch."""


@dataclass(frozen=True)
class RunSummary:
    """One run of one reference; `state` is `running` too for a run that was killed and not yet superseded."""

    run_id: str
    reference: str
    state: str
    started_at: datetime
    finished_at: datetime | None
    rows_checked: int
    findings: int
    detail: dict[str, Any]


def unrecordable(database: Database) -> str | None:
    """Why runs cannot be recorded in this database; None where they can. Raises DatabaseUnavailable."""
    if database.settings.read_only:
        return f"the connection {database.name!r} is configured read_only"
    try:
        database.prepared(_NO_ROW, {})
    except NoSuchTable:
        with database.mapped_errors(), database.autocommit.connect() as connection:
            inspector = sa.inspect(connection)
            missing = [table.name for table in _TABLES if not inspector.has_table(table.name)]
        if not missing:
            raise
        return f"{database.name!r} has no table {missing[0]}: run `crosstie init`"
    return None


@dataclass(frozen=True)
class RunHeld:
    """A run that this process brings to its end: others may help, and take it over once the lease has run out.

    `standing` is what will have been achieved by then.
    """

    database: Database
    run_id: str
    reference: str
    epoch: int
    lease_s: float
    scope: AuditScope = AuditScope.FULL
    standing: Standing = NOTHING


def open_run(
    database: Database,
    run_id: str,
    reference: str,
    plan: AuditPlan | None,
    *,
    owner: str,
    lease_s: float,
    scope: AuditScope = AuditScope.FULL,
    standing: Standing = NOTHING,
) -> tuple[RunHeld, list[RunSummary]]:
    """Write that this run has begun, with the chunks of its plan if there is one.

    `standing` is what the audits of the reference will have achieved once it has ended well. Also returns the runs of
    the reference that never ended and are superseded now. Raises DatabaseUnavailable, NoSuchTable.
    """
    for attempt in _attempts():
        with attempt:
            held = RunHeld(database, run_id, reference, 1, lease_s, scope, standing)
            return held, _open(held, plan, owner)
    raise AssertionError("the last attempt returns or raises")


def _open(held: RunHeld, plan: AuditPlan | None, owner: str) -> list[RunSummary]:
    database, run_id, reference = held.database, held.run_id, held.reference
    columns = audit_run.c
    unfinished = sa.and_(columns.reference == reference, columns.state == "running")
    with database.mapped_errors(), database.engine.begin() as connection:
        superseded = [_summary(row) for row in connection.execute(sa.select(audit_run).where(unfinished)).mappings()]
        for one in superseded:
            audit_chunks.forget(connection, one.run_id, reference)
        if superseded:
            connection.execute(
                sa.update(audit_run)
                .where(unfinished)
                .values(
                    state="incomplete",
                    finished_at_ms=now_ms(),
                    detail=json.dumps({"reason": f"never finished; superseded by run {run_id}"}),
                )
            )
        connection.execute(
            sa.insert(audit_run).values(
                run_id=run_id,
                reference=reference,
                state="running",
                started_at_ms=now_ms(),
                rows_checked=0,
                findings=0,
                detail=json.dumps(_kept(held) | ({} if plan is None else {"plan": plan.as_document()})),
                epoch=1,
                owner=owner[:120],
                lease_until_ms=_until(held.lease_s),
            )
        )
        if plan is not None:
            audit_chunks.insert(connection, run_id, reference, plan.chunks)
    return superseded


def _kept(held: RunHeld) -> dict[str, Any]:
    """What the row of a run says from its beginning to its end."""
    return {"scope": held.scope.value, "standing": held.standing.as_document()}


def last_standing(database: Database, reference: str) -> Standing:
    """What audits of the reference have achieved: as the last one says that was carried to its end.

    Raises DatabaseUnavailable.
    """
    columns = audit_run.c
    complete = sa.and_(
        _IS_AUDIT,
        columns.reference == reference,
        columns.state.in_([AuditState.OK.value, AuditState.FINDINGS.value]),
    )
    query = (
        sa.select(columns.detail).where(complete).order_by(columns.started_at_ms.desc(), columns.finished_at_ms.desc())
    )
    row = next(iter(database.rows(query.limit(1))), None)
    return Standing.of(json.loads(row.detail or "{}").get("standing") if row else None)


def renew_run(held: RunHeld) -> None:
    """Prolong the lease to its full length from now. Raises RunLost, DatabaseUnavailable."""
    with held.database.mapped_errors(), held.database.autocommit.connect() as connection:
        renewed = connection.execute(
            sa.update(audit_run).where(_mine(held)).values(lease_until_ms=_until(held.lease_s))
        )
    if renewed.rowcount != 1:
        raise _lost(held)


@dataclass(frozen=True)
class OpenRun:
    """A run that has not ended, with its plan; `abandoned` once its lease has run out."""

    run_id: str
    reference: str
    started_at: datetime
    plan: AuditPlan
    epoch: int
    abandoned: bool
    scope: AuditScope
    standing: Standing


def open_runs(database: Database) -> list[OpenRun]:
    """The runs in this database that are parted into chunks and have not ended. Raises DatabaseUnavailable."""
    columns = audit_run.c
    query = (
        sa.select(audit_run, (columns.lease_until_ms <= now_ms()).label("abandoned"))
        .where(columns.state == "running", columns.epoch > 0)
        .order_by(columns.started_at_ms)
    )
    return [
        OpenRun(
            row.run_id,
            row.reference,
            _instant(row.started_at_ms),
            AuditPlan.of(detail["plan"]),
            row.epoch,
            bool(row.abandoned),
            AuditScope(detail["scope"]),
            Standing.of(detail["standing"]),
        )
        for row in database.rows(query)
        if (detail := json.loads(row.detail or "{}")).get("plan")
    ]


def take_over(database: Database, run: OpenRun, *, owner: str, lease_s: float) -> RunHeld | None:
    """Hold an abandoned run; None where somebody else was faster. Raises DatabaseUnavailable."""
    columns = audit_run.c
    taken = (
        sa.update(audit_run)
        .where(
            columns.run_id == run.run_id,
            columns.reference == run.reference,
            columns.state == "running",
            columns.epoch == run.epoch,
            columns.lease_until_ms <= now_ms(),
        )
        .values(epoch=run.epoch + 1, owner=owner[:120], lease_until_ms=_until(lease_s))
    )
    with database.mapped_errors(), database.autocommit.connect() as connection:
        if connection.execute(taken).rowcount != 1:
            return None
    return RunHeld(database, run.run_id, run.reference, run.epoch + 1, lease_s, run.scope, run.standing)


def _mine(held: RunHeld) -> sa.ColumnElement[bool]:
    columns = audit_run.c
    return sa.and_(
        columns.run_id == held.run_id,
        columns.reference == held.reference,
        columns.state == "running",
        columns.epoch == held.epoch,
    )


def _lost(held: RunHeld) -> RunLost:
    return RunLost(
        f"database {held.database.name!r}: audit run {held.run_id} of {held.reference} is no longer this process's: "
        "its lease had run out and another process ended it, a later run superseded it, or somebody deleted its row."
    )


def _until(lease_s: float) -> sa.ColumnElement[int]:
    return now_ms() + int(lease_s * 1000)


def close_run(held: RunHeld, result: AuditResult, looked_at: Notes | None = None) -> None:
    """Write the end of the run and its findings, in one transaction.

    Where everything was checked, the notes that were looked at are taken away by it, and the keys that are not in order
    are noted for the next audit. Raises RunLost, DatabaseUnavailable.
    """
    for attempt in _attempts():
        with attempt:
            _close(held, result, looked_at)


def _attempts() -> Iterable[stamina.Attempt]:
    """After a lock that was not granted or a deadlock nothing is written, so the transaction can be run again."""
    return stamina.retry_context(on=(LockTimeout, DeadlockDetected), attempts=3, wait_initial=0.1)


def _close(held: RunHeld, result: AuditResult, looked_at: Notes | None) -> None:
    database, run_id = held.database, held.run_id
    if result.open_keys is None:
        held = replace(held, standing=unlisted(held.standing))
    with database.mapped_errors(), database.engine.begin() as connection:
        # A row that was given another key between two looks may have been found with both.
        rows = {row["child_key"]: row for row in (_row(run_id, result.reference, one) for one in result.findings)}
        insert_all(connection, finding, list(rows.values()))
        ended = connection.execute(
            sa.update(audit_run)
            .where(_mine(held))
            .values(
                state=result.state.value,
                finished_at_ms=now_ms(),
                rows_checked=result.child_rows,
                findings=result.orphan_rows,
                detail=json.dumps(_detail(result) | _kept(held)),
            )
        )
        if ended.rowcount != 1:
            raise _lost(held)
        if result.state is not AuditState.INCOMPLETE:
            if looked_at is not None:
                looked_at.take_away(connection)
            listed = {one.parent_key for one in result.findings} if result.open_keys is None else result.open_keys
            add_notes(connection, result.reference, map(noted, listed))
        audit_chunks.forget(connection, run_id, result.reference)
        _forget_old_runs(connection, result.reference)


def record_check(
    database: Database,
    run_id: str,
    name: str,
    *,
    state: AuditState,
    started_at: datetime,
    findings: int,
    rows_checked: int = 0,
    detail: Mapping[str, Any],
) -> None:
    """Write that a check which is no reference's has begun and ended, in the rows of runs under its own name.

    Raises DatabaseUnavailable.
    """
    row = {
        "run_id": run_id,
        "reference": name,
        "state": state.value,
        "started_at_ms": int(started_at.timestamp() * 1000),
        "finished_at_ms": now_ms(),
        "rows_checked": rows_checked,
        "findings": findings,
        "detail": json.dumps({"check": True} | dict(detail)),
        "epoch": 1,
    }
    for attempt in _attempts():
        with attempt, database.mapped_errors(), database.engine.begin() as connection:
            connection.execute(sa.insert(audit_run).values(row))
            _forget_old_runs(connection, name)


def last_runs(database_name: str) -> list[RunSummary]:
    """The latest run of each reference whose child is in this database. Raises DatabaseUnavailable, NoSuchTable."""
    database = ConnectionManager.get(database_name)
    newest = (
        sa.select(audit_run.c.reference, sa.func.max(audit_run.c.started_at_ms).label("started_at_ms"))
        .where(_IS_AUDIT)
        .group_by(audit_run.c.reference)
        .subquery()
    )
    query = (
        sa.select(audit_run)
        .join(
            newest,
            sa.and_(audit_run.c.reference == newest.c.reference, audit_run.c.started_at_ms == newest.c.started_at_ms),
        )
        .order_by(audit_run.c.reference)
    )
    with database.mapped_errors(), database.autocommit.connect() as connection:
        rows = connection.execute(query).mappings().all()
    return list({row["reference"]: _summary(row) for row in rows}.values())


def history(database_name: str, reference: str, *, limit: int = 30) -> list[RunSummary]:
    """The last runs of a reference that have ended, the oldest first; none without crosstie's tables.

    Raises DatabaseUnavailable.
    """
    columns = audit_run.c
    query = (
        sa.select(audit_run)
        .where(columns.reference == reference, columns.state != "running")
        .order_by(columns.started_at_ms.desc(), columns.run_id)
        .limit(limit)
    )
    try:
        return [_summary(row._mapping) for row in reversed(ConnectionManager.get(database_name).rows(query))]
    except NoSuchTable:
        return []


def _forget_old_runs(connection: sa.Connection, reference: str) -> None:
    columns = audit_run.c
    old = (
        sa.select(columns.run_id)
        .where(columns.reference == reference)
        .order_by(columns.started_at_ms.desc(), columns.run_id)
        .offset(RUNS_KEPT)
        .limit(_RUNS_AT_ONCE)
    )
    run_ids = connection.execute(old).scalars().all()
    forget_runs(connection, [(run_id, reference) for run_id in run_ids])


def forget_runs(connection: sa.Connection, runs: Sequence[tuple[str, str]]) -> None:
    """Delete runs, by id and reference, and all that belongs to them; the caller commits."""
    # One by one: to delete by a list, InnoDB may read a small table as a whole, and waits for the rows of others.
    these = [{"forgotten": run_id, "of": reference} for run_id, reference in runs]
    for table in (audit_chunk, finding, audit_run) if these else ():
        one = sa.and_(table.c.run_id == sa.bindparam("forgotten"), table.c.reference == sa.bindparam("of"))
        connection.execute(sa.delete(table).where(one), these)


def _row(run_id: str, reference: str, one: Finding) -> dict[str, Any]:
    key = json.dumps(list(one.child_key.values()), default=str, ensure_ascii=False)
    return {
        "run_id": run_id,
        "reference": reference,
        "child_key": _fitting(key, finding.c.child_key),
        "parent_key": _fitting(key_text(one.parent_key), finding.c.parent_key),
        "kind": "orphan",
    }


def _fitting(text: str, column: sa.Column[Any]) -> str:
    """The text, or as much of it as fits, with a digest that keeps different ones apart."""
    length = column.type.length if isinstance(column.type, sa.String) else None
    if length is None or len(text) <= length:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{text[: length - len(digest) - 1]}…{digest}"


def _detail(result: AuditResult) -> dict[str, Any]:
    return {
        "reason": result.reason,
        "keys_checked": result.keys_checked,
        "orphan_keys": result.orphan_keys,
        "deferred_keys": result.deferred_keys,
        "deferred_rows": result.deferred_rows,
        "seconds": round(result.seconds, 3),
        "notes": list(result.notes),
    }


def _summary(row: Mapping[Any, Any]) -> RunSummary:
    finished_at_ms = row["finished_at_ms"]
    return RunSummary(
        run_id=row["run_id"],
        reference=row["reference"],
        state=row["state"],
        started_at=_instant(row["started_at_ms"]),
        finished_at=None if finished_at_ms is None else _instant(finished_at_ms),
        rows_checked=row["rows_checked"],
        findings=row["findings"],
        detail=json.loads(row["detail"]) if row["detail"] else {},
    )


def _instant(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)
