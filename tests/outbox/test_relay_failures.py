"""What goes wrong while events are delivered: nothing is lost, nothing doubled, and only the lane concerned waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from bench.databases import Pair, TestDatabase, Trio
from bench.guard import configured_databases
from bench.proxy import Proxy, Trigger
from bench.waiting import eventually
from crosstie.orm.errors import DatabaseUnavailable
from crosstie.orm.faults import armed
from crosstie.orm.transaction import statement_connection, transaction
from crosstie.outbox import drain, event, subscriber, subscription, sweep_lanes
from outbox import bank
from outbox.bank import Heard, Moved


def failing_lanes(database: TestDatabase) -> list[tuple[int, str]]:
    """Failures and last error of the lanes that fail."""
    rows = database.rows("SELECT failures, last_error FROM crosstie_lane WHERE failures > 0")
    return [(int(failures), str(error)) for failures, error in rows]


def test_the_stored_error_says_where_and_quotes_no_value(configured_crash_pair: Pair) -> None:
    """Type, id and uid of the event, name and line of the subscriber; the exception's text is for the log."""
    bank.subscribe(bank.poisoned_by(1))
    bank.open_bank(["private-name"])
    bank.transfer("private-name")
    sweep_lanes("default", owner="one")
    ((*_, error),) = bank.parked(configured_crash_pair.first)
    assert "'bank.moved'" in error
    assert "receive_in_secondary" in error
    assert "Poison" in error
    assert "private-name" not in error


def test_poison_in_one_route_does_not_delay_another(configured_trio: Trio) -> None:
    """The other target database gets every event in the same sweep."""
    bank.create_received("tertiary")
    bank.subscribe(bank.poisoned_by(1))
    bank.subscribe(lambda event: bank.record(event, "tertiary"), database="tertiary")
    bank.open_bank()
    bank.transfer("a", times=3)
    assert sweep_lanes("default", owner="one") == 3
    assert len(bank.arrivals(configured_trio.third)) == 3
    assert bank.arrivals(configured_trio.second) == []


def test_a_slow_target_does_not_delay_another(configured_trio: Trio) -> None:
    """While one subscriber does not return, the other database has got its events."""
    bank.create_received("tertiary")
    finish = threading.Event()
    bank.subscribe(lambda event: finish.wait(60))
    bank.subscribe(lambda event: bank.record(event, "tertiary"), database="tertiary")
    bank.open_bank()
    bank.transfer("a", times=3)
    with ThreadPoolExecutor(1) as pool:
        sweep = pool.submit(sweep_lanes, "default", owner="one")
        try:
            eventually(lambda: len(bank.arrivals(configured_trio.third)) == 3, describe="the fast route is done")
            assert not sweep.done()
        finally:
            finish.set()
        assert sweep.result() == 6


def test_an_event_of_unknown_type_waits_for_a_worker_that_knows_it(configured_crash_pair: Pair, monkeypatch) -> None:
    """The lane says which type is missing and what to do; nothing is lost."""
    bank.open_bank()
    bank.transfer("a")
    with monkeypatch.context() as patch:
        patch.setattr(event, "_classes", {})
        assert sweep_lanes("default", owner="one") == 0
    ((_, error),) = failing_lanes(configured_crash_pair.first)
    assert "no event class of type 'bank.moved'" in error
    bank.ready_now(configured_crash_pair.first)
    assert sweep_lanes("default", owner="one") == 1


def test_an_event_without_a_subscriber_here_waits_for_a_worker_that_has_one(
    configured_crash_pair: Pair, monkeypatch
) -> None:
    """The stored subscription says that somebody wants it: skipping it would lose it."""
    bank.open_bank()
    bank.transfer("a")
    with monkeypatch.context() as patch:
        patch.setattr(subscription, "_subscriptions", {})
        assert sweep_lanes("default", owner="one") == 0
    ((_, error),) = failing_lanes(configured_crash_pair.first)
    assert "this process has no subscriber" in error
    bank.ready_now(configured_crash_pair.first)
    assert sweep_lanes("default", owner="one") == 1


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ('payload = \'{"account": "private"}\'', "number: missing"),
        ("payload = 'private'", "the whole: json_invalid"),
        ("headers = 'private'", "no JSON"),
    ],
)
def test_an_event_that_is_damaged_is_parked(configured_crash_pair: Pair, change: str, found: str) -> None:
    """With what is wrong, and without quoting the payload."""
    bank.open_bank()
    bank.transfer("a")
    configured_crash_pair.first.execute(f"UPDATE crosstie_outbox SET {change} WHERE id > 0")
    assert sweep_lanes("default", owner="one") == 0
    ((_, state, attempts, error),) = bank.parked(configured_crash_pair.first)
    assert (state, attempts) == ("failing", 1)
    assert found in error
    assert "private" not in error
    assert failing_lanes(configured_crash_pair.first) == []


