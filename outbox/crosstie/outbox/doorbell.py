"""Doorbells: a hint after a commit that a route has work. Losing one costs latency, never an event.

Nothing rings until somebody listens; `crosstie.workers` listens and sends a message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

__all__ = ["is_heard", "on_ring", "ring"]

logger = logging.getLogger(__name__)

Listener = Callable[[str, str], None]
_listeners: list[Listener] = []


def on_ring(listener: Listener) -> Callable[[], None]:
    """Call `listener(source, route)` after each commit that wrote events for the route; returns what ends it.

    It runs in the thread that committed and must be quick. An exception in it is logged: the commit stands.
    """
    _listeners.append(listener)

    def stop() -> None:
        if listener in _listeners:
            _listeners.remove(listener)

    return stop


def is_heard() -> bool:
    """Whether anybody listens; if not, finding out which routes have work can be saved."""
    return bool(_listeners)


def ring(source: str, route: str) -> None:
    """Say that `route` has work in the database `source`."""
    for listener in _listeners.copy():
        try:
            listener(source, route)
        except Exception:
            logger.exception("a doorbell for route %r of database %r failed; a sweep will find the work", route, source)
