"""Crashed sagas that are alike are undone together, shared among processes, and none in another way than alone."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing
from decimal import Decimal
from threading import Thread

import pytest

from bench.databases import Pair
from bench.faults import crash_at
from bench.waiting import PATIENCE_S
from crosstie.orm.faults import FAULT_POINTS, FaultInjected, armed
from crosstie.sagas import cohort, compensation, resolve_saga, saga, sweep_effects, sweep_sagas
from crosstie.sagas.inspection import find_unfinished
from sagas.shop import Order, Stock, contents, create_shop, saga_states, sweep_until_quiet

POINTS = sorted(point for point in FAULT_POINTS if point.startswith("cohort."))
COUNT = 5


@pytest.fixture
def shop(configured: Pair) -> Pair:
    """With its rows."""
    create_shop(configured.by_name)
    return configured


def crash(number: int) -> str:
    """A saga whose branch has committed, whose home has not, and whose process is gone; it has expired."""
    ids: list[str] = []
    with (
        crash_at("saga.branch-committed"),
        crash_at("recovery.before-decision"),
        pytest.raises(FaultInjected),
        saga("crashed", home="default", expiry_s=-1) as s,
    ):
        ids.append(s.saga_id)
        Order(sku="new", amount=Decimal(number)).save()
        stock = Stock.find_by(sku="change")
        assert stock is not None
        stock.update(reserved=stock.reserved + number, note=f"by {number}")
        Stock(sku="new", reserved=number).save()
    return ids[0]


def reached(shop: Pair, point: str) -> str:
    """Where there is one writer at a time, sagas are undone one by one, and the same place has another name."""
    return point.replace("cohort.", "recovery.") if shop.second.kind == "sqlite" else point


def test_sagas_that_wrote_the_same_row_are_undone_the_last_one_first(shop: Pair) -> None:
    """Each finds the row as it has left it."""
    before = contents(shop.by_name)
    for number in range(1, COUNT + 1):
        crash(number)

    assert sweep_sagas("secondary").aborted == COUNT

    assert contents(shop.by_name) == before
    assert saga_states(shop.by_name) == {"default": ["finished"] * COUNT, "secondary": ["undone"] * COUNT}


def test_the_order_is_that_of_the_writes_and_not_of_the_beginnings(shop: Pair) -> None:
    """A saga that began before another may have written the same row after it: its write is undone first."""
    before = contents(shop.by_name)
    with (
        ExitStack() as faults,
        pytest.raises(FaultInjected),
        saga("began first", home="default", expiry_s=-1),
    ):
        thread = Thread(target=crash, args=(1,))
        thread.start()
        thread.join(PATIENCE_S)
        faults.enter_context(crash_at("saga.branch-committed"))
        faults.enter_context(crash_at("recovery.before-decision"))
        stock = Stock.find_by(sku="change")
        assert stock is not None
        stock.update(reserved=stock.reserved + 2)
        Order(sku="late", amount=Decimal(1)).save()

    sweep_until_quiet(shop.by_name)

    assert contents(shop.by_name) == before
    assert find_unfinished()[0] == []


@pytest.mark.parametrize("same_millisecond", [False, True])
def test_an_undo_waits_for_the_saga_that_wrote_the_row_after_it(shop: Pair, same_millisecond: bool) -> None:
    """Whichever is found first: what it meets is no stranger's change, as long as that saga is unfinished."""
    before = contents(shop.by_name)
    first, second = crash(1), crash(2)
    if same_millisecond:
        shop.second.execute("UPDATE crosstie_saga SET created_at_ms = 1000")

    assert resolve_saga(first, "default").deferred == 1
    assert find_unfinished()[0] != []
    assert not any(one.quarantined for one in find_unfinished()[0])
    assert resolve_saga(second, "default").aborted == 1
    assert resolve_saga(first, "default").aborted == 1
    assert contents(shop.by_name) == before


def test_nobody_waits_for_a_saga_that_is_quarantined_or_settled(shop: Pair) -> None:
    """A stranger has changed the row of the later one: both are an operator's, the later one first."""
    first, second = crash(1), crash(2)
    shop.second.execute("UPDATE stock SET reserved = 99 WHERE sku = 'change'")

    assert resolve_saga(first, "default").deferred == 1
    assert resolve_saga(second, "default").quarantined == 1
    assert resolve_saga(first, "default").quarantined == 1


