"""A relay is killed while it parks and while it tries parked events again; whoever comes next finishes."""

from __future__ import annotations

import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Final

import pytest

from bench.databases import Pair
from bench.faults import crash_env
from bench.processes import Child, Spawner
from bench.waiting import eventually
from crosstie.orm.connection import ConnectionManager
from crosstie.outbox import sweep_lanes
from crosstie.outbox.errors import LeaseLost
from crosstie.outbox.lane import lanes_with_work
from crosstie.outbox.relay import drain_lane
from outbox import bank

POISON: Final = 3
RELAY: Final = """
    from outbox import bank
    bank.subscribe(bank.poisoned_by(3))
    bank.drain_all(owner="child")
"""
CURED: Final = """
    from outbox import bank
    bank.subscribe()
    bank.drain_all(owner="child")
"""
ONE_LANE: Final = {
    "CROSSTIE_OUTBOX__BATCH_SIZE": "4",
    "CROSSTIE_OUTBOX__LANES": "1",
    "CROSSTIE_OUTBOX__SQLITE_LANES": "1",
}
REDRIVING: Final = (
    "relay.applied",
    "relay.target-committed",
    "relay.unparked",
    "relay.acknowledged",
    "relay.source-committed",
)
LONG = os.environ.get("CROSSTIE_STORM") == "long"
KILLS, ARRIVALS = (80, 60) if LONG else (6, 40)


def given_events(each: int = 6) -> None:
    """Three accounts whose events share a lane, the third of each being poison."""
    bank.open_bank()
    for _ in range(each):
        for name in "abc":
            bank.transfer(name)


def everything_arrives(pair: Pair, each: int = 6) -> None:
    """In order, once, after the poison has been cured."""

    def finished() -> bool:
        bank.ready_now(pair.first)
        sweep_lanes("default", owner="next")
        return bank.stored(pair.first) == 0 and not bank.parked(pair.first)

    eventually(finished, describe="nothing waits")
    arrived = bank.arrivals(pair.second)
    assert len(arrived) == 3 * each
    for name in "abc":
        assert [number for account, number in arrived if account == name] == list(range(1, each + 1))


@pytest.fixture(autouse=True)
def _one_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ONE_LANE.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("point", ["relay.parked", "relay.acknowledged", "relay.source-committed"])
def test_a_relay_killed_while_it_parks_loses_nothing_and_doubles_nothing(
    configured_crash_pair: Pair, spawn: Spawner, point: str, nth: int
) -> None:
    """Before and after the transaction that moves events: they are in one of the two tables, never in both."""
    given_events()
    environment = configured_crash_pair.environment | ONE_LANE | crash_env(point, nth)
    spawn.code(RELAY, environment=environment).wait_killed()
    ids = [row[0] for row in configured_crash_pair.first.rows("SELECT id FROM crosstie_outbox")]
    ids += [row[0] for row in configured_crash_pair.first.rows("SELECT id FROM crosstie_parked")]
    assert len(ids) == len(set(ids))
    everything_arrives(configured_crash_pair)


@pytest.mark.parametrize(("point", "nth"), [("relay.recovered", 1), *product(REDRIVING, (1, 2))])
def test_a_relay_killed_while_it_tries_parked_events_again_does_not_apply_them_twice(
    configured_crash_pair: Pair, spawn: Spawner, point: str, nth: int
) -> None:
    """The target has them, the source may not know: the inbox tells the next owner, for parked events too."""
    given_events()
    spawn.code(RELAY, environment=configured_crash_pair.environment | ONE_LANE).wait_ok()
    assert len(bank.parked(configured_crash_pair.first)) == 12
    bank.ready_now(configured_crash_pair.first)
    environment = configured_crash_pair.environment | ONE_LANE | crash_env(point, nth)
    spawn.code(CURED, environment=environment).wait_killed()
    everything_arrives(configured_crash_pair)


