"""Connections to brokers, kept between batches; each is used by one thread at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import ConfigurationError
from crosstie.outbox.brokers.contract import Broker
from crosstie.outbox.brokers.kinds import kind_of

__all__ = ["borrowed"]

_lock = threading.Lock()
_idle: dict[str, list[Broker]] = {}
_inherited: list[Broker] = []
"""Connections of a parent process: collecting one as garbage would shut the parent's socket down."""


@contextmanager
def borrowed(name: str) -> Iterator[Broker]:
    """A connection to the broker of this name, closed after any exception. Raises ConfigurationError."""
    with _lock:
        kept = _idle.setdefault(name, [])
        broker = kept.pop() if kept else None
    if broker is None:
        settings = ConnectionManager.settings().brokers.get(name)
        if settings is None:
            raise ConfigurationError(
                f"broker {name!r} is not configured in this process: give it a URL in brokers.{name}"
            )
        broker = kind_of(settings)(settings)
    try:
        yield broker
    except BaseException:
        broker.close()
        raise
    with _lock:
        _idle.setdefault(name, []).append(broker)


def _close_all() -> None:
    with _lock:
        brokers = [broker for kept in _idle.values() for broker in kept]
        _idle.clear()
    for broker in brokers:
        broker.close()


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - a forked child may find it locked
    _lock = threading.Lock()
    _inherited.extend(broker for kept in _idle.values() for broker in kept)
    _idle.clear()


ConnectionManager.on_dispose.append(_close_all)
os.register_at_fork(after_in_child=_after_fork)
