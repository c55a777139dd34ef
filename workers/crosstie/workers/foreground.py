"""Sweeping without a worker: once, or until interrupted."""

from __future__ import annotations

import logging
import signal

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError
from crosstie.sagas import sweep_effects
from crosstie.sagas.declared import homes_of_declared_sagas, run_steps
from crosstie.workers import doorbell, metrics, presentation
from crosstie.workers.deployment import claiming_database, deployment_jobs
from crosstie.workers.keeper import Wakeup
from crosstie.workers.process import process_owner
from crosstie.workers.schedule import run_if_due
from crosstie.workers.sweep import database_jobs, sweep_database, sync_subscriptions
from crosstie.workers.sweeper import run_sweeper

__all__ = ["sweep_forever", "sweep_once"]


def sweep_once() -> bool:
    """Sweep every writable database once and do what is due by the clock; whether all of it succeeded.

    Shows what was done for each database, and the error of one that could not be swept.
    """
    from crosstie.workers.audit_runner import help_audits  # it brings numpy, which nothing else here needs

    owner = process_owner("sweep-once")
    succeeded = True
    doorbell.deliver_locally(lambda _: None)  # what this sweep publishes waits for the next one
    for name in ConnectionManager.names(writable=True):
        try:
            sync_subscriptions(name)
            presentation.show_swept(sweep_database(name, owner=owner), sweep_effects(name))
            if name in homes_of_declared_sagas():
                presentation.show_steps(name, run_steps(name, owner=owner))
            for job in database_jobs(name):
                run_if_due(job, name, owner=owner)
            help_audits(name, owner=owner)
        except CrosstieError as error:
            succeeded = False
            presentation.show_error(str(error))
    claimed_in = claiming_database()
    if claimed_in is not None and succeeded:
        for job in deployment_jobs():
            run_if_due(job, claimed_in, owner=owner)
    return succeeded


def sweep_forever() -> int:
    """Be the sweeper of a worker, in the foreground; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    metrics.prepare()
    return run_sweeper(deployment_jobs, wakeup=Wakeup(signal.SIGTERM, signal.SIGINT), watch_parent=False)
