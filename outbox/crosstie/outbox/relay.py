"""Draining a lane: its events are applied in the target and acknowledged in the source, exactly once in effect.

No transaction spans both databases. What spans them is the inbox row: it is written in the transaction that applies,
and read under its lock before anything else is done. So every crash and every lost answer in between leaves one of two
states, which the next owner of the lane can tell apart and finish from. Neither the fence nor the recovery can be left
out; the tests hold a model of the protocol that shows what happens then.

An owner *enters* the target by its first batch, or beforehand where there is something to be done that is no batch: in
one transaction it shuts earlier owners out and learns what the last one had applied. So a visit of a lane with few
events costs three durable transactions: the claim, the batch, and the acknowledgement, which gives the lane back.

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
from crosstie.orm.lock_wait import bounded_sessions
from crosstie.orm.prepared import Prepared
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox import measure, parking
from crosstie.outbox.batch import OutboxRow, read_batch
from crosstie.outbox.decision import decide
from crosstie.outbox.delivery import require_outside
from crosstie.outbox.durability import await_durable
from crosstie.outbox.errors import DeliveryFailed, LeaseLost, TargetFailed
from crosstie.outbox.horizon import horizon_of
from crosstie.outbox.isolation import Isolated, isolate
from crosstie.outbox.lane import (
    WARY_AT,
    Candidate,
    Lease,
    back_off,
    backoff_s,
    claim,
    give_back,
    release,
    renew,
    reopen,
    survived,
)
from crosstie.outbox.pace import Pace
from crosstie.outbox.suspicion import HEARING_S, HearingBegun, Trials
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
    a saga, or for a trial of another lane in this process, or for owners to say that they live. `failed`: it backs off.
    `lost`: another worker took it meanwhile.
    """

    ending: Ending = "taken"
    applied: int = 0
    dropped: int = 0
    parked: int = 0
    """Events that left the outbox for the parking."""
    error: CrosstieError | None = None
    route_down: bool = False
    """The target does not serve anybody now; the route's other lanes need not be tried."""


