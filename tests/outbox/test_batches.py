"""Subscribers that take events by the list: in order, once, and a bad event is found among the others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from bench.databases import Pair
from bench.faults import crash_at
from crosstie.orm.errors import DeadlockDetected
from crosstie.orm.transaction import statement_connection, transaction
from crosstie.outbox import Envelope, subscriber, sync_routes
from outbox import bank
from outbox.bank import Heard, Moved, received

Lists = list[list[tuple[str, int]]]


@pytest.fixture
def lists(configured_crash_pair: Pair) -> Lists:
    """The lists in which movements arrive; each is recorded by one INSERT."""
    taken: Lists = []

    def record(events: list[Moved], envelopes: list[Envelope]) -> None:
        assert [one.key for one in envelopes] == [event.account for event in events]
        refuse_bad(events)
        taken.append([(event.account, event.number) for event in events])
        insert(events)

    subscriber(Moved, database="secondary", batch=True)(record)
    bank.open_bank()
    return taken


def insert(events: list[Moved]) -> None:
    """A row for each event, all at once."""
    with statement_connection("secondary", write=True) as connection:
        rows = [{"account": event.account, "number": event.number} for event in events]
        connection.execute(sa.insert(received), rows)


def refuse_bad(events: list[Moved]) -> None:
    """Number 99 cannot be applied, and says nothing of itself."""
    if any(event.number == 99 for event in events):
        raise ValueError("one of them is bad")


def test_events_arrive_together_and_in_order(lists: Lists, configured_crash_pair: Pair) -> None:
    """As many as a batch of the relay holds."""
    bank.transfer("a", times=30)
    assert bank.drain_all() == 30
    assert [one for taken in lists for one in taken] == [("a", n) for n in range(1, 31)]
    assert len(lists) == 1
    assert bank.arrivals(configured_crash_pair.second) == lists[0]


@pytest.mark.parametrize("point", ["relay.applied", "relay.target-committed", "relay.acknowledged"])
def test_each_effect_is_there_once_whatever_crashes(lists: Lists, configured_crash_pair: Pair, point: str) -> None:
    """The list's rows and the record of it are one transaction."""
    bank.transfer("a", times=5)
    with crash_at(point), pytest.raises(Exception, match=point):
        bank.drain_all()
    bank.ready_now(configured_crash_pair.first)
    bank.drain_all()
    assert bank.arrivals(configured_crash_pair.second) == [("a", n) for n in range(1, 6)]


def test_a_bad_event_is_found_and_parked_with_those_behind_it(lists: Lists, configured_crash_pair: Pair) -> None:
    """By halving the list: what comes before it is applied, and other keys go on."""
    with transaction("default"):
        for number in range(1, 31):
            Moved(account="a", number=99 if number == 13 else number).publish()
            Moved(account="b", number=number + 100).publish()
    configured_crash_pair.first.execute("UPDATE crosstie_outbox SET lane = 0")
    while bank.drain_all():
        pass
    arrived = bank.arrivals(configured_crash_pair.second)
    assert [n for account, n in arrived if account == "a"] == list(range(1, 13))
    assert [n for account, n in arrived if account == "b"] == list(range(101, 131))
    assert configured_crash_pair.first.scalar("SELECT count(*) FROM crosstie_parked") == 18


def test_a_failure_that_passes_is_not_blamed_on_an_event(
    lists: Lists, configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deadlock ends the whole list, which comes again as it was."""
    fail = [True]

    def deadlock(events: list[Moved]) -> None:
        if fail.pop() if fail else False:
            raise DeadlockDetected("somebody else")

    monkeypatch.setattr("outbox.test_batches.refuse_bad", deadlock)
    bank.transfer("a", times=4)
    for _ in range(2):
        bank.drain_all()
        bank.ready_now(configured_crash_pair.first)
    assert [len(taken) for taken in lists] == [4]
    assert configured_crash_pair.first.scalar("SELECT count(*) FROM crosstie_parked") == 0


def test_events_of_other_types_in_between_keep_the_order(lists: Lists, configured_crash_pair: Pair) -> None:
    """A list ends where another type begins; subscribers to single events see each of both."""
    seen: list[str] = []

    def see(kind: str) -> Callable[[Moved | Heard], None]:
        def receive(event: Moved | Heard) -> None:
            seen.append(f"{kind}{event.number}")

        receive.__qualname__ = f"see_{kind}"
        return receive

    subscriber(Moved, database="secondary")(see("moved"))
    subscriber(Heard, database="secondary")(see("heard"))
    sync_routes()
    with transaction("default"):
        for number, cls in enumerate((Moved, Moved, Heard, Moved)):
            cls(account="a", number=number).publish()
    assert bank.drain_all() == 4
    assert lists == [[("a", 0), ("a", 1)], [("a", 3)]]
    assert seen == ["moved0", "moved1", "heard2", "moved3"]
