"""Runs of audits that are too old to be of use to anybody are forgotten."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox.tables import audit_run
from crosstie.workers.audit_record import forget_runs

__all__ = ["forget_audit_runs"]

AT_ONCE: Final = 500


def forget_audit_runs(database_name: str) -> int:
    """Delete runs older than `audit.retention_s` with their findings, but the last of each reference; how many runs.

    At most 500 at a time. Raises DatabaseUnavailable, NoSuchTable.
    """
    retention_ms = int(ConnectionManager.settings().audit.retention_s * 1000)
    last = (
        sa.select(audit_run.c.reference, sa.func.max(audit_run.c.started_at_ms).label("started_at_ms"))
        .group_by(audit_run.c.reference)
        .subquery()
    )
    query = (
        sa.select(audit_run.c.reference, audit_run.c.run_id)
        .join(last, last.c.reference == audit_run.c.reference)
        .where(audit_run.c.started_at_ms < last.c.started_at_ms, audit_run.c.started_at_ms < now_ms() - retention_ms)
        .limit(AT_ONCE)
    )
    old = [(row.run_id, row.reference) for row in ConnectionManager.get(database_name).rows(query)]
    if not old:
        return 0
    with detached_transaction(database_name) as tx:
        tx.mark_written()
        with tx.mapped_errors():
            forget_runs(tx.connection, old)
    return len(old)
