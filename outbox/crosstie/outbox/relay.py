"""Draining a lane: its events are applied in the target and acknowledged in the source, exactly once in effect.

No transaction spans both databases. What spans them is the inbox row: it is written in the transaction that applies,
and read under its lock before anything else is done. So every crash and every lost answer in between leaves one of two
states, which the next owner of the lane can tell apart and finish from. Neither the fence nor the recovery can be left
out; the tests hold a model of the protocol that shows what happens then.

Events of a saga that was aborted are deleted unseen. Source and target may be one database: nothing here rests on their
being two.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from secrets import SystemRandom
from typing import Final, Literal

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
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
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox import inbox
from crosstie.outbox.batch import OutboxRow, Verdict, home_states, read_batch, sort_out, undecided
from crosstie.outbox.delivery import deliver, require_outside, target_transaction
from crosstie.outbox.errors import DeliveryFailed, InboxMissing, LeaseLost, TargetFailed
from crosstie.outbox.lane import Candidate, Lease, back_off, backoff_s, claim, hold, release, renew
from crosstie.outbox.tables import outbox

__all__ = ["DrainReport", "drain_lane"]

logger = logging.getLogger(__name__)

HOLD_S: Final = 0.2
RECOVERIES: Final = 3
DELETE_CHUNK: Final = 1000
_random: Final = SystemRandom()

Ending = Literal["taken", "empty", "out-of-time", "held", "failed", "lost"]


@dataclass
class DrainReport:
    """What became of a lane.

    `taken`: somebody else owns it. `empty`, `out-of-time`: it was given back in order. `held`: its next event waits for
    a saga. `failed`: it backs off. `lost`: another worker took it meanwhile.
    """

    ending: Ending = "taken"
    applied: int = 0
    dropped: int = 0
    error: CrosstieError | None = None
    route_down: bool = False
    """The target does not serve anybody now; the route's other lanes need not be tried."""


def drain_lane(source: str, candidate: Candidate, *, owner: str, out_of_time: Callable[[], bool]) -> DrainReport:
    """Claim the lane and carry its events until it is empty, held, failing, or `out_of_time` says so after a batch.

    A failure of a subscriber or the target is reported and makes the lane back off; it is not raised. Raises
    RelayMisused inside a transaction, and DatabaseUnavailable and other errors of the source; the lease then runs out.
    """
    require_outside()
    settings = ConnectionManager.settings().outbox
    database = ConnectionManager.get(source)
    lease = claim(database, candidate, owner=owner, lease_s=settings.lease_s)
    if lease is None:
        return DrainReport()
    fault_point("relay.claimed")
    return _Drain(database, lease, settings.batch_size).run(out_of_time)


