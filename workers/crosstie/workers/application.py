"""The Celery app of crosstie, and what turns another Celery app into one that serves crosstie too."""

from __future__ import annotations

import logging
import os
from typing import Any, Final
from weakref import WeakSet

from celery import Celery, signals

from crosstie.orm.connection import ConnectionManager
from crosstie.outbox import doorbell as outbox_doorbell
from crosstie.sagas import doorbell as saga_doorbell
from crosstie.workers import doorbell, embedded, metrics
from crosstie.workers.bootstep import SweeperStep, log_readiness
from crosstie.workers.broker import broker_url, is_embedded, transport_options
from crosstie.workers.deployment import deployment_jobs
from crosstie.workers.imports import add_working_directory, import_modules
from crosstie.workers.sender import CelerySender
from crosstie.workers.tasks import register_tasks

__all__ = ["app", "install"]

logger = logging.getLogger(__name__)

DEFAULT_QUEUE: Final = "crosstie"

_installed: WeakSet[Celery] = WeakSet()


def _defaults() -> dict[str, Any]:
    """The settings of our own app; read when first needed, so that importing crosstie reads no configuration."""
    settings = ConnectionManager.settings()
    url = os.environ.get("CELERY_BROKER_URL") or broker_url(settings)
    return {
        "broker_url": url,
        "broker_transport_options": transport_options(url),
        "broker_connection_retry_on_startup": True,
        # For ever: a worker whose broker is away still sweeps, and must be there when the broker is back.
        "broker_connection_max_retries": None,
        "task_default_queue": settings.queue or DEFAULT_QUEUE,
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "task_ignore_result": True,
        "task_acks_late": False,
        "worker_prefetch_multiplier": 1,
        # A file has no fanout, and answering `celery inspect` would leave a queue in it for each worker that ever was.
        "worker_enable_remote_control": not is_embedded(url),
        "enable_utc": True,
        "timezone": "UTC",
    }


def _schedule(queue: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {"expires": 60} | ({"queue": queue} if queue else {})
    return {
        f"crosstie-{job}": {"task": f"crosstie.{job}", "schedule": float(every_s), "options": options}
        for job, every_s in (("prune", 60), ("sync_routes", 300), ("audit", 60))
    }


def install(other: Celery) -> Celery:
    """Let another Celery app serve crosstie: tasks, beat entries, the sweeper in its workers, its broker for doorbells.

    Nothing of the app is overwritten: neither its settings nor an entry of its schedule. Repeating it changes nothing.
    Returns the app.
    """
    if other in _installed:
        return other
    _installed.add(other)
    embedded.register()
    register_tasks(other)
    other.steps["worker"].add(SweeperStep)

    def configured(sender: Celery, **_: Any) -> None:
        # Entries of the same name are the user's own, with a schedule of their choice.
        sender.conf.beat_schedule = _schedule(ConnectionManager.settings().queue) | dict(sender.conf.beat_schedule)

    def import_ours(sender: Celery, **_: Any) -> None:
        add_working_directory()
        import_modules()
        deployment_jobs()  # a cron line that cannot be read is refused now, not in the sweeper
        metrics.prepare()

    def ready(sender: Any, **_: Any) -> None:
        if sender.app is other:
            log_readiness(other)

    other.on_after_configure.connect(configured, weak=False, dispatch_uid="crosstie.schedule")
    if vars(other).get("configured", False):
        configured(other)
    signals.import_modules.connect(import_ours, sender=other, weak=False, dispatch_uid=f"crosstie.imports.{id(other)}")
    signals.worker_ready.connect(ready, weak=False, dispatch_uid=f"crosstie.ready.{id(other)}")
    doorbell.use_sender(CelerySender(other))
    return other


def _own_app() -> Celery:
    own = Celery("crosstie", set_as_current=False)
    own.add_defaults(_defaults)
    return install(own)


app: Final = _own_app()
outbox_doorbell.on_ring(doorbell.ring_for_drain)
saga_doorbell.on_ring(doorbell.ring_for_saga)
