"""The process that sweeps every database once a second: the net under all doorbells.

Each database has threads of its own, and so has each route of it: one that is down, deaf or slow delays no other. They
run handlers, which are the user's code: a crash takes this process with it and the keeper starts another; a handler
that hangs is ended with it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import DatabaseUnavailable
from crosstie.outbox import drain, notification, operation
from crosstie.sagas import sweep_effects, sweep_sagas
from crosstie.sagas.declared import homes_of_declared_sagas, longest_step_s, run_steps
from crosstie.workers import doorbell, metrics
from crosstie.workers.deployment import claiming_database
from crosstie.workers.keeper import Wakeup, orphaned
from crosstie.workers.listener import Listener
from crosstie.workers.outages import Outages
from crosstie.workers.process import process_owner
from crosstie.workers.schedule import Job, run_if_due
from crosstie.workers.sweep import LANES_LIMIT_S, SAGA_LIMIT, database_jobs, sync_subscriptions

__all__ = ["DatabaseLoop", "EffectLoop", "RouteLoop", "run_sweeper"]

logger = logging.getLogger(__name__)

JOBS_INTERVAL_S: Final = 10.0
AUDITS_INTERVAL_S: Final = 3.0
STALL_S: Final = 300.0
"""As long as the hard time limit of a Celery task: a sweep that takes longer hangs in somebody's handler."""
LEASES_TO_STALL: Final = 10
"""Who gives handlers a long lease expects them to be slow."""
JOIN_TIMEOUT_S: Final = 8.0
BUSY_INTERVAL_S: Final = 0.05
BUSY_FOR_S: Final = 1.0
"""A route is busy for so long after its last event; a look at it costs one statement."""
LISTEN_AGAIN_S: Final = 1.0
"""After an error; it costs one attempt to connect."""
_STALLED: Final = 75


def stall_s() -> float:
    """How long one sweep of a database may take."""
    return max(STALL_S, LEASES_TO_STALL * ConnectionManager.settings().outbox.lease_s)


class _Loop:
    """A thread that does the same thing again and again, survives its errors, and can be seen to hang."""

    def __init__(self, name: str, interval_s: float, outages: Outages) -> None:
        self.name = name
        self.interval_s = interval_s
        self.outages = outages
        self.stopping = False
        self.busy_since: float | None = None
        self._wake = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"crosstie-{name}", daemon=True)

    def wake(self) -> None:
        """Begin the next round now."""
        self._wake.set()

    def stop(self) -> None:
        """Let the round in hand finish, and begin no other."""
        self.stopping = True
        self._wake.set()

    def stalled(self, now_s: float) -> bool:
        """Whether one round has been going on for too long."""
        since = self.busy_since
        return since is not None and now_s - since > stall_s()

    def _run(self) -> None:
        while not self.stopping:
            self._wake.clear()
            self.busy_since = time.monotonic()
            try:
                again = self.round()
            except Exception as error:  # noqa: BLE001 - logged; the net must hold whatever a handler raises
                self.outages.failed(self.name, error)
                again = False
            else:
                self.outages.succeeded(self.name)
            self.busy_since = None
            if not again:
                self._wake.wait(self.interval_s)

    def round(self) -> bool:
        """Do it once; True where there is more to do at once."""
        raise NotImplementedError


class DatabaseLoop(_Loop):
    """Finishes the sagas of one database, does its jobs when they are due, and has a loop for each of its routes."""

    def __init__(self, database: str, interval_s: float, outages: Outages) -> None:
        super().__init__(f"the sweep of database {database!r}", interval_s, outages)
        self.database = database
        self.owner = process_owner("sweep")
        self.routes: dict[str, RouteLoop] = {}
        self._synced = False
        self._jobs_at_s = 0.0

    def wake(self) -> None:
        """Begin the next round now, and that of each route."""
        super().wake()
        for loop in list(self.routes.values()):
            loop.wake()

    def round(self) -> bool:
        """One sweep. Raises what `sweep_sagas` raises, and NoSuchTable."""
        for route in operation.routes_of(self.database):
            if route not in self.routes and not self.stopping:
                loop = RouteLoop(self.database, route, self.interval_s, self.outages)
                loop.thread.start()  # before anybody looks whether it lives
                self.routes[route] = loop
                loop.wake()  # for what was committed since its first look, and rang before the line above
        report = sweep_sagas(self.database, limit=SAGA_LIMIT)
        if not self._synced:
            # This process may know subscribers that no process before it knew; their events are looked for at once.
            sync_subscriptions(self.database)
            self._synced = True
            return True
        if time.monotonic() >= self._jobs_at_s:
            for job in database_jobs(self.database):
                run_if_due(job, self.database, owner=self.owner)
            self._jobs_at_s = time.monotonic() + JOBS_INTERVAL_S
        return report.settled + report.aborted >= SAGA_LIMIT


