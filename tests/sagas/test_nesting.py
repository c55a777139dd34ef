"""A saga inside a saga: one outcome with it, and taken back alone where it fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from bench import guard
from bench.databases import Pair, fresh_database
from bench.faults import crash_at
from crosstie.orm.errors import DatabaseError, DeadlockDetected, DuplicateKey, TransactionPoisoned
from crosstie.orm.local_transaction import current, open_transactions
from crosstie.outbox import Event, subscriber, sync_routes
from crosstie.sagas import SagaAborted, SagaError, saga, sweep_sagas
from sagas.shop import SKUS, Order, Stock, contents, create_shop, saga_states


class Refused(Exception):
    """What an inner saga fails with."""


class Base(DeclarativeBase):
    """Of a session's own models."""


class Item(Base):
    __tablename__ = "stock"

    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    sku: Mapped[str]
    reserved: Mapped[int] = mapped_column(default=0)


def _order(sku: str) -> Order:
    return Order(sku=sku, amount=Decimal(1)).save()


def _skus(pair: Pair) -> dict[str, list[object]]:
    found = {name: [row[1] for row in rows] for name, rows in contents(pair.by_name).items()}
    return {name: [sku for sku in skus if sku not in SKUS] for name, skus in found.items()}


def _fail(*, order: str | None = None, stock: str | None = None) -> None:
    with suppress(Refused), saga("inner"):
        if order:
            _order(order)
        if stock:
            Stock(sku=stock).save()
        raise Refused


def test_an_inner_saga_joins_the_outer_one(configured_crash_pair: Pair) -> None:
    """Functions that each open a saga can call each other and still end as one outcome."""
    create_shop(configured_crash_pair.by_name)

    with saga("outer") as outer:
        with saga("inner") as inner:
            assert inner is outer
            _order("new")
            Stock(sku="new").save()
        assert _skus(configured_crash_pair) == {"default": [], "secondary": []}

    assert _skus(configured_crash_pair) == {"default": ["new"], "secondary": ["new"]}
    assert len(saga_states(configured_crash_pair.by_name)["default"]) == 1


def test_a_failed_inner_saga_takes_its_own_writes_back_and_no_others(configured_crash_pair: Pair) -> None:
    """In both databases, those that the outer saga has written before stay, and it goes on."""
    create_shop(configured_crash_pair.by_name)

    with saga("outer"):
        _order("before")
        Stock(sku="before").save()
        _fail(order="lost", stock="lost")
        _order("after")
        Stock(sku="after").save()

    assert _skus(configured_crash_pair) == {"default": ["before", "after"], "secondary": ["before", "after"]}


def test_an_inner_saga_that_failed_leaves_nothing_to_undo(configured_crash_pair: Pair) -> None:
    """If the outer saga aborts between its commits, the undo knows nothing of what was taken back already."""
    create_shop(configured_crash_pair.by_name)
    before = contents(configured_crash_pair.by_name)

    with crash_at("saga.branch-committed"), pytest.raises(SagaAborted) as aborted, saga("outer"):
        _order("before")
        Stock(sku="before").save()
        _fail(order="lost", stock="lost")

    assert aborted.value.pending == ()
    assert contents(configured_crash_pair.by_name) == before
    assert "lost" not in str(configured_crash_pair.second.scalar("SELECT undo_log FROM crosstie_saga"))


def test_a_database_that_only_the_failed_inner_saga_touched_is_no_participant(configured_crash_pair: Pair) -> None:
    """Its transaction is over, and what is left is a saga of one database, without any record."""
    create_shop(configured_crash_pair.by_name)

    with saga("outer"):
        _order("new")
        _fail(stock="lost")
        assert list(open_transactions()) == ["default"]

    assert _skus(configured_crash_pair) == {"default": ["new"], "secondary": []}
    assert saga_states(configured_crash_pair.by_name) == {"default": [], "secondary": []}


def test_a_database_whose_only_writes_were_taken_back_is_no_participant_either(files: Pair) -> None:
    """It was read before, so its transaction goes on; but it has written nothing, and is not presumed home."""
    create_shop(files.by_name)

    with saga("outer"):
        assert Order.find_by(sku="keep") is not None
        _fail(order="lost")
        Stock(sku="new").save()

    assert _skus(files) == {"default": [], "secondary": ["new"]}
    assert saga_states(files.by_name) == {"default": [], "secondary": []}


