"""A lapsed owner goes on as if its lane were still its own: it can neither apply nor acknowledge anything.

The takeover happens between two of its steps, in another thread, while it is stopped at a named place.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from bench.databases import Pair, TestDatabase
from bench.guard import configured_databases
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.faults import armed
from crosstie.outbox import decision, relay, subscription, sweep_lanes
from crosstie.outbox.batch import OutboxRow, Verdict
from crosstie.outbox.errors import TargetFailed
from crosstie.outbox.lane import Lease, claim, lanes_with_work
from crosstie.outbox.relay import DrainReport, drain_lane
from crosstie.outbox.target import target_of
from outbox import bank

T = TypeVar("T")


def impatient(database: TestDatabase) -> TestDatabase:
    """A SQLite writer stopped inside a transaction holds up all others: they wait for a moment only."""
    if database.kind != "sqlite":
        return database
    return dataclasses.replace(database, config=database.config | {"busy_timeout_s": 0.1})


@pytest.fixture
def pair(crash_pair: Pair) -> Iterator[Pair]:
    """A crash pair with the bank open and two events of one account waiting."""
    quick = Pair(impatient(crash_pair.first), impatient(crash_pair.second))
    with configured_databases(quick):
        bank.open_bank()
        bank.transfer("a", times=2)
        yield quick


def elsewhere(work: Callable[[], T]) -> T:
    """Run in another thread, with transactions of its own, and return when it is done."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def drain_as_zombie(pair: Pair, point: str, meanwhile: Callable[[], object]) -> DrainReport:
    """Drain the lane; at the place, let the lease run out and `meanwhile` happen."""

    def lapse() -> None:
        if point != "relay.acknowledged":  # there the zombie's own transaction has the lane locked
            bank.ready_now(pair.first)
        meanwhile()

    (candidate,) = lanes_with_work(ConnectionManager.get("default"))
    with armed(point, lapse):
        return drain_lane("default", candidate, owner="zombie", out_of_time=lambda: False)


def finish(pair: Pair, count: int) -> None:
    """Whoever comes next finds everything in order."""
    bank.ready_now(pair.first)
    elsewhere(lambda: bank.drain_all(owner="next"))
    assert bank.arrivals(pair.second) == [("a", number) for number in range(1, count + 1)]
    assert bank.stored(pair.first) == 0


def test_a_lapsed_owner_cannot_apply(pair: Pair) -> None:
    """Another worker drained the lane, then new events came: the zombie reads them, and the fence refuses it."""

    def take_over() -> None:
        assert elsewhere(lambda: sweep_lanes("default", owner="next")) == 2
        elsewhere(lambda: bank.transfer("a"))

    report = drain_as_zombie(pair, "relay.claimed", take_over)
    assert (report.ending, report.applied) == ("lost", 0)
    assert bank.arrivals(pair.second) == [("a", 1), ("a", 2)]
    finish(pair, 3)


def test_a_lapsed_owner_cannot_acknowledge_what_it_applied(pair: Pair) -> None:
    """The next owner learns from the inbox that the batch is there, and acknowledges it instead."""

    def take_over() -> None:
        assert elsewhere(lambda: sweep_lanes("default", owner="next")) == 0
        assert bank.stored(pair.first) == 0

    report = drain_as_zombie(pair, "relay.target-committed", take_over)
    assert (report.ending, report.applied) == ("lost", 2)
    finish(pair, 2)


