"""What waits in the outboxes, and what of sagas: Prometheus gauges, read from the databases at each scrape."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError
from crosstie.outbox.backlog import RouteBacklog, pending
from crosstie.sagas.declared import count_runs
from crosstie.sagas.inspection import count_effects, count_sagas
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
    "wary_lanes": "Lanes with events that are tried one at a time, because workers died with them in hand.",
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
        sagas = GaugeMetricFamily(
            "crosstie_sagas",
            "Records of sagas that have not ended, by state: applied, aborted, owed (committed, and a branch has "
            "yet to follow), quarantined.",
            labels=["source", "state"],
        )
        effects = GaugeMetricFamily(
            "crosstie_saga_effects",
            "Effects outside databases whose saga is undecided (open) or aborted (due, quarantined).",
            labels=["source", "state"],
        )
        runs = GaugeMetricFamily(
            "crosstie_runs",
            "Runs of declared sagas that have not ended, by state: running, compensating, quarantined.",
            labels=["source", "state"],
        )
        if names:
            with ThreadPoolExecutor(len(names), thread_name_prefix="crosstie-metrics") as pool:
                for source, found in zip(names, pool.map(_read, names), strict=True):
                    up.add_metric([source], float(found is not None))
                    if found is None:
                        continue
                    for state, count in found.sagas.items():
                        sagas.add_metric([source, state], count)
                    for state, count in found.effects.items():
                        effects.add_metric([source, state], count)
                    for state, count in found.runs.items():
                        runs.add_metric([source, state], count)
                    for one in found.routes:
                        for name, value in _figures(one).items():
                            gauges[name].add_metric([source, one.route], value)
        yield up
        yield sagas
        yield effects
        yield runs
        yield from gauges.values()


class _Figures(NamedTuple):
    routes: list[RouteBacklog]
    sagas: dict[str, int]
    effects: dict[str, int]
    runs: dict[str, int]


def _read(name: str) -> _Figures | None:
    try:
        database = ConnectionManager.get(name)
        found = _Figures(pending(name), count_sagas(database), count_effects(database), count_runs(database))
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
        "wary_lanes": one.wary_lanes,
        "paused": float(one.paused),
    }