def test_two_of_one_millisecond_do_not_wait_for_each_other_for_ever(shop: Pair) -> None:
    """Where both meet a stranger's change, neither knows that the other does."""
    crash(1)
    crash(2)
    shop.second.execute("UPDATE crosstie_saga SET created_at_ms = 1000")
    shop.second.execute("UPDATE stock SET reserved = 99 WHERE sku = 'change'")

    reports = []
    for _ in range(4):
        reports.append(sweep_sagas("secondary"))
        shop.second.execute("UPDATE crosstie_saga SET next_at_ms = 0")

    assert [report.deferred for report in reports] == [2, 2, 2, 0]
    assert [report.quarantined for report in reports] == [0, 0, 0, 2]


def test_a_conflict_keeps_the_other_sagas_from_nothing(shop: Pair) -> None:
    """The one whose row somebody has changed is quarantined; those that have written other rows are undone."""
    for number in range(1, COUNT + 1):
        crash(number)
    shop.second.execute("UPDATE stock SET reserved = 77 WHERE sku = 'new' AND reserved = 2")

    report = sweep_sagas("secondary")

    assert (report.aborted, report.quarantined) == (COUNT - 2, 2), "the first one finds what the second one wrote"
    assert [one.header.name for one in find_unfinished()[0] if one.quarantined] == ["crashed"] * 2


def test_what_another_process_has_in_hand_is_left_to_it(shop: Pair) -> None:
    """Not waited for, and not put off: it may let go at once."""
    if shop.second.kind == "sqlite":
        pytest.skip("a database with one writer: its sagas are undone one by one")
    ids = [crash(number) for number in range(1, COUNT + 1)]
    with shop.second.connect() as other, closing(other.cursor()) as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT state FROM crosstie_saga WHERE saga_id = %s FOR UPDATE", (ids[0],))
        cursor.fetchall()
        report = sweep_sagas("secondary")
        cursor.execute("ROLLBACK")

    assert (report.aborted, report.deferred) == (COUNT - 1, 0)
    assert sweep_sagas("secondary").aborted == 1


def test_a_saga_that_commits_after_all_is_settled_among_aborted_ones(shop: Pair) -> None:
    """Its original was slow; it decides when the sweep has taken it for crashed."""
    ids = [crash(number) for number in range(1, 4)]

    def commit() -> None:
        if "committed" not in saga_states(shop.by_name)["default"]:
            shop.first.execute(
                "INSERT INTO crosstie_saga (saga_id, step, participant, role, state, name, home, participants,"
                " undo_log, created_at_ms, updated_at_ms, expires_at_ms, next_at_ms, attempts) VALUES (%s, 0,"
                " 'default', 'home', 'committed', 'crashed', 'default', '[\"default\", \"secondary\"]', '[]',"
                " 0, 0, 0, 0, 0)",
                (ids[0],),
            )

    with armed(reached(shop, "cohort.before-decision"), commit):
        report = sweep_sagas("secondary")

    report += sweep_sagas("secondary")
    assert (report.settled, report.aborted) == (1, 2)
    assert sorted(saga_states(shop.by_name)["secondary"]) == ["done", "undone", "undone"]


def test_effects_of_sagas_that_are_aborted_together_are_compensated(
    shop: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision of each lets its effects fall due, in the same transaction."""
    monkeypatch.setattr(sys.modules["crosstie.sagas.compensation"], "_compensations", {})
    taken_back: list[int] = []
    compensation("cohort.refund")(taken_back.append)
    for number in range(3):
        with (
            crash_at("saga.branch-committed"),
            crash_at("recovery.before-decision"),
            pytest.raises(FaultInjected),
            saga("crashed", home="default", expiry_s=-1) as s,
        ):
            s.compensate_with("cohort.refund", number)
            Order(sku="new", amount=Decimal(1)).save()
            Stock(sku="new").save()
    assert sweep_sagas("secondary").aborted == 3
    while sweep_effects("default").compensated:
        pass
    assert sorted(taken_back) == [0, 1, 2]


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_that_dies_among_several_sagas_leaves_them_to_the_next(shop: Pair, point: str) -> None:
    """Wherever it is: its locks are gone with it, and what it had decided stands."""
    before = contents(shop.by_name)
    for number in range(1, COUNT + 1):
        crash(number)
    with crash_at(reached(shop, point)), pytest.raises(FaultInjected):
        sweep_until_quiet(shop.by_name)

    sweep_until_quiet(shop.by_name)  # what met a lock is put off, and found again

    assert contents(shop.by_name) == before
    assert saga_states(shop.by_name) == {"default": ["finished"] * COUNT, "secondary": ["undone"] * COUNT}


def test_more_sagas_than_one_cohort_takes(shop: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are undone in several, still the last ones first."""
    monkeypatch.setattr(cohort, "SIZE", 2)
    before = contents(shop.by_name)
    for number in range(1, COUNT + 1):
        crash(number)
    assert sweep_sagas("secondary").aborted == COUNT
    assert contents(shop.by_name) == before
