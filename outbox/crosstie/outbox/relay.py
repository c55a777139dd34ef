"""Draining a lane: its events are applied in the target and acknowledged in the source, exactly once in effect.

No transaction spans both databases. What spans them is the inbox row: it is written in the transaction that applies,
and read under its lock before anything else is done. So every crash and every lost answer in between leaves one of two
states, which the next owner of the lane can tell apart and finish from. Neither the fence nor the recovery can be left
out; the tests hold a model of the protocol that shows what happens then.

The inbox remembers one batch. So whatever is applied is acknowledged before anything else is: a failure in the middle
of a batch ends that batch, and the next one begins behind it.

Events of a saga that was aborted are deleted unseen. Source and target may be one database: nothing here rests on their
being two.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from secrets import SystemRandom
from typing import Final, Literal

import sqlalchemy as sa

from crosstie.orm.configuration import OutboxSettings
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import CommitInDoubt, CrosstieError, DeadlockDetected, LockTimeout
from crosstie.orm.faults import fault_point
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox import measure, parking
from crosstie.outbox.batch import OutboxRow, read_batch
from crosstie.outbox.decision import decide
from crosstie.outbox.delivery import require_outside
from crosstie.outbox.errors import DeliveryFailed, LeaseLost, TargetFailed
from crosstie.outbox.isolation import Isolated, isolate
from crosstie.outbox.lane import Candidate, Lease, back_off, backoff_s, claim, hold, release, renew, reopen
from crosstie.outbox.pace import Pace
from crosstie.outbox.tables import outbox
from crosstie.outbox.target import target_of

__all__ = ["DrainReport", "drain_lane"]

logger = logging.getLogger(__name__)

HOLD_S: Final = 0.2
RECOVERIES: Final = 3
DELETE_CHUNK: Final = 1000
PASSING_TRIES: Final = 8
"""So often in a row (most of a minute) a lane waits for what passes by itself, before it blames one event."""
UNDEPLOYED_TRIES: Final = 12
"""So often in a row (some four minutes) a lane waits for a worker that has the code: a deployment may roll out."""
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
    parked: int = 0
    """Events that left the outbox for the parking."""
    error: CrosstieError | None = None
    route_down: bool = False
    """The target does not serve anybody now; the route's other lanes need not be tried."""


def drain_lane(source: str, candidate: Candidate, *, owner: str, out_of_time: Callable[[], bool]) -> DrainReport:
    """Claim the lane and carry its events until it is empty, paused, held, failing, or `out_of_time` says so.

    An event that cannot be applied is parked with the later ones of its key. A failure that concerns more than one
    event is reported and makes the lane back off; it is not raised. Raises RelayMisused inside a transaction, and
    DatabaseUnavailable and other errors of the source; the lease then runs out.
    """
    require_outside()
    settings = ConnectionManager.settings().outbox
    database = ConnectionManager.get(source)
    lease = claim(database, candidate, owner=owner, lease_s=settings.lease_s)
    if lease is None:
        return DrainReport()
    fault_point("relay.claimed")
    return _Drain(database, lease, settings, parked=candidate.parked).run(out_of_time)