def test_an_event_newer_than_this_worker_waits_for_a_newer_one(configured_crash_pair: Pair) -> None:
    """That is no fault of the event, and while a deployment rolls out it passes."""
    bank.open_bank()
    bank.transfer("a")
    configured_crash_pair.first.execute("UPDATE crosstie_outbox SET schema_version = 2")
    assert sweep_lanes("default", owner="one") == 0
    ((_, error),) = failing_lanes(configured_crash_pair.first)
    assert "found 2. This worker runs older code" in error
    assert bank.stored(configured_crash_pair.first) == 1


def write_elsewhere(event: Moved) -> None:
    """A single statement on the source."""
    with statement_connection("default", write=True) as connection:
        connection.execute(sa.update(bank.account).values(moves=99))


def write_in_a_transaction_elsewhere(event: Moved) -> None:
    """The same in a transaction."""
    with transaction("default") as tx:
        tx.mark_written()
        tx.connection.execute(sa.update(bank.account).values(moves=99))


def publish_elsewhere(event: Moved) -> None:
    """An event into the source's outbox."""
    Heard(account="x", number=1).publish("default")


@pytest.mark.parametrize("trespass", [write_elsewhere, write_in_a_transaction_elsewhere, publish_elsewhere])
def test_a_subscriber_that_writes_elsewhere_is_stopped(configured: Pair, trespass: Callable[[Moved], None]) -> None:
    """Exactly once holds in the target's transaction only, so nothing of it happens, and the error names both."""

    def receive(event: Moved) -> None:
        bank.record(event)
        trespass(event)

    bank.subscribe(receive)
    subscriber(Heard, database="secondary")(lambda event: None)
    bank.open_bank()
    bank.transfer("a")
    assert sweep_lanes("default", owner="one") == 0
    ((*_, error),) = bank.parked(configured.first)
    assert "a subscriber of database 'secondary' wrote to 'default'" in error
    assert bank.arrivals(configured.second) == []
    assert configured.first.scalar("SELECT max(moves) FROM account") == 1
    assert bank.stored(configured.first) == 0


def test_a_subscriber_may_read_elsewhere(configured: Pair) -> None:
    """In the database where the event comes from, or any other."""

    def receive(event: Moved) -> None:
        with statement_connection("default", write=False) as connection:
            moves = connection.execute(sa.select(bank.account.c.moves).where(bank.account.c.name == "a")).scalar_one()
        with transaction("default") as tx:
            assert tx.connection.execute(sa.select(sa.func.count()).select_from(bank.account)).scalar_one() == 3
        bank.record(Moved(account="moves", number=moves))

    bank.subscribe(receive)
    bank.open_bank()
    bank.transfer("a")
    assert sweep_lanes("default", owner="one") == 1
    assert bank.arrivals(configured.second) == [("moves", 1)]


def test_a_swallowed_database_error_does_not_pass_for_success(configured: Pair) -> None:
    """Part of the transaction may be gone, so the event is not acknowledged."""

    def receive(event: Moved) -> None:
        bank.record(event)
        try:
            with statement_connection("secondary", write=True) as connection:
                connection.exec_driver_sql("INSERT INTO no_such_table VALUES (1)")
        except Exception:  # noqa: BLE001, S110 - what is tested
            pass

    bank.subscribe(receive)
    bank.open_bank()
    bank.transfer("a")
    assert sweep_lanes("default", owner="one") == 0
    assert [state for _, state, *_ in bank.parked(configured.first)] == ["failing"]
    assert bank.arrivals(configured.second) == []


def test_a_target_without_crosstie_tables_keeps_events_waiting(configured_crash_pair: Pair) -> None:
    """The lanes say what is missing; once it is there, the events arrive."""
    bank.open_bank()
    bank.transfer("a")
    configured_crash_pair.second.execute("ALTER TABLE crosstie_inbox RENAME TO hidden")
    assert sweep_lanes("default", owner="one") == 0
    assert "crosstie init" in failing_lanes(configured_crash_pair.first)[0][1]
    configured_crash_pair.second.execute("ALTER TABLE hidden RENAME TO crosstie_inbox")
    bank.ready_now(configured_crash_pair.first)
    assert sweep_lanes("default", owner="one") == 1