@pytest.mark.parametrize(
    "crash_pair", [("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)
def test_a_lapsed_owner_cannot_park(configured_crash_pair: Pair) -> None:
    """While its subscriber failed, another worker took the lane: the parking is refused, and nothing has moved."""

    def receive(moved: bank.Moved) -> None:
        bank.ready_now(configured_crash_pair.first)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(sweep_lanes, "default", owner="next").result() == 0
        raise bank.Poison

    ConnectionManager.configure(configured_crash_pair.configuration)
    bank.subscribe(receive)
    bank.open_bank()
    bank.transfer("a", times=2)
    (candidate,) = lanes_with_work(ConnectionManager.get("default"))
    report = drain_lane("default", candidate, owner="zombie", out_of_time=lambda: False)
    assert (report.ending, type(report.error)) == ("lost", LeaseLost)
    assert bank.parked(configured_crash_pair.first) == []
    assert bank.stored(configured_crash_pair.first) == 2


PRODUCER: Final = """
    import random, sys, time
    from crosstie.outbox import pending
    from outbox import bank
    choose = random.Random(int(sys.argv[1]))
    while True:
        if any(route.depth > 200 for route in pending("default")):
            time.sleep(0.02)  # a few hundred are enough to park some, and the last relay has them all to deliver
            continue
        bank.transfer(choose.choice(["a", "b", "c", "d", "e", "f"]), times=choose.randint(1, 3))
        print("transferred", flush=True)
"""
STORMY_RELAY: Final = """
    import random, sys, time
    from crosstie.outbox import parking, sweep_lanes
    from crosstie.orm.errors import CrosstieError
    from outbox import bank
    choose = random.Random(int(sys.argv[1]))
    parking.LONGEST_RETRY_S = 0.5

    def receive(event):
        bank.record(event)
        if choose.random() < 0.05:
            raise bank.Poison

    bank.subscribe(receive)
    print("relaying", flush=True)
    while True:
        try:
            sweep_lanes("default", owner=f"relay {sys.argv[1]}")
        except CrosstieError as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        time.sleep(0.01)
"""


@pytest.mark.storm
@pytest.mark.timeout(1800 if LONG else 180)
def test_a_storm_of_poison_and_kills_keeps_the_order_of_every_key(configured_crash_pair: Pair, spawn: Spawner) -> None:
    """Several producers, several relays, subscribers that fail at random, and SIGKILL: each event once, in order."""
    pair = configured_crash_pair
    seed = int(os.environ.get("CROSSTIE_STORM_SEED") or random.randrange(2**32))
    sys.stdout.write(f"CROSSTIE_STORM_SEED={seed}\n")
    choose = random.Random(seed)
    accounts = "abcdef"
    environment = pair.environment | ONE_LANE | {"CROSSTIE_OUTBOX__LEASE_S": "0.3", "CROSSTIE_OUTBOX__ATTEMPTS": "1000"}
    bank.open_bank(accounts)

    def start(code: str) -> Child:
        return spawn.code(code, str(choose.randrange(2**32)), environment=environment)

    producers = [start(PRODUCER) for _ in range(2)]
    relays = [start(STORMY_RELAY) for _ in range(3)]
    ever_parked: set[int] = set()
    for _ in range(KILLS):
        seen = len(bank.arrivals(pair.second))
        wanted = choose.randint(5, ARRIVALS)

        def went_on(seen: int = seen, wanted: int = wanted) -> bool:
            ever_parked.update(number for number, *_ in bank.parked(pair.first))
            return len(bank.arrivals(pair.second)) >= seen + wanted

        eventually(went_on, within_s=120 if LONG else 60, describe="events arrive between two kills")
        victims, code = (relays, STORMY_RELAY) if choose.random() < 0.7 else (producers, PRODUCER)
        place = choose.randrange(len(victims))
        victims[place].kill()
        victims[place] = start(code)

    def much_was_parked() -> bool:
        ever_parked.update(number for number, *_ in bank.parked(pair.first))
        return len(ever_parked) >= KILLS

    eventually(much_was_parked, describe="so much is parked that the storm proves something")
    for child in [*producers, *relays]:
        child.kill()

    bank.subscribe()

    def finished() -> bool:
        bank.ready_now(pair.first)
        sweep_lanes("default", owner="last")
        return bank.stored(pair.first) == 0 and not bank.parked(pair.first)

    eventually(finished, describe="nothing waits")
    moves = {str(name): int(count) for name, count in pair.first.rows("SELECT name, moves FROM account")}
    arrived = bank.arrivals(pair.second)
    for name, count in moves.items():
        assert [number for account, number in arrived if account == name] == list(range(1, count + 1))
