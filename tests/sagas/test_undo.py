"""An undo restores exactly what was there, for every type of column, or touches nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from bench.databases import Pair, TestDatabase
from bench.faults import crash_at
from crosstie.orm import ActiveRecord, ConnectionManager, LocalTransaction
from crosstie.orm.faults import armed
from crosstie.orm.statement_log import logged_statements
from crosstie.orm.transaction import detached_transaction
from crosstie.sagas import SagaAborted, SagaNotUndoable, UndoConflict, facts, saga, sweep_sagas
from crosstie.sagas.capture import BranchRecorder, uncaptured_reasons, undo_log
from crosstie.sagas.image import dump, load
from crosstie.sagas.undo import apply_undo
from sagas.shop import Order, Stock, contents, create_shop

TYPES: dict[str, dict[str, tuple[str, object]]] = {
    "postgresql": {
        "id": ("bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY", None),
        "num": ("numeric(30, 10)", "12345678901234567890.0123456789"),
        "dbl": ("double precision", "0.1"),
        "sgl": ("real", "16777217.3"),
        "txt": ("text", "it's 100% ütf8 \n\t\\ {}"),
        "chr": ("char(8)", "ab"),
        "raw": ("bytea", b"\x00\xff\\x"),
        "flag": ("boolean", True),
        "day": ("date", "0001-01-01"),
        "clock": ("time with time zone", "23:59:59.999999+05:30"),
        "stamp": ("timestamp with time zone", "1969-12-31 23:59:59.123456+00"),
        "naive": ("timestamp", "infinity"),
        "span": ("interval", "1 mon -3 days 04:05:06.7"),
        "uid": ("uuid", "00112233-4455-6677-8899-aabbccddeeff"),
        "doc": ("json", '{"b":  1, "a": [1, 2.50, null]}'),
        "docb": ("jsonb", '{"b": 1, "a": [1.50]}'),
        "arr": ("text[]", '{a,"b,c",NULL,"\\"q\\""}'),
        "rng": ("int4range", "[1,5)"),
        "net": ("inet", "10.0.0.1/8"),
        "bits": ("bit varying(5)", "10101"),
        "nil": ("text", None),
        "made": ("integer GENERATED ALWAYS AS (1 + 1) STORED", None),
    },
    "mariadb": {
        "id": ("bigint unsigned AUTO_INCREMENT PRIMARY KEY", None),
        "big": ("bigint unsigned", 18446744073709551615),
        "num": ("decimal(30, 10)", "12345678901234567890.0123456789"),
        "dbl": ("double", 0.1),
        "sgl": ("float", 1234567.1),
        "txt": ("longtext", "it's 100% ütf8 \n\t\\ {} :name 😀"),
        "chr": ("char(8)", "ab"),
        "raw": ("varbinary(20)", b"\x00\xff\\x'"),
        "flag": ("tinyint(1)", 1),
        "day": ("date", "1000-01-01"),
        "clock": ("time(6)", "-838:59:58.999999"),
        "stamp": ("timestamp(6) NULL", "1999-12-31 23:59:59.123456"),
        "naive": ("datetime(6)", "9999-12-31 23:59:59.999999"),
        "yr": ("year", 1999),
        "uid": ("uuid", "00112233-4455-6677-8899-aabbccddeeff"),
        "doc": ("json", '{"b":  1, "a": [1, 2.50, null]}'),
        "choice": ("enum('x', 'y')", "y"),
        "many": ("set('x', 'y')", "x,y"),
        "bits": ("bit(12)", b"\x05\x03"),
        "nil": ("text", None),
        "made": ("integer AS (1 + 1) STORED", None),
        "seen": ("integer AS (1 + 2) VIRTUAL", None),
    },
    "sqlite": {
        "id": ("integer PRIMARY KEY", None),
        "big": ("integer", 2**63 - 1),
        "num": ("numeric", "12.5"),
        "dbl": ("real", 0.1),
        "txt": ("text", "it's 100% ütf8 \n\t\\ {} :name"),
        "raw": ("blob", b"\x00\xff"),
        "any": ("", "9" * 30),
        "day": ("date", "0001-01-01"),
        "nil": ("text", None),
        "made": ("integer GENERATED ALWAYS AS (1 + 1) STORED", None),
        "seen": ("integer GENERATED ALWAYS AS (1 + 2) VIRTUAL", None),
    },
}

GENERATED = {"id", "made", "seen"}


@pytest.fixture
def everything(configured_database: TestDatabase) -> TestDatabase:
    """A table with a column of every type, and two rows: one full, one of NULLs."""
    columns = TYPES[configured_database.kind]
    made = ", ".join(f"{name} {kind}" for name, (kind, _) in columns.items())
    configured_database.execute(f"CREATE TABLE everything ({made})")
    given = {name: value for name, (_, value) in columns.items() if name not in GENERATED}
    places = ", ".join(["%s"] * len(given))
    insert = f"INSERT INTO everything ({', '.join(given)}) VALUES ({places})"
    configured_database.execute(insert, tuple(given.values()))
    configured_database.execute(insert, (None,) * len(given))
    return configured_database


def _table(tx: LocalTransaction) -> sa.Table:
    return sa.Table("everything", sa.MetaData(), autoload_with=tx.connection)


@contextmanager
def _recorded() -> Iterator[tuple[LocalTransaction, sa.Table, BranchRecorder]]:
    """A transaction that is rolled back at the end, as the self-test of an undo would be."""
    tx = LocalTransaction(ConnectionManager.get("default"), visible=False)
    try:
        yield tx, _table(tx), BranchRecorder(100)
    finally:
        tx.rollback()


def _rows(tx: LocalTransaction) -> list[Any]:
    # As text on PostgreSQL: psycopg has no Python value for an infinite timestamp.
    what = "everything::text" if tx.database.kind == "postgresql" else "*"
    return list(tx.connection.exec_driver_sql(f"SELECT {what} FROM everything ORDER BY id").all())


def _undo(tx: LocalTransaction) -> None:
    apply_undo(tx.database, tx.connection, load(dump(undo_log(tx))))


@pytest.mark.filterwarnings("ignore:Did not recognize type:sqlalchemy.exc.SAWarning")
def test_deleted_rows_come_back_as_they_were(everything: TestDatabase) -> None:
    """Every type of column and NULL, the identity included; generated columns are left to the database."""
    with _recorded() as (tx, table, recorder):
        before = _rows(tx)
        recorder.deleting(tx, table, sa.true())
        tx.connection.execute(sa.delete(table))
        assert _rows(tx) == []

        _undo(tx)

        assert _rows(tx) == before


@pytest.mark.filterwarnings("ignore:Did not recognize type:sqlalchemy.exc.SAWarning")
def test_updated_columns_come_back_as_they_were(everything: TestDatabase) -> None:
    """The full row takes the NULLs of the other and back again, in every column."""
    with _recorded() as (tx, table, recorder):
        before = _rows(tx)
        names = [name for name in TYPES[everything.kind] if name not in GENERATED]
        token = recorder.updating(tx, table, sa.true(), names)
        tx.connection.execute(sa.update(table).values({name: sa.null() for name in names}))
        recorder.updated(tx, token)
        assert len(undo_log(tx)) == 1, "the row of NULLs did not change, so it needs no undo"

        _undo(tx)

        assert _rows(tx) == before


@pytest.mark.filterwarnings("ignore:Did not recognize type:sqlalchemy.exc.SAWarning")
def test_inserted_rows_go_again(everything: TestDatabase) -> None:
    """An insert is undone by its key, after every stored column was compared."""
    with _recorded() as (tx, table, recorder):
        before = _rows(tx)
        names = [name for name in TYPES[everything.kind] if name not in GENERATED]
        columns = ", ".join(names)
        tx.connection.exec_driver_sql(
            f"INSERT INTO everything ({columns}) SELECT {columns} FROM everything WHERE txt IS NOT NULL"
        )
        key = tx.connection.exec_driver_sql("SELECT max(id) FROM everything").scalar_one()
        recorder.inserted(tx, table, [(key,)])

        _undo(tx)

        assert _rows(tx) == before


@pytest.mark.parametrize("change", ["note = 'theirs'", "note = NULL"])
def test_a_row_that_somebody_changed_is_not_overwritten(change: str, configured: Pair) -> None:
    """The undo is quarantined with both images, the row stays as the stranger left it, and sweeps leave it alone."""
    create_shop(configured.by_name)
    configured.second.execute("UPDATE stock SET note = 'before'")

    def block() -> None:
        with saga("order", expiry_s=0.001):
            Order(sku="new", amount=Decimal(1)).save()
            for sku, note in [("keep", "mine"), ("change", "mine")]:
                stock = Stock.find_by(sku=sku)
                assert stock is not None
                stock.note = note
                stock.save()

    def stranger() -> None:
        configured.second.execute(f"UPDATE stock SET {change} WHERE sku = 'keep'")
        raise RuntimeError("and the saga fails")

    with armed("saga.branch-committed", stranger), pytest.raises(SagaAborted) as aborted:
        block()

    assert aborted.value.pending == ("secondary",)
    assert configured.second.scalar("SELECT note FROM stock WHERE sku = 'change'") == "mine", "half an undo"
    quarantine = str(configured.second.scalar("SELECT quarantine FROM crosstie_saga"))
    assert '"expected": {"note": "mine"}' in quarantine
    assert configured.first.scalar("SELECT count(*) FROM orders WHERE sku = 'new'") == 0
    after = contents(configured.by_name)
    for name in ConnectionManager.names():
        assert sweep_sagas(name).aborted == 0
    assert contents(configured.by_name) == after


def test_increments_are_undone_around_other_writers(configured: Pair) -> None:
    """The inverse delta keeps what others have added meanwhile, and never conflicts."""
    create_shop(configured.by_name)

    def stranger() -> None:
        configured.second.execute("UPDATE stock SET reserved = reserved + 100 WHERE sku = 'count'")
        raise RuntimeError("and the saga fails")

    with armed("saga.branch-committed", stranger), pytest.raises(SagaAborted) as aborted, saga("order"):
        Order(sku="new", amount=Decimal(1)).save()
        stock = Stock.find_by(sku="count")
        assert stock is not None
        stock.increment(reserved=5)

    assert aborted.value.pending == ()
    assert configured.second.scalar("SELECT reserved FROM stock WHERE sku = 'count'") == 100


def test_decimal_increments_are_undone_exactly(configured: Pair) -> None:
    """Where a database adds doubles, the undo still ends at the number that was there."""
    create_shop(configured.by_name)
    configured.first.execute("UPDATE orders SET amount = 0.3")
    before = contents(configured.by_name)

    def fail() -> None:
        raise RuntimeError("the saga fails")

    with armed("saga.branch-committed", fail), pytest.raises(SagaAborted), saga("order", home="secondary"):
        Stock(sku="new").save()
        for order in Order.find_all():
            order.increment(amount=Decimal("0.6"))
            order.increment(amount=Decimal("-0.1"))

    assert contents(configured.by_name) == before


def test_writes_on_one_row_are_undone_backwards(configured: Pair) -> None:
    """Insert, update twice and delete of the same row, mixed with increments, end where they began."""
    create_shop(configured.by_name)
    before = contents(configured.by_name)

    def fail() -> None:
        raise RuntimeError("the saga fails")

    with armed("saga.branch-committed", fail), pytest.raises(SagaAborted), saga("order"):
        Order(sku="new", amount=Decimal(1)).save()
        new = Stock(sku="a").save()
        new.note = "b"
        new.save()
        new.increment(reserved=2)
        new.note = "c"
        new.save()
        new.delete()
        old = Stock.find_by(sku="keep")
        assert old is not None
        old.increment(reserved=4)
        old.note = "x"
        old.save()
        old.delete()

    assert contents(configured.by_name) == before


def test_a_statement_over_too_many_rows_is_refused(configured_database: TestDatabase) -> None:
    """Undo images of one statement are limited, and the message says by what and what to do."""
    configured_database.execute("CREATE TABLE everything (id integer PRIMARY KEY, n integer)")
    configured_database.execute_many("INSERT INTO everything VALUES (%s, 0)", [(number,) for number in range(101)])

    with _recorded() as (tx, table, recorder):
        with pytest.raises(SagaNotUndoable, match=r"more than 100 rows.*undo_row_limit"):
            recorder.updating(tx, table, sa.true(), ["n"])
        recorder.updating(tx, table, table.c.id < 100, ["n"])


def test_an_undo_in_a_table_that_lost_a_column_conflicts(configured_database: TestDatabase) -> None:
    """A migration that ran between a saga and its undo is a conflict, not a crash of the sweep."""
    configured_database.execute("CREATE TABLE everything (id integer PRIMARY KEY, n integer, old integer)")
    configured_database.execute("INSERT INTO everything VALUES (1, 1, 1)")
    with _recorded() as (tx, table, recorder):
        token = recorder.updating(tx, table, sa.true(), ["n", "old"])
        tx.connection.execute(sa.update(table).values(n=2, old=2))
        recorder.updated(tx, token)
        log = load(dump(undo_log(tx)))
    configured_database.execute("ALTER TABLE everything DROP COLUMN old")

    with detached_transaction("default") as tx, pytest.raises(UndoConflict, match="no longer has the column"):
        apply_undo(tx.database, tx.connection, log)


def test_an_increment_of_a_record_is_taken_down_without_asking_for_its_key(configured: Pair) -> None:
    """The record knows its key: the increment costs a branch no SELECT, and is undone all the same."""
    create_shop(configured.by_name)
    stock = Stock.find(1)
    with pytest.raises(RuntimeError), saga("order") as block:
        Order(sku="new", amount=Decimal(1)).save()
        stock.increment(reserved=1)
        with logged_statements() as log:
            stock.increment(reserved=4)
        branch = block.transaction("secondary")
        entries = undo_log(branch)
        assert [entry["deltas"] for entry in entries] == [{"reserved": 1}, {"reserved": 4}]
        _undo(branch)
        assert branch.connection.execute(sa.select(Stock.c.reserved).where(Stock.c.id == 1)).scalar_one() == 0
        raise RuntimeError("nothing of this")
    assert [statement.sql.split()[0] for statement in log.statements if "stock" in statement.sql] == ["UPDATE"]


def test_thousands_of_rows_of_a_branch_are_taken_down(configured: Pair) -> None:
    """SQLite parses no condition of a thousand terms, so rows are read back in portions."""
    create_shop(configured.by_name)
    configured.second.execute_many("INSERT INTO stock (sku, reserved) VALUES (%s, 0)", [("bulk",)] * 1500)
    with crash_at("saga.branch-committed"), pytest.raises(SagaAborted), saga("order"):
        Order(sku="new", amount=Decimal(1)).save()
        assert Stock.find_all().where(sku="bulk").update_all(reserved=7) == 1500
    assert configured.second.scalar("SELECT count(*) FROM stock WHERE reserved = 7") == 0


def test_a_column_that_a_migration_has_added_is_undone_in_a_process_that_ran_through_it(
    configured_database: TestDatabase,
) -> None:
    """What is known of a table is asked again where it does not suffice."""
    configured_database.execute("CREATE TABLE everything (id integer PRIMARY KEY, n integer)")
    configured_database.execute("INSERT INTO everything VALUES (1, 1)")
    with _recorded() as (tx, table, recorder):
        recorder.updating(tx, table, sa.true(), ["n"])
    configured_database.execute("ALTER TABLE everything ADD COLUMN late integer")

    with _recorded() as (tx, table, recorder):
        before = _rows(tx)
        token = recorder.updating(tx, table, sa.true(), ["late"])
        tx.connection.execute(sa.update(table).values(late=2))
        recorder.updated(tx, token)
        _undo(tx)
        assert _rows(tx) == before


def test_a_column_that_the_server_writes_with_any_update_is_nobody_elses_change(
    configured_database: TestDatabase,
) -> None:
    """The saga's own update, and its undo, have changed it in the row that the saga has inserted."""
    stamped = "n integer, at timestamp(6) DEFAULT CURRENT_TIMESTAMP(6)"
    if configured_database.kind == "mariadb":
        stamped += " ON UPDATE CURRENT_TIMESTAMP(6)"
    elif configured_database.kind == "sqlite":
        stamped = "n integer, at text DEFAULT CURRENT_TIMESTAMP"
    configured_database.execute(f"CREATE TABLE everything (id integer PRIMARY KEY, {stamped})")
    with _recorded() as (tx, table, recorder):
        tx.connection.execute(sa.insert(table).values(id=5, n=1))
        recorder.inserted(tx, table, [(5,)])
        token = recorder.updating(tx, table, table.c.id == 5, ["n"])
        tx.connection.execute(sa.update(table).where(table.c.id == 5).values(n=2))
        recorder.updated(tx, token)
        _undo(tx)
        assert _rows(tx) == []


