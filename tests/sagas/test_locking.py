"""Locks on the rows of a saga: held until it is settled, released with that, and in nobody's way for ever."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa

from bench import guard
from bench.databases import Pair, fresh_database
from bench.faults import crash_at, crash_env
from bench.processes import Spawner
from crosstie.orm.errors import CrosstieError, DatabaseUnavailable
from crosstie.orm.faults import FAULT_POINTS, FaultInjected, armed
from crosstie.sagas import RowLocked, SagaAborted, SagaBlock, SagaError, saga, sweep_sagas
from crosstie.sagas.inspection import find_leftovers
from sagas.shop import Order, Stock, contents, create_shop, saga_states, sweep_until_quiet

PROGRAM = Path(__file__).with_name("crash_program.py")


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a configuration is made."""
    monkeypatch.setenv("CROSSTIE_SAGA__LOCK_TIMEOUT_S", "1")


@pytest.fixture
def shop(configured_crash_pair: Pair) -> Pair:
    """Two databases with the rows of the shop."""
    create_shop(configured_crash_pair.by_name)
    return configured_crash_pair


def _locks(pair: Pair) -> dict[str, list[str]]:
    return {
        name: [f"{table} {key}" for table, key in database.rows("SELECT table_name, row_key FROM crosstie_saga_lock")]
        for name, database in pair.by_name.items()
    }


STOCK = sa.Table(
    "stock",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("sku", sa.String(200)),
    sa.Column("note", sa.String(200)),
)
NONE: dict[str, list[str]] = {"default": [], "secondary": []}


@contextmanager
def _reserving(number: int, *, expiry_s: float = 60, home: str = "default") -> Iterator[SagaBlock]:
    """A locked saga that writes both databases."""
    with saga("reserve", isolation="locked", expiry_s=expiry_s, home=home) as s:
        Order(sku="new", amount=Decimal(number)).save()
        stock = Stock.find(1)
        stock.reserved = number
        stock.save()
        yield s


def _reserve(number: int, *, expiry_s: float = 60) -> None:
    with _reserving(number, expiry_s=expiry_s):
        pass


def _leave_half_done(*, expiry_s: float) -> None:
    """A saga whose branch is applied, and whose process is gone."""
    with crash_at("saga.branch-committed"), crash_at("recovery.before-decision"), pytest.raises(FaultInjected):
        _reserve(7, expiry_s=expiry_s)


def test_locks_are_there_until_the_saga_is_decided(shop: Pair) -> None:
    """Committed with the branch, and gone when the block has ended."""
    seen: list[dict[str, list[str]]] = []

    with armed("saga.branch-committed", lambda: seen.append(_locks(shop))), _reserving(3):
        assert _locks(shop) == NONE

    assert seen == [{"default": [], "secondary": ['stock ["1"]']}]
    assert _locks(shop) == NONE
    assert saga_states(shop.by_name) == {"default": ["committed"], "secondary": ["done"]}


def test_an_abort_releases_the_locks_with_the_undo(shop: Pair) -> None:
    """The rows are as they were, and free."""
    before = contents(shop.by_name)

    with crash_at("saga.branch-committed"), pytest.raises(SagaAborted):
        _reserve(3)

    assert contents(shop.by_name) == before
    assert _locks(shop) == NONE


def test_each_kind_of_write_locks_its_row(shop: Pair) -> None:
    """Inserts, updates, deletes and increments, by models, in bulk and by Core; each row once."""
    seen: list[str] = []

    def write(s: SagaBlock) -> Stock:
        Order(sku="new", amount=Decimal(1)).save()
        new = Stock(sku="new").save()
        Stock.find(1).increment(reserved=1)
        Stock.find(1).increment(reserved=1)
        Stock.find(2).delete()
        Stock.find_all().where(sku="delete").update_all(note="bulk")
        s.connection("secondary").execute(sa.update(STOCK).where(STOCK.c.sku == "count").values(note="core"))
        return new

    with (
        armed("saga.branch-committed", lambda: seen.extend(_locks(shop)["secondary"])),
        saga("all", isolation="locked", home="default") as s,
    ):
        new = write(s)

    assert sorted(seen) == sorted(f'stock ["{key}"]' for key in (1, 2, 3, 4, new.id))


def test_a_second_saga_is_refused_while_the_first_is_undecided(shop: Pair) -> None:
    """It commits nothing, and what it is told is worth another try."""
    _leave_half_done(expiry_s=60)
    before = contents(shop.by_name)

    with pytest.raises(RowLocked, match=r"a row of 'stock' \(\[\"1\"\]\) is locked") as refused:
        _reserve(5)

    assert refused.value.retryable
    assert contents(shop.by_name) == before
    assert saga_states(shop.by_name)["secondary"] == ["applied"]


