"""A scheduled job runs once per slot, whoever finds it due, and a crashed holder's slot is run by another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from bench.databases import TestDatabase
from bench.waiting import eventually
from crosstie.orm import ConnectionManager
from crosstie.orm.database import Database
from crosstie.workers import tick
from crosstie.workers.errors import TickLost
from crosstie.workers.lease_keeper import LeaseKeeper
from crosstie.workers.schedule import Every, Job, run_if_due


@pytest.fixture
def ticking(configured_database: TestDatabase) -> Database:
    """A configured database with the tick table."""
    return ConnectionManager.get("default")


def expire(database: TestDatabase) -> None:
    """Let every lease run out, by the database's clock."""
    database.execute("UPDATE crosstie_tick SET lease_until_ms = 1 WHERE lease_until_ms > 0")


@contextmanager
def just_before_update(database: Database, action: Any) -> Iterator[None]:
    """Run `action` once, between another's read of the row and its compare-and-set."""
    pending = [action]

    def interrupt(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement.startswith("UPDATE crosstie_tick") and pending:
            pending.pop()()

    sa.event.listen(database.autocommit, "before_cursor_execute", interrupt)
    yield
    sa.event.remove(database.autocommit, "before_cursor_execute", interrupt)
    assert not pending


def test_of_many_claims_at_once_one_succeeds(ticking: Database) -> None:
    """Ten processes find the same slot due, on a table that has never seen the job."""
    start = threading.Barrier(10)

    def claim(number: int) -> tick.Tick | None:
        start.wait()
        return tick.claim(ticking, "audit", 7, owner=f"beat {number}", lease_s=60)

    with ThreadPoolExecutor(10) as pool:
        claims = list(pool.map(claim, range(10)))
    assert len([one for one in claims if one is not None]) == 1


def test_a_finished_slot_is_never_claimed_again_but_the_next_one_is(ticking: Database) -> None:
    """Also not by a beat whose message is an hour late."""
    held = tick.claim(ticking, "audit", 7, owner="first", lease_s=60)
    assert held is not None
    tick.finish(held)
    assert tick.claim(ticking, "audit", 7, owner="second", lease_s=60) is None
    assert tick.claim(ticking, "audit", 6, owner="late", lease_s=60) is None
    assert tick.claim(ticking, "audit", 8, owner="second", lease_s=60) is not None


def test_jobs_are_claimed_independently(ticking: Database) -> None:
    """A running audit does not keep pruning from its slot."""
    assert tick.claim(ticking, "audit", 7, owner="first", lease_s=60) is not None
    assert tick.claim(ticking, "prune", 7, owner="first", lease_s=60) is not None


def test_a_slot_that_is_finished_between_anothers_read_and_write_is_not_run_twice(ticking: Database) -> None:
    """Finishing changes no epoch, so the compare-and-set asks for the finished slot as well."""
    held = tick.claim(ticking, "audit", 7, owner="first", lease_s=60)
    assert held is not None
    with just_before_update(ticking, lambda: tick.finish(held)):
        assert tick.claim(ticking, "audit", 7, owner="second", lease_s=60) is None


def test_the_slot_of_a_crashed_holder_is_claimed_again_after_its_lease(
    ticking: Database, configured_database: TestDatabase
) -> None:
    """And not before; nobody needs to notice the crash."""
    assert tick.claim(ticking, "audit", 7, owner="crashed", lease_s=60) is not None
    assert tick.claim(ticking, "audit", 7, owner="second", lease_s=60) is None
    expire(configured_database)
    assert tick.claim(ticking, "audit", 7, owner="second", lease_s=60) is not None


def test_a_holder_that_lost_its_lease_changes_nothing(ticking: Database, configured_database: TestDatabase) -> None:
    """It was stopped for longer than its lease, and wakes up while another runs the slot."""
    slow = tick.claim(ticking, "audit", 7, owner="slow", lease_s=60)
    expire(configured_database)
    quick = tick.claim(ticking, "audit", 7, owner="quick", lease_s=60)
    assert slow is not None
    assert quick is not None
    with pytest.raises(TickLost, match=r"'audit' for slot 7 ran out after 60 s"):
        tick.finish(slow)
    with pytest.raises(TickLost):
        tick.renew(slow)
    assert configured_database.scalar("SELECT done_slot FROM crosstie_tick") == -1
    tick.finish(quick)
    assert configured_database.scalar("SELECT done_slot FROM crosstie_tick") == 7


def test_beats_and_sweepers_that_find_a_job_due_at_once_run_it_once(ticking: Database) -> None:
    """Two beats are run on purpose where one must not be missed."""
    start = threading.Barrier(6)
    ran: list[int] = []
    job = Job("audit", Every(100_000_000), lambda: ran.append(1))

    def look(number: int) -> bool:
        start.wait()
        return run_if_due(job, "default", owner=f"beat {number}")

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(look, range(6))) == [False] * 5 + [True]
    assert ran == [1]


def test_a_long_job_keeps_its_lease_while_it_runs(
    ticking: Database, configured_database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease is prolonged again and again, so nobody else takes an audit of hours for a crashed one."""
    held = tick.claim(ticking, "audit", 7, owner="long", lease_s=60)
    assert held is not None
    hasty = lambda name, renew, *, lease_s: LeaseKeeper(name, renew, lease_s=lease_s / 1000)  # noqa: E731
    monkeypatch.setattr(tick, "LeaseKeeper", hasty)  # three times in 60 ms, and nobody may be late
    with tick.running(held):
        until = "SELECT lease_until_ms FROM crosstie_tick"
        first = configured_database.scalar(until)
        eventually(lambda: configured_database.scalar(until) > first + 100, describe="several renewals")
        assert tick.claim(ticking, "audit", 7, owner="second", lease_s=60) is None
    assert configured_database.scalar("SELECT done_slot FROM crosstie_tick") == 7


def test_a_job_that_fails_is_tried_again_after_its_lease(ticking: Database, configured_database: TestDatabase) -> None:
    """Its slot counts as not done, and it does not fail again every second."""
    ran: list[str] = []

    def fail_once() -> None:
        ran.append("run")
        if len(ran) == 1:
            raise RuntimeError("for a test")

    job = Job("audit", Every(100_000_000), fail_once)
    with pytest.raises(RuntimeError):
        run_if_due(job, "default", owner="first")
    assert not run_if_due(job, "default", owner="first")
    expire(configured_database)
    assert run_if_due(job, "default", owner="first")
    assert not run_if_due(job, "default", owner="first")
    assert len(ran) == 2
