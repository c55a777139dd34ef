"""Prometheus metrics: gauges from the databases, counters and a histogram from the processes that work.

A worker has several processes, and each of them applies events. They count into files of one directory, by
prometheus_client's multiprocess mode; whoever is scraped adds them up. The gauges need no such thing: what waits is
read from the databases at each scrape, and is the same whoever is asked.

In a worker its sweeper serves them: it has threads anyway, and never forks.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from crosstie.orm.cache.tally import tally
from crosstie.orm.connection import ConnectionManager
from crosstie.outbox.measure import on_measure
from crosstie.workers.errors import MetricsUnavailable

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["exposition", "prepare", "serve", "serve_if_configured"]

logger = logging.getLogger(__name__)

DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"
LABELS: Final = ("source", "route")
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)

CACHE: Final = {
    "hits": "Parents found in the cache.",
    "request_hits": "Parents found in the cache of the request; they are among the hits.",
    "misses": "Keys of parents that the database was asked for.",
    "fills": "Rows put into Redis.",
    "refused": "Rows that Redis did not take, because they had changed meanwhile.",
    "errors": "Failures of Redis, and entries that could not be read.",
}

_prepared: list[RelayMeter | CacheMeter] = []


class RelayMeter:
    """Counts what the relay of this process does. Raises MetricsUnavailable."""

    def __init__(self) -> None:
        _require_library()
        from prometheus_client import Counter, Histogram

        self._age = Histogram(
            "crosstie_outbox_commit_to_applied_seconds",
            "Time from the commit of an event in its source to its effect in the target.",
            LABELS,
            buckets=BUCKETS,
            registry=None,
        )
        self._fenced = Counter(
            "crosstie_outbox_fence_rejections",
            "Owners of lanes that were kept from changing anything, because another had taken the lane.",
            LABELS,
            registry=None,
        )
        self._stolen = Counter(
            "crosstie_outbox_lease_steals",
            "Lanes that were claimed from an owner who had not given them back.",
            LABELS,
            registry=None,
        )

        self.metrics = (self._age, self._fenced, self._stolen)

    def applied(self, source: str, route: str, ages_s: Iterable[float]) -> None:
        """Events took effect, each so many seconds after it was written."""
        histogram = self._age.labels(source, route)
        for age_s in ages_s:
            histogram.observe(age_s)

    def fenced(self, source: str, route: str) -> None:
        """An owner whose lane had been taken was kept from changing anything."""
        self._fenced.labels(source, route).inc()

    def stolen(self, source: str, route: str) -> None:
        """A lane was claimed whose owner had not given it back."""
        self._stolen.labels(source, route).inc()


class CacheMeter:
    """Counts what the cache of this process does. Raises MetricsUnavailable."""

    def __init__(self) -> None:
        _require_library()
        from prometheus_client import Counter

        self._counters = {name: Counter(f"crosstie_cache_{name}", text, registry=None) for name, text in CACHE.items()}
        self.metrics = tuple(self._counters.values())

    def count(self, counts: Mapping[str, int]) -> None:
        """So much of each has happened."""
        for name, number in counts.items():
            self._counters[name].inc(number)


def prepare() -> None:
    """Begin to count, where `metrics.port` is set: before the processes are forked that are to be counted together.

    Raises MetricsUnavailable where prometheus_client is not installed.
    """
    if ConnectionManager.settings().metrics.port is None or _prepared:
        return
    if DIRECTORY not in os.environ:
        if "prometheus_client" in sys.modules:
            logger.warning(
                "prometheus_client was imported before crosstie could set %s, so only what the scraped process itself "
                "does is counted. Set the variable where the worker is started.",
                DIRECTORY,
            )
        else:
            os.environ[DIRECTORY] = _own_directory()
    relay, cache = RelayMeter(), CacheMeter()
    on_measure(relay)
    tally.listeners.append(cache.count)
    _prepared.extend((relay, cache))


def _own_directory() -> str:
    made = tempfile.mkdtemp(prefix="crosstie-metrics-")
    creator = os.getpid()

    def remove() -> None:
        if os.getpid() == creator:  # and not a forked child of it
            shutil.rmtree(made, ignore_errors=True)

    atexit.register(remove)
    return made


def exposition() -> bytes:
    """All metrics as Prometheus reads them. Raises MetricsUnavailable."""
    _require_library()
    from prometheus_client import generate_latest

    return generate_latest(_registry())


def serve(port: int, host: str) -> tuple[int, Callable[[], None]]:
    """Serve the metrics from a thread; returns the port, chosen by the system where it was 0, and what ends it.

    Raises MetricsUnavailable, and OSError where the port is taken.
    """
    _require_library()
    from prometheus_client import start_http_server

    server, thread = start_http_server(port, addr=host, registry=_registry())

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return server.server_port, stop


def serve_if_configured() -> Callable[[], None]:
    """`serve` as `metrics.port` and `metrics.host` say; a port that is taken is logged, for the work matters more."""
    settings = ConnectionManager.settings().metrics
    if settings.port is None:
        return lambda: None
    try:
        port, stop = serve(settings.port, settings.host)
    except OSError as error:
        logger.warning("metrics cannot be served at %s:%s: %s", settings.host, settings.port, error)
        return lambda: None
    logger.info("metrics are served at http://%s:%s/metrics", settings.host, port)
    return stop


def _registry() -> CollectorRegistry:
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    from crosstie.workers.audit_gauges import AuditCollector
    from crosstie.workers.gauges import BacklogCollector

    registry = CollectorRegistry()
    registry.register(BacklogCollector())
    registry.register(AuditCollector())
    directory = os.environ.get(DIRECTORY)
    if directory and os.path.isdir(directory):  # noqa: PTH112 - the library wants a string
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    else:
        for meter in _prepared:
            for metric in meter.metrics:
                registry.register(metric)
    return registry


def _require_library() -> None:
    try:
        import prometheus_client  # noqa: F401
    except ModuleNotFoundError:
        raise MetricsUnavailable(
            "metrics need the package prometheus-client: install crosstie[metrics], or unset metrics.port."
        ) from None
