"""What a report says as a whole, and what it advises."""

from __future__ import annotations

from datetime import UTC, datetime

from crosstie.orm.integrity import AuditResult, AuditState
from crosstie.workers.audit_command import next_step
from crosstie.workers.audit_report import AuditReport


def report(*results: AuditResult) -> AuditReport:
    """A report over these results."""
    return AuditReport("run", datetime.now(UTC), 0.0, results, {})


def test_deferred_rows_are_told_with_the_way_to_resolve_them() -> None:
    """OK, but not for all: a worker resolves the sagas, and the audit is run again."""
    line = next_step(report(AuditResult("r", AuditState.OK, deferred_keys=2, deferred_rows=3)))
    assert "crosstie sweep --once" in line


def test_the_worst_state_counts() -> None:
    """One incomplete reference outweighs findings, and these outweigh OK."""
    ok, bad, open_ = (AuditResult(str(state), state) for state in AuditState)
    assert report(ok).exit_status == 0
    assert report(ok, bad).exit_status == 1
    assert report(ok, bad, open_).exit_status == 2
