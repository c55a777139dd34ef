"""One sweep of one database: everything that no doorbell rang for.

It finds unfinished sagas and undelivered events by reading the database alone, so nothing that a broker loses matters.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Final

from crosstie.orm.connection import ConnectionManager
from crosstie.outbox import SyncReport, sweep_lanes, sync_routes
from crosstie.outbox.retention import skip_dead
from crosstie.sagas import SweepReport, prune, sweep_sagas
from crosstie.sagas.declared import prune_runs
from crosstie.workers.retention import forget_audit_runs
from crosstie.workers.schedule import Every, Job

__all__ = ["Swept", "database_jobs", "sweep_database", "sync_subscriptions"]

SAGA_LIMIT: Final = 500
LANES_LIMIT_S: Final = 5.0
PRUNE_EVERY_S: Final = 60
SYNC_ROUTES_EVERY_S: Final = 300
FORGET_EVERY_S: Final = 3600


@dataclass(frozen=True)
class Swept:
    """What one sweep of one database did."""

    database: str
    sagas: SweepReport
    events: int
    more: bool
    """A limit was reached, so there may be more to do at once."""


def sweep_database(name: str, *, owner: str, limit_s: float = LANES_LIMIT_S) -> Swept:
    """Finish the sagas and deliver the events that this database holds, for about `limit_s` seconds.

    Raises DatabaseUnavailable for this database, NoSuchTable where `crosstie init` has not run.
    """
    report = sweep_sagas(name, limit=SAGA_LIMIT)
    started = time.monotonic()
    events = sweep_lanes(name, owner=owner, limit_s=limit_s)
    busy = time.monotonic() - started >= limit_s
    return Swept(name, report, events, more=busy or report.settled + report.aborted >= SAGA_LIMIT)


def sync_subscriptions(name: str) -> SyncReport:
    """Write this process's subscriptions into a database. Raises what kept them from being written."""
    report = sync_routes(name)
    if name in report.failed:
        raise report.failed[name]
    return report


def database_jobs(name: str) -> list[Job]:
    """What is done by the clock for each writable database."""
    retention_s = ConnectionManager.settings().saga.retention_s
    every_s = PRUNE_EVERY_S if retention_s >= PRUNE_EVERY_S else max(1, int(retention_s))
    return [
        Job("prune", Every(every_s), partial(prune, name)),
        Job("prune_runs", Every(PRUNE_EVERY_S), partial(prune_runs, name)),
        Job("sync_routes", Every(SYNC_ROUTES_EVERY_S), partial(sync_subscriptions, name)),
        Job("skip_dead", Every(PRUNE_EVERY_S), partial(skip_dead, name)),
        Job("forget_audit_runs", Every(FORGET_EVERY_S), partial(forget_audit_runs, name)),
    ]
