"""DBOS: one queued workflow for each event, with its state in PostgreSQL, in two processes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import sqlalchemy as sa

from carriers.carrier import Carrier
from carriers.place import ACCOUNTS, UPSERT, environment, source_url, target_engine

QUEUE = "bench"


class Dbos(Carrier):
    """See the module."""

    name = "DBOS queue tasks"
    share = 0.15

    def load(self, count: int) -> None:
        """Enqueue in a process of its own, which works on no queue."""
        import dbos  # noqa: F401 - else the process below would fail for want of it

        command = [sys.executable, "-m", "carriers.dbos_carrier", "load", str(count)]
        subprocess.run(command, env=environment(), check=True, capture_output=True)

    def start(self) -> None:
        """Two of them, ten tasks at once in each."""
        for _ in range(2):
            self.run("-m", "carriers.dbos_carrier", "work")


def main(role: str, count: int) -> None:
    """Enqueue, or work until killed."""
    from dbos import DBOS

    engine: sa.Engine = target_engine()
    DBOS(
        config={
            "name": "bench",
            "system_database_url": source_url().render_as_string(hide_password=False),
            "application_version": "1",
            "log_level": "WARNING",
        }
    )

    @DBOS.workflow(name="book")
    def book(number: int, account: int, at_s: float) -> None:
        row = {"id": number, "account": account, "amount": 1, "waited_ms": (time.time() - at_s) * 1000}
        with engine.begin() as connection:
            connection.execute(UPSERT, row)

    if role == "load":
        DBOS.listen_queues([])
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=10, polling_interval_sec=0.1)
    if role == "work":
        threading.Event().wait()
    for number in range(count):
        DBOS.enqueue_workflow(QUEUE, book, number, number % ACCOUNTS, time.time())
    DBOS.destroy()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
