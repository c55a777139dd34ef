"""What waits in the outboxes, as Prometheus gauges that are read from the databases at each scrape."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError
from crosstie.outbox.backlog import RouteBacklog, pending
from crosstie.workers.outages import Outages

__all__ = ["BacklogCollector"]

_outages: Final = Outages(logging.getLogger(__name__))
_GAUGES: Final = {
    "oldest_unsent_seconds": "Age of the oldest event that has not taken effect, parked ones included; 0 without any.",
    "depth": "Events in the outbox that are not acknowledged.",
    "parked_events": "Events that could not be applied, and those that wait behind them.",
    "parked_keys": "Keys with a parked event.",
    "dead_events": "Parked events that nobody tries any more until somebody acts.",
    "failing_lanes": "Lanes with events whose last attempt failed.",
    "paused": "1 where somebody has paused the route.",
}


class BacklogCollector(Collector):
    """Asks every writable database at once; one that does not answer has no figures, and `crosstie_database_up` 0."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The figures as they are now."""
        names = ConnectionManager.names(writable=True)
        up = GaugeMetricFamily("crosstie_database_up", "Whether the outbox could be read.", labels=["source"])
        gauges = {
            name: GaugeMetricFamily(f"crosstie_outbox_{name}", text, labels=["source", "route"])
            for name, text in _GAUGES.items()
        }
        if names:
            with ThreadPoolExecutor(len(names), thread_name_prefix="crosstie-metrics") as pool:
                for source, found in zip(names, pool.map(_read, names), strict=True):
                    up.add_metric([source], float(found is not None))
                    for one in found or ():
                        for name, value in _figures(one).items():
                            gauges[name].add_metric([source, one.route], value)
        yield up
        yield from gauges.values()


def _read(name: str) -> list[RouteBacklog] | None:
    try:
        found = pending(name)
    except CrosstieError as error:
        _outages.failed(f"reading the outbox of {name!r} for metrics", error)
        return None
    _outages.succeeded(f"reading the outbox of {name!r} for metrics")
    return found


def _figures(one: RouteBacklog) -> dict[str, float]:
    return {
        "oldest_unsent_seconds": one.lag_s,
        "depth": one.depth,
        "parked_events": one.parked,
        "parked_keys": one.parked_keys,
        "dead_events": one.dead,
        "failing_lanes": one.failing_lanes,
        "paused": float(one.paused),
    }
