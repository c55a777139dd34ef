"""What crosstie.testing promises to the tests of applications."""

from __future__ import annotations

from decimal import Decimal

import pytest
import sqlalchemy as sa

from bench.databases import Pair, TestDatabase
from crosstie.orm import transaction
from crosstie.orm.faults import FaultInjected
from crosstie.outbox.tables import METADATA
from crosstie.sagas import SagaAborted, SagaError, SagaNotUndoable, SagaTimedOut, saga, sweep_sagas
from crosstie.sagas.declared import Saga, StepFailed, definition, step
from crosstie.testing import (
    Left,
    assert_compensated,
    crash_at,
    run_until_quiet,
    saga_selftest,
    virtual_time,
)
from crosstie.testing.passing import TIMES
from sagas.shop import Order, Stock, contents, create_shop, saga_states


@pytest.fixture
def shop(configured_crash_pair: Pair) -> Pair:
    """Two databases with the rows of the shop."""
    create_shop(configured_crash_pair.by_name)
    return configured_crash_pair


def _write() -> None:
    Order(sku="new", amount=Decimal(1)).save()
    Stock(sku="new").save()
    changed, deleted, counted = (Stock.find_by(sku=sku) for sku in ("change", "delete", "count"))
    assert changed
    assert deleted
    assert counted
    changed.note = "changed"
    changed.save()
    deleted.delete()
    counted.increment(reserved=3)


def _leave_half_done() -> str:
    with (
        crash_at("saga.branch-committed"),
        crash_at("recovery.before-decision"),
        pytest.raises(FaultInjected),
        saga("order") as s,
    ):
        _write()
    return s.saga_id


def test_a_place_that_is_not_reached_fails_the_test() -> None:
    """It would prove nothing."""
    with pytest.raises(AssertionError, match="was not reached 2 times"), crash_at("saga.branch-committed", nth=2):
        pass
    with pytest.raises(ValueError, match=r"no fault point is called 'saga\.nowhere'"), crash_at("saga.nowhere"):
        pass


def test_an_hour_passes_at_once(shop: Pair) -> None:
    """For the expiry of a saga, in the databases."""
    before = contents(shop.by_name)
    with virtual_time() as time:
        _leave_half_done()
        assert sweep_sagas("secondary").aborted == 0

        time.advance(3600)
        assert sweep_sagas("secondary").aborted == 1

    assert time.passed_s == 3600
    assert contents(shop.by_name) == before


def test_every_column_in_milliseconds_is_a_time_that_passes_or_a_known_duration() -> None:
    """A new one has to be told apart by its name, or here."""
    columns = {column.name for table in METADATA.sorted_tables for column in table.columns}
    assert {name for name in columns if name.endswith("_ms") and not name.endswith(TIMES)} == {"delay_ms"}


def test_time_passes_for_a_deadline_until_the_end_of_the_block(shop: Pair) -> None:
    """And it never goes back."""
    with virtual_time() as time:
        with pytest.raises(SagaTimedOut), saga("order", timeout_s=60):
            time.advance(60)
        with pytest.raises(ValueError, match="time does not go back"):
            time.advance(0)

    with saga("order", timeout_s=60):
        _write()


def test_a_worker_in_the_test_settles_and_aborts(shop: Pair) -> None:
    """Committed sagas are settled, those of dead processes undone, before their expiry has come."""
    with saga("order"):
        _write()
    before = contents(shop.by_name)
    with (
        crash_at("saga.branch-committed"),
        crash_at("recovery.before-decision"),
        pytest.raises(FaultInjected),
        saga("order"),
    ):
        Order(sku="lost", amount=Decimal(1)).save()
        Stock(sku="lost").save()

    assert not run_until_quiet()

    assert contents(shop.by_name) == before
    assert sorted(saga_states(shop.by_name)["secondary"]) == ["done", "undone"]


def test_what_waits_for_an_operator_is_told(shop: Pair) -> None:
    """A worker will never do it, so it is no reason to go on."""
    saga_id = _leave_half_done()
    shop.second.execute("UPDATE stock SET note = 'mine' WHERE sku = 'change'")

    left = run_until_quiet()

    assert left == Left(sagas=[saga_id])
    assert left
    with pytest.raises(AssertionError, match=r"its branch 'secondary' is applied, because .* changed note since"):
        assert_compensated(saga_id)


def test_what_never_becomes_quiet_fails_the_test(shop: Pair) -> None:
    """The message names it."""
    saga_id = _leave_half_done()

    with pytest.raises(AssertionError, match=f"not quiet after 0 rounds: saga {saga_id} .* is undecided"):
        run_until_quiet(rounds=0)


