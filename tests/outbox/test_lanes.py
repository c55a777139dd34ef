"""Lanes: claimed by compare-and-set, owned by epoch, given back or left to run out."""

from __future__ import annotations

import dataclasses

import pytest

from bench.databases import Pair, TestDatabase
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.transaction import transaction
from crosstie.outbox.errors import LeaseLost
from crosstie.outbox.lane import Candidate, Lease, back_off, backoff_s, claim, lanes_with_work, release, renew
from outbox import bank


@pytest.fixture
def source(configured_crash_pair: Pair) -> TestDatabase:
    """The source database of a pair, with one event waiting."""
    bank.open_bank()
    bank.transfer("a")
    return configured_crash_pair.first


def only_candidate() -> Candidate:
    """The one lane with work."""
    (candidate,) = lanes_with_work(ConnectionManager.get("default"), "secondary")
    return candidate


def attempt(candidate: Candidate, owner: str = "one", lease_s: float = 30) -> Lease | None:
    """Try to claim it."""
    return claim(ConnectionManager.get("default"), candidate, owner=owner, lease_s=lease_s)


def take(candidate: Candidate, owner: str = "one", lease_s: float = 30) -> Lease:
    """Claim it, and be sure of it."""
    lease = attempt(candidate, owner, lease_s)
    assert lease is not None
    return lease


def test_only_lanes_with_work_are_found(source: TestDatabase) -> None:
    """Of all lanes of the route, the one that holds the event."""
    lane = source.scalar("SELECT lane FROM crosstie_outbox")
    assert [(one.route, one.lane) for one in lanes_with_work(ConnectionManager.get("default"))] == [("secondary", lane)]
    assert lanes_with_work(ConnectionManager.get("default"), "tertiary") == []


def test_a_lane_has_one_owner(source: TestDatabase) -> None:
    """Two workers saw the same free lane; the second compares an epoch that is gone."""
    seen = only_candidate()
    first = take(seen)
    assert attempt(seen, "two") is None
    assert lanes_with_work(ConnectionManager.get("default")) == []
    release(ConnectionManager.get("default"), first, settled=True)
    assert attempt(seen, "two") is None  # free again, but what it saw is out of date


def test_a_released_lane_is_free_at_once(source: TestDatabase) -> None:
    """The next owner gets a greater epoch."""
    first = take(only_candidate())
    assert release(ConnectionManager.get("default"), first, settled=True)
    second = take(only_candidate(), "two")
    assert second.epoch == first.epoch + 1


def test_a_killed_owner_loses_its_lane_when_the_lease_has_run_out(source: TestDatabase) -> None:
    """By the database's clock; what the old owner does then changes nothing."""
    old = take(only_candidate())
    bank.ready_now(source)
    new = take(only_candidate(), "two")
    database = ConnectionManager.get("default")
    assert not release(database, old, settled=True)
    assert not release(database, old, settled=True, delay_s=60)
    assert not back_off(database, old, delay_s=60, error="late", whole_route=True)
    with pytest.raises(LeaseLost, match="another worker took it"), transaction("default") as tx:
        renew(tx.connection, old, progress=True)
    with transaction("default") as tx:
        tx.mark_written()
        assert renew(tx.connection, new, progress=True) == dataclasses.replace(new, deaths=0)
    assert source.rows("SELECT owner, failures FROM crosstie_lane WHERE owner <> ''") == [("two", 0)]


def test_a_lease_runs_out_by_itself(source: TestDatabase) -> None:
    """No operator and no clean-up is needed after a crash."""
    take(only_candidate(), lease_s=-1)
    assert only_candidate().owner == "one"


@pytest.mark.parametrize(  # SQLite has no row locks: there a stopped writer holds up all others
    "crash_pair", [("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)
def test_an_abandoned_lane_that_is_locked_is_not_waited_for(source: TestDatabase) -> None:
    """Its owner was stopped inside a transaction; other workers go on with other lanes."""
    old = take(only_candidate(), lease_s=-1)
    engine = ConnectionManager.get("default").engine
    with engine.connect() as stopped:
        renew(stopped, dataclasses.replace(old, lease_s=-1), progress=True)
        assert attempt(only_candidate(), "two") is None
        stopped.rollback()
    take(only_candidate(), "two")


def test_a_lane_that_backs_off_is_left_alone_and_remembers_why(source: TestDatabase) -> None:
    """Until its time has come; a success forgets the failures."""
    database = ConnectionManager.get("default")
    assert back_off(database, take(only_candidate()), delay_s=60, error="no luck")
    assert lanes_with_work(database) == []
    assert source.rows("SELECT failures, last_error FROM crosstie_lane WHERE failures > 0") == [(1, "no luck")]
    bank.ready_now(source)
    lease = take(only_candidate())
    assert lease.failures == 1
    with transaction("default") as tx:
        tx.mark_written()
        assert renew(tx.connection, lease, progress=False).failures == 1
        assert renew(tx.connection, lease, progress=True).failures == 0
    assert source.rows("SELECT failures FROM crosstie_lane WHERE failures > 0 OR last_error IS NOT NULL") == []


def test_a_whole_route_can_back_off_but_not_the_lanes_of_others(source: TestDatabase) -> None:
    """One worker's finding spares the rest the attempt; a lane that somebody owns is that owner's affair."""
    database = ConnectionManager.get("default")
    mine = take(only_candidate())
    other = (mine.lane + 1) % int(source.scalar("SELECT count(*) FROM crosstie_lane"))
    source.execute("UPDATE crosstie_lane SET owner = 'two', lease_until_ms = 99999999999999 WHERE lane = %s", (other,))
    back_off(database, mine, delay_s=60, error="down", whole_route=True)
    free = source.rows("SELECT lane FROM crosstie_lane WHERE ready_at_ms = 0")
    assert free == [(other,)]


def test_a_backoff_doubles_up_to_a_minute() -> None:
    """0.2 s, 0.4 s, …, 60 s; the jitter takes up to half away."""
    assert [backoff_s(n, jitter=0) for n in range(4)] == pytest.approx([0.2, 0.4, 0.8, 1.6])
    assert backoff_s(9, jitter=0) == backoff_s(10_000, jitter=0) == 60
    assert backoff_s(0, jitter=1) == pytest.approx(0.1)
    assert 30 <= backoff_s(50, jitter=0.999) < 60