def test_an_event_published_before_any_database_is_open_vanishes_with_its_inner_saga(
    files: Pair, own_registries: None
) -> None:
    """It is in no transaction's books yet."""
    create_shop(files.by_name)
    subscriber(Reserved, database="secondary")(_receive)
    assert not sync_routes().failed

    with saga("outer"):
        with suppress(Refused), saga("inner"):
            Reserved(number=9).publish()
            raise Refused
        Reserved(number=1).publish()
        _order("new")

    payloads = files.first.rows("SELECT payload FROM crosstie_outbox")
    assert [json.loads(payload)["number"] for (payload,) in payloads] == [1]


def test_home_is_chosen_among_the_writes_that_stand(files: Pair) -> None:
    """A database whose first writes were taken back is not presumed home for them, and takes undo images later."""
    create_shop(files.by_name)
    before = contents(files.by_name)

    def write() -> None:
        _fail(order="lost")
        Stock(sku="new").save()
        _order("new")

    with crash_at("saga.branch-committed"), pytest.raises(SagaAborted), saga("outer"):
        write()
    assert contents(files.by_name) == before

    with saga("outer"):
        write()
    assert _skus(files) == {"default": ["new"], "secondary": ["new"]}
    assert saga_states(files.by_name) == {
        "default": ["undone", "applied"], "secondary": ["finished", "committed"],
    }  # fmt: skip


def test_a_database_that_was_only_read_before_may_be_written_after_a_failure(
    configured_crash_pair: Pair,
) -> None:
    """It was open before, so it is taken back by a savepoint, and its next write is its first."""
    create_shop(configured_crash_pair.by_name)

    with saga("outer"):
        assert Stock.find_by(sku="keep") is not None
        _order("new")
        _fail(stock="lost")
        Stock(sku="new").save()

    assert _skus(configured_crash_pair) == {"default": ["new"], "secondary": ["new"]}
    assert sweep_sagas("secondary").settled == 1


def test_inner_sagas_fail_level_by_level(files: Pair) -> None:
    """What the innermost has kept goes with the one around it."""
    create_shop(files.by_name)

    with saga("outer"):
        _order("kept")
        with suppress(Refused), saga("middle"):
            Stock(sku="middle").save()
            with saga("innermost"):
                _order("innermost")
                Stock(sku="innermost").save()
            raise Refused
        with saga("another"):
            Stock(sku="another").save()
            _fail(order="lost", stock="lost")

    assert _skus(files) == {"default": ["kept"], "secondary": ["another"]}


def test_an_exception_that_nobody_catches_rolls_all_back(files: Pair) -> None:
    """It leaves the outer block as it is."""
    create_shop(files.by_name)
    before = contents(files.by_name)

    with pytest.raises(Refused), saga("outer"):
        _order("new")
        with saga("inner"):
            Stock(sku="new").save()
            raise Refused

    assert contents(files.by_name) == before


def test_a_database_error_is_healed_by_the_inner_sagas_edge(configured_crash_pair: Pair) -> None:
    """A statement that failed inside is taken back with the rest; one that was swallowed inside fails its end."""
    create_shop(configured_crash_pair.by_name)

    with saga("outer"):
        _order("new")
        assert Stock.find_by(sku="keep") is not None
        with suppress(DuplicateKey), saga("inner"):
            Stock(sku="lost").save()
            Stock(id=1, sku="twice").save()
        with pytest.raises(TransactionPoisoned), saga("inner"):
            Stock(sku="lost").save()
            with suppress(DuplicateKey):
                Stock(id=1, sku="twice").save()
        Stock(sku="new").save()

    assert _skus(configured_crash_pair) == {"default": ["new"], "secondary": ["new"]}


def test_an_error_in_a_database_that_the_inner_saga_opened_ends_there(configured_crash_pair: Pair) -> None:
    """There is no savepoint in it to go back to: its transaction is rolled back, and the next one is a new one."""
    create_shop(configured_crash_pair.by_name)

    with saga("outer"):
        _order("new")
        with pytest.raises(TransactionPoisoned), saga("inner"), suppress(DuplicateKey):
            Stock(id=1, sku="twice").save()
        Stock(sku="new").save()

    assert _skus(configured_crash_pair) == {"default": ["new"], "secondary": ["new"]}