def drain_lane(
    source: str, candidate: Candidate, *, owner: str, out_of_time: Callable[[], bool], pace: Pace | None = None
) -> DrainReport:
    """Claim the lane and carry its events until it is empty, paused, held, failing, or `out_of_time` says so.

    `pace` is that of the lanes before it, of the same route; it learns from this one too.
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
    pace = pace or Pace(settings.batch_size, settings.batch_target_s)
    return _Drain(database, lease, settings, pace, parked=candidate.parked).run(out_of_time)


_DELETE: Final = Prepared(
    sa.delete(outbox).where(
        outbox.c.route == sa.bindparam("of_route"),
        outbox.c.lane == sa.bindparam("of_lane"),
        outbox.c.id == sa.bindparam("gone"),
    )
)
# Without the range PostgreSQL may read the lane from its beginning, over all that is deleted there, or look up each id
# from the root of the index. Literal, because the numbers of a statement that is prepared are searched one by one.
_DELETE_LISTED: Final = sa.delete(outbox).where(
    outbox.c.route == sa.bindparam("of_route"),
    outbox.c.lane == sa.bindparam("of_lane"),
    outbox.c.id.between(sa.bindparam("first"), sa.bindparam("last")),
    outbox.c.id.in_(sa.bindparam("gone", expanding=True, literal_execute=True)),
)


class _Drain:
    """One owner's work on one lane."""

    def __init__(self, source: Database, lease: Lease, settings: OutboxSettings, pace: Pace, *, parked: bool) -> None:
        self._source = source
        self._lease = lease
        self._settings = settings
        self._pace = pace
        self._parked = parked
        self._report = DrainReport()
        self._doubtful: frozenset[int] = frozenset()
        self._entered = False
        """Earlier owners are shut out of the target, and will be as long as this one has the lane."""
        self._inherited: frozenset[int] = frozenset()
        """What an earlier owner has applied, and nobody has acknowledged yet."""
        self._target = target_of(lease.route)
        self._read_at_s = 0.0
        self._trials = Trials(source, batch_size=settings.batch_size)
        self._rows: Sequence[OutboxRow] = ()
        self._final = 0
        """The rows that were read are all that the lane has, and ever will have, up to this id."""

    def run(self, out_of_time: Callable[[], bool]) -> DrainReport:
        """Work, and give the lane back in the way that the outcome asks for."""
        report = self._report
        try:
            with bounded_sessions(self._lease.lock_wait_s):
                report.ending = self._carry_with_recovery(out_of_time)
        except HearingBegun:
            self._release(delay_s=max(HEARING_S, self._lease.lease_s))
            report.ending = "held"
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
            if not mine:
                survived(self._source, self._lease)
        finally:
            self._trials.leave()
        return report

    def _release(self, *, delay_s: float = 0.0) -> None:
        release(self._source, self._lease, settled=self._entered, delay_s=delay_s)

    def _log(self, level: int, text: str) -> None:
        logger.log(level, "lane %d of route %r in %r: %s", self._lease.lane, self._lease.route, self._source.name, text)

    def _carry_with_recovery(self, out_of_time: Callable[[], bool]) -> Ending:
        for attempt in range(1, RECOVERIES + 1):
            try:
                if attempt > 1:
                    self._enter()
                return self._carry(out_of_time)
            except (CommitInDoubt, DeadlockDetected, LockTimeout) as error:
                # Nobody here knows what is durable by now; the inbox does. Applying again without asking it would be
                # the duplicate that all of this is there to prevent.
                if attempt == RECOVERIES:
                    raise
                self._log(logging.INFO, f"recovering from {error}")
        raise AssertionError("unreachable")

    def _enter(self) -> None:
        """Shut out earlier owners at the target, learn what it has, and acknowledge that in the source."""
        self._inherited = self._target.enter(self._lease)
        fault_point("relay.recovered")
        self._note_entered()
        self._report.applied += len(self._doubtful & self._inherited)
        self._doubtful = frozenset()
        if self._inherited:
            with self._acknowledging(progress=False):
                pass

    def _note_entered(self) -> None:
        if not self._entered and self._lease.failures and self._lease.last_error is not None:
            reopen(self._source, self._lease)
        self._entered = True

    @property
    def _limit(self) -> int:
        return 1 if self._trials.under_way else self._pace.size

    def _beware(self) -> bool:
        """Try one event at a time from now on; False where this process does so in another lane just now."""
        if not self._trials.under_way and self._trials.begin(self._lease):
            # Whoever is no more than slow shall not be taken for dead: as long as it applies, nobody gets in here.
            self._enter()
        return self._trials.under_way

    def _carry(self, out_of_time: Callable[[], bool]) -> Ending:
        if self._lease.deaths >= WARY_AT and not self._beware():
            self._release(delay_s=HOLD_S)
            return "held"
        while True:
            if self._parked:
                self._redrive(out_of_time)
            rows = self._read()
            if self._trials.under_way and self._trials.are_over(rows):
                self._lease = self._trials.end(self._lease)
                if rows:
                    continue
            if not rows:
                self._release()
                return "empty"
            whole = len(rows) < self._limit and not self._parked
            ending = self._carry_batch(rows, out_of_time, whole=whole)
            if ending is None and out_of_time():  # after a failure
                ending = "out-of-time"
                self._release()
            if ending is not None:
                return ending

    def _read(self) -> Sequence[OutboxRow]:
        horizon = horizon_of(self._source)
        final = horizon.final()  # before the rows are read, so that they are all that there are up to it
        self._read_at_s = time.monotonic()
        lease, limit = self._lease, self._limit
        rows, self._parked = read_batch(self._source, lease.route, lease.lane, after=lease.emptied_to, limit=limit)
        if rows:
            horizon.saw(rows[-1].id)
            self._rows, self._final = rows, min(final, rows[-1].id)
        return rows

    def _carry_batch(self, rows: Sequence[OutboxRow], out_of_time: Callable[[], bool], *, whole: bool) -> Ending | None:
        """Apply, drop and park what is possible; None where the lane may go on.

        `whole` says that the rows are all that the lane has.
        """
        heads = parking.look(self._source, self._lease) if self._parked else parking.Heads()
        verdict, homeless = decide(rows)
        if self._lease.route != self._source.name:  # what is applied in the source itself is lost with what it is from
            await_durable(self._source)
        ready = [row for row in verdict.apply if row.key not in heads.keys]
        done = isolate(ready, self._apply, lambda row, failure: self._stops(row, failure, heads))
        blocked = [row for row in verdict.apply if row.key in heads.keys]
        ending: Ending | None = None
        if done.failure is None and len(done.applied) == len(ready) and homeless is None:
            if verdict.held is not None:
                ending = "held"
            elif whole:
                ending = "empty"
            elif out_of_time():
                ending = "out-of-time"
        self._finish_batch(verdict.drop, blocked, ready, done, ending)
        if done.failure is not None and done.bad is None:
            raise done.failure
        if len(done.applied) == len(ready) and homeless is not None:
            raise homeless
        return ending

    def _stops(self, row: OutboxRow, failure: DeliveryFailed, heads: parking.Heads) -> bool:
        """Whether the lane waits before this event, which is not, or not yet known to be, the cause."""
        if failure.undeployed:
            return row.type not in heads.undeployed and self._lease.failures < UNDEPLOYED_TRIES
        return failure.passing and self._lease.failures < PASSING_TRIES

    def _finish_batch(
        self,
        drop: Sequence[int],
        blocked: Sequence[OutboxRow],
        ready: Sequence[OutboxRow],
        done: Isolated,
        ending: Ending | None,
    ) -> None:
        """Acknowledge what was applied, and park what failed together with all that must not overtake it.

        With `ending` the lane is given back, in the same transaction.
        """
        moved = list(blocked)
        bad = done.bad
        if bad is not None:
            moved += [row for row in ready[len(done.applied) :] if row.key == bad.key]
        gone = [row.id for row in done.applied] + list(drop) + [row.id for row in moved]
        if done.refused:
            self._pace.refused(len(done.applied))
        if not gone:
            if ending == "held":
                self._release(delay_s=HOLD_S)
            return
        if moved and not self._entered:
            # Whoever was here before could still apply what is about to be parked.
            self._enter()
        emptied_to = _up_to_the_first_left(self._rows, gone, self._final)
        with self._acknowledging(progress=True, ending=ending, emptied_to=emptied_to) as connection:
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
        """Try the parked keys that are due, each in order; one that fails again waits longer.

        Time is looked at after a batch and not before it: where the claim alone takes too long, each visit moves some.
        """
        while True:
            heads = parking.look(self._source, self._lease)
            if heads.skipped:
                with self._acknowledging(progress=True) as connection:
                    parking.remove(connection, self._lease, heads.skipped)
            elif not heads.due:
                return
            elif not self._entered:
                self._enter()
                continue
            else:
                self._read_at_s = time.monotonic()
                rows = parking.read_parked(self._source, self._lease, heads.due, limit=self._limit)
                if any(row.deaths for row in rows) and not self._trials.under_way:
                    if not self._beware():
                        return
                    continue
                if self._trials.only_known and not any(row.deaths for row in rows):
                    self._lease = self._trials.end(self._lease)
                    continue
                if not rows:
                    return
                self._unpark(rows)
            if out_of_time():
                return

    def _unpark(self, rows: Sequence[OutboxRow]) -> None:
        """Apply parked events; one that cannot be is noted, and those behind it stay."""
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
        return parking.judge(done.bad, done.failure, limit=self._settings.attempts, jitter=_random.random())

    def _apply(self, rows: Sequence[OutboxRow]) -> None:
        """Have the target take the rows."""
        if self._trials.under_way:
            self._lease, convicted = self._trials.note(self._lease, rows[0])
            if convicted is not None:
                raise convicted
            fault_point("relay.trying")
        ids = frozenset(row.id for row in rows)
        started_s = time.monotonic()
        try:
            self._inherited = self._target.apply(self._lease, rows)
        except CommitInDoubt:
            self._doubtful = ids
            raise
        except TargetFailed as failed:
            self._report.applied += failed.taken
            raise
        now_s = time.monotonic()
        self._pace.applied(len(rows), now_s - started_s)
        self._note_entered()
        self._report.applied += len(ids - self._inherited)
        if measure.is_measured():
            ages_s = [row.age_ms / 1000 + now_s - self._read_at_s for row in rows if row.id not in self._inherited]
            measure.applied(self._source.name, self._lease.route, ages_s)
        fault_point("relay.target-committed")

    @contextmanager
    def _acknowledging(
        self, *, progress: bool, ending: Ending | None = None, emptied_to: int = 0
    ) -> Iterator[sa.Connection]:
        """One transaction of the source, under the renewed lease or with its end. Raises LeaseLost.

        It acknowledges what was inherited too, before the next batch overwrites the inbox's memory of it.
        """
        renewed = self._lease
        with detached_transaction(self._source.name) as tx:
            tx.mark_written()
            if ending is None:
                renewed = renew(tx.bare, self._lease, progress=progress, emptied_to=emptied_to)
            else:
                delay_s = HOLD_S if ending == "held" else 0.0
                give_back(tx.bare, self._lease, settled=self._entered, delay_s=delay_s, emptied_to=emptied_to)
            if self._inherited:
                self._delete(tx.bare, self._inherited)
                # The last owner may have been trying parked events again.
                parking.remove(tx.bare, self._lease, self._inherited)
            yield tx.bare
            fault_point("relay.acknowledged")
        self._lease = renewed
        self._inherited = frozenset()
        fault_point("relay.source-committed")

    def _delete(self, connection: sa.Connection, ids: Collection[int]) -> None:
        """Delete events by their ids, never by a range alone: one that commits late may have an id in between."""
        listed = sorted(ids)
        lane = {"of_route": self._lease.route, "of_lane": self._lease.lane}
        if len(listed) == 1:
            _DELETE.run(connection, lane | {"gone": listed[0]})
            return
        for start in range(0, len(listed), DELETE_CHUNK):
            gone = listed[start : start + DELETE_CHUNK]
            connection.execute(_DELETE_LISTED, lane | {"first": gone[0], "last": gone[-1], "gone": gone})


def _up_to_the_first_left(rows: Sequence[OutboxRow], gone: Collection[int], final: int) -> int:
    known = frozenset(gone)
    left = next((row.id for row in rows if row.id not in known), None)
    return final if left is None else min(final, left - 1)
