"""An event that cannot be applied stalls its key and nothing else, and the key goes on in order once it can."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from bench.databases import Pair
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import StaleRecord
from crosstie.orm.local_transaction import current
from crosstie.orm.transaction import statement_connection, transaction
from crosstie.outbox import (
    Event,
    event,
    operation,
    parking,
    relay,
    subscriber,
    subscription,
    sweep,
    sweep_lanes,
    sync_routes,
)
from crosstie.outbox.batch import OutboxRow
from crosstie.outbox.errors import BatchRefused, DeliveryFailed
from crosstie.outbox.lane import Lease
from crosstie.outbox.parking import judge
from outbox import bank
from outbox.bank import Moved


def states(pair: Pair) -> list[tuple[int, str, int]]:
    """Number, state and attempts of the parked events, in the order of their ids."""
    rows = pair.first.rows("SELECT payload, state, attempts FROM crosstie_parked ORDER BY id")
    return [(json.loads(payload)["number"], str(state), int(attempts)) for payload, state, attempts in rows]


def sweep_now(pair: Pair) -> int:
    """A sweep for which every back-off has passed."""
    bank.ready_now(pair.first)
    return sweep_lanes("default", owner="one")


def one_lane(pair: Pair, monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    """All keys share a lane."""
    for name, value in ({"LANES": "1", "SQLITE_LANES": "1"} | settings).items():
        monkeypatch.setenv(f"CROSSTIE_OUTBOX__{name}", value)
    ConnectionManager.configure(pair.configuration)


def publish(account: str, number: int) -> None:
    """An event by itself."""
    Moved(account=account, number=number).publish("default")


def test_parked_keys_of_many_lanes_are_tried_again_however_long_a_claim_takes(
    configured: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that a lane has while others wait is over before anything is done: something is done in each visit."""
    monkeypatch.setattr(sweep, "VISIT_S", 0.0)
    cured = threading.Event()
    bank.subscribe(bank.poisoned_by(1, cured=cured))
    accounts = [f"account-{number}" for number in range(8)]
    bank.open_bank(accounts)
    for name in accounts:
        bank.transfer(name)
    assert sweep_lanes("default", owner="one") == 0
    assert len({lane for (lane,) in configured.first.rows("SELECT lane FROM crosstie_parked")}) > 1
    cured.set()
    assert sweep_now(configured) == 8


def test_a_poison_event_is_parked_with_those_behind_it_and_they_arrive_in_order_once_it_can_be_applied(
    configured: Pair,
) -> None:
    """Those before it are delivered; nothing of the failed try remains; new events of the key do not overtake."""
    cured = threading.Event()
    bank.subscribe(bank.poisoned_by(3, cured=cured))
    bank.open_bank()
    bank.transfer("a", times=4)
    assert sweep_lanes("default", owner="one") == 2
    assert bank.arrivals(configured.second) == [("a", 1), ("a", 2)]
    assert states(configured) == [(3, "failing", 1), (4, "behind", 0)]
    assert bank.stored(configured.first) == 0
    bank.transfer("a")
    assert sweep_lanes("default", owner="one") == 0
    assert states(configured) == [(3, "failing", 1), (4, "behind", 0), (5, "behind", 0)]
    assert sweep_now(configured) == 0
    assert states(configured) == [(3, "failing", 2), (4, "behind", 0), (5, "behind", 0)]
    cured.set()
    bank.transfer("a")
    assert sweep_now(configured) == 4
    assert bank.arrivals(configured.second) == [("a", n) for n in range(1, 7)]
    assert states(configured) == []
    assert configured.first.rows("SELECT failures FROM crosstie_lane WHERE failures > 0") == []


