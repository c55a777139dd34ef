"""Delivery: subscribers run inside one local transaction of the target, and nowhere else.

Exactly once holds for what that transaction commits. So a subscriber that writes to another database through crosstie
is stopped at that statement; reading elsewhere is fine.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import FunctionType

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import CrosstieError, DatabaseUnavailable
from crosstie.orm.local_transaction import LocalTransaction, open_transactions
from crosstie.orm.transaction import active_unit, set_active_unit
from crosstie.outbox.batch import OutboxRow
from crosstie.outbox.envelope import Envelope
from crosstie.outbox.errors import (
    BatchRefused,
    CodeMissing,
    DeliveryFailed,
    EventUnreadable,
    ForeignWrite,
    NoSubscriber,
    OutboxError,
    RelayMisused,
    Unrouted,
)
from crosstie.outbox.event import Event
from crosstie.outbox.publish import enqueue
from crosstie.outbox.subscription import Subscription, handlers

__all__ = ["deliver", "require_outside", "target_transaction"]

logger = logging.getLogger(__name__)


def require_outside() -> None:
    """Raise RelayMisused where the thread has a transaction or a saga open."""
    if open_transactions() or active_unit() is not None:
        names = ", ".join(map(repr, open_transactions())) or "a saga"
        raise RelayMisused(
            f"the relay commits transactions of its own, and was called inside one of {names}. Call it outside."
        )


@contextmanager
def target_transaction(target: str) -> Iterator[LocalTransaction]:
    """One transaction of the target that all ORM statements of the block join; commits at its end.

    Inside, events go to the target's outbox, and a write to another database raises ForeignWrite. Raises what
    `LocalTransaction.commit` raises.
    """
    tx = LocalTransaction(ConnectionManager.get(target))
    unit = _Delivery(tx)
    set_active_unit(unit)
    try:
        with tx.mapped_errors():
            yield tx
            # Here and not in commit(), so that what the hooks write is bound to the target as well.
            tx.run_before_commit()
    except BaseException:
        tx.rollback()
        raise
    finally:
        set_active_unit(None)
        unit.close()
    tx.commit()


def deliver(tx: LocalTransaction, route: str, rows: Sequence[OutboxRow], *, skip: Collection[int] = ()) -> None:
    """Hand each event whose id is not in `skip` to its subscribers.

    Raises DeliveryFailed with the position of the event that failed, BatchRefused where it was one of several that a
    subscriber took together.
    """
    fresh = [(position, row) for position, row in enumerate(rows) if row.id not in skip]
    for _, run in groupby(fresh, key=lambda placed: placed[1].type):
        _deliver_run(tx, route, list(run))


def _deliver_run(tx: LocalTransaction, route: str, run: Sequence[tuple[int, OutboxRow]]) -> None:
    """Deliver events of one type that follow each other."""
    together = any(one.batch for one in handlers(route, run[0][1].type))
    opened: list[tuple[Event, Envelope]] = []
    found: tuple[Subscription, ...] = ()
    for position, row in run:
        try:
            envelope = row.envelope()
            found = _subscribers(route, envelope)
            event = envelope.open()
            if not together:
                _hand_over(tx, event, envelope, found)
        except Exception as error:
            raise _failure(position, row, found, error) from error
        opened.append((event, envelope))
    if together:
        for one in found:
            _deliver_to(tx, one, run, opened)


def _deliver_to(
    tx: LocalTransaction,
    one: Subscription,
    run: Sequence[tuple[int, OutboxRow]],
    opened: Sequence[tuple[Event, Envelope]],
) -> None:
    """Deliver a run to one subscriber, together if it takes them so."""
    if one.batch:
        try:
            one.take([event for event, _ in opened], [envelope for _, envelope in opened])
            tx.require_healthy()
        except Exception as error:
            raise _refusal(run, one, error) from error
        return
    for (position, row), (event, envelope) in zip(run, opened, strict=True):
        try:
            _hand_over(tx, event, envelope, (one,))
        except Exception as error:
            raise _failure(position, row, (one,), error) from error


def _hand_over(tx: LocalTransaction, event: Event, envelope: Envelope, found: Sequence[Subscription]) -> None:
    for one in found:
        one(event, envelope)
        # A subscriber that swallowed a database error has lost part of the transaction.
        tx.require_healthy()


class _Delivery:
    """The unit of work of a subscriber: the target's transaction, and readers of other databases."""

    def __init__(self, tx: LocalTransaction) -> None:
        self._target = tx
        self._readers: dict[str, _Reader] = {}

    def transaction(self, database: str) -> LocalTransaction:
        """A transaction of another database, for reading; the target's own is open already."""
        reader = self._readers.get(database)
        if reader is None:
            reader = _Reader(ConnectionManager.get(database), self._target.database.name)
            self._readers[database] = reader
        return reader

    def buffer_event(self, event: Event) -> None:
        """Events go into the target's outbox, with what the subscriber writes."""
        enqueue(self._target, [event])

    def close(self) -> None:
        """End the readers."""
        for reader in self._readers.values():
            reader.rollback()


