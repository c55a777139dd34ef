"""The figures of `crosstie status`, read back from the tables."""

from __future__ import annotations

import pytest

from bench.databases import Pair, Solo, TestDatabase
from bench.guard import configured_databases
from crosstie.orm.errors import NoSuchTable
from crosstie.outbox import RouteBacklog, pending, subscription, sweep_lanes
from outbox import bank


def test_an_empty_route_is_shown_too(configured_crash_pair: Pair) -> None:
    """Nothing waits, and that is worth knowing."""
    bank.open_bank()
    assert pending("default") == [RouteBacklog("default", "secondary")]


def test_depth_and_age_of_what_waits(configured_crash_pair: Pair) -> None:
    """All events of the route, and the age of the oldest by the database's clock."""
    bank.open_bank()
    bank.transfer("a", times=3)
    configured_crash_pair.first.execute("UPDATE crosstie_outbox SET created_at_ms = created_at_ms - 5000 WHERE id = 1")
    (backlog,) = pending("default")
    assert (backlog.depth, backlog.failing_lanes) == (3, 0)
    assert backlog.oldest_s is not None
    assert 5 <= backlog.oldest_s < 60


def test_failing_lanes_are_counted_while_they_have_work(
    configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reason; a lane whose events are gone fails no more."""
    bank.open_bank()
    for name in "ab":
        bank.transfer(name)
    with monkeypatch.context() as patch:
        patch.setattr(subscription, "_subscriptions", {})
        sweep_lanes("default", owner="one")
    (backlog,) = pending("default")
    assert (backlog.depth, backlog.failing_lanes, backlog.parked) == (2, 2, 0)
    assert "this process has no subscriber" in str(backlog.last_error)
    configured_crash_pair.first.execute("DELETE FROM crosstie_outbox")
    assert pending("default") == [RouteBacklog("default", "secondary")]


def test_parked_events_are_counted_by_what_is_to_be_done_about_them(configured_crash_pair: Pair) -> None:
    """All of them, their keys, the dead; and why, of one of them."""
    bank.subscribe(bank.poisoned_by(1))
    bank.open_bank()
    for name in "ab":
        bank.transfer(name, times=3)
    sweep_lanes("default", owner="one")
    configured_crash_pair.first.execute("UPDATE crosstie_parked SET state = 'dead' WHERE id = 1")
    (backlog,) = pending("default")
    assert (backlog.depth, backlog.oldest_s, backlog.failing_lanes, backlog.paused) == (0, None, 0, False)
    assert (backlog.parked, backlog.parked_keys, backlog.dead) == (6, 2, 1)
    assert backlog.oldest_parked_s is not None
    assert 0 <= backlog.oldest_parked_s < 60
    assert "Poison" in str(backlog.last_error)


def test_missing_tables_are_an_error(database: TestDatabase) -> None:
    """Not an empty answer."""
    with configured_databases(Solo(database), tables=False), pytest.raises(NoSuchTable, match="crosstie init"):
        pending("default")