def _receive(event: Event) -> None:
    """A subscriber; no worker runs."""


class Reserved(Event):
    """An event that names no database."""

    __event_type__ = "nesting.reserved"

    number: int


class Stocked(Event):
    """An event of the branch."""

    __connection__ = "secondary"

    number: int


def test_events_and_hooks_of_a_failed_inner_saga_vanish_with_it(
    configured_crash_pair: Pair, own_registries: None
) -> None:
    """The others are written in the order in which they were published, and their hooks run."""
    create_shop(configured_crash_pair.by_name)
    heard: list[str] = []
    for kind in (Reserved, Stocked):
        subscriber(kind, database="secondary")(_receive)
    assert not sync_routes().failed

    def note(number: int) -> None:
        Reserved(number=number).publish()
        Stocked(number=number).publish()
        for database in ("default", "secondary"):
            tx = current(database)
            assert tx is not None
            tx.after_commit(partial(heard.append, f"{database} {number}"))

    with saga("outer"):
        _order("new")
        Stock(sku="new").save()
        note(1)
        with saga("inner"):
            note(2)
        with suppress(Refused), saga("inner"):
            note(9)
            raise Refused
        note(3)

    for database in (configured_crash_pair.first, configured_crash_pair.second):
        payloads = database.rows("SELECT payload FROM crosstie_outbox ORDER BY id")
        assert [json.loads(payload)["number"] for (payload,) in payloads] == [1, 2, 3]
    assert sorted(heard) == [f"{name} {number}" for name in ("default", "secondary") for number in (1, 2, 3)]


def test_objects_saved_by_a_failed_inner_saga_are_new_again(configured_crash_pair: Pair) -> None:
    """As after a savepoint, so that they may be saved by another try."""
    create_shop(configured_crash_pair.by_name)
    order, stock = Order(sku="new", amount=Decimal(1)), Stock(sku="new")

    with saga("outer"):
        assert Order.find_by(sku="keep") is not None
        with suppress(Refused), saga("inner"):
            order.save()
            stock.save()
            raise Refused
        assert (order.id, stock.id) == (None, None)
        order.save()
        stock.save()

    assert _skus(configured_crash_pair) == {"default": ["new"], "secondary": ["new"]}


def test_a_session_goes_back_with_a_failed_inner_saga(configured_crash_pair: Pair) -> None:
    """What was pending outside stays, what was changed, flushed or pending inside is forgotten."""
    create_shop(configured_crash_pair.by_name)

    with saga("outer", home="default") as s:
        _order("new")
        session = s.session("secondary")
        session.add(Item(id=90, sku="outside"))
        kept = session.scalars(sa.select(Item).where(Item.sku == "count")).one()
        with suppress(Refused), saga("inner"):
            kept.reserved = 7
            session.add(Item(id=91, sku="flushed"))
            session.flush()
            session.add(Item(id=92, sku="pending"))
            raise Refused
        assert kept.reserved == 0
        with saga("inner"):
            kept.reserved = 3

    assert _skus(configured_crash_pair) == {"default": ["new"], "secondary": ["outside"]}
    assert configured_crash_pair.second.scalar("SELECT reserved FROM stock WHERE sku = 'count'") == 3


@pytest.mark.parametrize("end", ["commit", "a failed flush"])
def test_a_session_that_was_ended_inside_still_goes_back(end: str, configured_crash_pair: Pair) -> None:
    """commit() on it commits nothing, and a flush that failed is healed by the edge."""
    create_shop(configured_crash_pair.by_name)

    with saga("outer", home="default") as s:
        _order("new")
        session = s.session("secondary")
        session.add(Item(id=90, sku="outside"))
        with suppress(Refused, sa.exc.IntegrityError), saga("inner"):
            session.add(Item(id=91 if end == "commit" else 1, sku="inside"))
            session.commit()
            session.add(Item(id=92, sku="pending"))
            raise Refused
        session.add(Item(id=93, sku="later"))

    assert _skus(configured_crash_pair) == {"default": ["new"], "secondary": ["outside", "later"]}


