"""The broker of a deployment that has none: kombu's SQLAlchemy transport over one SQLite file.

kombu's own form of it asks once a second, keeps every message that was ever sent, and lets two processes that start
at once fail over the creation of its tables. Here the tables are created under the file's lock, a message is deleted
as it is taken, and a queue that nobody empties keeps its newest messages only: a doorbell's worth is gone in seconds.
"""

from __future__ import annotations

from json import dumps, loads
from pathlib import Path
from queue import Empty
from typing import Any, Final

import sqlalchemy as sa
from kombu.transport import TRANSPORT_ALIASES, sqlalchemy
from kombu.transport.sqlalchemy import models
from sqlalchemy.engine import make_url

__all__ = ["SCHEME", "Channel", "Transport", "embedded_url", "register"]

SCHEME: Final = "crosstie+sqlite"
"""`crosstie+sqlite:///relative/path` or `crosstie+sqlite:////absolute/path`."""
POLLING_INTERVAL_S: Final = 0.1
BUSY_TIMEOUT_S: Final = 5.0
QUEUE_LIMIT: Final = 10_000


def embedded_url(folder: Path) -> str:
    """The broker URL of the file `.crosstie/broker.sqlite3` in this folder."""
    return f"{SCHEME}:///{folder.absolute() / '.crosstie' / 'broker.sqlite3'}"


def register() -> None:
    """Make kombu know the scheme; safe to repeat."""
    TRANSPORT_ALIASES[SCHEME.partition("+")[0]] = f"{__name__}:Transport"


class Channel(sqlalchemy.Channel):
    """Queues in two tables of the file; every operation is one short statement of its own.

    No connection outlives its operation, so a forked child inherits none: SQLite forbids carrying one across a fork.
    """

    def _engine_from_config(self) -> sa.Engine:
        client: Any = self.connection.client
        url = make_url(client.hostname)
        assert url.database
        Path(url.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        engine = sa.create_engine(
            url,
            poolclass=sa.pool.NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"timeout": client.transport_options.get("timeout", BUSY_TIMEOUT_S)},
        )
        with engine.connect() as connection:
            # Two processes may start at once: the second waits here and then finds the tables.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            models.metadata.create_all(connection)
            connection.exec_driver_sql("COMMIT")
        return engine

    def _connect(self) -> sa.Connection:
        engine: sa.Engine = self._open()[0]
        return engine.connect()

    def _queue_id(self, queue: str) -> Any:
        table = self.queue_cls.__table__
        return sa.select(table.c.id).where(table.c.name == queue).scalar_subquery()

    def _new_queue(self, queue: str, **_: Any) -> None:
        table = self.queue_cls.__table__
        with self._connect() as connection:
            connection.execute(sa.insert(table).prefix_with("OR IGNORE").values(name=queue))

    def _put(self, queue: str, payload: Any, **_: Any) -> None:  # type: ignore[override]
        table = self.message_cls.__table__
        self._new_queue(queue)
        with self._connect() as connection:
            values = {"visible": True, "payload": dumps(payload), "version": 1, "queue_id": self._queue_id(queue)}
            number = connection.execute(sa.insert(table).values(values).returning(table.c.id)).scalar_one()
            connection.execute(
                sa.delete(table).where(table.c.queue_id == self._queue_id(queue), table.c.id <= number - QUEUE_LIMIT)
            )

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        table = self.message_cls.__table__
        first = sa.select(sa.func.min(table.c.id)).where(table.c.queue_id == self._queue_id(queue), table.c.visible)
        with self._connect() as connection:
            # Asked first without a lock: an idle worker polls many times a second and must hold up no sender.
            while (number := connection.execute(first).scalar()) is not None:
                taken = connection.execute(
                    sa.delete(table).where(table.c.id == number).returning(table.c.payload)
                ).scalar_one_or_none()
                if taken is not None:  # else another worker was faster
                    return loads(taken)
        raise Empty

    def _size(self, queue: str) -> int:
        table = self.message_cls.__table__
        counted = sa.select(sa.func.count()).select_from(table).where(table.c.queue_id == self._queue_id(queue))
        with self._connect() as connection:
            return int(connection.execute(counted).scalar_one())

    def _purge(self, queue: str) -> int:
        table = self.message_cls.__table__
        with self._connect() as connection:
            return connection.execute(sa.delete(table).where(table.c.queue_id == self._queue_id(queue))).rowcount


class Transport(sqlalchemy.Transport):
    """Polls ten times a second; an idle poll is one unlocked read of a small file."""

    Channel = Channel
    polling_interval = POLLING_INTERVAL_S
