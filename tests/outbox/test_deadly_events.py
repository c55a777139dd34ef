"""An event that kills whoever applies it is found and parked with its key; what is merely slow is not.

A worker's death is an exception here that nobody in the relay catches: its transaction is gone, and its lease runs out.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.databases import Pair
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.faults import armed
from crosstie.outbox import operation, pending, suspicion, sweep_lanes
from crosstie.outbox.inspection import lane_states, parked_events
from crosstie.outbox.lane import WARY_AT, Lease, claim, lanes_with_work, survived
from crosstie.outbox.operation import Selection
from crosstie.outbox.relay import drain_lane
from outbox import bank
from outbox.bank import Moved

SERVED = pytest.mark.parametrize(
    "crash_pair", [("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)


class Died(BaseException):
    """The end of a worker's process."""


@pytest.fixture(autouse=True)
def _one_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSTIE_OUTBOX__LANES", "1")
    monkeypatch.setenv("CROSSTIE_OUTBOX__SQLITE_LANES", "1")


def deadly(*victims: tuple[str, int], cured: threading.Event | None = None) -> Callable[[Moved], None]:
    """A subscriber that dies of these events, after having written something, until it is cured."""

    def receive(event: Moved) -> None:
        bank.record(event)
        if (event.account, event.number) in victims and not (cured and cured.is_set()):
            raise Died

    return receive


def publish(*moves: tuple[str, int]) -> None:
    """Events, each by itself."""
    for account, number in moves:
        Moved(account=account, number=number).publish("default")


def visit(pair: Pair) -> bool:
    """A worker comes when all leases have run out; whether it lives on."""
    pair.first.execute("UPDATE crosstie_lane SET lease_until_ms = 0, ready_at_ms = 0")
    try:
        sweep_lanes("default", owner="one")
    except Died:
        return False
    return True


def deaths_until_all_is_well(pair: Pair) -> int:
    """How many workers die until one has nothing left to do in the outbox."""
    died = 0
    while not visit(pair) or suspected(pair):
        died += not suspected(pair) or suspected(pair)[0][0] != suspicion.CONVICTED_AT
        assert died < 50
    assert bank.stored(pair.first) == 0
    return died


def parked(pair: Pair) -> list[tuple[str, int, str, int, int]]:
    """Account, number, state, attempts and deaths of the parked events, in the order of their ids."""
    rows = pair.first.rows("SELECT payload, state, attempts, deaths FROM crosstie_parked ORDER BY id")
    events = [(json.loads(payload), str(state), int(tries), int(deaths)) for payload, state, tries, deaths in rows]
    return [(event["account"], event["number"], *rest) for event, *rest in events]


def suspected(pair: Pair) -> list[tuple[int, object]]:
    """Deaths and trial of the lanes that have any."""
    rows = pair.first.rows("SELECT deaths, trying FROM crosstie_lane WHERE deaths > 0 OR trying IS NOT NULL")
    return [(int(deaths), trying) for deaths, trying in rows]


def open_bank(pair: Pair, subscriber: Callable[[Moved], object] = bank.record) -> None:
    """The bank, with as many lanes as the test's environment says."""
    ConnectionManager.configure(pair.configuration)
    bank.subscribe(subscriber)
    bank.open_bank()


