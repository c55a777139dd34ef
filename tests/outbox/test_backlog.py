"""The figures of `crosstie status`, read back from the tables."""

from __future__ import annotations

import pytest

from bench.databases import Pair, Solo, TestDatabase
from bench.guard import configured_databases
from crosstie.orm.errors import NoSuchTable
from crosstie.outbox import RouteBacklog, pending, sweep_lanes
from outbox import bank


def test_an_empty_route_is_shown_too(configured_crash_pair: Pair) -> None:
    """Nothing waits, and that is worth knowing."""
    bank.open_bank()
    assert pending("default") == [RouteBacklog("default", "secondary", 0, None, 0, None)]


def test_depth_and_age_of_what_waits(configured_crash_pair: Pair) -> None:
    """All events of the route, and the age of the oldest by the database's clock."""
    bank.open_bank()
    bank.transfer("a", times=3)
    configured_crash_pair.first.execute("UPDATE crosstie_outbox SET created_at_ms = created_at_ms - 5000 WHERE id = 1")
    (backlog,) = pending("default")
    assert (backlog.depth, backlog.failing_lanes) == (3, 0)
    assert backlog.oldest_s is not None
    assert 5 <= backlog.oldest_s < 60


def test_failing_lanes_are_counted_while_they_have_work(configured_crash_pair: Pair) -> None:
    """With the reason; a lane whose events are gone fails no more."""

    def fail(event: object) -> None:
        raise ZeroDivisionError

    bank.subscribe(fail)
    bank.open_bank()
    for name in "ab":
        bank.transfer(name)
    sweep_lanes("default", owner="one")
    (backlog,) = pending("default")
    assert (backlog.depth, backlog.failing_lanes) == (2, 2)
    assert "ZeroDivisionError" in str(backlog.last_error)
    configured_crash_pair.first.execute("DELETE FROM crosstie_outbox")
    assert pending("default") == [RouteBacklog("default", "secondary", 0, None, 0, None)]


def test_missing_tables_are_an_error(database: TestDatabase) -> None:
    """Not an empty answer."""
    with configured_databases(Solo(database), tables=False), pytest.raises(NoSuchTable, match="crosstie init"):
        pending("default")
