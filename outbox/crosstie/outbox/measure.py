"""What the relay does, for those who measure it. Nothing is measured until somebody asks.

`crosstie.workers` turns it into Prometheus metrics.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

__all__ = ["Meter", "applied", "fenced", "is_measured", "on_measure", "stolen"]

logger = logging.getLogger(__name__)


class Meter(Protocol):
    """Somebody who measures, in the relay's threads: its methods must be quick, and an exception in one is logged."""

    def applied(self, source: str, route: str, ages_s: Iterable[float]) -> None:
        """Events took effect, each so many seconds after it was written."""

    def fenced(self, source: str, route: str) -> None:
        """An owner whose lane had been taken was kept from changing anything."""

    def stolen(self, source: str, route: str) -> None:
        """A lane was claimed whose owner had not given it back."""


_meters: Final[list[Meter]] = []


def on_measure(meter: Meter) -> Callable[[], None]:
    """Tell `meter` from now on; returns what ends it."""
    _meters.append(meter)

    def stop() -> None:
        if meter in _meters:
            _meters.remove(meter)

    return stop


def is_measured() -> bool:
    """Whether anybody measures."""
    return bool(_meters)


def applied(source: str, route: str, ages_s: Sequence[float]) -> None:
    """Tell every meter."""
    _tell(lambda meter: meter.applied(source, route, ages_s))


def fenced(source: str, route: str) -> None:
    """Tell every meter."""
    _tell(lambda meter: meter.fenced(source, route))


def stolen(source: str, route: str) -> None:
    """Tell every meter."""
    _tell(lambda meter: meter.stolen(source, route))


def _tell(what: Callable[[Meter], None]) -> None:
    for meter in _meters.copy():
        try:
            what(meter)
        except Exception:
            logger.exception("a meter of the relay failed; the relay goes on")
