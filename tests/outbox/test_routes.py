"""Subscriptions are stored in every source, so that producers feed subscribers that they have never heard of."""

from __future__ import annotations

import pytest

from bench.databases import Pair, Solo, TestDatabase
from bench.guard import configured_databases
from bench.processes import Spawner
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import ConfigurationError, DatabaseUnavailable, NoSuchTable, UnknownConnection
from crosstie.outbox import Event, subscriber, sync_routes
from crosstie.outbox.errors import EventDefinitionError
from crosstie.outbox.subscription import handlers
from outbox import bank
from outbox.bank import Heard, Moved


def routes(database: TestDatabase) -> list[tuple[str, str]]:
    """The stored subscriptions."""
    return [(str(a), str(b)) for a, b in database.rows("SELECT route, event_type FROM crosstie_route ORDER BY 1, 2")]


def lanes(database: TestDatabase, route: str = "secondary") -> list[int]:
    """The lanes of a route."""
    rows = database.rows("SELECT lane FROM crosstie_lane WHERE route = %s ORDER BY lane", (route,))
    return [int(row[0]) for row in rows]


def test_subscriptions_reach_every_database_once(configured: Pair) -> None:
    """Also the target itself, where the event may be published too; a second call finds nothing to do."""
    bank.subscribe()
    report = sync_routes()
    assert report.added == dict.fromkeys(("default", "secondary"), (("secondary", "bank.moved"),))
    for database in configured.databases:
        assert routes(database) == [("secondary", "bank.moved")]
        assert lanes(database) == list(range(4 if database.kind == "sqlite" else 64))
    before = configured.first.rows("SELECT lane, origin, epoch FROM crosstie_lane ORDER BY lane")
    again = sync_routes()
    assert (again.added, again.failed) == ({"default": (), "secondary": ()}, {})
    assert configured.first.rows("SELECT lane, origin, epoch FROM crosstie_lane ORDER BY lane") == before


def test_an_event_of_one_database_is_subscribed_to_there_only(configured: Pair) -> None:
    """`__connection__` says where it is published."""

    class Homebound(Event):
        __connection__ = "default"

    subscriber(Homebound, database="secondary")(lambda event: None)
    sync_routes()
    assert routes(configured.first) == [("secondary", "Homebound")]
    assert routes(configured.second) == []


def test_one_source_can_be_synced_alone(configured: Pair) -> None:
    """The others are left as they are."""
    bank.subscribe()
    sync_routes("default")
    assert len(routes(configured.first)) == 1
    assert routes(configured.second) == []


def test_a_database_that_is_down_does_not_keep_the_others_from_being_served(database: TestDatabase) -> None:
    """It is reported with its error."""
    dead = {"driver": "postgresql", "host": "127.0.0.1", "port": 1, "database": "none", "username": "nobody"}
    with configured_databases(Solo(database)):
        ConnectionManager.configure({"dead": dead, "default": database.config})
        bank.subscribe(database="default")
        report = sync_routes()
        assert report.added == {"default": (("default", "bank.moved"),)}
        assert list(report.failed) == ["dead"]
        assert isinstance(report.failed["dead"], DatabaseUnavailable)
        assert routes(database) == [("default", "bank.moved")]


def test_a_database_without_tables_is_reported(database: TestDatabase) -> None:
    """With the command that makes them."""
    with configured_databases(Solo(database), tables=False):
        bank.subscribe(database="default")
        failed = sync_routes().failed["default"]
        assert isinstance(failed, NoSuchTable)
        assert "crosstie init" in str(failed)


def test_several_processes_may_sync_at_once(configured: Pair, spawn: Spawner) -> None:
    """Workers that start together agree on the lanes, even where their settings do not."""
    code = """
        from outbox import bank
        from crosstie.outbox import sync_routes
        bank.subscribe()
        bank.subscribe(database="default")
        report = sync_routes()
        assert not report.failed, report.failed
    """
    counts = {"CROSSTIE_OUTBOX__LANES": "8", "CROSSTIE_OUTBOX__SQLITE_LANES": "2"}
    children = [
        spawn.code(code, environment=configured.environment | (counts if number % 2 else {})) for number in range(4)
    ]
    for child in children:
        child.wait_ok()
    for database in configured.databases:
        assert routes(database) == [("default", "bank.moved"), ("secondary", "bank.moved")]
        for route in ("default", "secondary"):
            stored = {row[0] for row in database.rows("SELECT lanes FROM crosstie_route WHERE route = %s", (route,))}
            assert len(stored) == 1
            assert lanes(database, route) == list(range(stored.pop()))


