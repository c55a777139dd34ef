"""The Celery tasks: each only says where to look, for the database's rows are the truth.

A message that is lost, late, repeated or forged makes a worker look once more or once less; it carries no data.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError, DatabaseUnavailable
from crosstie.outbox import drain as drain_lanes
from crosstie.sagas import resolve_saga as resolve
from crosstie.sagas import sweep_effects
from crosstie.workers.deployment import claiming_database, deployment_jobs
from crosstie.workers.process import process_owner
from crosstie.workers.schedule import run_if_due
from crosstie.workers.sweep import database_jobs, sweep_database

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["DOORBELL_OPTIONS", "TASK_NAMES", "register_tasks"]

logger = logging.getLogger(__name__)

SOFT_TIME_LIMIT_S: Final = 240
TIME_LIMIT_S: Final = 300
DOORBELL_OPTIONS: Final[dict[str, Any]] = {
    "acks_late": False,
    "ignore_result": True,
    "max_retries": 0,
    "serializer": "json",
    "soft_time_limit": SOFT_TIME_LIMIT_S,
    "time_limit": TIME_LIMIT_S,
}
_AUDIT_OPTIONS: Final = DOORBELL_OPTIONS | {"soft_time_limit": None, "time_limit": None}


def drain(source: str, route: str) -> None:
    """Deliver the events of a route that wait in the database `source`."""
    try:
        drain_lanes(source, route, owner=process_owner("drain"))
    except DatabaseUnavailable as error:
        logger.warning("the events of %r for %r wait: %s", source, route, error)


def resolve_saga(home: str, saga_ids: list[str]) -> None:
    """Settle or abort these sagas of a home."""
    for saga_id in saga_ids:
        try:
            resolve(saga_id, home)
        except DatabaseUnavailable as error:
            logger.warning("saga %s of home %r waits: %s", saga_id, home, error)


def sweep(database: str | None = None) -> None:
    """Sweep one database, or all of them, as every worker's sweeper does by itself."""

    def one(name: str) -> None:
        sweep_database(name, owner=process_owner("sweep-task"))
        sweep_effects(name)

    _each(database, one)


def prune(database: str | None = None) -> None:
    """Delete records that nobody can need any more, where the job is due."""
    _each(database, lambda name: _job(name, "prune"))


def sync_routes(database: str | None = None) -> None:
    """Write this process's subscriptions into the databases, where the job is due."""
    _each(database, lambda name: _job(name, "sync_routes"))


def audit() -> None:
    """Run the scheduled audit, if it is due."""
    claimed_in = claiming_database()
    if claimed_in is not None:
        for job in deployment_jobs():
            run_if_due(job, claimed_in, owner=process_owner("audit-task"))


def _job(database: str, name: str) -> None:
    for job in database_jobs(database):
        if job.name == name:
            run_if_due(job, database, owner=process_owner(f"{name}-task"))


def _each(database: str | None, action: Callable[[str], object]) -> None:
    """Do it for one database or for all; one that fails keeps no other waiting."""
    failed: CrosstieError | None = None
    for name in [database] if database else ConnectionManager.names(writable=True):
        try:
            action(name)
        except DatabaseUnavailable as error:
            logger.warning("database %r is left for the next time: %s", name, error)
        except CrosstieError as error:
            logger.warning("database %r: %s", name, error)
            failed = failed or error
    if failed is not None:
        raise failed


_TASKS: Final[dict[str, tuple[Callable[..., None], dict[str, Any]]]] = {
    "crosstie.drain": (drain, DOORBELL_OPTIONS),
    "crosstie.resolve_saga": (resolve_saga, DOORBELL_OPTIONS),
    "crosstie.sweep": (sweep, DOORBELL_OPTIONS),
    "crosstie.prune": (prune, DOORBELL_OPTIONS),
    "crosstie.sync_routes": (sync_routes, DOORBELL_OPTIONS),
    "crosstie.audit": (audit, _AUDIT_OPTIONS),
}
TASK_NAMES: Final = tuple(_TASKS)


def register_tasks(app: Celery) -> None:
    """Give the app our tasks, with options of their own, so that its settings for other tasks do not matter."""
    for name, (function, options) in _TASKS.items():
        # Not shared: else importing crosstie would put these tasks into every Celery app of the process.
        decorate: Callable[[Callable[..., None]], object] = app.task(name=name, shared=False, **options)
        decorate(function)
