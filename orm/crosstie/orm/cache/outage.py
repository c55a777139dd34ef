"""The Redis of the configuration, and the pause after it has failed: a cache that is away costs speed, and no more."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from crosstie.orm.cache.redis_rows import RedisRows
from crosstie.orm.cache.tally import tally
from crosstie.orm.configuration import CacheSettings
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CacheUnavailable
from crosstie.orm.registry import registry

__all__ = ["Breaker", "breaker", "is_configured"]

logger: Final = logging.getLogger(__name__)

T = TypeVar("T")


class Breaker:
    """Asks Redis, unless it has failed within the last `pause_s` seconds; `monotonic` gives seconds."""

    def __init__(self, settings: CacheSettings, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.rows = RedisRows(settings)
        self.monotonic = monotonic
        self._quiet_until_s: float | None = None
        """None while Redis answers."""

    def ask(self, question: Callable[[RedisRows], T]) -> T | None:
        """The answer; None where there is none to be had now."""
        if self._quiet_until_s is not None:
            now_s = self.monotonic()
            if now_s < self._quiet_until_s:
                return None
            self._quiet_until_s = now_s + self.settings.pause_s  # one thread finds out, the others need not wait
        try:
            answer = question(self.rows)
        except CacheUnavailable as error:
            self._failed(error)
            return None
        if self._quiet_until_s is not None:
            self._quiet_until_s = None
            logger.warning("the cache answers again")
        return answer

    def _failed(self, error: CacheUnavailable) -> None:
        tally.add(errors=1)
        if self._quiet_until_s is None:
            logger.warning(
                "the cache does not answer: the databases are asked, and the cache again every %g s: %s",
                self.settings.pause_s,
                error,
            )
        self._quiet_until_s = self.monotonic() + self.settings.pause_s


_lock: Final = threading.Lock()
_breaker: Breaker | None = None


def is_configured() -> bool:
    """Whether there is a Redis to keep rows in."""
    return ConnectionManager.settings().cache.redis_url is not None


def breaker() -> Breaker | None:
    """The configured Redis, or None. Raises ConfigurationError where its package is not installed."""
    global _breaker  # noqa: PLW0603 - one configuration for the process
    settings = ConnectionManager.settings().cache
    if settings.redis_url is None:
        return None
    found = _breaker
    if found is not None and found.settings is settings:
        return found
    with _lock:
        if _breaker is None or _breaker.settings is not settings:
            if _breaker is not None:
                _breaker.rows.close()
            _breaker = Breaker(settings)
        return _breaker


def _give_up() -> None:
    global _breaker  # noqa: PLW0603 - see above
    with _lock:
        if _breaker is not None:
            _breaker.rows.close()
        _breaker = None
    registry.generation += 1  # whether a cached model is watched depends on the configuration


ConnectionManager.on_dispose.append(_give_up)
