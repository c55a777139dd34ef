"""What a saga block promises to the code around it and inside it."""

from __future__ import annotations

import gc
import pickle
import threading
from decimal import Decimal
from functools import partial

import pytest

from bench.databases import Pair
from bench.faults import crash_at
from crosstie.orm import ConnectionManager, open_transactions
from crosstie.orm.local_transaction import current
from crosstie.orm.transaction import transaction
from crosstie.sagas import SagaAborted, SagaError, SagaInDoubt, saga, sweep_sagas
from sagas.shop import Order, Stock, contents, create_shop, saga_states


def _order_and_reserve(sku: str = "new") -> None:
    Order(sku=sku, amount=Decimal("9.99")).save()
    stock = Stock.find_by(sku="count")
    assert stock is not None
    stock.increment(reserved=2)


def _reserved(pair: Pair) -> object:
    return pair.second.scalar("SELECT reserved FROM stock WHERE sku = 'count'")


def test_all_databases_show_the_writes_of_a_saga_that_ended(configured: Pair) -> None:
    """After the block both databases have committed, home with the decision and the branch with its record."""
    create_shop(configured.by_name)

    with saga("order") as s:
        _order_and_reserve()

    assert s.saga_id
    assert configured.first.scalar("SELECT count(*) FROM orders WHERE sku = 'new'") == 1
    assert _reserved(configured) == 2
    assert saga_states(configured.by_name) == {"default": ["committed"], "secondary": ["applied"]}
    assert sweep_sagas("secondary").settled == 1
    assert saga_states(configured.by_name) == {"default": ["committed"], "secondary": ["done"]}


def test_nothing_is_committed_before_the_end_of_the_block(configured: Pair) -> None:
    """A second reader sees none of the writes while the block runs."""
    create_shop(configured.by_name)
    before = contents(configured.by_name)

    with saga("order"):
        _order_and_reserve()
        assert contents(configured.by_name) == before


def test_an_exception_inside_the_block_rolls_every_database_back(configured: Pair) -> None:
    """The exception leaves the block as it is; there is no record of the saga, because nothing was committed."""
    create_shop(configured.by_name)
    before = contents(configured.by_name)

    with pytest.raises(ZeroDivisionError), saga("order"):
        _order_and_reserve()
        raise ZeroDivisionError

    assert contents(configured.by_name) == before
    assert saga_states(configured.by_name) == {"default": [], "secondary": []}
    assert not open_transactions()


def test_a_block_that_writes_one_database_leaves_no_saga_record(configured: Pair) -> None:
    """One database needs no saga: it is a plain commit, though the other one was read."""
    create_shop(configured.by_name)

    with saga("order"):
        assert Stock.find_by(sku="keep") is not None
        Order(sku="new", amount=Decimal(1)).save()

    assert configured.first.scalar("SELECT count(*) FROM orders WHERE sku = 'new'") == 1
    assert saga_states(configured.by_name) == {"default": [], "secondary": []}


@pytest.mark.parametrize("point", ["saga.before-first-commit", "saga.branch-recorded", "saga.branch-committed"])
def test_a_failure_between_commits_is_undone_before_the_caller_is_told(point: str, configured: Pair) -> None:
    """SagaAborted with nothing pending means that the databases are as they were."""
    create_shop(configured.by_name)
    before = contents(configured.by_name)

    with crash_at(point), pytest.raises(SagaAborted) as aborted, saga("order"):
        _order_and_reserve()

    assert aborted.value.pending == ()
    assert aborted.value.retryable
    assert contents(configured.by_name) == before
    assert saga_states(configured.by_name)["default"] == ["finished"]


def test_the_same_block_may_be_run_again_after_an_abort(configured: Pair) -> None:
    """Objects that an abort has taken back are new again, so that the block's code saves them anew."""
    create_shop(configured.by_name)
    order = Order(sku="new", amount=Decimal(3))

    with crash_at("saga.branch-committed"), pytest.raises(SagaAborted), saga("order"):
        order.save()
        Stock(sku="new").save()
    assert order.id is None

    with saga("order"):
        order.save()
        Stock(sku="new").save()

    assert configured.first.scalar("SELECT count(*) FROM orders WHERE sku = 'new'") == 1
    assert configured.second.scalar("SELECT count(*) FROM stock WHERE sku = 'new'") == 1


