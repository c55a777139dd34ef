"""Leases are kept alive by a thread while something takes its time, and a lost one is told to whoever holds it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from crosstie.orm.errors import DatabaseError
from crosstie.workers.errors import WorkerError

__all__ = ["LeaseKeeper"]

logger = logging.getLogger(__name__)


class LeaseKeeper:
    """Calls `renew` three times in each `lease_s` until the block ends, or until it raises that the lease is lost."""

    def __init__(self, name: str, renew: Callable[[], None], *, lease_s: float) -> None:
        self._name = name
        self._renew = renew
        self._every_s = lease_s / 3
        self._ended = threading.Event()
        self._lost: WorkerError | None = None
        self._thread = threading.Thread(target=self._keep, name=f"crosstie-{name}", daemon=True)

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def require_held(self) -> None:
        """Raise what `renew` raised when the lease was found lost."""
        if self._lost is not None:
            raise self._lost

    def _keep(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                self._renew()
            except WorkerError as error:
                logger.warning("%s", error)
                self._lost = error
                return
            except DatabaseError as error:  # asked again; the lease outlives two failures
                logger.warning("%s could not renew its lease: %s", self._name, error)
