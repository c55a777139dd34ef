"""A pool of connections that is left alone while a connection is busy.

Taking a connection from SQLAlchemy's pool and returning it costs more than a short statement does. So a connection
that has just been used rests outside the queue, ready for the next transaction, and is returned to it before anybody
has to wait or to connect, when it has rested for a moment, and now and then in any case: what the queue knows of
(recycling, invalidation, tests of old connections) happens there.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

__all__ = ["ENDED", "HELD_AT_MOST_S", "RESTED_SINCE", "RESTS_AT_MOST_S", "RestingPool", "pool_of"]

ENDED: Final = "crosstie.ended"
"""In the info of a connection: its transaction was committed or rolled back as the last thing on it."""
RESTED_SINCE: Final = "crosstie.rested_since"
"""In the info of a connection that goes from its rest to the queue: when it was last used, by `time.monotonic`."""
RESTS_AT_MOST_S: Final = 1.0
HELD_AT_MOST_S: Final = 30.0
"""A connection is kept from the queue for no longer, however busy."""
_HELD_SINCE: Final = "crosstie.held_since"

_inherited: Final[list[Any]] = []
"""What a forked child must neither use nor give up: to give it up would talk on its parent's sockets."""


class _Resting(NamedTuple):
    lent: Any
    """SQLAlchemy's proxy of the connection, which the pool holds to be taken."""
    connection: sa.Connection | None
    """What SQLAlchemy has above it, if nobody but crosstie can have it in hand."""
    since: float

    def close(self) -> None:
        """Let SQLAlchemy put it into the queue."""
        self.lent.info[RESTED_SINCE] = self.since
        (self.connection or self.lent).close()


class RestingPool(QueuePool):
    """SQLAlchemy's QueuePool, with connections that rest between two uses; safe to share between threads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._resting: deque[_Resting] = deque()
        self._waiting = 0
        self._counting = threading.Lock()
        self._usual_listeners: tuple[int, ...] = ()
        self._disposed = False
        self.suits: Callable[[Mapping[Any, Any]], bool] | None = None
        """Whether a connection of this info is as the thread wants it; those that are not go by way of the queue."""

    # -- what crosstie's own transactions and statements do --------------------------------------------------

    def take(self, engine: sa.Engine, *, not_since: float) -> sa.Connection:
        """A connection, one that rests if there is any which was used after `not_since` by `time.monotonic`.

        Raises as `Engine.connect` does.
        """
        while True:
            try:
                resting = self._resting.pop()
            except IndexError:
                connection = engine.connect()
                connection.info[_HELD_SINCE] = time.monotonic()
                return connection
            now, info = time.monotonic(), resting.lent.info
            if (
                resting.since > not_since
                and now - resting.since < RESTS_AT_MOST_S
                and now - info[_HELD_SINCE] < HELD_AT_MOST_S
                and (self.suits is None or self.suits(info))
            ):
                del info[ENDED]
                return resting.connection or sa.Connection(engine, connection=resting.lent)
            resting.close()

    def give_back(self, connection: sa.Connection, *, shown: bool) -> None:
        """Close a connection that `take` gave, and let what is below it rest where nothing remains to be reset.

        Unless somebody was `shown` it, who may think it his own, it rests itself.
        """
        if not self._may_rest(connection):
            connection.close()
            return
        lent: Any = connection.connection
        if shown:
            # The proxy counts its users, and goes to the queue with the last of them: this pool is one more.
            lent._counter += 1
            connection.close()
        lent.info[ENDED] = True
        self._resting.append(_Resting(lent, None if shown else connection, time.monotonic()))
        if self._waiting:
            self._return_one()

    def abandon(self) -> None:
        """In a forked child: forget what rests, whose sockets are the parent's."""
        _inherited.append(self._resting)
        self._resting = deque()

    def expect_listeners(self) -> None:
        """Say that those who listen to this pool by now know about connections that rest; with others, none does."""
        self._usual_listeners = self._listeners()

    def _may_rest(self, connection: sa.Connection) -> bool:
        if connection.invalidated or connection.in_transaction():
            return False
        lent: Any = connection.connection
        return (
            len(self._resting) < self.size()
            and lent._pool is self  # else the engine was disposed of meanwhile
            and _HELD_SINCE in lent.info  # else it was detached, or connected anew in between
            and connection.get_execution_options() is connection.engine.get_execution_options()  # an isolation level
            and self._listeners() == self._usual_listeners
        )

    def _listeners(self) -> tuple[int, ...]:
        dispatch: Any = self.dispatch
        return len(dispatch.checkout), len(dispatch.checkin), len(dispatch.reset)

    def _return_one(self) -> None:
        with suppress(IndexError):
            self._resting.popleft().close()

    # -- what SQLAlchemy asks of a pool ----------------------------------------------------------------------

    def _do_get(self) -> ConnectionPoolEntry:
        # First it is said that somebody waits, then looked what rests; who lets one rest does it the other way round.
        with self._counting:
            self._waiting += 1
        try:
            if not self._pool.qsize():
                self._return_one()
            return super()._do_get()
        finally:
            with self._counting:
                self._waiting -= 1

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        super()._do_return_conn(record)
        if self._disposed:  # nobody takes it out again
            super().dispose()

    def recreate(self) -> RestingPool:
        """An empty one of the same kind."""
        made = super().recreate()
        assert isinstance(made, RestingPool)
        made._usual_listeners, made.suits = self._usual_listeners, self.suits
        return made

    def dispose(self) -> None:
        """Close what rests and what is queued, and what comes back from now on."""
        self._disposed = True
        while self._resting:
            self._return_one()
        super().dispose()

    def checkedin(self) -> int:
        """How many connections nobody uses."""
        return super().checkedin() + len(self._resting)

    def checkedout(self) -> int:
        """How many connections are in use."""
        return super().checkedout() - len(self._resting)


def pool_of(engine: sa.Engine) -> RestingPool:
    """The pool of one of crosstie's engines."""
    pool = engine.pool
    assert isinstance(pool, RestingPool)
    return pool
