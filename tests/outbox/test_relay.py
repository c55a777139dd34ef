"""The relay on every ordered pair of databases: each event has its effect once, in the order of its key."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from bench.databases import Pair, Trio
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.transaction import transaction
from crosstie.outbox import Event, drain, subscriber, sweep_lanes, sync_routes
from crosstie.outbox.envelope import Envelope
from crosstie.outbox.errors import RelayMisused
from crosstie.outbox.insertion import insert_events
from outbox import bank
from outbox.bank import Heard, Moved


def test_an_event_has_its_effect_once_in_the_other_database(configured: Pair) -> None:
    """It arrives, leaves the outbox, and a second drain finds nothing to do."""
    bank.open_bank()
    bank.transfer("a", times=3)
    assert sweep_lanes("default", owner="one") == 3
    assert sweep_lanes("default", owner="one") == 0
    assert bank.arrivals(configured.second) == [("a", 1), ("a", 2), ("a", 3)]
    assert bank.stored(configured.first) == 0


def test_a_lane_longer_than_a_batch_is_drained_in_one_go(configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches follow each other under one lease until nothing is left."""
    monkeypatch.setenv("CROSSTIE_OUTBOX__BATCH_SIZE", "7")
    ConnectionManager.configure(configured.configuration)
    bank.open_bank()
    bank.transfer("a", times=30)
    assert drain("default", "secondary", owner="one") == 30
    assert bank.arrivals(configured.second) == [("a", number) for number in range(1, 31)]
    assert configured.first.scalar("SELECT max(epoch) FROM crosstie_lane") == 1


def test_events_of_a_key_keep_their_order_with_several_producers_and_relays(configured: Pair) -> None:
    """Three producers and two relays at once: every event once, and those of an account as they were committed."""
    bank.open_bank()
    producing = threading.Event()
    producing.set()

    def produce(names: str) -> None:
        for name in names:
            bank.transfer(name, times=1 + names.index(name) % 2)

    def relay(owner: str) -> int:
        applied = 0
        while producing.is_set():
            applied += sweep_lanes("default", owner=owner)
        return applied

    with ThreadPoolExecutor(5) as pool:
        relays = [pool.submit(relay, owner) for owner in ("one", "two")]
        try:
            list(pool.map(produce, ["abcabc", "cbacba", "aabbcc"]))
        finally:
            producing.clear()
        applied = sum(one.result() for one in relays)
    applied += bank.drain_all()
    arrived = bank.arrivals(configured.second)
    moves = dict(configured.first.rows("SELECT name, moves FROM account"))
    assert applied == len(arrived) == sum(moves.values())
    for name, count in moves.items():
        assert [number for account, number in arrived if account == name] == list(range(1, count + 1))


def test_two_relay_processes_do_not_apply_an_event_twice(configured: Pair, spawn) -> None:
    """Two processes drain the same database at once; what they applied adds up to what there was."""
    bank.open_bank([f"account-{n}" for n in range(12)])
    for n in range(12):
        bank.transfer(f"account-{n}", times=5)
    code = """
        from outbox import bank
        bank.subscribe()
        print("applied", bank.drain_all(owner="child"))
    """
    children = [spawn.code(code, environment=configured.environment) for _ in range(2)]
    counts = [int(child.wait_ok().split("applied ")[1]) for child in children]
    bank.ready_now(configured.first)
    counts.append(bank.drain_all())
    arrived = bank.arrivals(configured.second)
    assert len(arrived) == len(set(arrived)) == sum(counts) == 60


@pytest.mark.parametrize(  # SQLite has one writer at a time: its ids commit in order
    "pair",
    [("postgresql", "sqlite"), ("postgresql", "mariadb"), ("mariadb", "sqlite"), ("mariadb", "postgresql")],
    indirect=True,
    ids="-".join,
)
def test_a_transaction_that_commits_late_is_not_passed_over(configured: Pair) -> None:
    """A smaller id that becomes visible after a greater one was delivered is delivered too."""
    bank.open_bank()
    engine = ConnectionManager.get("default").engine
    with engine.connect() as late, engine.connect() as early:
        insert_events(late, [Envelope.of(Moved(account="a", number=1))])
        # Another key in the same lane: nothing orders the two, so the second need not wait for the first.
        insert_events(early, [Envelope.of(Moved(account="a", number=2))])
        early.commit()
        assert sweep_lanes("default", owner="one") == 1
        late.commit()
    assert sweep_lanes("default", owner="one") == 1
    assert sorted(bank.arrivals(configured.second)) == [("a", 1), ("a", 2)]
    assert bank.stored(configured.first) == 0