def test_what_is_known_of_a_table_does_not_last(
    configured_database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trigger that is added while a process runs is noticed, a minute later at the latest."""
    configured_database.execute("CREATE TABLE everything (id integer PRIMARY KEY, n integer)")
    with _recorded() as (tx, table, recorder):
        recorder.updating(tx, table, sa.true(), ["n"])
        assert uncaptured_reasons(tx) == []
    if configured_database.kind == "postgresql":
        configured_database.execute(
            "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$"
        )
        configured_database.execute(
            "CREATE TRIGGER noting BEFORE UPDATE ON everything FOR EACH ROW EXECUTE FUNCTION noted()"
        )
    else:
        each_row = "FOR EACH ROW SET @x = 1" if configured_database.kind == "mariadb" else "BEGIN SELECT 1; END"
        configured_database.execute(f"CREATE TRIGGER noting BEFORE UPDATE ON everything {each_row}")

    monkeypatch.setattr(facts, "FACTS_LAST_S", 0.0)
    with _recorded() as (tx, table, recorder):
        recorder.updating(tx, table, sa.true(), ["n"])
        assert "triggers (noting)" in uncaptured_reasons(tx)[0]


class Bed(ActiveRecord):
    """Its key is declared in another order than its fields."""

    __table_name__ = "beds"
    __connection__ = "secondary"
    __primary_key__ = ("ward", "number")

    number: int
    ward: int
    taken: int = 0


def test_a_key_in_another_order_than_its_columns_is_undone(configured: Pair) -> None:
    """Each kind of write of one record, whose key is handed on as a tuple."""
    create_shop(configured.by_name)
    Bed.create_table()
    changed, counted, deleted = (Bed(ward=1, number=number).save() for number in (2, 3, 4))
    before = configured.second.rows("SELECT * FROM beds ORDER BY ward, number")
    with armed("saga.branch-committed"), pytest.raises(SagaAborted), saga("order", home="default"):
        Order(sku="new", amount=Decimal(1)).save()
        changed.update(taken=1)
        counted.increment(taken=5)
        deleted.delete()
        Bed(ward=7, number=8).save()
        Bed.bulk_create([Bed(ward=8, number=9), Bed(ward=9, number=8)])
    assert configured.second.rows("SELECT * FROM beds ORDER BY ward, number") == before
    assert Bed.find((1, 2)).number == 2
