"""How the last audits ended: Prometheus gauges, read from the rows of runs at each scrape."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError
from crosstie.workers.audit_leftovers import CHECK
from crosstie.workers.audit_record import RunSummary, last_runs
from crosstie.workers.outages import Outages

__all__ = ["AuditCollector"]

_outages: Final = Outages(logging.getLogger(__name__))
_GAUGES: Final = {
    "orphan_rows": "Orphan rows that the last audit of the reference found.",
    "rows_checked": "Rows with a foreign key that it checked.",
    "deferred_rows": "Rows that it could not judge, because a saga had them.",
    "incomplete": "1 where it could not check everything, or is not finished.",
    "started_timestamp_seconds": "When it began, in seconds since 1970.",
    "duration_seconds": "How long it took; absent while it runs.",
}


class AuditCollector(Collector):
    """The last audit of each reference and counter, and of sagas; a database that does not answer has no figures."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The figures as they are now."""
        labels = ["source", "reference"]
        gauges = {
            name: GaugeMetricFamily(f"crosstie_audit_{name}", text, labels=labels) for name, text in _GAUGES.items()
        }
        leftovers = GaugeMetricFamily(
            "crosstie_audit_saga_leftovers",
            "What the last audit found left over of sagas, by kind.",
            labels=["source", "kind"],
        )
        counters = GaugeMetricFamily(
            "crosstie_audit_wrong_counters",
            "Rows whose counter was not the number of their children in its last audit.",
            labels=labels,
        )
        for source in ConnectionManager.names(writable=True):
            try:
                runs = last_runs(source)
            except CrosstieError as error:
                _outages.failed(f"reading the audits of {source!r} for metrics", error)
                continue
            _outages.succeeded(f"reading the audits of {source!r} for metrics")
            for run in runs:
                if run.detail.get("counter"):
                    counters.add_metric([source, run.reference], run.findings)
                if run.reference == CHECK:
                    for kind, count in run.detail.get("kinds", {}).items():
                        leftovers.add_metric([source, kind], count)
                for name, value in _figures(run).items():
                    gauges[name].add_metric([source, run.reference], value)
        yield from gauges.values()
        yield leftovers
        yield counters


def _figures(run: RunSummary) -> dict[str, float]:
    of_reference = {
        "orphan_rows": run.findings,
        "rows_checked": run.rows_checked,
        "deferred_rows": run.detail.get("deferred_rows", 0),
    }
    figures = ({} if run.detail.get("check") else of_reference) | {
        "incomplete": float(run.state in {"incomplete", "running"}),
        "started_timestamp_seconds": run.started_at.timestamp(),
    }
    if run.finished_at is not None:
        figures["duration_seconds"] = (run.finished_at - run.started_at).total_seconds()
    return figures
