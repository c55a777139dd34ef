"""The baseline: one Celery task for each event, over Redis, with a worker of two processes."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
from celery import Celery, signals

from carriers.carrier import Carrier
from carriers.place import ACCOUNTS, QUEUE, REDIS_URL, UPSERT, target_engine

app = Celery("bench", broker=REDIS_URL, set_as_current=False)
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,  # else a crash loses the event
    worker_prefetch_multiplier=32,
    task_default_queue=f"{QUEUE}-tasks",
)
_engine: sa.Engine | None = None


@signals.worker_process_init.connect
def _connect(**_: Any) -> None:
    global _engine  # noqa: PLW0603 - one for each worker process
    _engine = target_engine()


@app.task(name="bench.book")
def book(number: int, account: int, amount: int, at_s: float) -> None:
    """Apply one event; twice is as once."""
    assert _engine is not None
    row = {"id": number, "account": account, "amount": amount, "waited_ms": (time.time() - at_s) * 1000}
    with _engine.begin() as connection:
        connection.execute(UPSERT, row)


class CeleryTasks(Carrier):
    """See the module."""

    name = "one Celery task per event over Redis"

    def load(self, count: int) -> None:
        """Send a message for each."""
        app.control.purge()
        with app.producer_pool.acquire() as producer:
            for number in range(count):
                book.apply_async((number, number % ACCOUNTS, 1, time.time()), producer=producer)

    def start(self) -> None:
        """One worker with two processes."""
        options = ("--concurrency", "2", "--without-gossip", "--without-mingle", "--without-heartbeat")
        self.run("-m", "celery", "-A", "carriers.celery_carrier:app", "worker", *options)

    def stop(self) -> None:
        """In order, so that it leaves no message behind as taken and not acknowledged."""
        for process in self.workers:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
        super().stop()
