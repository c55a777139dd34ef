"""Jobs that concern all databases together, so that one worker of the deployment does them: the scheduled audits."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Final

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.declaration import relations_of
from crosstie.orm.reference import reference_unions
from crosstie.orm.registry import registry
from crosstie.orm.relation import BelongsTo
from crosstie.workers.schedule import Cron, Job

__all__ = ["claiming_database", "deployment_jobs"]

LONGEST_NAME: Final = 120


def claiming_database() -> str | None:
    """Where such a job is claimed: the writable database whose name sorts first, which all workers agree on."""
    return min(ConnectionManager.names(writable=True), default=None)


def deployment_jobs() -> list[Job]:
    """What is due by the clock, once for the deployment: the audits that settings and models ask for.

    A reference with a line of its own is left out of those that `audit.schedule` means. Raises ConfigurationError for a
    cron line that cannot be read, UnknownReference for a name in `audit.schedules` that no model declares.
    """
    settings = ConnectionManager.settings().audit
    own = _own_lines(settings.schedules)
    jobs = [
        Job(_job_name(name), Cron(line, settings.timezone, setting), partial(_audit, (name,)))
        for name, (line, setting) in own.items()
    ]
    if settings.schedule is not None:
        general = partial(_audit, None, frozenset(own)) if own else _audit
        jobs.append(Job("audit", Cron(settings.schedule, settings.timezone), general))
    for scope, name, line in (
        ("changes", "changes_schedule", settings.changes_schedule),
        ("part", "parts_schedule", settings.parts_schedule),
    ):
        if line is not None:
            cron = Cron(line, settings.timezone, f"audit.{name}")
            jobs.append(Job(f"audit-{scope}", cron, partial(_audit, scope=scope)))
    return jobs


def _own_lines(schedules: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """By reference: its cron line, and where that stands. A setting goes before what a model says."""
    own: dict[str, tuple[str, str]] = {}
    if _models_have_lines():
        for one in reference_unions():
            if one.audit is not None:
                own[one.name] = (one.audit, f"{one.members[0].child_model.__qualname__}: audit= of {one.name}")
    if schedules:
        from crosstie.workers.audit_references import select_references

        for name, line in schedules.items():
            (reference,) = select_references([name])
            own[reference.name] = (line, f"audit.schedules[{name!r}]")
    return own


def _models_have_lines() -> bool:
    """Asked first: resolving the relations of every model may fail for reasons that are none of an audit's."""
    return any(
        isinstance(relation, BelongsTo) and relation.audit is not None
        for model in registry.models()
        for relation in relations_of(model).values()
    )


def _job_name(reference: str) -> str:
    """The name of the job's tick, which has 120 characters."""
    name = f"audit {reference}"
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(reference.encode()).hexdigest()[:32]
    return f"{name[: LONGEST_NAME - len(digest) - 1]} {digest}"


def _audit(names: Sequence[str] | None = None, without: Collection[str] = (), scope: str = "full") -> None:
    from crosstie.orm.integrity import AuditScope  # it brings numpy, which no other job needs
    from crosstie.workers.audit import run_scheduled_audit

    if without:
        from crosstie.workers.audit_references import select_references

        names = [one.name for one in select_references() if one.name not in without]
    run_scheduled_audit(names, scope=AuditScope(scope))
