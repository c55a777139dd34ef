"""Brokers that are away, deaf or picky, and relays that are killed: nothing is lost, and order holds for each key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from bench.databases import Solo, TestDatabase
from bench.faults import crash_env
from bench.processes import Spawner
from bench.proxy import Proxy
from bench.waiting import eventually
from brokers.conftest import open_forwarding_bank
from brokers.far_end import FarEnd, numbers_by_account, through
from crosstie.orm.configuration import BrokerSettings
from crosstie.outbox import pending, subscriber, sweep_lanes
from crosstie.outbox.brokers import BrokerUnavailable, Message, MessageRefused, broker_kind, kinds
from outbox import bank
from outbox.bank import Moved

pytestmark = pytest.mark.turns("far_end", "database")

Configure = Callable[..., dict[str, str]]
POINTS: Final = {
    "relay.claimed": False,
    "broker.published": True,
    "relay.target-committed": True,
    "relay.acknowledged": True,
    "relay.source-committed": False,
}
"""Where a relay is killed, and whether what it has published is published again."""
RELAY: Final = """
    from crosstie.outbox import sweep_lanes
    while sweep_lanes("default", owner="child"):
        pass
"""
ALL: Final = {name: [1, 2, 3, 4, 5] for name in "abc"}


def given_events(to: str) -> None:
    """Five movements of each account."""
    open_forwarding_bank(to)
    for _ in range(5):
        for name in "abc":
            bank.transfer(name)


def finish(database: TestDatabase) -> None:
    """Let another relay do the rest; a dead one's locks last until its server has noticed."""

    def finished() -> bool:
        bank.ready_now(database)
        sweep_lanes("default", owner="next")
        return bank.stored(database) == 0

    eventually(finished, describe="the outbox is empty")


@pytest.fixture
def proxy(far_end: FarEnd) -> Iterator[Proxy]:
    """A proxy before the broker."""
    place = urlsplit(far_end.url)
    with Proxy(str(place.hostname), place.port or 0) as proxy:
        yield proxy


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("point", POINTS)
def test_a_relay_killed_anywhere_loses_nothing(
    far_end: FarEnd, configure: Configure, configured_database: TestDatabase, spawn: Spawner, *, point: str, nth: int
) -> None:
    """And publishes twice only what was published before the crash, with the same id."""
    environment = configure(url=far_end.url)
    given_events(far_end.name)
    environment |= Solo(configured_database).environment | {"CROSSTIE_OUTBOX__BATCH_SIZE": "2"}
    spawn.code(RELAY, environment=environment | crash_env(point, nth)).wait_killed()
    finish(configured_database)
    events = far_end.events()
    assert numbers_by_account(events) == ALL
    copies = Counter(event["id"] for event in events)
    assert len(copies) == 15
    assert sum(copies.values()) - 15 in ({1, 2} if POINTS[point] else {0})


def test_a_broker_that_is_away_holds_up_its_own_route_alone(
    far_end: FarEnd, proxy: Proxy, configure: Configure, configured_database: TestDatabase
) -> None:
    """With one attempt for all its lanes; the database gets its events, and the broker its own later, once."""
    configure(url=through(far_end.url, proxy.port))
    heard: list[int] = []

    def receive(event: Moved) -> None:
        heard.append(event.number)

    subscriber(Moved, database="default")(receive)
    given_events(far_end.name)
    proxy.cut()
    assert bank.drain_all() == 15
    (backlog,) = (one for one in pending("default") if one.depth)
    assert backlog.failing_lanes == 3 or configured_database.kind == "sqlite"
    assert backlog.route == f"broker:shop:{far_end.name}"
    proxy.heal()
    finish(configured_database)
    events = far_end.events()
    assert numbers_by_account(events) == ALL
    assert len(events) == 15
    assert len(heard) == 15