class _SideLoop(_Loop):
    """One beside the loop of its database: that one tells when the database is down, so here it is no error."""

    def round(self) -> bool:
        """One look. Raises what `look` does, but not DatabaseUnavailable."""
        try:
            return self.look()
        except DatabaseUnavailable:
            return False

    def look(self) -> bool:
        """Do it once; True where there is more to do at once."""
        raise NotImplementedError


class RouteLoop(_SideLoop):
    """Drains one route of one database; while it is busy, it is looked at every 50 ms."""

    def __init__(self, database: str, route: str, interval_s: float, outages: Outages) -> None:
        super().__init__(f"the route {route!r} of database {database!r}", interval_s, outages)
        self._database, self._route = database, route
        self._owner = process_owner("sweep")
        self._idle_s = interval_s
        self._busy_until_s = 0.0

    def look(self) -> bool:
        """Raises what `drain` does."""
        begun_s = time.monotonic()
        self.interval_s = self._idle_s  # stays so where the database is down
        if drain(self._database, self._route, owner=self._owner, limit_s=LANES_LIMIT_S):
            self._busy_until_s = time.monotonic() + BUSY_FOR_S
        now_s = time.monotonic()
        if now_s < self._busy_until_s:
            self.interval_s = min(BUSY_INTERVAL_S, self._idle_s)
        return now_s - begun_s >= LANES_LIMIT_S


class EffectLoop(_SideLoop):
    """Compensates effects of aborted sagas of one home; apart, because compensations wait for other services."""

    def __init__(self, database: str, interval_s: float, outages: Outages) -> None:
        super().__init__(f"the effects of database {database!r}", interval_s, outages)
        self._database = database

    def look(self) -> bool:
        """Raises what `sweep_effects` does."""
        return sweep_effects(self._database).compensated > 0


class StepLoop(_SideLoop):
    """Runs steps of declared sagas of one home: the user's code, and several of these side by side."""

    def __init__(self, database: str, number: int, interval_s: float, outages: Outages) -> None:
        super().__init__(f"the steps of database {database!r} ({number})", interval_s, outages)
        self._database = database
        self._owner = process_owner(f"steps-{number}")
        self._longest_s = 2 * longest_step_s()

    def stalled(self, now_s: float) -> bool:
        """A step that has twice its time is lost; its lease ran out long ago."""
        since = self.busy_since
        return since is not None and now_s - since > max(stall_s(), self._longest_s)

    def look(self) -> bool:
        """Raises what `run_steps` does."""
        return run_steps(self._database, owner=self._owner).more


class ListenLoop(_Loop):
    """Wakes the sweep of a PostgreSQL database for its notifications."""

    def __init__(self, swept: DatabaseLoop, interval_s: float, outages: Outages) -> None:
        super().__init__(f"listening to database {swept.database!r}", LISTEN_AGAIN_S, outages)
        self._swept = swept
        self._listener = Listener(swept.database, interval_s)

    def round(self) -> bool:
        """Listen for a second. Raises DatabaseUnavailable."""
        if self._listener.heard():
            self._swept.wake()
        if self.stopping:
            self._listener.close()
        return True


class AuditLoop(_SideLoop):
    """Helps with audits whose rows are in one database, and ends those whose process has vanished."""

    def __init__(self, database: str, outages: Outages) -> None:
        super().__init__(f"the audits of database {database!r}", AUDITS_INTERVAL_S, outages)
        self._database = database

    def stalled(self, now_s: float) -> bool:
        """A page of a column without an index takes its minutes."""
        return False

    def look(self) -> bool:
        """Raises what `help_audits` does."""
        from crosstie.workers.audit_runner import help_audits  # it brings numpy, which nothing else here needs

        return help_audits(self._database, owner=process_owner("audit")) and not self.stopping


