"""Doorbells ring after a commit that wrote events, and hurt nobody when they fail."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from bench.databases import Pair
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.transaction import transaction
from crosstie.outbox import audience, doorbell, subscriber, sync_routes
from outbox import bank
from outbox.bank import Heard, Moved


@pytest.fixture
def rung(configured_crash_pair: Pair) -> list[tuple[str, str]]:
    """The bank is open, and every ring is noted."""
    rings: list[tuple[str, str]] = []
    bank.open_bank()
    doorbell.on_ring(lambda source, route: rings.append((source, route)))
    return rings


def test_a_commit_with_events_rings_once_for_each_route(rung: list[tuple[str, str]]) -> None:
    """Not before the commit, and not once per event."""
    with transaction("default"):
        bank.transfer("a", times=3)
        assert rung == []
    assert rung == [("default", "secondary")]


def test_nothing_rings_where_nothing_was_written(rung: list[tuple[str, str]]) -> None:
    """No events, none that anybody subscribes to, or a transaction that rolled back."""
    with transaction("default") as tx:
        tx.mark_written()
        tx.connection.execute(bank.account.update().values(moves=0))
    Heard(account="a", number=1).publish("default")
    with pytest.raises(ZeroDivisionError), transaction("default"):
        Moved(account="a", number=1).publish()
        raise ZeroDivisionError
    assert rung == []


def test_two_routes_ring_both(rung: list[tuple[str, str]]) -> None:
    """Each names the target whose lanes have work."""
    bank.subscribe(lambda event: None, database="default")
    subscriber(Heard, database="default")(lambda event: None)
    sync_routes()
    with transaction("secondary"):
        Moved(account="a", number=1).publish()
        Heard(account="a", number=1).publish()
    assert rung == [("secondary", "default"), ("secondary", "secondary")]


def test_a_database_that_returns_nothing_from_an_insert_is_asked_for_the_routes(
    rung: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MySQL has no INSERT … RETURNING; the stored subscriptions say which doors to ring at."""
    monkeypatch.setattr(ConnectionManager.get("default").engine.dialect, "insert_returning", False)
    with transaction("default"):
        Moved(account="a", number=1).publish()
        Heard(account="a", number=1).publish()
    assert rung == [("default", "secondary")]


def test_a_failing_doorbell_is_logged_and_the_commit_stands(
    configured_crash_pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """The next listener is still called, and a sweep finds the work anyway."""
    heard = []

    def broken(source: str, route: str) -> None:
        raise ConnectionError("no broker")

    bank.open_bank()
    doorbell.on_ring(broken)
    doorbell.on_ring(lambda source, route: heard.append(route))
    with caplog.at_level(logging.ERROR):
        bank.transfer("a")
    assert heard == ["secondary"]
    assert "a sweep will find the work" in caplog.text
    assert bank.drain_all() == 1


def test_a_listener_can_be_taken_off(rung: list[tuple[str, str]]) -> None:
    """What `on_ring` returns ends it, also when called twice."""
    more: list[str] = []
    stop = doorbell.on_ring(lambda source, route: more.append(route))
    stop()
    stop()
    bank.transfer("a")
    assert (more, rung) == ([], [("default", "secondary")])


def test_without_any_doorbell_events_arrive_by_sweeps(configured_crash_pair: Pair) -> None:
    """Nobody listens, nobody rings: the database row is the truth."""
    assert not doorbell.is_heard()
    bank.open_bank()
    bank.transfer("a", times=2)
    assert bank.drain_all() == 2
    assert len(bank.arrivals(configured_crash_pair.second)) == 2


@pytest.mark.parametrize("crash_pair", [("mariadb", "postgresql")], indirect=True, ids="-".join)
def test_who_subscribes_is_asked_seldom(
    rung: list[tuple[str, str]], configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MariaDB: not for each commit, again after a while, and at once where this process has stored a subscription."""
    asked: list[str] = []
    now_s = time.monotonic()
    monkeypatch.setattr(audience, "time", SimpleNamespace(monotonic=lambda: now_s))

    @sa.event.listens_for(ConnectionManager.get("default").engine, "before_cursor_execute")
    def note(_: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith("SELECT crosstie_route.event_type"):
            asked.append(statement)

    for _ in range(3):
        Moved(account="a", number=1).publish("default")
    assert (len(asked), rung) == (1, [("default", "secondary")] * 3)
    configured_crash_pair.first.execute("DELETE FROM crosstie_route WHERE event_type = 'bank.moved'")
    now_s += audience.REMEMBERED_S - 0.1
    Moved(account="a", number=1).publish("default")
    assert (len(asked), len(rung)) == (1, 4)
    now_s += 0.2
    Moved(account="a", number=1).publish("default")
    assert (len(asked), len(rung)) == (2, 4)
    sync_routes()
    Moved(account="a", number=1).publish("default")
    assert len(rung) == 5