SERVED = pytest.mark.parametrize(
    "crash_pair", [("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)


@SERVED
def test_a_target_that_is_down_costs_one_attempt_for_all_its_lanes(
    crash_pair: Pair, proxy_to: Callable[[TestDatabase], Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole route backs off at once, and everything arrives when the target is back."""
    proxy = proxy_to(crash_pair.second)
    with configured_databases(Pair(crash_pair.first, crash_pair.second.proxied(proxy))):
        accounts = [f"account-{n}" for n in range(20)]
        bank.open_bank(accounts)
        for name in accounts:
            bank.transfer(name)
        proxy.cut()
        assert sweep_lanes("default", owner="one") == 0
        assert crash_pair.first.scalar("SELECT sum(epoch) FROM crosstie_lane") == 1
        assert crash_pair.first.scalar("SELECT count(*) FROM crosstie_lane WHERE ready_at_ms = 0") == 0
        assert "is not available" in failing_lanes(crash_pair.first)[0][1]
        proxy.heal()
        bank.ready_now(crash_pair.first)
        assert bank.drain_all() == 20
        assert len(bank.arrivals(crash_pair.second)) == 20


@SERVED
def test_while_a_target_is_down_one_lane_asks_and_its_success_lets_the_others_go(
    crash_pair: Pair, proxy_to: Callable[[TestDatabase], Proxy]
) -> None:
    """The others wait for the probe as long as it fails, and not a moment longer."""
    proxy = proxy_to(crash_pair.second)
    source = crash_pair.first
    with configured_databases(Pair(source, crash_pair.second.proxied(proxy))):
        accounts = [f"account-{n}" for n in range(20)]
        bank.open_bank(accounts)
        for name in accounts:
            bank.transfer(name)
        proxy.cut()
        sweep_lanes("default", owner="one")
        probe = source.scalar("SELECT lane FROM crosstie_lane WHERE epoch > 0")
        for _ in range(3):
            source.execute("UPDATE crosstie_lane SET ready_at_ms = 0 WHERE lane = %s", (probe,))
            before = source.scalar("SELECT min(ready_at_ms) FROM crosstie_lane WHERE lane <> %s", (probe,))
            assert sweep_lanes("default", owner="one") == 0
            assert source.scalar("SELECT min(ready_at_ms) FROM crosstie_lane WHERE lane <> %s", (probe,)) > before
        assert source.rows("SELECT lane FROM crosstie_lane WHERE epoch > 0") == [(probe,)]
        source.execute("UPDATE crosstie_lane SET ready_at_ms = ready_at_ms + 60000")
        source.execute("UPDATE crosstie_lane SET ready_at_ms = 0 WHERE lane = %s", (probe,))
        proxy.heal()
        assert bank.drain_all() == 20
        assert failing_lanes(source) == []


def finish(pair: Pair) -> None:
    """Drain until nothing is left; a server may hold a lost connection's locks for a moment."""

    def finished() -> bool:
        bank.ready_now(pair.first)
        sweep_lanes("default", owner="next")
        return bank.stored(pair.first) == 0

    eventually(finished, describe="the outbox is empty")


@SERVED
@pytest.mark.parametrize("moment", ["withheld", "answered"])
@pytest.mark.parametrize("healed", ["at once", "later"])
def test_a_lost_answer_to_the_targets_commit_does_not_apply_twice(
    crash_pair: Pair, proxy_to: Callable[[TestDatabase], Proxy], moment, healed: str
) -> None:
    """Whether the COMMIT was executed or never arrived: the inbox tells, in the same call or in a later one."""
    proxy = proxy_to(crash_pair.second)
    with configured_databases(Pair(crash_pair.first, crash_pair.second.proxied(proxy))):
        bank.open_bank()
        bank.transfer("a", times=3)

        def cut() -> None:
            trigger = proxy.cut_after(b"COMMIT", moment=moment)
            if healed == "at once":
                threads.append(pool.submit(heal_after, trigger))

        def heal_after(trigger: Trigger) -> None:
            trigger.wait()
            proxy.heal()

        threads: list = []
        with ThreadPoolExecutor(1) as pool, armed("relay.applied", cut):
            applied = drain("default", "secondary", owner="one")
        if healed == "at once":
            assert threads[0].done()
        elif moment == "answered":
            assert applied == 0  # nobody knew
            assert len(bank.arrivals(crash_pair.second)) == 3
        proxy.heal()
        finish(crash_pair)
        assert bank.arrivals(crash_pair.second) == [("a", 1), ("a", 2), ("a", 3)]


@SERVED
@pytest.mark.parametrize("moment", ["withheld", "answered"])
def test_a_lost_answer_to_the_acknowledgement_does_not_apply_twice(
    crash_pair: Pair, proxy_to: Callable[[TestDatabase], Proxy], moment
) -> None:
    """The source goes away while it acknowledges: the caller hears of it, and a later drain acknowledges again."""
    proxy = proxy_to(crash_pair.first)
    with configured_databases(Pair(crash_pair.first.proxied(proxy), crash_pair.second)):
        bank.open_bank()
        bank.transfer("a", times=3)

        def cut() -> None:
            proxy.cut_after(b"COMMIT", moment=moment)

        with armed("relay.acknowledged", cut), pytest.raises(DatabaseUnavailable, match="'default'"):
            drain("default", "secondary", owner="one")
        assert bank.stored(crash_pair.first) == (0 if moment == "answered" else 3)
        proxy.heal()
        bank.transfer("a")
        finish(crash_pair)
        assert bank.arrivals(crash_pair.second) == [("a", n) for n in range(1, 5)]


@SERVED
def test_a_dead_source_is_reported(crash_pair: Pair, proxy_to: Callable[[TestDatabase], Proxy]) -> None:
    """Sweeping a database that is down raises, naming it."""
    proxy = proxy_to(crash_pair.first)
    with configured_databases(Pair(crash_pair.first.proxied(proxy), crash_pair.second)):
        proxy.cut()
        with pytest.raises(DatabaseUnavailable, match="'default'"):
            sweep_lanes("default", owner="one")
