"""Sends the doorbell's batches as Celery messages, over one connection that is made to fail fast."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Final

from crosstie.orm.connection import ConnectionManager
from crosstie.workers.broker import SEND_TIMEOUT_S, transport_options
from crosstie.workers.doorbell import DrainRing, ResolveRing, Ring

if TYPE_CHECKING:
    from celery import Celery
    from kombu import Connection

__all__ = ["CelerySender"]

logger = logging.getLogger(__name__)

EXPIRES_S: Final = 10
"""The sweep has done it long before."""
SAGAS_LIMIT: Final = 20
"""Of a crowd of sagas only so many are named; a sweep settles the others with fewer statements."""

_inherited: list[Any] = []
"""Connections of a parent process: collecting one as garbage would shut the parent's socket down."""


class CelerySender:
    """Used by one thread of a process at a time: the bell's."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._connection: Connection | None = None
        os.register_at_fork(after_in_child=self._after_fork)

    def __call__(self, batch: list[Ring]) -> None:
        """Send all rings of a batch. Raises what the transport raises."""
        if self.app.conf.task_always_eager:  # the user's tests: no worker is meant to exist
            return
        reused = self._connection is not None
        try:
            self._send(batch)
        except Exception:
            self._drop()
            if not reused:
                raise
            # The connection had gone stale while nobody rang; that is no outage yet.
            try:
                self._send(batch)
            except Exception:
                self._drop()
                raise

    def _send(self, batch: list[Ring]) -> None:
        connection = self._connect()
        for ring in batch:
            if isinstance(ring, DrainRing):
                self._message(connection, "crosstie.drain", [ring.source, ring.route])
        sagas: dict[str, list[str]] = {}
        for ring in batch:
            if isinstance(ring, ResolveRing):
                sagas.setdefault(ring.home, []).append(ring.saga_id)
        for home, saga_ids in sagas.items():
            self._message(connection, "crosstie.resolve_saga", [home, saga_ids[:SAGAS_LIMIT]])

    def _message(self, connection: Connection, task: str, arguments: list[Any]) -> None:
        queue = ConnectionManager.settings().queue
        routed: dict[str, Any] = {"queue": queue} if queue else {}
        self.app.send_task(
            task,
            arguments,
            connection=connection,
            expires=EXPIRES_S,
            retry=False,
            serializer="json",
            ignore_result=True,
            **routed,
        )

    def _connect(self) -> Connection:
        if self._connection is None:
            options = transport_options(self.app.conf.broker_write_url, sending=True)
            connection = self.app.connection_for_write(
                connect_timeout=SEND_TIMEOUT_S, heartbeat=0, transport_options=options
            )
            # kombu would retry for ever, or wait two seconds before its second and last try.
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=1)
            self._connection = connection
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.collect(socket_timeout=SEND_TIMEOUT_S)
            except Exception as error:  # noqa: BLE001 - it is broken, which is why it is dropped
                logger.debug("a broken broker connection could not be closed: %s", error)

    def _after_fork(self) -> None:
        if self._connection is not None:
            _inherited.append(self._connection)
            self._connection = None