def test_a_second_saga_ends_the_first_if_that_is_past_its_expiry(shop: Pair) -> None:
    """On servers at once, on SQLite for the next try: as long as a saga is SQLite's writer nobody else can be."""
    _leave_half_done(expiry_s=0.001)

    if shop.second.kind == "sqlite":
        with pytest.raises(RowLocked):
            _reserve(5)
        assert saga_states(shop.by_name) == {"default": ["finished"], "secondary": ["undone"]}
    _reserve(5)

    assert shop.second.scalar("SELECT reserved FROM stock WHERE id = 1") == 5
    assert _locks(shop) == NONE


def test_a_second_saga_settles_the_first_if_that_is_decided(shop: Pair) -> None:
    """The first has committed, and its process died before it could release its locks."""
    with crash_at("saga.home-committed"), pytest.raises(FaultInjected):
        _reserve(3)
    assert _locks(shop)["secondary"] == ['stock ["1"]']

    if shop.second.kind == "sqlite":
        with pytest.raises(RowLocked):
            _reserve(5)
    _reserve(5)

    assert shop.second.scalar("SELECT reserved FROM stock WHERE id = 1") == 5
    assert _locks(shop) == NONE


def test_a_second_saga_waits_for_the_first_to_end(shop: Pair) -> None:
    """Up to `saga.lock_timeout_s`; on SQLite it is the database's own lock that is waited for."""
    between, go_on = threading.Event(), threading.Event()
    outcomes: list[str] = []

    def first() -> None:
        def pause() -> None:
            between.set()
            assert go_on.wait(60)

        with armed("saga.branch-recorded", pause):
            _reserve(3)

    def second() -> None:
        try:
            with saga("second", isolation="locked", home="secondary"):
                Stock.find(1).increment(reserved=1)
        except RowLocked:
            outcomes.append("locked")

    one, two = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    assert between.wait(60)
    two.start()
    go_on.set()
    one.join()
    two.join()

    reserved = shop.second.scalar("SELECT reserved FROM stock WHERE id = 1")
    # Refused is whoever meets the lock's insert in flight, or at once on SQLite; it has written nothing then.
    assert reserved == 4 - len(outcomes)
    assert _locks(shop) == NONE


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Pair]:
    """PostgreSQL and MariaDB: one writer at a time, as in SQLite, makes no deadlock."""
    with fresh_database("postgresql", tmp_path) as first, fresh_database("mariadb", tmp_path) as second:
        pair = Pair(first, second)
        with guard.configured_databases(pair):
            create_shop(pair.by_name)
            yield pair


def test_two_sagas_that_want_each_others_rows_both_end(servers: Pair) -> None:
    """One holds the row in one database and waits in the other, where no server sees the deadlock."""
    barrier = threading.Barrier(2)
    outcomes: list[str] = []

    def run(models: tuple[type[Order], type[Stock]] | tuple[type[Stock], type[Order]]) -> None:
        try:
            with saga("cross", isolation="locked"):
                for model in models:
                    record = model.find(1)
                    record.sku = f"by {models[0].__name__}"
                    record.save()
                    if model is models[0]:
                        barrier.wait(60)
        except CrosstieError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=run, args=(models,)) for models in ((Order, Stock), (Stock, Order))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()

    assert len(outcomes) >= 1
    assert set(outcomes) <= {"saga.row-locked", "database.lock-timeout", "database.deadlock", "saga.aborted"}
    written = {database.scalar(f"SELECT sku FROM {table} WHERE id = 1") for database, table in (
        (servers.first, "orders"), (servers.second, "stock"),
    )}  # fmt: skip
    assert len(written) == 1
    assert _locks(servers) == NONE


def test_a_refusal_inside_an_inner_saga_may_be_caught(shop: Pair) -> None:
    """The outer one goes on without it, and its own locks stay."""
    _leave_half_done(expiry_s=60)

    with saga("outer", isolation="locked", home="default"):
        Order(sku="outer", amount=Decimal(1)).save()
        Stock.find(2).increment(reserved=1)
        with suppress(RowLocked), saga("inner"):
            Stock.find(3).increment(reserved=1)
            Stock.find(1).increment(reserved=1)
        with saga("inner"):
            Stock.find(3).increment(reserved=2)

    reserved = shop.second.rows("SELECT reserved FROM stock WHERE id IN (2, 3) ORDER BY id")
    assert reserved == [(1,), (2,)]


