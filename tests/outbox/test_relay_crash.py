"""A relay process is killed at each of its named places; whoever comes next finishes, and each effect is there once."""

from __future__ import annotations

from typing import Final

import pytest

from bench.databases import Pair
from bench.faults import crash_env
from bench.processes import Spawner
from bench.waiting import eventually
from crosstie.orm.connection import ConnectionManager
from crosstie.outbox import Envelope, sweep_lanes
from crosstie.outbox.insertion import insert_events
from outbox import bank
from outbox.bank import Moved

POINTS: Final = (
    "relay.claimed",
    "relay.applied",
    "relay.target-committed",
    "relay.acknowledged",
    "relay.source-committed",
)
RELAY: Final = """
    from outbox import bank
    bank.subscribe()
    bank.drain_all(owner="child")
"""
SMALL_BATCHES: Final = {"CROSSTIE_OUTBOX__BATCH_SIZE": "3"}


def given_events(accounts: str = "abc", each: int = 4) -> dict[str, int]:
    """Events in several lanes, more than one batch in each."""
    bank.open_bank(accounts)
    for _ in range(each):
        for name in accounts:
            bank.transfer(name)
    return dict.fromkeys(accounts, each)


def finish(pair: Pair, expected: dict[str, int]) -> None:
    """Let another relay finish once the lease of the dead one has run out, and compare what arrived, and in what order.

    A server may take a moment to notice that a client is dead, and until then its locks are respected.
    """
    total = sum(expected.values())

    def finished() -> bool:
        bank.ready_now(pair.first)
        sweep_lanes("default", owner="next")
        return bank.stored(pair.first) == 0

    eventually(finished, describe="the outbox is empty")
    arrived = bank.arrivals(pair.second)
    assert len(arrived) == total
    for name, count in expected.items():
        assert [number for account, number in arrived if account == name] == list(range(1, count + 1))


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("point", POINTS)
def test_a_relay_killed_anywhere_loses_nothing_and_doubles_nothing(
    configured_crash_pair: Pair, spawn: Spawner, point: str, nth: int
) -> None:
    """SIGKILL there, the first and the second time: nothing is lost, nothing is applied twice."""
    expected = given_events()
    environment = configured_crash_pair.environment | SMALL_BATCHES | crash_env(point, nth)
    spawn.code(RELAY, environment=environment).wait_killed()
    assert bank.stored(configured_crash_pair.first) > 0
    finish(configured_crash_pair, expected)


@pytest.mark.parametrize("second", ["relay.applied", "relay.target-committed", "relay.acknowledged"])
def test_a_relay_killed_while_it_recovers_from_another_that_was_killed(
    configured_crash_pair: Pair, spawn: Spawner, second: str
) -> None:
    """The recovery itself may die at each of its steps, and is repeated."""
    expected = given_events("a", each=5)
    for point in ("relay.target-committed", second, second):
        environment = configured_crash_pair.environment | SMALL_BATCHES | crash_env(point)
        spawn.code(RELAY, environment=environment).wait_killed()
        bank.ready_now(configured_crash_pair.first)
    finish(configured_crash_pair, expected)


@pytest.mark.parametrize(
    "crash_pair", [("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)
@pytest.mark.parametrize("second", ["relay.target-committed", "relay.source-committed"])
def test_an_event_that_commits_late_after_a_crash_does_not_push_another_out_of_the_recovery(
    configured_crash_pair: Pair, spawn: Spawner, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    """With it, the next batch holds only some of what was applied: the rest is inherited, whoever dies next."""
    for name, value in SMALL_BATCHES.items():
        monkeypatch.setenv(name, value)
    ConnectionManager.configure(configured_crash_pair.configuration)
    bank.open_bank("a")
    with ConnectionManager.get("default").engine.connect() as late:
        insert_events(late, [Envelope.of(Moved(account="a", number=0))])
        for number in range(1, 4):
            Moved(account="a", number=number).publish("default")
        environment = configured_crash_pair.environment | SMALL_BATCHES
        spawn.code(RELAY, environment=environment | crash_env("relay.target-committed")).wait_killed()
        late.commit()
    bank.ready_now(configured_crash_pair.first)
    spawn.code(RELAY, environment=environment | crash_env(second)).wait_killed()

    def finished() -> bool:
        bank.ready_now(configured_crash_pair.first)
        sweep_lanes("default", owner="next")
        return bank.stored(configured_crash_pair.first) == 0

    eventually(finished, describe="the outbox is empty")
    assert sorted(number for _, number in bank.arrivals(configured_crash_pair.second)) == [0, 1, 2, 3]


def test_new_events_after_a_crash_wait_behind_those_that_were_applied(
    configured_crash_pair: Pair, spawn: Spawner
) -> None:
    """Between the crash and the recovery the same key gets more events; order and count are as if nothing had been."""
    given_events("a", each=2)
    environment = configured_crash_pair.environment | crash_env("relay.target-committed")
    spawn.code(RELAY, environment=environment).wait_killed()
    bank.transfer("a", times=2)
    finish(configured_crash_pair, {"a": 4})
