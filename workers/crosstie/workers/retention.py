"""Runs of audits that are too old to be of use to anybody are forgotten."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox.tables import audit_chunk, audit_run, finding

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
    rows = ConnectionManager.get(database_name).rows(query)
    old: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        old[row.reference].append(row.run_id)
    if not old:
        return 0
    with detached_transaction(database_name) as tx:
        tx.mark_written()
        for reference, run_ids in old.items():
            for table in (audit_chunk, finding, audit_run):
                these = sa.and_(table.c.reference == reference, table.c.run_id.in_(run_ids))
                tx.connection.execute(sa.delete(table).where(these))
    return len(rows)
