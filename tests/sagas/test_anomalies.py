"""What sagas without isolation let happen, as docs/sagas.md tells it; and that locked ones do not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from decimal import Decimal

import pytest

from bench.databases import Pair
from bench.faults import crash_at
from crosstie.orm.faults import FaultInjected, armed
from crosstie.sagas import RowLocked, saga, sweep_sagas
from crosstie.sagas.strategy import Isolation
from sagas.shop import Order, Stock, create_shop, saga_states

BOTH: list[Isolation | None] = [None, "locked"]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a configuration is made."""
    monkeypatch.setenv("CROSSTIE_SAGA__LOCK_TIMEOUT_S", "1")


@pytest.fixture
def shop(configured_crash_pair: Pair) -> Pair:
    """Two databases with the rows of the shop."""
    create_shop(configured_crash_pair.by_name)
    return configured_crash_pair


def _elsewhere(action: Callable[[], None]) -> None:
    """Run it in another thread, and wait for it."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _reserve(number: int, isolation: Isolation | None, *, expiry_s: float = 60) -> None:
    with saga("reserve", isolation=isolation, home="default", expiry_s=expiry_s):
        Order(sku="new", amount=Decimal(number)).save()
        stock = Stock.find(1)
        stock.reserved = number
        stock.save()


@pytest.mark.parametrize("isolation", BOTH)
def test_a_dirty_read_between_the_commits(isolation: Isolation | None, shop: Pair) -> None:
    """A saga that decides by what another has written and then takes back; a locked one is refused the row."""
    seen: list[int | str] = []

    def decide() -> None:
        try:
            with saga("decide", isolation=isolation) as s:
                stock = Stock.find(1)
                seen.append((s.lock(stock) if isolation else stock).reserved)
        except RowLocked:
            seen.append("refused")

    def look_and_fail() -> None:
        _elsewhere(decide)
        raise FaultInjected("saga.branch-committed")

    with armed("saga.branch-committed", look_and_fail), pytest.raises(Exception, match="aborted"):
        _reserve(7, isolation)

    assert shop.second.scalar("SELECT reserved FROM stock WHERE id = 1") == 0
    assert seen == (["refused"] if isolation else [7])


@pytest.mark.parametrize("isolation", BOTH)
def test_a_lost_update(isolation: Isolation | None, shop: Pair) -> None:
    """Two that read the row and write back what they have reckoned; a locked one reads it anew under its lock."""
    stale = Stock.find(1)
    _elsewhere(lambda: _reserve(7, isolation))

    with saga("mine", isolation=isolation, home="secondary") as s:
        stock = s.lock(stale) if isolation else stale
        stock.reserved += 1
        stock.save()

    assert shop.second.scalar("SELECT reserved FROM stock WHERE id = 1") == (8 if isolation else 1)


@pytest.mark.parametrize("isolation", BOTH)
def test_an_undo_conflict(isolation: Isolation | None, shop: Pair) -> None:
    """Somebody changes the row of an undecided saga, whose undo then waits for an operator; locked ones cannot."""
    with crash_at("saga.branch-committed"), crash_at("recovery.before-decision"), pytest.raises(FaultInjected):
        _reserve(7, isolation)

    def change() -> None:
        with saga("change", isolation=isolation, home="secondary"):
            stock = Stock.find(1)
            stock.reserved += 1
            stock.save()

    if isolation:
        with pytest.raises(RowLocked):
            change()
    else:
        change()
    shop.second.execute("UPDATE crosstie_saga SET expires_at_ms = 0, next_at_ms = 0")
    report = sweep_sagas("secondary")

    assert (report.quarantined, report.aborted) == ((0, 1) if isolation else (1, 0))
    assert shop.second.scalar("SELECT reserved FROM stock WHERE id = 1") == (0 if isolation else 8)
    assert saga_states(shop.by_name)["secondary"] == (["undone"] if isolation else ["applied"])