class _Drain:
    """One owner's work on one lane."""

    def __init__(self, source: Database, lease: Lease, settings: OutboxSettings, *, parked: bool) -> None:
        self._source = source
        self._lease = lease
        self._attempts = settings.attempts
        self._pace = Pace(settings.batch_size, settings.batch_target_s)
        self._parked = parked
        self._report = DrainReport()
        self._doubtful: frozenset[int] = frozenset()
        self._target = target_of(lease.route)
        self._read_at_s = 0.0

    def run(self, out_of_time: Callable[[], bool]) -> DrainReport:
        """Work, and give the lane back in the way that the outcome asks for."""
        report = self._report
        try:
            report.ending = self._carry_with_recovery(out_of_time)
        except (DeliveryFailed, TargetFailed, LeaseLost) as error:
            report.error = error
            report.route_down = isinstance(error, TargetFailed) and error.whole_route
            if isinstance(error, LeaseLost):
                measure.fenced(self._source.name, self._lease.route)
            delay_s = backoff_s(self._lease.failures, jitter=_random.random())
            # Where the lease is lost indeed, this touches nothing. Where it is not, the target is ahead of the source,
            # and somebody must see that.
            mine = back_off(self._source, self._lease, delay_s=delay_s, error=str(error), whole_route=report.route_down)
            report.ending = "failed" if mine else "lost"
            self._log(logging.WARNING if mine else logging.INFO, str(error))
        return report

    def _log(self, level: int, text: str) -> None:
        logger.log(level, "lane %d of route %r in %r: %s", self._lease.lane, self._lease.route, self._source.name, text)

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
                self._log(logging.INFO, f"recovering from {error}")
        raise AssertionError("unreachable")

    def _recover(self) -> None:
        """Shut out earlier owners at the target, learn what it has, and acknowledge that in the source."""
        applied = self._target.enter(self._lease)
        fault_point("relay.recovered")
        if self._lease.failures and self._lease.last_error is not None:
            reopen(self._source, self._lease)
        self._report.applied += len(self._doubtful & applied)
        self._doubtful = frozenset()
        if applied:
            with self._acknowledging(progress=False) as connection:
                self._delete(connection, applied)
                # The last owner may have been trying parked events again.
                parking.remove(connection, self._lease, applied)

    def _carry(self, out_of_time: Callable[[], bool]) -> Ending:
        while True:
            if self._parked:
                self._redrive(out_of_time)
            self._read_at_s = time.monotonic()
            rows, self._parked = read_batch(self._source, self._lease.route, self._lease.lane, limit=self._pace.size)
            if not rows:
                release(self._source, self._lease)
                return "empty"
            ending = self._carry_batch(rows)
            if ending is None and out_of_time():
                ending = "out-of-time"
                release(self._source, self._lease)
            if ending is not None:
                return ending

    def _carry_batch(self, rows: Sequence[OutboxRow]) -> Ending | None:
        """Apply, drop and park what is possible; None where the lane may go on."""
        heads = parking.look(self._source, self._lease) if self._parked else parking.Heads()
        verdict, homeless = decide(rows)
        ready = [row for row in verdict.apply if row.key not in heads.keys]
        done = isolate(ready, self._apply, lambda row, failure: self._stops(row, failure, heads))
        self._finish_batch(verdict.drop, [row for row in verdict.apply if row.key in heads.keys], ready, done)
        if done.failure is not None and done.bad is None:
            raise done.failure
        if len(done.applied) < len(ready):
            return None
        if homeless is not None:
            raise homeless
        if verdict.held is not None:
            hold(self._source, self._lease, delay_s=HOLD_S)
            return "held"
        return None

    def _stops(self, row: OutboxRow, failure: DeliveryFailed, heads: parking.Heads) -> bool:
        """Whether the lane waits before this event, which is not, or not yet known to be, the cause."""
        if failure.undeployed:
            return row.type not in heads.undeployed and self._lease.failures < UNDEPLOYED_TRIES
        return failure.passing and self._lease.failures < PASSING_TRIES

    def _finish_batch(
        self, drop: Sequence[int], blocked: Sequence[OutboxRow], ready: Sequence[OutboxRow], done: Isolated
    ) -> None:
        """Acknowledge what was applied, and park what failed together with all that must not overtake it."""
        moved = list(blocked)
        bad = done.bad
        if bad is not None:
            moved += [row for row in ready[len(done.applied) :] if row.key == bad.key]
        gone = [row.id for row in done.applied] + list(drop) + [row.id for row in moved]
        if done.refused:
            self._pace.refused(len(done.applied))
        if not gone:
            return
        with self._acknowledging(progress=True) as connection:
            if moved:
                parking.park(connection, self._lease, moved, self._blame(done))
                fault_point("relay.parked")
            self._delete(connection, gone)
        self._report.dropped += len(drop)
        self._report.parked += len(moved)
        self._parked = self._parked or bool(moved)
        if bad is not None:
            self._log(logging.WARNING, f"parked with {len(moved) - 1 - len(blocked)} behind it: {done.failure}")

    def _redrive(self, out_of_time: Callable[[], bool]) -> None:
        """Try the parked keys that are due, each in order; one that fails again waits longer."""
        while not out_of_time():
            heads = parking.look(self._source, self._lease)
            if heads.skipped:
                with self._acknowledging(progress=True) as connection:
                    parking.remove(connection, self._lease, heads.skipped)
                continue
            if not heads.due:
                return
            self._read_at_s = time.monotonic()
            rows = parking.read_parked(self._source, self._lease, heads.due, limit=self._pace.size)
            if not rows:
                return
            done = isolate(rows, self._apply, lambda _, __: False)
            if done.refused:
                self._pace.refused(len(done.applied))
            with self._acknowledging(progress=bool(done.applied)) as connection:
                parking.remove(connection, self._lease, [row.id for row in done.applied])
                parking.note(connection, self._lease, self._blame(done))
                fault_point("relay.unparked")
            if done.failure is not None and done.bad is None:
                raise done.failure

    def _blame(self, done: Isolated) -> parking.Blame | None:
        if done.bad is None or done.failure is None:
            return None
        return parking.judge(done.bad, done.failure, limit=self._attempts, jitter=_random.random())

    def _apply(self, rows: Sequence[OutboxRow]) -> None:
        """Have the target take the rows."""
        ids = frozenset(row.id for row in rows)
        started_s = time.monotonic()
        try:
            known = self._target.apply(self._lease, rows)
        except CommitInDoubt:
            self._doubtful = ids
            raise
        except TargetFailed as failed:
            self._report.applied += failed.taken
            raise
        now_s = time.monotonic()
        self._pace.applied(len(rows), now_s - started_s)
        self._report.applied += len(ids - known)
        if measure.is_measured():
            ages_s = [row.age_ms / 1000 + now_s - self._read_at_s for row in rows if row.id not in known]
            measure.applied(self._source.name, self._lease.route, ages_s)
        fault_point("relay.target-committed")

    @contextmanager
    def _acknowledging(self, *, progress: bool) -> Iterator[sa.Connection]:
        """One transaction of the source, under the renewed lease. Raises LeaseLost."""
        with detached_transaction(self._source.name) as tx:
            tx.mark_written()
            renewed = renew(tx.connection, self._lease, progress=progress)
            yield tx.connection
            fault_point("relay.acknowledged")
        self._lease = renewed
        fault_point("relay.source-committed")

    def _delete(self, connection: sa.Connection, ids: Collection[int]) -> None:
        """Delete events by their ids, never by a range of them: one that commits late may have an id in between."""
        listed = sorted(ids)
        for start in range(0, len(listed), DELETE_CHUNK):
            connection.execute(
                sa.delete(outbox).where(
                    outbox.c.route == self._lease.route,
                    outbox.c.lane == self._lease.lane,
                    outbox.c.id.in_(listed[start : start + DELETE_CHUNK]),
                )
            )