def test_only_a_saga_that_is_taken_back_counts_as_compensated(shop: Pair) -> None:
    """Not one that is committed, and not one that is undecided."""
    with saga("order") as committed:
        _write()
    with pytest.raises(AssertionError, match="it is committed; its branch 'secondary' is applied"):
        assert_compensated(committed)

    shop.second.execute("UPDATE stock SET note = NULL, sku = 'change' WHERE id = 2")
    shop.second.execute("INSERT INTO stock (id, sku, reserved) VALUES (3, 'delete', 0)")
    undecided = _leave_half_done()
    with pytest.raises(AssertionError, match=r"it is undecided; .* call run_until_quiet\(\) first"):
        assert_compensated(undecided)
    run_until_quiet()
    assert_compensated(undecided)

    with crash_at("saga.before-first-commit"), pytest.raises(SagaAborted) as aborted, saga("order"):
        Order(sku="lost", amount=Decimal(1)).save()
        Stock(sku="lost").save()
    assert_compensated(aborted.value)


def test_a_block_that_can_be_undone_passes_and_leaves_nothing(shop: Pair) -> None:
    """All kinds of writes, in both databases, with and without a saga of its own; nothing is committed."""
    before = contents(shop.by_name)

    def in_a_saga() -> None:
        with saga("order"):
            _write()

    saga_selftest(_write)
    saga_selftest(in_a_saga)

    assert contents(shop.by_name) == before
    assert saga_states(shop.by_name) == {"default": [], "secondary": []}


def test_a_column_that_the_server_sets_by_itself_is_found(shop: Pair) -> None:
    """MariaDB sets it when the row is updated, and again when it is undone."""
    if shop.second.kind == "mariadb":
        stamp = "TIMESTAMP(6) NOT NULL DEFAULT '2001-01-01' ON UPDATE CURRENT_TIMESTAMP(6)"
        shop.second.execute(f"ALTER TABLE stock ADD COLUMN changed_at {stamp}")
        with pytest.raises(AssertionError, match=r"secondary.stock \(id=2\): column changed_at was .* and is .* after"):
            saga_selftest(_write)
        saga_selftest(_write, home="secondary")
    else:
        saga_selftest(_write)


def test_a_constraint_that_refuses_the_undo_is_found(configured_database: TestDatabase) -> None:
    """A row that was deleted cannot come back where a new one has its place."""
    Order.create_table()
    configured_database.execute("CREATE UNIQUE INDEX one_sku ON orders (sku)")
    Order(sku="one", amount=Decimal(1)).save()
    Order(sku="two", amount=Decimal(1)).save()

    def swap() -> None:
        one, two = Order.find(1), Order.find(2)
        one.sku = "between"
        one.save()
        two.sku = "one"
        two.save()
        Order.find_by(sku="between")

    saga_selftest(swap)  # undone backwards, each step finds its place free

    configured_database.execute("DROP TABLE orders")


def test_two_databases_that_nobody_can_undo_are_refused(shop: Pair) -> None:
    """As at the end of a saga."""

    def raw() -> None:
        with saga("raw") as s:
            s.connection("default").execute(sa.text("UPDATE orders SET amount = 7"))
            s.connection("secondary").execute(sa.text("UPDATE stock SET reserved = 7"))

    with pytest.raises(SagaNotUndoable):
        saga_selftest(raw)


def test_a_self_test_is_no_part_of_anything(shop: Pair) -> None:
    """It would roll back what others have written; and a block that writes nothing proves nothing."""
    with transaction("default"), pytest.raises(SagaError, match="cannot be run inside"):
        saga_selftest(_write)
    with pytest.raises(AssertionError, match="wrote to no database"):
        saga_selftest(lambda: None)
    with pytest.raises(ZeroDivisionError):
        saga_selftest(lambda: 1 / 0)


def test_runs_of_declared_sagas_go_on_until_they_wait(
    configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pauses between tries pass, a signal's time limit does not, and a compensation that is stuck is told."""
    monkeypatch.setattr(definition, "_classes", dict(definition._classes))
    tries: list[str] = []

    class Careful(Saga):
        """Fails once, then waits."""

        __home__ = "default"
        stuck: bool = False

        @step
        def first(self) -> None:
            """Succeeds when tried again."""
            tries.append("first")
            if len(tries) == 1:
                raise KeyError("not yet")

        @first.compensation
        def undo_first(self) -> None:
            """Is refused if it must be."""
            if self.stuck:
                raise StepFailed("stuck")

        @step(waits_for="go", wait_s=60)
        def second(self) -> None:
            """Needs a signal."""

    waiting = Careful().start()
    assert not run_until_quiet()
    run = Careful.find_run(waiting)
    assert run is not None
    assert (tries, [one.state for one in run.steps]) == (["first", "first"], ["done", "waiting"])
    Careful.signal(waiting, "go")
    assert not run_until_quiet()
    run = Careful.find_run(waiting)
    assert run is not None
    assert run.status == "done"

    stuck = Careful(stuck=True).start()
    run_until_quiet()
    Careful.cancel(stuck)
    assert run_until_quiet().runs == [stuck]