class _Reader(LocalTransaction):
    """A transaction in which nothing may be written."""

    def __init__(self, database: Database, target: str) -> None:
        unlocked = database.kind == "sqlite"
        super().__init__(_Unlocked(database) if unlocked else database)
        self._only = target
        if unlocked:
            self.connection.exec_driver_sql("BEGIN DEFERRED")
            self.at_close(lambda connection: connection.exec_driver_sql("ROLLBACK"))

    def mark_written(self) -> None:
        """Refuse the write that is about to run."""
        raise ForeignWrite(
            f"a subscriber of database {self._only!r} wrote to {self.database.name!r}. Its effect is exactly once only "
            f"in the transaction of {self._only!r}; publish an event there and subscribe to it in "
            f"{self.database.name!r}."
        )


class _Unlocked(Database):
    """A SQLite database whose transactions are begun by hand: BEGIN IMMEDIATE would shut out its writers."""

    def __init__(self, database: Database) -> None:
        super().__init__(database.name, database.settings)
        self._original = database

    @property
    def engine(self) -> sa.Engine:
        """The original's autocommit engine."""
        return self._original.autocommit


def _subscribers(route: str, envelope: Envelope) -> tuple[Subscription, ...]:
    found = handlers(route, envelope.type)
    if not found:
        raise NoSubscriber(
            f"database {route!r} subscribes to event type {envelope.type!r}, and this process has no subscriber for "
            "it. Import the module that defines it: workers import what the setting `imports` names."
        )
    return found


def _refusal(run: Sequence[tuple[int, OutboxRow]], one: Subscription, error: Exception) -> OutboxError:
    position, row = run[0]
    if len(run) == 1 or _passes(error):
        return _failure(position, row, (one,), error)
    refused = BatchRefused(
        f"{len(run)} events of type {row.type!r} could not be applied together by {one.name}: {_reason(error, (one,))}"
    )
    logger.warning("%s", refused, exc_info=error)
    return refused


def _passes(error: Exception) -> bool:
    return isinstance(error, CrosstieError) and error.retryable


def _failure(position: int, row: OutboxRow, found: Sequence[Subscription], error: Exception) -> DeliveryFailed:
    names = ", ".join(one.name for one in found) or "nobody"
    failed = DeliveryFailed(
        f"event {row.id} of type {row.type!r} (uid {row.uid}) could not be applied by {names}: {_reason(error, found)}",
        position=position,
        passing=_passes(error),
        undeployed=isinstance(error, CodeMissing),
    )
    # The log is the application's own; unlike the stored text it may quote what the exception says.
    logger.warning("%s", failed, exc_info=error)
    return failed


def _reason(error: Exception, found: Sequence[Subscription]) -> str:
    """What went wrong, in words that quote no value of the event."""
    if isinstance(error, EventUnreadable | ForeignWrite | DatabaseUnavailable | Unrouted):
        return str(error)
    code = f" ({error.code})" if isinstance(error, CrosstieError) else ""
    files = {one.function.__code__.co_filename for one in found if isinstance(one.function, FunctionType)}
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    file, line = next((place for place in reversed(frames) if place[0] in files), frames[-1])
    return f"{type(error).__module__}.{type(error).__qualname__}{code} at {Path(file).name}, line {line}; see the log"
