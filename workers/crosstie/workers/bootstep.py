"""The part of a Celery worker that keeps a sweeper running beside its pool."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from celery import bootsteps

from crosstie.orm.connection import ConnectionManager
from crosstie.workers.broker import shown_url
from crosstie.workers.deployment import deployment_jobs
from crosstie.workers.keeper import STOP_SIGNAL, STOP_TIMEOUT_S, fork, keep
from crosstie.workers.sweeper import run_sweeper

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["SweeperStep", "log_readiness"]

logger = logging.getLogger(__name__)


def _keeper() -> int:
    return keep(lambda: run_sweeper(deployment_jobs), "sweeper")


class SweeperStep(bootsteps.StartStopStep):
    """Forks the sweeper's keeper before the worker starts anything else, and ends it after everything else."""

    label = "Sweeper"

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._pid = 0
        self._stopping = False
        self._watcher: threading.Thread | None = None

    def include(self, parent: Any) -> bool:
        """Become the first of all steps: the fork must find no thread, no connection and no pipe of the pool."""
        included = bool(super().include(parent))
        if included:
            parent.steps.remove(self)
            parent.steps.insert(0, self)
        return included

    def start(self, parent: Any) -> None:
        """Fork the keeper."""
        self._stopping = False
        self._pid = fork(_keeper, "sweeper-keeper")
        self._watcher = threading.Thread(target=self._watch, name="crosstie-keeper-watch", daemon=True)
        self._watcher.start()

    def stop(self, parent: Any) -> None:
        """Let the sweeper finish what it has in hand, for a bounded time."""
        self._end(STOP_SIGNAL)

    def terminate(self, parent: Any) -> None:
        """End the sweeper at once; its databases roll back."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        self._stopping = True
        watcher = self._watcher
        if watcher is None or not watcher.is_alive():
            return
        self._signal(number)
        watcher.join(STOP_TIMEOUT_S + 2)
        if watcher.is_alive():
            self._signal(signal.SIGKILL)
            watcher.join(1)

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.kill(self._pid, number)
        except ProcessLookupError:
            logger.debug("the sweeper's keeper had ended already")

    def _watch(self) -> None:
        while True:
            try:
                os.waitpid(self._pid, 0)
            except ChildProcessError:
                logger.debug("the sweeper's keeper was reaped elsewhere")
            if self._stopping:
                return
            # Only a kill from outside ends a keeper, and then a risky fork is better than a worker without its net.
            logger.critical("the sweeper's keeper (pid %s) was killed; another is started", self._pid)
            self._pid = fork(_keeper, "sweeper-keeper")


def log_readiness(app: Celery) -> None:
    """Say in one line what this worker serves; no password is in it."""
    settings = ConnectionManager.settings()
    databases = [f"{name} ({ConnectionManager.get(name).settings.address()})" for name in ConnectionManager.names()]
    logger.info(
        "crosstie worker ready: broker %s; databases %s; imports %s",
        shown_url(app.conf.broker_read_url),
        ", ".join(databases) or "none configured",
        ", ".join(settings.imports) or "none",
    )
