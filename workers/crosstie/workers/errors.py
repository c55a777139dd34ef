"""Errors of the workers and of the command line."""

from __future__ import annotations

from typing import ClassVar

from crosstie.orm.errors import ConfigurationError, CrosstieError

__all__ = [
    "ChangesNotNoted",
    "ChunkLost",
    "ImportFailed",
    "MetricsUnavailable",
    "NothingConfigured",
    "RunLost",
    "TickLost",
    "UnknownColumn",
    "WorkerError",
]


class WorkerError(CrosstieError):
    """A background job cannot go on."""

    code: ClassVar[str] = "worker"


class TickLost(WorkerError):
    """Another process took over this slot of a scheduled job."""

    code = "worker.tick-lost"
    retryable = True


class UnknownColumn(WorkerError):
    """A text does not name a column in several databases."""

    code = "worker.unknown-column"


class ChunkLost(WorkerError):
    """Another process has this chunk of an audit by now."""

    code = "worker.chunk-lost"
    retryable = True


class RunLost(WorkerError):
    """Another process has ended this run of an audit."""

    code = "worker.run-lost"


class ChangesNotNoted(WorkerError):
    """Nothing notes every change of this reference, so that an audit of its changes alone would miss some."""

    code = "worker.changes-not-noted"


class ImportFailed(ConfigurationError):
    """A module that the configuration names in `imports` cannot be imported."""

    code = "config.import-failed"


class MetricsUnavailable(ConfigurationError):
    """Metrics were asked for, and the library that they need is not installed."""

    code = "config.metrics-unavailable"


class NothingConfigured(ConfigurationError):
    """No database is configured."""

    code = "config.no-connection"
