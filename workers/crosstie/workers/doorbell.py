"""Rings after a commit: tells a worker at once what its next sweep would find.

The business thread only notes the ring. A daemon thread of the process sends it, at most one batch every 50 ms, over a
connection of its own with short timeouts and no retries. A broker that is down, deaf or full costs latency, never the
caller's time: rings are dropped during a pause after each failure, and the sweep finds what they were for.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from crosstie.workers.outages import Outages

__all__ = [
    "Bell",
    "DrainRing",
    "ResolveRing",
    "Ring",
    "deliver_locally",
    "ring_for_drain",
    "ring_for_saga",
    "use_sender",
]

logger = logging.getLogger(__name__)

DEBOUNCE_S: Final = 0.05
PAUSE_AFTER_FAILURE_S: Final = 5.0
FLUSH_AT_EXIT_S: Final = 0.5
PENDING_LIMIT: Final = 1000


@dataclass(frozen=True)
class DrainRing:
    """Events of this route wait in the database `source`."""

    source: str
    route: str


@dataclass(frozen=True)
class ResolveRing:
    """A saga can be settled or aborted."""

    saga_id: str
    home: str


Ring = DrainRing | ResolveRing
Sender = Callable[[list[Ring]], None]
"""Sends one batch; may take its time, and raises where that fails."""


@dataclass
class Bell:
    """Collects rings and sends them from a thread of its own, made with the first ring."""

    send: Sender
    pause_s: float = PAUSE_AFTER_FAILURE_S
    _pending: dict[Ring, None] = field(default_factory=dict)
    _sending: bool = False
    _quiet_until_s: float = 0.0
    _closed: bool = False
    _thread: threading.Thread | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _outages: Outages = field(default_factory=lambda: Outages(logger))

    def ring(self, ring: Ring) -> None:
        """Note the ring and return; equal rings of one batch are one. Dropped while the broker is known to be away."""
        with self._changed:
            if self._closed or len(self._pending) >= PENDING_LIMIT or time.monotonic() < self._quiet_until_s:
                return
            self._pending[ring] = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="crosstie-doorbell", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is left to send; whether that came true in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._pending or self._sending), timeout_s)

    def close(self) -> None:
        """Send what is left, for a bounded time, and ring no more."""
        self.flush(FLUSH_AT_EXIT_S)
        self._closed = True

    def after_fork(self) -> None:
        """In a child: the thread stayed behind, and so did whatever it was about to send."""
        self._changed = threading.Condition()
        self._pending = {}
        self._sending = False
        self._thread = None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending)
                batch = list(self._pending)
                self._pending.clear()
                self._sending = True
            try:
                self.send(batch)
            except Exception as error:  # noqa: BLE001 - logged; the thread must go on, and the sweep finds the work
                self._failed(error)
            else:
                self._outages.succeeded("the doorbell")
            with self._changed:
                self._sending = False
                self._changed.notify_all()
            time.sleep(DEBOUNCE_S)

    def _failed(self, error: BaseException) -> None:
        with self._changed:
            self._pending.clear()
            self._quiet_until_s = time.monotonic() + self.pause_s
        self._outages.failed("the doorbell", error, remedy="the sweep finds what it would have rung for")


def _nobody(_: list[Ring]) -> None:
    """No Celery app is known."""


_bell = Bell(_nobody)
_local: Callable[[str], None] | None = None
os.register_at_fork(after_in_child=_bell.after_fork)
atexit.register(_bell.close)


def use_sender(send: Sender) -> None:
    """Let the process's bell send its batches so; the latest caller wins."""
    _bell.send = send


def deliver_locally(wake: Callable[[str], None] | None) -> None:
    """Call `wake(database)` instead of sending anything: for a process that does the work itself. None ends it."""
    global _local  # noqa: PLW0603 - one bell for the process
    _local = wake


def ring_for_drain(source: str, route: str) -> None:
    """Listener of `crosstie.outbox.doorbell`."""
    _ring(source, DrainRing(source, route))


def ring_for_saga(header: Any) -> None:
    """Listener of `crosstie.sagas.doorbell`; takes its header."""
    _ring(header.home, ResolveRing(header.saga_id, header.home))


def _ring(database: str, ring: Ring) -> None:
    if _local is not None:
        _local(database)
    else:
        _bell.ring(ring)