def test_a_session_begun_inside_a_failed_inner_saga_is_empty_again(configured_crash_pair: Pair) -> None:
    """Whether its database was open before or not."""
    create_shop(configured_crash_pair.by_name)

    for touch_before in (False, True):
        with saga("outer", home="default") as s:
            _order("new")
            if touch_before:
                assert Stock.find_by(sku="keep") is not None
            with suppress(Refused), saga("inner"):
                s.session("secondary").add(Item(id=90, sku="lost"))
                s.session("secondary").flush()
                s.session("secondary").add(Item(id=91, sku="pending"))
                raise Refused
            s.session("secondary").add(Item(id=92 + touch_before, sku="later"))

    assert _skus(configured_crash_pair) == {"default": ["new", "new"], "secondary": ["later", "later"]}


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Pair]:
    """Two SQLite databases, for what no server has a part in."""
    with fresh_database("sqlite", tmp_path) as first, fresh_database("sqlite", tmp_path) as second:
        pair = Pair(first, second)
        with guard.configured_databases(pair):
            yield pair


@pytest.fixture
def mariadb_branch(tmp_path: Path) -> Iterator[Pair]:
    """`default` in SQLite, `secondary` in MariaDB."""
    with fresh_database("sqlite", tmp_path) as first, fresh_database("mariadb", tmp_path) as second:
        pair = Pair(first, second)
        with guard.configured_databases(pair):
            create_shop(pair.by_name)
            yield pair


@pytest.mark.parametrize("loss", ["deadlock", "connection"])
def test_after_an_error_that_took_the_whole_transaction_the_outer_saga_can_only_abort(
    loss: str, mariadb_branch: Pair
) -> None:
    """MariaDB has forgotten the savepoints too, and what the outer saga had written."""
    before = contents(mariadb_branch.by_name)
    other_holds = threading.Event()

    def other() -> None:
        with mariadb_branch.second.connect() as connection, connection.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.executemany("INSERT INTO stock (sku, reserved) VALUES (%s, 0)", [("weight",)] * 50)
            cursor.execute("UPDATE stock SET reserved = 9 WHERE sku = 'change' AND id = 2")
            other_holds.set()
            cursor.execute("UPDATE stock SET reserved = 9 WHERE id = 1")
            cursor.execute("ROLLBACK")

    thread = threading.Thread(target=other)

    def lose(first: Stock, second: Stock) -> None:
        if loss == "connection":
            tx = current("secondary")
            assert tx is not None
            mariadb_branch.second.execute(f"KILL {tx.connection.scalar(sa.text('SELECT CONNECTION_ID()'))}")
        else:
            thread.start()
            assert other_holds.wait(60)
        second.increment(reserved=1)

    first, second = Stock.find(1), Stock.find(2)
    with pytest.raises(SagaAborted) as aborted, saga("outer", home="default"):
        _order("new")
        first.increment(reserved=1)
        with pytest.raises(DeadlockDetected if loss == "deadlock" else DatabaseError), saga("inner"):
            lose(first, second)

    if loss == "deadlock":
        thread.join()
    assert isinstance(aborted.value.__cause__, TransactionPoisoned)
    assert contents(mariadb_branch.by_name) == before
    assert saga_states(mariadb_branch.by_name) == {"default": [], "secondary": []}


def test_parameters_that_contradict_the_outer_saga_are_refused(files: Pair) -> None:
    """The message names both, and the inner block does not run; the outer saga may go on."""
    create_shop(files.by_name)

    with saga("outer", home="default", expiry_s=20):
        with pytest.raises(SagaError, match="the outer one has 'default'"), saga("inner", home="secondary"):
            pytest.fail("the block must not run")
        with pytest.raises(SagaError, match="expiry_s=5"), saga("inner", expiry_s=5):
            pytest.fail("the block must not run")
        with saga("inner", home="default", expiry_s=20):
            _order("new")

    assert _skus(files)["default"] == ["new"]


def test_an_inner_saga_names_home_where_nothing_has_been_decided(files: Pair) -> None:
    """Unless another database has been written already; the wish of one that failed is forgotten."""
    create_shop(files.by_name)

    with saga("outer"):
        with suppress(Refused), saga("inner", home="default"):
            raise Refused
        with saga("inner", home="secondary"):
            _order("new")
            Stock(sku="new").save()
    assert saga_states(files.by_name) == {"default": ["applied"], "secondary": ["committed"]}

    with saga("outer"):
        _order("another")
        with pytest.raises(SagaError, match="the outer one has 'default'"), saga("inner", home="secondary"):
            pytest.fail("the block must not run")