class _Drain:
    """One owner's work on one lane."""

    def __init__(self, source: Database, lease: Lease, batch_size: int) -> None:
        self._source = source
        self._lease = lease
        self._batch_size = batch_size
        self._report = DrainReport()
        self._doubtful: frozenset[int] = frozenset()

    def run(self, out_of_time: Callable[[], bool]) -> DrainReport:
        """Work, and give the lane back in the way that the outcome asks for."""
        report = self._report
        try:
            report.ending = self._carry_with_recovery(out_of_time)
        except (DeliveryFailed, TargetFailed, LeaseLost) as error:
            report.error = error
            report.route_down = isinstance(error, TargetFailed) and error.whole_route
            delay_s = backoff_s(self._lease.failures, jitter=_random.random())
            # Where the lease is lost indeed, this touches nothing. Where it is not, the target is ahead of the source,
            # and somebody must see that.
            mine = back_off(self._source, self._lease, delay_s=delay_s, error=str(error), whole_route=report.route_down)
            report.ending = "failed" if mine else "lost"
            logger.log(
                logging.WARNING if mine else logging.INFO,
                "lane %d of route %r in %r: %s",
                self._lease.lane,
                self._lease.route,
                self._source.name,
                error,
            )
        return report

    def _carry_with_recovery(self, out_of_time: Callable[[], bool]) -> Ending:
        for attempt in range(1, RECOVERIES + 1):
            try:
                self._recover()
                return self._carry(out_of_time)
            except (CommitInDoubt, DeadlockDetected, LockTimeout) as error:
                # Nobody here knows what is durable by now; the inbox does. Applying again without asking it would be
                # the duplicate that all of this is there to prevent.
                if attempt == RECOVERIES:
                    raise
                logger.info("lane %d of route %r: recovering from %s", self._lease.lane, self._lease.route, error)
        raise AssertionError("unreachable")

    def _recover(self) -> None:
        """Shut out earlier owners at the target, learn what it has, and acknowledge that in the source."""
        with self._target_phase():
            try:
                applied = self._enter()
            except InboxMissing:
                inbox.create(ConnectionManager.get(self._lease.route), self._lease)
                applied = self._enter()
        fault_point("relay.recovered")
        self._report.applied += len(self._doubtful & applied)
        self._doubtful = frozenset()
        if applied:
            self._acknowledge(applied, progress=False)

    def _enter(self) -> frozenset[int]:
        with detached_transaction(self._lease.route) as tx:
            applied = inbox.lock(tx, self._lease)
            inbox.store(tx, self._lease)
        return applied

    def _carry(self, out_of_time: Callable[[], bool]) -> Ending:
        while True:
            rows = read_batch(self._source, self._lease.route, self._lease.lane, limit=self._batch_size)
            if not rows:
                release(self._source, self._lease)
                return "empty"
            verdict, homeless = self._decide(rows)
            applied, failure = self._apply_up_to_failure(verdict.apply)
            if applied or verdict.drop:
                self._acknowledge([row.id for row in applied] + list(verdict.drop), progress=True)
                self._report.dropped += len(verdict.drop)
            if failure is not None:
                raise failure
            if homeless is not None:
                raise homeless
            if verdict.held is not None:
                hold(self._source, self._lease, delay_s=HOLD_S)
                return "held"
            if out_of_time():
                release(self._source, self._lease)
                return "out-of-time"

    def _decide(self, rows: Sequence[OutboxRow]) -> tuple[Verdict, TargetFailed | None]:
        """Sort the rows out, asking each home once; the error says why the held row could not be decided."""
        decisions: dict[str, str] = {}
        silent: dict[str, CrosstieError] = {}
        for home, saga_ids in undecided(rows).items():
            try:
                decisions |= home_states(ConnectionManager.get(home), saga_ids)
            except CrosstieError as error:
                silent[home] = error
        verdict = sort_out(rows, decisions)
        held = verdict.held
        if held is None or held.home not in silent:
            return verdict, None
        return verdict, TargetFailed(
            f"event {held.id} waits for the decision of saga {held.saga_id}, and its home cannot be asked: "
            f"{silent[held.home]}"
        )

    def _apply_up_to_failure(self, rows: Sequence[OutboxRow]) -> tuple[Sequence[OutboxRow], DeliveryFailed | None]:
        """Apply the rows, or those before the first that fails for a reason of its own."""
        try:
            self._apply(rows)
        except DeliveryFailed as failure:
            before = () if failure.passing else rows[: failure.position]
            self._apply(before)
            return before, failure
        return rows, None

    def _apply(self, rows: Sequence[OutboxRow]) -> None:
        """Apply the rows in one target transaction, together with the record that they are."""
        if not rows:
            return
        ids = frozenset(row.id for row in rows)
        with self._target_phase():
            try:
                with target_transaction(self._lease.route) as tx:
                    known = inbox.lock(tx, self._lease)
                    deliver(tx, self._lease.route, rows, skip=known)
                    inbox.store(tx, self._lease, ids)
                    fault_point("relay.applied")
            except CommitInDoubt:
                self._doubtful = ids
                raise
        self._report.applied += len(ids - known)
        fault_point("relay.target-committed")

    def _acknowledge(self, ids: Collection[int], *, progress: bool) -> None:
        """Delete events that are applied, by their ids, under the renewed lease. Raises LeaseLost.

        Never a range of ids: a transaction that commits late may have a smaller one than those already seen.
        """
        listed = sorted(ids)
        with detached_transaction(self._source.name) as tx:
            tx.mark_written()
            renewed = renew(tx.connection, self._lease, progress=progress)
            for start in range(0, len(listed), DELETE_CHUNK):
                tx.connection.execute(
                    sa.delete(outbox).where(
                        outbox.c.route == renewed.route,
                        outbox.c.lane == renewed.lane,
                        outbox.c.id.in_(listed[start : start + DELETE_CHUNK]),
                    )
                )
            fault_point("relay.acknowledged")
        self._lease = renewed
        fault_point("relay.source-committed")

    @contextmanager
    def _target_phase(self) -> Iterator[None]:
        """Say of an error that it is the target's; what the protocol itself reacts to passes as it is."""
        try:
            yield
        except (CommitInDoubt, LeaseLost, DeliveryFailed, TargetFailed):
            raise
        except CrosstieError as error:
            whole_route = isinstance(error, DatabaseUnavailable | UnknownConnection | NoSuchTable)
            # The other errors may quote values in the database's words.
            quotable = whole_route or isinstance(error, DeadlockDetected | LockTimeout)
            reason = str(error) if quotable else f"{type(error).__name__} ({error.code}); see the log"
            failed = TargetFailed(f"route {self._lease.route!r}: {reason}")
            failed.whole_route = whole_route
            if not quotable:
                logger.warning("route %r: the target refused a batch", self._lease.route, exc_info=error)
            raise failed from error