def test_hooks_after_commit_run_once_home_has_committed(configured: Pair) -> None:
    """A hook of a branch waits for the decision, and an aborted saga runs none."""
    create_shop(configured.by_name)
    ran: list[str] = []

    def note(name: str) -> None:
        ran.append(f"{name} {saga_states(configured.by_name)['default']}")

    def block() -> None:
        with saga("order"):
            _order_and_reserve()
            for name in ("default", "secondary"):
                tx = current(name)
                assert tx is not None
                tx.after_commit(partial(note, name))

    with crash_at("saga.branch-committed"), pytest.raises(SagaAborted):
        block()
    assert ran == []

    block()
    assert [entry.split(" ")[0] for entry in ran] == ["default", "secondary"]
    assert all("committed" in entry for entry in ran)


def test_a_savepoint_inside_a_saga_takes_its_writes_and_their_undo_back(configured: Pair) -> None:
    """What a nested transaction rolled back is neither committed nor undone a second time."""
    create_shop(configured.by_name)

    with saga("order"):
        Order(sku="new", amount=Decimal(1)).save()
        with pytest.raises(ZeroDivisionError), Stock.transaction():
            Stock(sku="lost").save()
            raise ZeroDivisionError
        Stock(sku="kept").save()

    assert configured.second.scalar("SELECT count(*) FROM stock WHERE sku = 'lost'") == 0
    assert configured.second.scalar("SELECT count(*) FROM stock WHERE sku = 'kept'") == 1
    undo = str(configured.second.scalar("SELECT undo_log FROM crosstie_saga"))
    assert "kept" in undo
    assert "lost" not in undo


def test_a_saga_inside_a_plain_transaction_is_refused(configured: Pair) -> None:
    """A commit that the saga does not control could not be part of one outcome."""
    create_shop(configured.by_name)

    with transaction("default"), pytest.raises(SagaError, match=r"plain transaction of 'default'"), saga("order"):
        pass


def test_an_unknown_home_is_refused_before_the_block_runs(configured: Pair) -> None:
    """The name is checked at once, with the nearest valid one in the message."""
    with pytest.raises(Exception, match="Did you mean 'default'"), saga("order", home="defualt"):
        pytest.fail("the block must not run")


def test_a_saga_leaves_nothing_to_the_garbage_collector(configured: Pair) -> None:
    """What a thousand of them have used is free when they end: a collection would find it in every generation."""
    create_shop(configured.by_name)
    stock = Stock.find_by(sku="count")
    assert stock is not None
    garbage = []
    gc.disable()
    try:
        for _ in range(8):
            gc.collect()
            _order_and_reserve_in_saga()
            with saga("one"):
                stock.increment(reserved=1)
            garbage.append(gc.collect())
    finally:
        gc.enable()
    # Statements that are compiled at first leave some, and so may what other tests have left running.
    assert min(garbage) == 0


def _order_and_reserve_in_saga() -> None:
    with saga("order"):
        _order_and_reserve()


def test_threads_have_sagas_of_their_own(configured: Pair) -> None:
    """Two threads inside sagas at the same time share nothing."""
    create_shop(configured.by_name)
    seen: list[bool] = []

    with saga("order"):
        thread = threading.Thread(target=lambda: seen.append(bool(open_transactions())))
        assert Order.find_by(sku="keep") is not None
        thread.start()
        thread.join()

    assert seen == [False]


def test_the_connection_names_of_a_saga_are_checked(configured: Pair) -> None:
    """`s.connection` of an unknown name raises the configuration's own error."""
    with pytest.raises(Exception, match="no connection is called"), saga("order") as s:
        s.connection("nowhere")
    assert ConnectionManager.names() == ["default", "secondary"]


@pytest.mark.parametrize("kind", [SagaAborted, SagaInDoubt])
def test_outcomes_survive_pickling(kind: type[SagaAborted] | type[SagaInDoubt]) -> None:
    """Celery's prefork pool sends exceptions between processes."""
    error = pickle.loads(pickle.dumps(kind("why", saga_id="1", pending=("a",))))  # noqa: S301 - our own bytes

    assert (type(error), str(error), error.saga_id, error.pending) == (kind, "why", "1", ("a",))