def test_an_event_that_kills_its_workers_is_parked_after_five_and_the_others_arrive(configured: Pair) -> None:
    """With those of its key behind it; those of other keys and those before it arrive, once and in order."""
    open_bank(configured, deadly(("a", 2)))
    publish(("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 3), ("c", 1))
    assert deaths_until_all_is_well(configured) == 5
    assert bank.arrivals(configured.second) == [("a", 1), ("b", 1), ("b", 2), ("c", 1)]
    assert parked(configured) == [("a", 2, "failing", 1, 5), ("a", 3, "behind", 0, 0)]
    (head,) = parked_events("default", Selection())
    assert "5 workers died while they applied it" in head.error
    assert "'bank.moved'" in head.error
    assert 50 < (head.next_in_s or 0) <= 60
    assert suspected(configured) == []


def test_it_is_tried_again_at_the_cost_of_one_worker_and_dies_at_the_third(configured: Pair) -> None:
    """Then the operator has it tried again; once it can be applied, its key goes on in order."""
    cured = threading.Event()
    open_bank(configured, deadly(("a", 1), cured=cured))
    publish(("a", 1), ("a", 2))
    assert deaths_until_all_is_well(configured) == 5
    for attempts, state in [(2, "failing"), (3, "dead")]:
        bank.ready_now(configured.first)
        publish(("b", attempts))
        assert deaths_until_all_is_well(configured) == 1
        assert parked(configured) == [("a", 1, state, attempts, 4 + attempts), ("a", 2, "behind", 0, 0)]
    assert bank.arrivals(configured.second) == [("b", 2), ("b", 3)]
    assert deaths_until_all_is_well(configured) == 0
    assert operation.redrive("default", Selection(dead=True)) == 1
    cured.set()
    assert deaths_until_all_is_well(configured) == 0
    assert bank.arrivals(configured.second)[2:] == [("a", 1), ("a", 2)]
    assert parked(configured) == []
    assert suspected(configured) == []


def test_several_deadly_events_of_a_lane_cost_two_workers_each_once_it_is_known_that_there_are_any(
    configured_crash_pair: Pair,
) -> None:
    """None of the harmless ones is parked for them."""
    open_bank(configured_crash_pair, deadly(("b", 1), ("d", 1), ("e", 1)))
    publish(*((account, 1) for account in "abcdef"))
    assert deaths_until_all_is_well(configured_crash_pair) == 3 + 3 * 2
    assert bank.arrivals(configured_crash_pair.second) == [("a", 1), ("c", 1), ("f", 1)]
    assert [(account, deaths) for account, _, _, _, deaths in parked(configured_crash_pair)] == [
        ("b", 5),
        ("d", 5),
        ("e", 5),
    ]


def test_an_event_that_failed_first_and_kills_when_it_is_tried_again_is_found_too(configured_crash_pair: Pair) -> None:
    """Among the parked ones of several keys, of which the others arrive."""
    failing = threading.Event()
    failing.set()

    def receive(event: Moved) -> None:
        if failing.is_set():
            raise bank.Poison
        deadly(("b", 1))(event)

    open_bank(configured_crash_pair, receive)
    publish(("a", 1), ("b", 1), ("c", 1), ("b", 2))
    visit(configured_crash_pair)
    assert len(parked(configured_crash_pair)) == 4
    failing.clear()
    bank.ready_now(configured_crash_pair.first)
    assert deaths_until_all_is_well(configured_crash_pair) == 5
    assert bank.arrivals(configured_crash_pair.second) == [("a", 1), ("c", 1)]
    assert parked(configured_crash_pair) == [("b", 1, "failing", 2, 5), ("b", 2, "behind", 0, 0)]


def test_progress_forgets_the_deaths_before_it(configured_crash_pair: Pair) -> None:
    """Workers may be killed again and again, as long as there is one batch in between."""
    cured = threading.Event()
    open_bank(configured_crash_pair, deadly(*(("a", number) for number in range(1, 10)), cured=cured))
    for number, times in enumerate([2, WARY_AT, 2, WARY_AT], start=1):
        publish(("a", number))
        assert [visit(configured_crash_pair) for _ in range(times)] == [False] * times
        assert [deaths for deaths, _ in suspected(configured_crash_pair)] == [times - 1]
        # The last death shows when the next owner comes; of three, that one is wary, and finds nothing wrong.
        cured.set()
        assert visit(configured_crash_pair)
        assert suspected(configured_crash_pair) == []
        cured.clear()
    assert bank.arrivals(configured_crash_pair.second) == [("a", number) for number in range(1, 5)]


@pytest.mark.parametrize("point", ["relay.target-committed", "relay.acknowledged", "relay.source-committed"])
def test_what_was_applied_before_the_worker_died_is_not_parked(configured_crash_pair: Pair, point: str) -> None:
    """The next owner asks the target first; so an event that has had its effect answers for nothing."""
    open_bank(configured_crash_pair)
    publish(*(("a", number) for number in range(1, 9)))
    configured_crash_pair.first.execute("UPDATE crosstie_lane SET deaths = 3")

    def die() -> None:
        raise Died

    for _ in range(7):
        with armed(point, die):
            assert not visit(configured_crash_pair)
    assert visit(configured_crash_pair)
    assert bank.arrivals(configured_crash_pair.second) == [("a", number) for number in range(1, 9)]
    assert parked(configured_crash_pair) == []
    assert suspected(configured_crash_pair) == []


def test_an_owner_that_runs_out_of_time_leaves_the_rest_to_another_wary_one(
    configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next would take the whole batch in hand again, with the culprit in it; behind that, one is trusted."""
    monkeypatch.setenv("CROSSTIE_OUTBOX__BATCH_SIZE", "2")
    open_bank(configured_crash_pair)
    publish(*(("a", number) for number in range(1, 6)))
    configured_crash_pair.first.execute("UPDATE crosstie_lane SET deaths = 3")
    source = ConnectionManager.get("default")
    for done in (1, 2):
        (candidate,) = lanes_with_work(source)
        report = drain_lane("default", candidate, owner="one", out_of_time=lambda: True)
        assert (report.ending, report.applied) == ("out-of-time", 1)
        assert len(bank.arrivals(configured_crash_pair.second)) == done
        ((deaths, _),) = suspected(configured_crash_pair)
        assert deaths == WARY_AT
    (candidate,) = lanes_with_work(source)
    report = drain_lane("default", candidate, owner="one", out_of_time=lambda: True)
    assert (report.ending, report.applied) == ("out-of-time", 2)
    assert suspected(configured_crash_pair) == []


def test_a_lane_is_trusted_again_when_all_of_a_batch_were_tried(
    configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only when it is empty, which a busy lane never is."""
    monkeypatch.setenv("CROSSTIE_OUTBOX__BATCH_SIZE", "2")
    seen: list[list[tuple[int, object]]] = []

    def receive(event: Moved) -> None:
        bank.record(event)
        seen.append(suspected(configured_crash_pair))

    open_bank(configured_crash_pair, receive)
    publish(*(("a", number) for number in range(1, 6)))
    configured_crash_pair.first.execute("UPDATE crosstie_lane SET deaths = 3")
    assert visit(configured_crash_pair)
    assert [len(one) for one in seen[:2]] == [1, 1]
    assert seen[-1] == []
    assert len(bank.arrivals(configured_crash_pair.second)) == 5


def elsewhere(work: Callable[[], object]) -> object:
    """Run in another thread, with transactions of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@SERVED
def test_an_owner_that_is_slow_again_and_again_parks_nothing(configured_crash_pair: Pair) -> None:
    """Each of its batches outlasts the lease, and others take the lane meanwhile: it lives, and says so."""
    pair = configured_crash_pair

    def receive(event: Moved) -> None:
        bank.record(event)
        assert elsewhere(lambda: visit(pair)) is True

    open_bank(pair, receive)
    for number in range(1, 9):
        publish(("a", number))
        assert visit(pair)
        assert suspected(pair) == []
    visit(pair)
    assert bank.arrivals(pair.second) == [("a", number) for number in range(1, 9)]
    assert parked(pair) == []


@SERVED
def test_before_an_event_is_parked_owners_have_time_to_say_that_they_live(configured_crash_pair: Pair) -> None:
    """Nobody tries it meanwhile; each that comes back takes one death from it, and then it is tried again."""
    pair = configured_crash_pair
    open_bank(pair)
    publish(("a", 1))
    pair.first.execute("UPDATE crosstie_lane SET deaths = 5, trying = (SELECT min(id) FROM crosstie_outbox)")
    visit(pair)
    assert [deaths for deaths, _ in suspected(pair)] == [suspicion.CONVICTED_AT]
    (lane,) = [one for one in lane_states("default") if not one.idle]
    assert (lane.owner, lane.parked) == (None, 0)
    assert lane.ready_in_s > suspicion.HEARING_S
    source = ConnectionManager.get("default")
    lapsed = Lease("secondary", lane.lane, "", 1, 0, 30.0, "slow", settled=False)
    for _ in range(2):
        survived(source, lapsed)
    visit(pair)
    assert bank.arrivals(pair.second) == [("a", 1)]
    assert parked(pair) == []
    assert suspected(pair) == []


@SERVED
def test_an_event_is_not_convicted_while_the_owner_that_tries_it_lives(
    configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many have died before, the next one gets no further than the target's lock, and leaves the note alone."""
    pair = configured_crash_pair
    seen: list[list[tuple[int, object]]] = []

    def receive(event: Moved) -> None:
        bank.record(event)
        pair.first.execute("UPDATE crosstie_lane SET deaths = 5")
        before = suspected(pair)
        with monkeypatch.context() as another_process:
            another_process.setattr(suspicion.Turn, "_taken", threading.Lock())
            elsewhere(lambda: visit(pair))
        seen.extend([before, suspected(pair)])

    open_bank(pair, receive)
    publish(("a", 1))
    pair.first.execute("UPDATE crosstie_lane SET deaths = 3")
    visit(pair)
    ((deaths, trying),), after = seen
    assert (deaths, trying is None) == (5, False)
    assert after == [(6, trying)]
    visit(pair)
    assert bank.arrivals(pair.second) == [("a", 1)]
    assert parked(pair) == []


@SERVED
def test_an_owner_that_was_paused_and_lives_on_takes_the_count_of_its_death_back(configured_crash_pair: Pair) -> None:
    """Wherever it was paused, also where it holds no lock by which one could see that it lives."""
    pair = configured_crash_pair
    open_bank(pair)
    publish(("a", 1))
    source = ConnectionManager.get("default")

    def take_over() -> None:
        bank.ready_now(pair.first)
        (candidate,) = lanes_with_work(source)
        lease = claim(source, candidate, owner="two", lease_s=30)
        assert lease is not None
        assert lease.deaths == 1
        assert [deaths for deaths, _ in suspected(pair)] == [1]

    with armed("relay.claimed", take_over):
        visit(pair)
    assert suspected(pair) == []


@SERVED
def test_a_process_tries_the_events_of_one_lane_at_a_time(
    configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever kills it, no event of another lane was being tried and could be taken for the culprit."""
    monkeypatch.setenv("CROSSTIE_OUTBOX__LANES", "4")
    pair = configured_crash_pair
    trying: list[int] = []
    beside_the_first: list[int] = []

    def receive(event: Moved) -> None:
        bank.record(event)
        trying.append(event.number)
        if len(trying) == 1:
            elsewhere(lambda: sweep_lanes("default", owner="two"))
            beside_the_first.extend(trying[1:])

    open_bank(pair, receive)
    publish(*((f"account-{number}", number) for number in range(12)))
    lanes = pair.first.scalar("SELECT count(DISTINCT lane) FROM crosstie_outbox")
    assert lanes > 1
    pair.first.execute("UPDATE crosstie_lane SET deaths = 3")
    while bank.stored(pair.first):
        visit(pair)
    assert sorted(trying) == list(range(12))
    assert beside_the_first == []
    assert suspected(pair) == []


def test_lanes_and_status_show_what_is_suspected(configured_crash_pair: Pair) -> None:
    """How many owners died, which event was tried, and of a route, how many of its lanes are concerned."""
    open_bank(configured_crash_pair, deadly(("a", 1)))
    publish(("a", 1))
    ident = configured_crash_pair.first.scalar("SELECT id FROM crosstie_outbox")
    for _ in range(4):
        visit(configured_crash_pair)
    (lane,) = [one for one in lane_states("default") if not one.idle]
    assert (lane.deaths, lane.trying) == (3, ident)
    assert [(one.route, one.wary_lanes) for one in pending("default") if one.depth] == [("secondary", 1)]