def test_other_keys_of_the_lane_go_on(configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same sweep, whether they stand before or behind the poison."""
    one_lane(configured, monkeypatch)
    bank.subscribe(bank.poisoned_by(13))
    bank.open_bank()
    for account, number in [("a", 1), ("b", 13), ("c", 1), ("b", 14), ("a", 2), ("c", 13), ("a", 3), ("c", 14)]:
        publish(account, number)
    assert sweep_lanes("default", owner="one") == 4
    assert bank.arrivals(configured.second) == [("a", 1), ("c", 1), ("a", 2), ("a", 3)]
    assert states(configured) == [(13, "failing", 1), (14, "behind", 0), (13, "failing", 1), (14, "behind", 0)]
    assert configured.first.rows("SELECT failures FROM crosstie_lane WHERE failures > 0") == []


def test_a_pause_in_the_middle_of_a_batch_does_not_open_a_parked_key(
    configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner has read new events when the pause begins: those of the parked key still go behind it."""
    bank.subscribe(bank.poisoned_by(1))
    bank.open_bank()
    bank.transfer("a")
    sweep_lanes("default", owner="one")
    bank.transfer("a")
    look = parking.look

    def paused(source: Database, lease: Lease) -> parking.Heads:
        operation.pause("default", "secondary")
        return look(source, lease)

    monkeypatch.setattr(parking, "look", paused)
    assert sweep_lanes("default", owner="one") == 0
    assert bank.arrivals(configured_crash_pair.second) == []
    assert states(configured_crash_pair) == [(1, "failing", 1), (2, "behind", 0)]


def test_events_without_an_order_park_alone(configured_crash_pair: Pair) -> None:
    """Each has a key of its own."""

    class Ping(Event):
        number: int

    seen = []

    def receive(ping: Ping) -> None:
        if ping.number == 2:
            raise bank.Poison
        seen.append(ping.number)

    subscriber(Ping, database="secondary")(receive)
    sync_routes()
    with transaction("default"):
        for number in range(1, 5):
            Ping(number=number).publish()
    sweep_lanes("default", owner="one")
    assert set(seen) == {1, 3, 4}
    assert [state for _, state, _ in states(configured_crash_pair)] == ["failing"]


def test_a_key_that_gets_further_still_waits_before_the_next_attempt(configured: Pair) -> None:
    """Its first event passes now and its second fails: that one is tried once, and then its time has to come."""
    cured = threading.Event()
    calls: list[int] = []

    def receive(moved: Moved) -> None:
        calls.append(moved.number)
        if moved.number == 2 or not cured.is_set():
            raise bank.Poison
        bank.record(moved)

    bank.subscribe(receive)
    bank.open_bank()
    bank.transfer("a", times=3)
    sweep_lanes("default", owner="one")
    cured.set()
    calls.clear()
    assert sweep_now(configured) == 1
    assert calls == [1, 2, 1], "the first is applied again by itself, because the second rolled it back"
    assert states(configured) == [(2, "failing", 1), (3, "behind", 0)]
    assert sweep_lanes("default", owner="one") == 0
    assert calls == [1, 2, 1]


def test_a_key_is_left_alone_until_its_time_has_come(configured_crash_pair: Pair) -> None:
    """A second sweep neither tries it nor claims its lane."""
    bank.subscribe(bank.poisoned_by(1))
    bank.open_bank()
    bank.transfer("a")
    sweep_lanes("default", owner="one")
    epoch = configured_crash_pair.first.scalar("SELECT max(epoch) FROM crosstie_lane")
    configured_crash_pair.first.execute("UPDATE crosstie_parked SET next_at_ms = next_at_ms + 60000")
    assert sweep_lanes("default", owner="one") == 0
    assert configured_crash_pair.first.scalar("SELECT max(epoch) FROM crosstie_lane") == epoch
    assert states(configured_crash_pair) == [(1, "failing", 1)]


def test_a_dead_event_is_kept_and_its_key_waits_behind_it(configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many attempts nobody tries it any more; other keys of the lane still go on."""
    one_lane(configured, monkeypatch, ATTEMPTS="3")
    bank.subscribe(bank.poisoned_by(1))
    bank.open_bank()
    bank.transfer("a", times=2)
    sweep_lanes("default", owner="one")
    sweep_now(configured)
    assert states(configured) == [(1, "failing", 2), (2, "behind", 0)]
    sweep_now(configured)
    assert states(configured) == [(1, "dead", 3), (2, "behind", 0)]
    sweep_now(configured)
    publish("a", 3)
    publish("b", 2)
    assert sweep_now(configured) == 1
    assert states(configured) == [(1, "dead", 3), (2, "behind", 0), (3, "behind", 0)]
    assert bank.arrivals(configured.second) == [("b", 2)]


def test_an_event_that_commits_late_goes_in_front_of_the_one_that_failed(
    configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a smaller id than the head it becomes the head: nothing is tried before it."""
    one_lane(configured_crash_pair, monkeypatch)
    bank.subscribe(bank.poisoned_by(5))
    bank.open_bank()
    publish("a", 5)
    configured_crash_pair.first.execute("UPDATE crosstie_outbox SET id = 1000")
    sweep_lanes("default", owner="one")
    publish("a", 4)
    configured_crash_pair.first.execute("UPDATE crosstie_outbox SET id = 1")
    assert sweep_lanes("default", owner="one") == 1
    assert bank.arrivals(configured_crash_pair.second) == [("a", 4)]
    assert states(configured_crash_pair) == [(5, "failing", 2)]


def with_deferred_constraint(pair: Pair) -> None:
    """A table of the target that refuses the number 13, but only when the transaction commits."""
    for statement in (
        "CREATE TABLE allowed (number INT PRIMARY KEY)",
        "CREATE TABLE strict (number INT REFERENCES allowed (number) DEFERRABLE INITIALLY DEFERRED)",
    ):
        pair.second.execute(statement)
    for number in range(1, 13):
        pair.second.execute("INSERT INTO allowed VALUES (%s)", (number,))


def record_strictly(moved: Moved) -> None:
    """Both tables."""
    bank.record(moved)
    with statement_connection("secondary", write=True) as connection:
        connection.execute(sa.text("INSERT INTO strict VALUES (:n)"), {"n": moved.number})


@pytest.mark.parametrize(
    "pair",
    [("mariadb", "postgresql"), ("sqlite", "postgresql"), ("postgresql", "sqlite"), ("sqlite", "sqlite")],
    indirect=True,
    ids="-".join,
)
def test_an_event_that_only_the_commit_refuses_is_found_by_halving_the_batch(
    configured: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody says which one it is; all the others are applied once, in order."""
    one_lane(configured, monkeypatch)
    with_deferred_constraint(configured)
    bank.subscribe(record_strictly)
    bank.open_bank()
    numbers = [1, 2, 3, 4, 13, 5, 6, 7, 8, 9, 10, 11]
    for number in numbers:
        publish("b" if number == 13 else "a", number)
    publish("b", 12)
    assert sweep_lanes("default", owner="one") == 11
    assert [number for _, number in bank.arrivals(configured.second)] == [n for n in numbers if n != 13]
    assert states(configured) == [(13, "failing", 1), (12, "behind", 0)]
    assert "IntegrityViolation" in bank.parked(configured.first)[0][3]
    configured.second.execute("INSERT INTO allowed VALUES (13)")
    assert sweep_now(configured) == 2
    assert bank.arrivals(configured.second)[-2:] == [("b", 13), ("b", 12)]


def test_a_hook_that_fails_before_the_commit_is_found_too(configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises, and however many events share its transaction."""
    one_lane(configured, monkeypatch)

    def check(_: object) -> None:
        raise bank.Poison

    def receive(moved: Moved) -> None:
        bank.record(moved)
        tx = current("secondary")
        assert tx is not None
        if moved.number == 13:
            tx.before_commit(check)

    bank.subscribe(receive)
    bank.open_bank()
    for number in (1, 2, 13, 4, 5):
        publish("b" if number == 13 else "a", number)
    assert sweep_lanes("default", owner="one") == 4
    assert [number for _, number in bank.arrivals(configured.second)] == [1, 2, 4, 5]
    assert "Poison before the commit" in bank.parked(configured.first)[0][3]


def test_what_passes_by_itself_makes_the_lane_wait_and_is_parked_only_if_it_does_not_pass(
    configured_crash_pair: Pair,
) -> None:
    """Then it stalls its key alone, and however often it fails, it does not die of it."""

    def receive(moved: Moved) -> None:
        if moved.number == 1:
            raise StaleRecord
        bank.record(moved)

    bank.subscribe(receive)
    bank.open_bank()
    bank.transfer("a", times=2)
    for failures in range(1, relay.PASSING_TRIES + 1):
        assert sweep_now(configured_crash_pair) == 0
        assert configured_crash_pair.first.scalar("SELECT max(failures) FROM crosstie_lane") == failures
        assert states(configured_crash_pair) == []
    assert sweep_now(configured_crash_pair) == 0
    assert states(configured_crash_pair) == [(1, "failing", 0), (2, "behind", 0)]
    for _ in range(20):
        sweep_now(configured_crash_pair)
    assert states(configured_crash_pair) == [(1, "failing", 0), (2, "behind", 0)]


@pytest.mark.parametrize("missing", ["the class", "the subscriber", "the newer version"])
def test_a_rolling_deployment_parks_nothing_and_a_lasting_lack_of_code_parks_without_counting(
    configured_crash_pair: Pair, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lane waits for some minutes first; then only the type concerned is parked, and never dies of it."""
    one_lane(configured_crash_pair, monkeypatch)
    bank.open_bank()
    bank.transfer("a", times=2)
    with monkeypatch.context() as patch:
        lose_code(patch, configured_crash_pair, missing)
        for _ in range(relay.UNDEPLOYED_TRIES):
            sweep_now(configured_crash_pair)
            assert states(configured_crash_pair) == []
        sweep_now(configured_crash_pair)
        assert states(configured_crash_pair) == [(1, "undeployed", 0), (2, "behind", 0)]
        bank.transfer("b")
        lose_code(patch, configured_crash_pair, missing)
        sweep_now(configured_crash_pair)
        assert states(configured_crash_pair)[2:] == [(1, "undeployed", 0)], "the next of the type waits for nothing"
        for _ in range(15):
            sweep_now(configured_crash_pair)
        assert [attempts for *_, attempts in states(configured_crash_pair)] == [0, 0, 0]
    configured_crash_pair.first.execute("UPDATE crosstie_parked SET schema_version = 1")
    assert sweep_now(configured_crash_pair) == 3
    assert bank.arrivals(configured_crash_pair.second) == [("a", 1), ("a", 2), ("b", 1)]


def lose_code(patch: pytest.MonkeyPatch, pair: Pair, what: str) -> None:
    """This worker is older than the producers."""
    if what == "the class":
        patch.setattr(event, "_classes", {})
    elif what == "the subscriber":
        patch.setattr(subscription, "_subscriptions", {})
    else:
        pair.first.execute("UPDATE crosstie_outbox SET schema_version = 2")


def test_events_of_an_undecided_saga_are_not_parked_behind_their_key(configured_crash_pair: Pair) -> None:
    """An abort deletes events of the outbox; so one that may still be aborted must not leave it."""
    bank.subscribe(bank.poisoned_by(1))
    bank.open_bank()
    bank.transfer("a")
    sweep_lanes("default", owner="one")
    configured_crash_pair.first.execute(
        "INSERT INTO crosstie_saga (saga_id, step, participant, role, state, name, home, participants, undo_log,"
        " created_at_ms, updated_at_ms, expires_at_ms, next_at_ms, attempts)"
        " VALUES ('s', 0, 'default', 'branch', 'applied', 'test', 'secondary', '[]', '[]', 0, 0, 0, 0, 0)"
    )
    with transaction("default") as tx:
        tx.ledger("outbox.saga_id").append("s")
        Moved(account="a", number=2).publish()
    sweep_now(configured_crash_pair)
    assert states(configured_crash_pair) == [(1, "failing", 2)]
    assert bank.stored(configured_crash_pair.first) == 1
    configured_crash_pair.first.execute("UPDATE crosstie_saga SET state = 'undone'")
    sweep_now(configured_crash_pair)
    assert bank.stored(configured_crash_pair.first) == 0
    assert states(configured_crash_pair) == [(1, "failing", 3)], "the event of the aborted saga is gone for good"


def test_a_storm_of_poison_keeps_every_other_event(configured_crash_pair: Pair, monkeypatch) -> None:
    """Every third key of two hundred fails; the rest arrives in one sweep."""
    one_lane(configured_crash_pair, monkeypatch)

    def receive(moved: Moved) -> None:
        if int(moved.account) % 3 == 0 and not cured.is_set():
            raise bank.Poison
        bank.record(moved)

    cured = threading.Event()
    bank.subscribe(receive)
    bank.open_bank()
    with transaction("default"):
        for number in (1, 2):
            for account in range(100):
                Moved(account=str(account), number=number).publish()
    assert sweep_lanes("default", owner="one", limit_s=60) == 132
    assert len(states(configured_crash_pair)) == 68
    cured.set()
    bank.ready_now(configured_crash_pair.first)
    assert sweep_lanes("default", owner="one", limit_s=60) == 68
    arrived = bank.arrivals(configured_crash_pair.second)
    assert sorted(arrived) == sorted((str(account), number) for account in range(100) for number in (1, 2))
    assert all(arrived.index((str(account), 1)) < arrived.index((str(account), 2)) for account in range(100))


def row(attempts: int) -> OutboxRow:
    """An event that has failed so often."""
    return OutboxRow(1, "u", "k", "t", 1, "{}", "{}", attempts=attempts)


def failing(**marks: bool) -> DeliveryFailed:
    """A failure of a subscriber."""
    failed = DeliveryFailed("no luck")
    for name, value in marks.items():
        setattr(failed, name, value)
    return failed


@pytest.mark.parametrize("failure", [failing(), BatchRefused("no luck")])
def test_the_time_between_attempts_doubles_up_to_ten_minutes(
    failure: DeliveryFailed | BatchRefused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 s, 2 s, …, 600 s; after the last attempt the event is dead."""
    monkeypatch.setattr(parking, "FIRST_RETRY_S", 1.0)
    verdicts = [judge(row(n), failure, limit=12, jitter=0) for n in range(12)]
    assert [one.delay_s for one in verdicts][:4] == pytest.approx([1, 2, 4, 8])
    assert verdicts[10].delay_s == 600
    assert [one.state for one in verdicts] == ["failing"] * 11 + ["dead"]
    assert [one.attempts for one in verdicts] == list(range(1, 13))
    assert judge(row(3), failure, limit=12, jitter=0.999).delay_s == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(("mark", "state"), [("undeployed", "undeployed"), ("passing", "failing")])
def test_nothing_dies_of_what_is_not_its_fault(mark: str, state: str) -> None:
    """The attempt does not count."""
    verdict = judge(row(11), failing(**{mark: True}), limit=12, jitter=0)
    assert (verdict.state, verdict.attempts) == (state, 11)
    assert verdict.delay_s > 0


def test_a_handler_sees_no_difference_between_a_first_and_a_later_attempt(configured_crash_pair: Pair) -> None:
    """The parked copy has the same uid, key and headers as the event."""
    seen: list[tuple[str, str, dict[str, str]]] = []
    failing_once: list[Callable[[], None]] = []

    def receive(moved: Moved, envelope) -> None:
        seen.append((envelope.uid, envelope.key, dict(envelope.headers)))
        if not failing_once:
            failing_once.append(lambda: None)
            raise bank.Poison

    receive.__qualname__ = "receive_once"
    subscriber(Moved, database="secondary")(receive)
    bank.open_bank()
    Moved(account="a", number=1).with_headers({"trace": "x"}).publish("default")
    assert sweep_lanes("default", owner="one") == 0
    assert sweep_now(configured_crash_pair) == 1
    assert seen[0] == seen[1]
    assert seen[0][1:] == ("a", {"trace": "x"})