def test_locks_of_a_savepoint_go_with_it_and_are_taken_again(shop: Pair) -> None:
    """What was rolled back is not locked, neither in the database nor in the saga's own books."""
    seen: list[str] = []

    with (
        armed("saga.branch-committed", lambda: seen.extend(_locks(shop)["secondary"])),
        saga("outer", isolation="locked", home="default"),
    ):
        Order(sku="outer", amount=Decimal(1)).save()
        with suppress(ZeroDivisionError), Stock.transaction():
            Stock.find(1).increment(reserved=1)
            Stock.find(2).increment(reserved=1)
            raise ZeroDivisionError
        Stock.find(1).increment(reserved=1)

    assert seen == ['stock ["1"]']


def test_a_row_may_be_locked_to_be_read(shop: Pair) -> None:
    """What it then holds, no undecided saga has written."""
    stock = Stock.find(1)
    shop.second.execute("UPDATE stock SET reserved = 4 WHERE id = 1")

    with saga("read", isolation="locked") as s:
        assert s.lock(stock).reserved == 4

    _leave_half_done(expiry_s=60)
    with pytest.raises(RowLocked), saga("read", isolation="locked") as s:
        s.lock(stock)
    with pytest.raises(SagaError, match="isolation='locked'"), saga("read") as s:
        s.lock(stock)


@pytest.mark.parametrize(
    "crash_pair", [("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)
def test_a_connection_that_is_lost_as_it_is_taken_leaves_no_transaction_open(shop: Pair) -> None:
    """A pooled one may have died with its server; the thread's next saga begins as if nothing had been."""
    with saga("reserve", isolation="locked"):
        Stock.find(1).increment(reserved=1)
    shop.second.end_sessions()
    with pytest.raises(DatabaseUnavailable), saga("reserve", isolation="locked"):
        Stock.find(1).increment(reserved=1)
    with saga("reserve", isolation="locked"):
        Stock.find(1).increment(reserved=1)
    assert Stock.find(1).reserved == 2


def test_raw_sql_is_refused_in_a_locked_saga(shop: Pair) -> None:
    """Nobody knows the rows that it writes."""
    with pytest.raises(SagaError, match="cannot know and lock the rows"), saga("raw", isolation="locked") as s:
        s.connection("default").execute(sa.text("UPDATE orders SET amount = 7"))


def test_an_inner_saga_cannot_ask_for_locks_that_the_outer_does_not_take(shop: Pair) -> None:
    """What the outer one has written before would not be locked."""
    with pytest.raises(SagaError, match="isolation='locked'"), saga("outer"), saga("inner", isolation="locked"):
        pytest.fail("the block must not run")


def test_a_lock_without_its_record_is_found_and_dropped(shop: Pair) -> None:
    """Somebody has deleted the record by hand; `leftovers` shows the lock, and a sweep drops it."""
    _leave_half_done(expiry_s=60)
    assert [one.kind for one in find_leftovers("secondary", grace_s=60)] == []
    shop.second.execute("DELETE FROM crosstie_saga")

    assert [one.kind for one in find_leftovers("secondary", grace_s=60)] == ["stale-lock"]
    sweep_sagas("secondary")

    assert _locks(shop) == NONE
    _reserve(5)


@pytest.mark.parametrize("point", sorted(point for point in FAULT_POINTS if point.startswith("saga.")))
def test_a_killed_saga_leaves_no_lock_after_a_sweep(point: str, configured_crash_pair: Pair, spawn: Spawner) -> None:
    """Wherever it dies; until then, the locks are exactly those of an applied branch."""
    shop = configured_crash_pair
    create_shop(shop.by_name)
    child = spawn.python(str(PROGRAM), "locked", "-", *shop.by_name, environment=shop.environment | crash_env(point))
    child.wait_killed()

    applied = saga_states(shop.by_name)["secondary"] == ["applied"]
    assert bool(_locks(shop)["secondary"]) == applied
    assert _locks(shop)["default"] == []

    sweep_until_quiet(shop.by_name)
    assert _locks(shop) == NONE


def test_the_error_survives_pickling() -> None:
    """Celery's prefork pool sends exceptions between processes."""
    error = pickle.loads(pickle.dumps(RowLocked("why", database="d", table="t", key="k")))  # noqa: S301 - our own bytes

    assert (str(error), error.database, error.table, error.key) == ("why", "d", "t", "k")