def test_the_number_of_lanes_that_was_stored_first_stands(
    configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a key's new events would go to another lane than its old ones, and overtake them."""
    bank.subscribe()
    sync_routes()
    before = lanes(configured_crash_pair.first)
    monkeypatch.setenv("CROSSTIE_OUTBOX__LANES", "2")
    monkeypatch.setenv("CROSSTIE_OUTBOX__SQLITE_LANES", "2")
    ConnectionManager.configure(configured_crash_pair.configuration)
    subscriber(Heard, database="secondary")(lambda event: None)
    sync_routes()
    assert lanes(configured_crash_pair.first) == before
    assert configured_crash_pair.first.rows("SELECT DISTINCT lanes FROM crosstie_route") == [(len(before),)]


def test_lanes_that_are_missing_are_made_again(configured_crash_pair: Pair) -> None:
    """A half-made route, or one whose lanes somebody deleted, is completed; what is there stays."""
    bank.subscribe()
    sync_routes()
    complete = lanes(configured_crash_pair.first)
    configured_crash_pair.first.execute("DELETE FROM crosstie_lane WHERE lane > 0")
    sync_routes()
    assert lanes(configured_crash_pair.first) == complete


def test_stale_subscriptions_go_only_on_request(configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may simply not have imported the subscriber."""
    from crosstie.outbox import subscription

    bank.subscribe()
    sync_routes()
    monkeypatch.setattr(subscription, "_subscriptions", {})
    kept = sync_routes()
    assert kept.stale["default"] == (("secondary", "bank.moved"),)
    assert kept.removed["default"] == ()
    assert routes(configured_crash_pair.first) == [("secondary", "bank.moved")]
    assert sync_routes(remove_stale=True).removed["default"] == (("secondary", "bank.moved"),)
    assert routes(configured_crash_pair.first) == []


def test_a_subscriber_for_an_unknown_database_is_an_error(configured_crash_pair: Pair) -> None:
    """A misspelt name must not become a route that nobody can drain."""
    bank.subscribe(database="secondry")
    with pytest.raises(UnknownConnection, match="'secondary'"):
        sync_routes()
    assert routes(configured_crash_pair.first) == []


def test_a_subscriber_for_a_read_only_database_is_an_error(configured_crash_pair: Pair) -> None:
    """Nothing could be applied there."""
    replica = configured_crash_pair.second.config | {"read_only": True}
    ConnectionManager.configure(configured_crash_pair.configuration | {"replica": replica})
    bank.subscribe(database="replica")
    with pytest.raises(ConfigurationError, match="'replica', which is read-only"):
        sync_routes()


def test_a_database_that_is_made_anew_starts_a_new_origin(configured_crash_pair: Pair) -> None:
    """Its ids begin again at one: what the target remembers of its predecessor must not be taken for them."""
    bank.open_bank()
    bank.transfer("a", times=2)
    assert bank.drain_all() == 2
    for table in ("crosstie_outbox", "crosstie_lane", "crosstie_route"):
        configured_crash_pair.first.execute(f"DROP TABLE {table}")
    from crosstie.outbox import create_tables

    create_tables(ConnectionManager.get("default"))
    sync_routes()
    bank.transfer("a", times=2)
    assert configured_crash_pair.first.scalar("SELECT max(id) FROM crosstie_outbox") == 2
    assert bank.drain_all() == 2
    assert bank.arrivals(configured_crash_pair.second) == [("a", n) for n in range(1, 5)]


def test_a_subscriber_that_is_declared_again_replaces_itself() -> None:
    """Reloading a module does not call it twice; another function is called too, in the order of declaration."""
    calls: list[str] = []

    def declare(name: str) -> None:
        def receive(event: Moved) -> None:
            calls.append(name)

        subscriber(Moved, database="secondary")(receive)

    declare("old")
    declare("new")
    subscriber(Moved, database="secondary")(lambda event: calls.append("other"))
    event = Moved(account="a", number=1)
    from crosstie.outbox import Envelope

    for one in handlers("secondary", "bank.moved"):
        one(event, Envelope.of(event))
    assert calls == ["new", "other"]


def test_a_function_that_cannot_take_an_event_is_refused() -> None:
    """When it is declared, not when the first event comes."""

    async def later(event: Moved) -> None:
        """A coroutine function."""

    for wrong in (later, lambda: None, lambda a, b, c: None):
        with pytest.raises(EventDefinitionError, match="subscriber"):
            subscriber(Moved, database="secondary")(wrong)