@pytest.mark.parametrize("direction", ["both", "to_client"])
def test_a_deaf_broker_is_given_up_after_the_timeout(
    far_end: FarEnd,
    proxy: Proxy,
    configure: Configure,
    configured_database: TestDatabase,
    direction: Any,
) -> None:
    """Whatever was sent is in doubt, and comes again with the same id."""
    configure(url=through(far_end.url, proxy.port), timeout_s="0.3")
    given_events(far_end.name)
    sweep_lanes("default", owner="warm", limit_s=0)
    proxy.deaf(direction)
    sweep_lanes("default", owner="deaf")
    assert bank.stored(configured_database) > 0
    proxy.heal()
    finish(configured_database)
    events = far_end.events()
    assert numbers_by_account(events) == ALL
    assert len({event["id"] for event in events}) == 15


@pytest.mark.parametrize("moment", ["withheld", "forwarded", "answered"])
def test_a_connection_that_breaks_in_the_middle_of_a_batch(
    far_end: FarEnd, proxy: Proxy, configure: Configure, configured_database: TestDatabase, moment: Any
) -> None:
    """What was confirmed is acknowledged; what was not comes again, in order."""
    configure(url=through(far_end.url, proxy.port))
    given_events(far_end.name)
    # The third movement of an account: two of its events are before it in the batch.
    trigger = proxy.cut_after(b'"number":3', moment=moment)
    sweep_lanes("default", owner="cut")
    trigger.wait()
    proxy.heal()
    finish(configured_database)
    events = far_end.events()
    assert numbers_by_account(events) == ALL
    copies = Counter(event["id"] for event in events)
    assert len(copies) == 15
    if moment == "withheld":
        assert max(copies.values()) == 1


class Picky:
    """A broker in memory, which does what the test has told it to."""

    taken: list[int]
    stops_after: int | None
    never: int | None

    def __init__(self, settings: BrokerSettings) -> None:
        assert settings.timeout_s == 5

    def publish(self, destination: str, messages: Sequence[Message]) -> None:
        """Take the messages up to the one that is not wanted."""
        assert destination == "anywhere"
        for position, one in enumerate(messages):
            number = int(one.body.rpartition(":")[2].rstrip("}"))
            if number == Picky.never:
                raise MessageRefused("too ugly", position)
            if number == Picky.stops_after:
                Picky.stops_after = None
                raise BrokerUnavailable("tired", position)
            Picky.taken.append(number)

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch, configure: Configure) -> type[Picky]:
    """Such a broker, for one account's events."""
    monkeypatch.setattr(kinds, "_kinds", {})
    broker_kind("picky")(Picky)
    configure(url="picky://nowhere")
    Picky.taken, Picky.stops_after, Picky.never = [], None, None
    open_forwarding_bank("anywhere")
    bank.transfer("a", times=6)
    return Picky


def test_messages_that_were_taken_before_a_failure_are_not_published_again(
    picky: type[Picky], configured_database: TestDatabase
) -> None:
    """The broker says how many it has; the route rests and goes on from there."""
    picky.stops_after = 4
    assert bank.drain_all() == 3
    assert bank.stored(configured_database) == 3
    assert "tired" in str(pending("default")[0].last_error)
    bank.ready_now(configured_database)
    assert bank.drain_all() == 3
    assert picky.taken == [1, 2, 3, 4, 5, 6]


def test_a_message_that_is_refused_for_good_is_parked(picky: type[Picky], configured_database: TestDatabase) -> None:
    """With the later ones of its key, so that they do not overtake it; those before it went once."""
    picky.never = 3
    bank.transfer("b")
    bank.drain_all()
    assert picky.taken.count(1) == 2  # of a and of b
    assert sorted(picky.taken) == [1, 1, 2]
    assert bank.stored(configured_database) == 0
    assert configured_database.scalar("SELECT count(*) FROM crosstie_parked") == 4


def test_an_exception_that_no_broker_should_raise_is_a_failure_of_the_route(
    picky: type[Picky], configured_database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the batch counts as published."""

    def broken(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(Picky, "publish", broken)
    assert bank.drain_all() == 0
    assert "builtins.KeyError: 'oops'" in str(pending("default")[0].last_error)
    assert bank.stored(configured_database) == 6