def test_what_a_subscriber_publishes_leaves_from_the_target(configured: Pair) -> None:
    """It is written with the subscriber's own rows, and travels on from there: here, back to the source."""
    answers = []

    def record_and_tell(event: Moved) -> None:
        bank.record(event)
        Heard(account=event.account, number=event.number).publish()

    bank.subscribe(record_and_tell)
    subscriber(Heard, database="default")(lambda event: answers.append((event.account, event.number)))
    bank.open_bank()
    bank.transfer("b", times=2)
    assert sweep_lanes("default", owner="one") == 2
    assert bank.stored(configured.second) == 2
    assert sweep_lanes("secondary", owner="one") == 2
    assert answers == [("b", 1), ("b", 2)]


def test_source_and_target_may_be_the_same_database(configured: Pair) -> None:
    """The protocol is the same with one database on both sides."""
    bank.create_received("default")
    bank.subscribe(lambda event: bank.record(event, "default"), database="default")
    bank.create_accounts("default")
    assert not sync_routes().failed
    bank.transfer("a", times=4)
    assert sweep_lanes("default", owner="one") == 4
    assert bank.arrivals(configured.first) == [("a", n) for n in range(1, 5)]


def test_each_route_gets_its_own_copy_of_an_event(configured_trio: Trio) -> None:
    """Two target databases: both hear of it, each once."""
    bank.create_received("tertiary")
    bank.subscribe()
    bank.subscribe(lambda event: bank.record(event, "tertiary"), database="tertiary")
    bank.open_bank()
    bank.transfer("a", times=2)
    assert bank.stored(configured_trio.first) == 4
    assert sweep_lanes("default", owner="one") == 4
    for target in (configured_trio.second, configured_trio.third):
        assert bank.arrivals(target) == [("a", 1), ("a", 2)]


def test_a_subscriber_sees_the_headers_and_the_uid(configured_crash_pair: Pair) -> None:
    """With a second parameter it gets the envelope; the event itself carries the headers on."""
    seen = []

    class Traced(Event):
        number: int

    def receive(event: Traced, envelope: Envelope) -> None:
        seen.append((event.number, dict(event.event_headers), envelope.headers["trace"], envelope.uid))

    subscriber(Traced, database="secondary")(receive)
    sync_routes()
    Traced(number=1).with_headers({"trace": "01-ab"}).publish("default")
    assert sweep_lanes("default", owner="one") == 1
    (uid,) = {row[3] for row in seen}
    assert seen == [(1, {"trace": "01-ab"}, "01-ab", uid)]
    assert len(uid) == 36


def test_the_relay_refuses_to_run_inside_a_transaction(configured_crash_pair: Pair) -> None:
    """Its commits would mix with the caller's; the error says so before anything is claimed."""
    bank.open_bank()
    bank.transfer("a")
    with transaction("default"), pytest.raises(RelayMisused, match="'default'"):
        sweep_lanes("default", owner="one")
    assert configured_crash_pair.first.scalar("SELECT max(epoch) FROM crosstie_lane") == 0


def test_an_event_that_somebody_deletes_meanwhile_does_no_harm(configured_crash_pair: Pair) -> None:
    """Acknowledging an event that is gone touches nothing else."""
    engine = ConnectionManager.get("default").engine

    def record_and_delete(event: Moved) -> None:
        bank.record(event)
        configured_crash_pair.first.execute("DELETE FROM crosstie_outbox WHERE uid IS NOT NULL")

    bank.subscribe(record_and_delete)
    bank.open_bank()
    bank.transfer("a", times=2)
    assert sweep_lanes("default", owner="one") == 2
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM crosstie_outbox")).scalar_one() == 0
