"""The target's side of the relay: one transaction applies a batch, together with the record that it has."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import (
    CommitInDoubt,
    CrosstieError,
    DatabaseUnavailable,
    DeadlockDetected,
    LockTimeout,
    NoSuchTable,
    UnknownConnection,
)
from crosstie.orm.faults import fault_point
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox import inbox
from crosstie.outbox.batch import OutboxRow
from crosstie.outbox.brokers.forwarding import destination_of
from crosstie.outbox.brokers.target import BrokerTarget
from crosstie.outbox.delivery import deliver, target_transaction
from crosstie.outbox.errors import BatchRefused, DeliveryFailed, InboxMissing, LeaseLost, TargetFailed, Unrouted
from crosstie.outbox.invalidation import ROUTE as CACHE
from crosstie.outbox.invalidation import CacheTarget
from crosstie.outbox.lane import Lease

__all__ = ["DatabaseTarget", "Target", "target_of"]

logger = logging.getLogger(__name__)


class Target(Protocol):
    """Where a route leads to."""

    def enter(self, lease: Lease) -> frozenset[int]:
        """Shut out earlier owners of the lane, and return the ids of the events that were applied last.

        Raises LeaseLost, TargetFailed.
        """

    def apply(self, lease: Lease, rows: Sequence[OutboxRow]) -> frozenset[int]:
        """Apply all of these events or none; returns the ids of events that an earlier owner may not have acknowledged.

        That one has applied them, so they are not applied again. The first batch of an owner that has not entered
        enters by being applied; a later one returns nothing.

        Raises DeliveryFailed for the event at a position, BatchRefused where it is not known which event is to blame,
        LeaseLost, CommitInDoubt, and TargetFailed, whose `taken` says how many of the first events went all the same.
        """


def target_of(route: str) -> Target:
    """The target that this route leads to."""
    destination = destination_of(route)
    if destination is not None:
        return BrokerTarget(destination)
    return CacheTarget() if route == CACHE else DatabaseTarget(route)


class DatabaseTarget:
    """A database with crosstie's tables; its inbox makes the effect exactly once."""

    def __init__(self, route: str) -> None:
        self._route = route
        self._entered = False

    def enter(self, lease: Lease) -> frozenset[int]:
        """See Target."""
        with self._errors(TargetFailed):
            try:
                applied = self._lock_out(lease)
            except InboxMissing:
                inbox.create(ConnectionManager.get(self._route), lease)
                applied = self._lock_out(lease)
        self._entered = True
        return applied

    def _lock_out(self, lease: Lease) -> frozenset[int]:
        with detached_transaction(self._route) as tx:
            applied = inbox.lock(tx, lease).ids
            inbox.store(tx, lease)
        return applied

    def apply(self, lease: Lease, rows: Sequence[OutboxRow]) -> frozenset[int]:
        """See Target."""
        try:
            inherited = self._take(lease, rows)
        except InboxMissing:
            if self._entered:
                raise
            with self._errors(TargetFailed):
                inbox.create(ConnectionManager.get(self._route), lease)
            inherited = self._take(lease, rows)
        self._entered = True
        return inherited

    def _take(self, lease: Lease, rows: Sequence[OutboxRow]) -> frozenset[int]:
        with self._errors(BatchRefused), target_transaction(self._route) as tx:
            with self._errors(TargetFailed):
                memory = inbox.lock(tx, lease)
            inherited = frozenset() if self._entered else _to_inherit(memory, lease)
            deliver(tx, self._route, rows, skip=inherited)
            self._run_hooks(tx)
            # What another crash would make the next owner apply again, if it were forgotten here.
            inbox.store(tx, lease, inherited.union(row.id for row in rows))
            fault_point("relay.applied")
        return inherited

    def _run_hooks(self, tx: LocalTransaction) -> None:
        """What was put off until the commit runs for all events together, so nobody knows whose it is."""
        try:
            tx.run_before_commit()
        except CrosstieError:
            raise
        except Exception as error:
            reason = f"{type(error).__module__}.{type(error).__qualname__} before the commit; see the log"
            logger.warning("route %r: a hook before the commit failed", self._route, exc_info=error)
            raise BatchRefused(f"route {self._route!r}: {reason}") from error

    @contextmanager
    def _errors(self, lasting: type[TargetFailed]) -> Iterator[None]:
        """Say of an error that it is the target's; what the protocol itself reacts to passes as it is.

        `lasting` is raised for an error that neither concerns the whole route nor passes by itself.
        """
        try:
            yield
        except (CommitInDoubt, LeaseLost, DeliveryFailed, TargetFailed):
            raise
        except CrosstieError as error:
            whole_route = isinstance(error, DatabaseUnavailable | UnknownConnection | NoSuchTable)
            # The other errors may quote values in the database's words.
            quotable = whole_route or isinstance(error, DeadlockDetected | LockTimeout | Unrouted)
            reason = str(error) if quotable else f"{type(error).__name__} ({error.code}); see the log"
            if not quotable:
                logger.warning("route %r: the target refused a batch", self._route, exc_info=error)
            kind = TargetFailed if quotable else lasting
            raise kind(f"route {self._route!r}: {reason}", whole_route=whole_route) from error


def _to_inherit(memory: inbox.Memory, lease: Lease) -> frozenset[int]:
    """What an earlier owner has applied and may not have acknowledged.

    Nothing where the owner before has said so, in giving the lane back: it had shut out those before it.
    """
    return frozenset() if lease.settled else memory.ids
