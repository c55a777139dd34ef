"""procrastinate: one job for each event, in PostgreSQL, with two worker processes."""

from __future__ import annotations

import time

import sqlalchemy as sa

from carriers.carrier import Carrier
from carriers.place import ACCOUNTS, UPSERT, source_url, target_engine


class Procrastinate(Carrier):
    """See the module."""

    name = "procrastinate jobs"
    share = 0.4

    def load(self, count: int) -> None:
        """Defer all jobs in a few statements."""
        app = make_app(synchronous=True)
        with app.open():
            if not app.check_connection():
                app.schema_manager.apply_schema()
            jobs = [{"number": n, "account": n % ACCOUNTS, "at_s": time.time()} for n in range(count)]
            for start in range(0, count, 1000):
                app.configure_task("bench.book").batch_defer(*jobs[start : start + 1000])

    def start(self) -> None:
        """Two of them, ten jobs at once in each."""
        for _ in range(2):
            self.run("-m", "carriers.procrastinate_carrier")


def make_app(*, synchronous: bool):  # type: ignore[no-untyped-def]
    """The application, with its task."""
    import procrastinate

    url = source_url().render_as_string(hide_password=False)
    kind = procrastinate.SyncPsycopgConnector if synchronous else procrastinate.PsycopgConnector
    app = procrastinate.App(connector=kind(conninfo=url))
    engine: sa.Engine = target_engine()

    @app.task(name="bench.book")
    def book(number: int, account: int, at_s: float) -> None:
        row = {"id": number, "account": account, "amount": 1, "waited_ms": (time.time() - at_s) * 1000}
        with engine.begin() as connection:
            connection.execute(UPSERT, row)

    return app


if __name__ == "__main__":
    make_app(synchronous=False).run_worker(concurrency=10, delete_jobs="always")