def test_what_a_lapsed_owner_applies_after_one_that_never_entered_is_not_applied_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other gives the lane back, its next event waits for a saga, and does not hear of it: it enters, and dies.

    By then the lane's epoch is that of the inbox, and what stands there was acknowledged by nobody.
    """
    leases: list[Lease] = []

    def noted(*args: Any, **options: Any) -> Lease | None:
        lease = claim(*args, **options)
        leases.extend([] if lease is None else [lease])
        return lease

    def take_over() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(relay, "claim", noted)
            patch.setattr(relay, "decide", lambda rows: (Verdict([], [], rows[0]), None))
            assert elsewhere(lambda: sweep_lanes("default", owner="other")) == 0

    report = drain_as_zombie(pair, "relay.claimed", take_over)
    assert (report.ending, report.applied) == ("lost", 2)
    (other,) = leases
    assert elsewhere(lambda: target_of(other.route).enter(other))
    finish(pair, 2)


def test_a_lapsed_owner_cannot_begin_another_batch(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first batch was in order and perhaps not all; the lane was taken before it read the next one."""
    monkeypatch.setenv("CROSSTIE_OUTBOX__BATCH_SIZE", "2")
    ConnectionManager.configure(pair.configuration)

    def take_over() -> None:
        elsewhere(lambda: bank.transfer("a"))
        assert elsewhere(lambda: sweep_lanes("default", owner="next")) == 1
        elsewhere(lambda: bank.transfer("a"))

    report = drain_as_zombie(pair, "relay.source-committed", take_over)
    assert (report.ending, report.applied) == ("lost", 2)
    finish(pair, 4)


def test_an_owner_that_applies_nothing_shuts_a_lapsed_one_out_before_it_parks(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the lapsed one, for which the event does not fail, would apply what stands in the parking by then."""
    cured = threading.Event()
    subscription._subscriptions.clear()
    bank.subscribe(bank.poisoned_by(1, cured=cured))
    decide = decision.decide

    def decide_late(rows: Sequence[OutboxRow]) -> tuple[Verdict, TargetFailed | None]:
        monkeypatch.setattr(relay, "decide", decide)
        bank.ready_now(pair.first)
        assert elsewhere(lambda: sweep_lanes("default", owner="next")) == 0
        assert [state for _, state, _, _ in bank.parked(pair.first)] == ["failing", "behind"]
        cured.set()
        return decide(rows)

    (candidate,) = lanes_with_work(ConnectionManager.get("default"))
    monkeypatch.setattr(relay, "decide", decide_late)
    report = drain_lane("default", candidate, owner="zombie", out_of_time=lambda: False)
    assert (report.ending, bank.arrivals(pair.second)) == ("lost", [])
    finish(pair, 2)


def test_the_next_owner_does_not_pass_one_that_is_still_applying(pair: Pair) -> None:
    """The inbox row is locked: the next owner backs off instead of waiting, and what the first applied counts once."""

    def take_over() -> None:
        assert elsewhere(lambda: sweep_lanes("default", owner="next")) == 0
        assert pair.first.rows("SELECT owner, failures FROM crosstie_lane WHERE epoch > 0") == [("", 1)]

    report = drain_as_zombie(pair, "relay.applied", take_over)
    assert (report.ending, report.applied) == ("lost", 2)
    assert bank.stored(pair.first) == 2
    finish(pair, 2)


def test_nobody_waits_for_an_owner_that_was_stopped_while_it_acknowledged(pair: Pair, monkeypatch) -> None:
    """Its transaction holds the lane's row; others find the lane taken, and it ends in order."""
    monkeypatch.setenv("CROSSTIE_OUTBOX__LEASE_S", "0.001")
    ConnectionManager.configure(pair.configuration)

    def take_over() -> None:
        (candidate,) = lanes_with_work(ConnectionManager.get("default"))
        assert candidate.owner == "zombie"
        assert elsewhere(lambda: sweep_lanes("default", owner="next")) == 0

    report = drain_as_zombie(pair, "relay.acknowledged", take_over)
    assert (report.ending, report.applied) == ("empty", 2)
    finish(pair, 2)


def test_a_source_older_than_its_target_is_shown_to_the_operator(pair: Pair) -> None:
    """After a restore from a backup nobody else owns the lane, yet the inbox is ahead: nothing is applied, and why."""
    bank.drain_all()
    pair.second.execute("UPDATE crosstie_inbox SET epoch = 1000")
    bank.transfer("a")
    (candidate,) = lanes_with_work(ConnectionManager.get("default"))
    report = drain_lane("default", candidate, owner="one", out_of_time=lambda: False)
    assert report.ending == "failed"
    (message,) = pair.first.rows("SELECT last_error FROM crosstie_lane WHERE failures > 0")
    assert "restored from a backup" in message[0]
    assert bank.stored(pair.first) == 1
