"""A hint to the workers that a saga was left unfinished; losing it costs latency only.

A saga that has committed rings for nobody: sweeps settle those in batches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from crosstie.sagas.record import SagaHeader

__all__ = ["on_ring", "ring"]

logger = logging.getLogger(__name__)
_listeners: list[Callable[[SagaHeader], None]] = []


def on_ring(listener: Callable[[SagaHeader], None]) -> None:
    """Call `listener` whenever this process leaves a saga that a worker can finish."""
    if listener not in _listeners:
        _listeners.append(listener)


def ring(header: SagaHeader) -> None:
    """Tell the listeners; a failing one is logged, because the sweep finds the saga anyway."""
    for listener in _listeners:
        try:
            listener(header)
        except Exception:
            logger.warning("the doorbell of saga %s failed; the sweep will find it", header.saga_id, exc_info=True)