class JobLoop(_Loop):
    """Does one job of the whole deployment when it is due; however long it takes, it is no stall."""

    def __init__(self, job: Job, database: str, outages: Outages) -> None:
        super().__init__(f"the scheduled job {job.name!r}", JOBS_INTERVAL_S / 2, outages)
        self._job, self._database = job, database

    def stalled(self, now_s: float) -> bool:
        """An audit of a billion rows takes its hours."""
        return False

    def round(self) -> bool:
        """Run it if it is due. Raises what `run_if_due` raises."""
        run_if_due(self._job, self._database, owner=process_owner("schedule"))
        return False


def _loops(outages: Outages, deployment_jobs: Sequence[Job]) -> list[_Loop]:
    names = ConnectionManager.names(writable=True)
    interval_s = ConnectionManager.settings().sweep_interval_s
    loops: list[_Loop] = [DatabaseLoop(name, interval_s, outages) for name in names]
    loops += [EffectLoop(name, interval_s, outages) for name in names]
    loops += [AuditLoop(name, outages) for name in names]
    for name in homes_of_declared_sagas():
        threads = range(1, ConnectionManager.settings().saga.step_threads + 1)
        loops += [StepLoop(name, number, interval_s, outages) for number in threads]
    every_s = notification.interval_s()
    if every_s is not None:
        kinds = {name: ConnectionManager.get(name).kind for name in names}
        swept = [loop for loop in loops if isinstance(loop, DatabaseLoop) and kinds[loop.database] == "postgresql"]
        loops += [ListenLoop(loop, every_s, outages) for loop in swept]
    claimed_in = claiming_database()
    if claimed_in is not None:
        loops += [JobLoop(job, claimed_in, outages) for job in deployment_jobs]
    return loops


def run_sweeper(
    deployment_jobs: Callable[[], Sequence[Job]], *, wakeup: Wakeup | None = None, watch_parent: bool = True
) -> int:
    """Sweep until told to stop, or until the parent has died; returns the exit code of the process."""
    wakeup = wakeup or Wakeup()
    loops = _loops(Outages(logger), deployment_jobs())
    swept = {loop.database: loop for loop in loops if isinstance(loop, DatabaseLoop)}

    def wake(source: str) -> None:
        if source in swept:
            swept[source].wake()

    # What a handler publishes here needs no broker to be found at once.
    doorbell.deliver_locally(wake)
    logger.info(
        "crosstie sweeper %s sweeps %s every %g s",
        os.getpid(),
        ", ".join(swept) or "nothing: no writable database is configured",
        ConnectionManager.settings().sweep_interval_s,
    )
    for loop in loops:
        loop.thread.start()
    stop_metrics = metrics.serve_if_configured()
    code = 0
    while code == 0 and not wakeup.stopping and not (watch_parent and orphaned()):
        wakeup.wait(1.0)
        code = _verdict([*loops, *_of_routes(swept.values())])
    stop_metrics()
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    for loop in [*loops, *_of_routes(swept.values())]:
        loop.stop()
    if code == 0:  # else a thread would be waited for that will never end; the process ends without it
        for loop in loops:
            loop.thread.join(max(0.0, deadline - time.monotonic()))
        for loop in _of_routes(swept.values()):
            loop.stop()  # its database may have found it only now
            loop.thread.join(max(0.0, deadline - time.monotonic()))
        ConnectionManager.dispose()
    return code


def _of_routes(databases: Iterable[DatabaseLoop]) -> list[_Loop]:
    return [loop for database in databases for loop in list(database.routes.values())]


def _verdict(loops: Sequence[_Loop]) -> int:
    """The exit code of a sweeper that must end, or 0."""
    stalled = [loop.name for loop in loops if loop.stalled(time.monotonic())]
    if stalled:
        logger.critical("%s has hung for %g s; this sweeper ends", " and ".join(stalled), stall_s())
        return _STALLED
    dead = [loop.name for loop in loops if not loop.thread.is_alive()]
    if dead:
        logger.critical("the thread of %s has ended; this sweeper ends", " and ".join(dead))
        return _STALLED
    return 0
