"""Jobs that concern all databases together, so that one worker of the deployment does them: the scheduled audit."""

from __future__ import annotations

from crosstie.orm.connection import ConnectionManager
from crosstie.workers.schedule import Cron, Job

__all__ = ["claiming_database", "deployment_jobs"]


def claiming_database() -> str | None:
    """Where such a job is claimed: the writable database whose name sorts first, which all workers agree on."""
    return min(ConnectionManager.names(writable=True), default=None)


def deployment_jobs() -> list[Job]:
    """What is due by the clock, once for the deployment.

    Raises ConfigurationError for a cron line that cannot be read.
    """
    line = ConnectionManager.settings().audit.schedule
    return [] if line is None else [Job("audit", Cron(line), _audit)]


def _audit() -> None:
    from crosstie.workers.audit import run_scheduled_audit  # it brings numpy, which no other job needs

    run_scheduled_audit()
