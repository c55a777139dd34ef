"""What would break the protocol's proof if it were not guarded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from bench import guard
from bench.databases import Pair, TestDatabase, fresh_database
from bench.faults import crash_at
from crosstie.orm import ActiveRecord, ConnectionManager
from crosstie.orm.errors import CrosstieError, DatabaseError, DuplicateKey, TransactionPoisoned
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.local_transaction import current
from crosstie.orm.transaction import transaction
from crosstie.sagas import SagaAborted, SagaNotUndoable, saga
from sagas.shop import Order, Stock, contents, create_shop, saga_states


@pytest.fixture
def mariadb_branch(tmp_path: Path) -> Iterator[Pair]:
    """`default` in SQLite, `secondary` in MariaDB."""
    with ExitStack() as stack:
        pair = Pair(
            stack.enter_context(fresh_database("sqlite", tmp_path, furnished=True)),
            stack.enter_context(fresh_database("mariadb", tmp_path, furnished=True)),
        )
        stack.enter_context(guard.configured_databases(pair))
        create_shop(pair.by_name)
        yield pair


def _write_both() -> None:
    Order(sku="new", amount=Decimal(1)).save()
    Stock(sku="new").save()


@pytest.mark.parametrize("broken", ["default", "secondary"])
def test_a_database_error_that_was_swallowed_aborts_the_saga(broken: str, configured: Pair) -> None:
    """The server may have dropped part of the transaction, so nothing of it may be committed."""
    create_shop(configured.by_name)
    before = contents(configured.by_name)
    twice = Order(id=1, sku="twice", amount=Decimal(1)) if broken == "default" else Stock(id=1, sku="twice")

    def fail_and_swallow() -> None:
        with pytest.raises(DuplicateKey):
            twice.save()

    with pytest.raises((SagaAborted, TransactionPoisoned)), saga("order"):
        _write_both()
        fail_and_swallow()

    assert contents(configured.by_name) == before


def test_an_error_inside_a_nested_transaction_may_be_swallowed(configured: Pair) -> None:
    """A savepoint takes the failed statement back, so the saga goes on."""
    create_shop(configured.by_name)

    with saga("order"):
        _write_both()
        with pytest.raises(DuplicateKey), Stock.transaction():
            Stock(id=1, sku="twice").save()

    assert configured.second.scalar("SELECT count(*) FROM stock WHERE sku = 'new'") == 1


def test_an_error_that_the_driver_alone_has_seen_is_not_committed(configured: Pair) -> None:
    """A failed statement that bypassed crosstie: PostgreSQL would answer COMMIT with ROLLBACK and no error."""
    create_shop(configured.by_name)

    def break_behind_the_back() -> None:
        tx = current("default")
        assert tx is not None
        raw: Any = tx.connection.connection.dbapi_connection
        if configured.first.kind == "postgresql":
            with raw.cursor() as cursor, pytest.raises(Exception, match="division"):
                cursor.execute("SELECT 1/0")
        else:
            raw.rollback()

    with pytest.raises(TransactionPoisoned), transaction("default"):
        Order(sku="new", amount=Decimal(1)).save()
        break_behind_the_back()

    assert configured.first.scalar("SELECT count(*) FROM orders WHERE sku = 'new'") == 0


def test_a_deadlock_that_was_swallowed_commits_nothing(mariadb_branch: Pair) -> None:
    """MariaDB rolls the whole transaction back on 1213 and silently begins another with the next statement."""
    other_holds = threading.Event()
    failed: list[BaseException] = []
    first, second = (Stock.find_by(sku=sku) for sku in ("keep", "change"))
    assert first is not None
    assert second is not None
    before = contents(mariadb_branch.by_name)

    def other() -> None:
        with mariadb_branch.second.connect() as connection, connection.cursor() as cursor:
            cursor.execute("BEGIN")
            # The other transaction is the heavier one, so that the deadlock's victim is the saga.
            cursor.executemany("INSERT INTO stock (sku, reserved) VALUES (%s, 0)", [("weight",)] * 50)
            cursor.execute("UPDATE stock SET reserved = 9 WHERE id = %s", (second.id,))
            other_holds.set()
            cursor.execute("UPDATE stock SET reserved = 9 WHERE id = %s", (first.id,))
            cursor.execute("ROLLBACK")

    thread = threading.Thread(target=other)
    with pytest.raises((SagaAborted, TransactionPoisoned)), saga("order", home="default"):
        Order(sku="new", amount=Decimal(1)).save()
        first.increment(reserved=1)
        thread.start()
        assert other_holds.wait(60)
        try:
            second.increment(reserved=1)
        except CrosstieError as error:
            failed.append(error)
        first.increment(reserved=1)
    thread.join()

    assert failed, "no deadlock came about, so this proves nothing"
    assert contents(mariadb_branch.by_name) == before


@pytest.mark.parametrize("statement", ["CREATE TABLE t (id INT)", "  /* x */ alter table stock add x int", "COMMIT"])
def test_a_statement_that_commits_implicitly_is_refused_before_it_runs(statement: str, mariadb_branch: Pair) -> None:
    """DDL on MariaDB would commit what the saga has written so far."""
    before = contents(mariadb_branch.by_name)

    with pytest.raises(SagaNotUndoable, match="would commit what the saga has written"), saga("order") as s:
        _write_both()
        s.connection("secondary").execute(sa.text(statement))

    assert contents(mariadb_branch.by_name) == before


def test_commit_on_a_connection_of_the_saga_is_refused(configured: Pair) -> None:
    """Only the end of the block commits."""
    create_shop(configured.by_name)
    before = contents(configured.by_name)

    with pytest.raises(TransactionPoisoned, match=r"commit\(\) was called"), saga("order") as s:
        _write_both()
        s.connection("secondary").commit()

    assert contents(configured.by_name) == before


def test_rollback_on_a_connection_of_the_saga_aborts_all_of_it(configured: Pair) -> None:
    """What follows would run in a new transaction, so nothing may be committed."""
    create_shop(configured.by_name)
    before = contents(configured.by_name)

    with pytest.raises(CrosstieError), saga("order") as s:
        _write_both()
        s.connection("secondary").rollback()
        Stock(sku="after").save()

    assert contents(configured.by_name) == before


@pytest.mark.parametrize("engine", ["MyISAM", "Aria"])
@pytest.mark.parametrize("home", ["default", "secondary"])
def test_a_table_that_cannot_roll_back_is_refused_before_it_is_written(
    engine: str, home: str, mariadb_branch: Pair
) -> None:
    """MyISAM and Aria tables keep what a transaction rolls back, in a branch and in home alike."""
    mariadb_branch.second.execute(f"ALTER TABLE stock ENGINE={engine}")
    before = contents(mariadb_branch.by_name)

    with pytest.raises(SagaNotUndoable, match=rf"storage engine {engine}"), saga("order", home=home):
        stock = Stock.find_by(sku="keep")
        assert stock is not None
        stock.increment(reserved=1)
        Order(sku="new", amount=Decimal(1)).save()

    assert contents(mariadb_branch.by_name) == before


def test_raw_sql_makes_its_database_home(configured: Pair) -> None:
    """Nobody can undo raw SQL, and home is never undone."""
    create_shop(configured.by_name)

    with saga("order", home=None) as s:
        s.connection("secondary").execute(sa.text("UPDATE stock SET reserved = 7"))
        Order(sku="new", amount=Decimal(1)).save()

    assert saga_states(configured.by_name) == {"default": ["applied"], "secondary": ["committed"]}


def test_raw_sql_in_two_databases_is_refused_before_any_commit(configured: Pair) -> None:
    """The message names both databases; neither shows the writes."""
    create_shop(configured.by_name)
    before = contents(configured.by_name)

    with pytest.raises(SagaNotUndoable) as refused, saga("order") as s:
        s.connection("default").execute(sa.text("UPDATE orders SET amount = 7"))
        s.connection("secondary").execute(sa.text("UPDATE stock SET reserved = 7"))

    assert "- default: " in str(refused.value)
    assert "- secondary: " in str(refused.value)
    assert contents(configured.by_name) == before


def _add_trigger(database: TestDatabase) -> None:
    if database.kind == "postgresql":
        database.execute(
            "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN NEW.note := 'seen'; RETURN NEW; END $$"
        )
        database.execute("CREATE TRIGGER noting BEFORE UPDATE ON stock FOR EACH ROW EXECUTE FUNCTION noted()")
    elif database.kind == "mariadb":
        database.execute("CREATE TRIGGER noting BEFORE UPDATE ON stock FOR EACH ROW SET NEW.note = 'seen'")
    else:
        database.execute("CREATE TRIGGER noting AFTER UPDATE ON stock BEGIN UPDATE orders_log SET note = 'seen'; END")
        database.execute("CREATE TABLE orders_log (note TEXT)")


def test_a_table_with_triggers_cannot_be_a_branch(configured: Pair) -> None:
    """A trigger writes what nobody captures, so its database has to be home, which the message says."""
    create_shop(configured.by_name)
    _add_trigger(configured.second)
    before = contents(configured.by_name)

    def block(home: str | None) -> None:
        with saga("order", home=home):
            Order(sku="new", amount=Decimal(1)).save()
            stock = Stock.find_by(sku="keep")
            assert stock is not None
            stock.sku = "kept"
            stock.save()

    with pytest.raises(SagaNotUndoable, match=r"triggers \(noting\)"):
        block(None)
    assert contents(configured.by_name) == before

    block("secondary")
    assert configured.second.scalar("SELECT count(*) FROM stock WHERE sku = 'kept'") == 1


class Part(IntegerPKMixin, ActiveRecord):
    """Rows that the database itself deletes with their stock."""

    __table_name__ = "parts"
    __connection__ = "secondary"

    id: int | None = None
    stock_id: int


def test_a_delete_that_the_database_cascades_cannot_be_in_a_branch(configured: Pair) -> None:
    """The children that a cascade deletes are not captured, so an undo could not bring them back."""
    create_shop(configured.by_name)
    Part.create_table()
    key = "BIGINT" if configured.second.kind != "sqlite" else "INTEGER"
    configured.second.execute("DROP TABLE parts")
    configured.second.execute(
        f"CREATE TABLE parts (id {key} PRIMARY KEY, stock_id {key}, FOREIGN KEY (stock_id) REFERENCES stock (id) "
        "ON DELETE CASCADE)"
    )

    with pytest.raises(SagaNotUndoable, match="cascades to parts"), saga("order"):
        Order(sku="new", amount=Decimal(1)).save()
        stock = Stock.find_by(sku="keep")
        assert stock is not None
        stock.delete()

    assert configured.second.scalar("SELECT count(*) FROM stock WHERE sku = 'keep'") == 1


def test_a_connection_killed_inside_the_block_aborts_all_of_it(tmp_path: Path) -> None:
    """A reconnect must never continue the transaction, in autocommit or otherwise."""
    for kind in ("postgresql", "mariadb"):
        with ExitStack() as stack:
            pair = Pair(
                stack.enter_context(fresh_database("sqlite", tmp_path, furnished=True)),
                stack.enter_context(fresh_database(kind, tmp_path, furnished=True)),
            )
            stack.enter_context(guard.configured_databases(pair))
            create_shop(pair.by_name)
            before = contents(pair.by_name)

            with pytest.raises(CrosstieError), saga("order", home="default"):
                _write_both()
                tx = current("secondary")
                assert tx is not None
                if kind == "postgresql":
                    pid = tx.connection.scalar(sa.text("SELECT pg_backend_pid()"))
                    pair.second.scalar("SELECT pg_terminate_backend(%s)", (pid,))
                else:
                    pair.second.execute(f"KILL {tx.connection.scalar(sa.text('SELECT CONNECTION_ID()'))}")
                try:
                    Stock(sku="after").save()
                except DatabaseError:
                    Order(sku="after", amount=Decimal(1)).save()

            assert contents(pair.by_name) == before
            ConnectionManager.dispose()


def test_a_deferred_constraint_is_checked_before_the_first_commit(tmp_path: Path) -> None:
    """PostgreSQL would check it only at COMMIT, when the branch has committed already."""
    with ExitStack() as stack:
        pair = Pair(
            stack.enter_context(fresh_database("postgresql", tmp_path, furnished=True)),
            stack.enter_context(fresh_database("sqlite", tmp_path, furnished=True)),
        )
        stack.enter_context(guard.configured_databases(pair))
        create_shop(pair.by_name)
        pair.first.execute("ALTER TABLE orders ADD UNIQUE (sku) DEFERRABLE INITIALLY DEFERRED")
        before = contents(pair.by_name)

        with pytest.raises(SagaAborted) as aborted, saga("order"):
            Order(sku="keep", amount=Decimal(1)).save()
            Stock(sku="new").save()

        assert isinstance(aborted.value.__cause__, DuplicateKey)
        assert contents(pair.by_name) == before
        assert saga_states(pair.by_name) == {"default": [], "secondary": []}, "a branch had committed"


def test_recovery_leaves_the_lock_timeout_of_a_connection_as_it_was(mariadb_branch: Pair) -> None:
    """The connection goes back to the pool, where the application finds it."""
    options = {"init_command": "SET innodb_lock_wait_timeout = 37"}
    own = mariadb_branch.second.config | {"pool_size": 1, "max_overflow": 0, "options": options}
    ConnectionManager.configure(mariadb_branch.configuration | {"secondary": own})

    with crash_at("saga.branch-committed"), pytest.raises(SagaAborted), saga("order"):
        _write_both()

    with ConnectionManager.get("secondary").engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT @@SESSION.innodb_lock_wait_timeout").scalar_one() == 37
