"""Blocks in which nothing may be written."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from bench.databases import Pair, TestDatabase
from crosstie.orm import ActiveRecord, ConnectionManager, open_transactions, prevent_writes, transaction
from crosstie.orm.errors import ReadOnlyConnection, UnknownConnection, WritesPrevented
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.prepared import Prepared, is_watched
from crosstie.orm.prevention import writes
from crosstie.orm.statement_log import logged_statements
from crosstie.orm.transaction import detached_transaction, statement_connection
from crosstie.outbox import Event
from crosstie.sagas import SagaError, saga


class Page(IntegerPKMixin, ActiveRecord):
    __table_name__ = "pages"
    __connection__ = "default"

    text: str
    hits: int = 0


class Visit(IntegerPKMixin, ActiveRecord):
    __table_name__ = "visits"
    __connection__ = "secondary"

    page_id: int = 0


@pytest.fixture
def site(configured: Pair) -> Pair:
    """A page in one database, no visit in the other."""
    Page.create_table()
    Visit.create_table()
    Page(text="home").save()
    return configured


def contents(site: Pair) -> tuple[list[tuple[object, ...]], object]:
    """The pages, and how many visits there are."""
    return site.first.rows("SELECT text, hits FROM pages"), site.second.scalar("SELECT count(*) FROM visits")


def test_every_write_of_the_orm_is_refused_before_it_is_sent(site: Pair) -> None:
    """And every kind of read goes on."""
    page = Page.find(1)
    page.text = "changed"
    operations: list[Callable[[], object]] = [
        page.save,
        page.delete,
        lambda: page.increment(hits=1),
        Page(text="new").save,
        lambda: Page.create(text="new"),
        lambda: Page.find_all().update_all(text="all"),
        Page.find_all().delete_all,
        Page.create_table,
        Page.drop_table,
        Visit().save,
    ]
    with prevent_writes():
        for operation in operations:
            with logged_statements() as log, pytest.raises(WritesPrevented, match="was not sent"):
                operation()
            assert len(log) == 0
        assert Page.find(1).text == "home"
        assert Page.find_all().where(text="home").count() == 1
        assert Visit.find_all().all() == []
    assert contents(site) == ([("home", 0)], 0)
    page.save()
    assert contents(site) == ([("changed", 0)], 0)
    assert issubclass(WritesPrevented, ReadOnlyConnection)


def test_a_transaction_goes_on_after_a_refused_write(site: Pair) -> None:
    """The database has seen nothing of it, so what came before is committed."""
    with Page.transaction():
        Page(text="before").save()
        with prevent_writes(), pytest.raises(WritesPrevented):
            Page(text="inside").save()
        with prevent_writes(), pytest.raises(WritesPrevented):
            open_transactions()["default"].connection.execute(sa.text("DELETE FROM pages"))
        Page(text="after").save()
    assert [text for text, _ in contents(site)[0]] == ["home", "before", "after"]


def test_sagas_and_events_are_refused_too(site: Pair) -> None:
    """A saga inside cannot write; an event is a row of the outbox."""

    class PageRead(Event):
        page_id: int

    with prevent_writes():
        with pytest.raises(WritesPrevented), saga("visit"):
            Page(text="new").save()
            Visit().save()
        with pytest.raises((WritesPrevented, SagaError)), transaction("default"):
            PageRead(page_id=1).publish()
    assert contents(site) == ([("home", 0)], 0)
    assert site.first.scalar("SELECT count(*) FROM crosstie_outbox") == 0


@pytest.mark.parametrize("autocommit", [True, False], ids=["autocommit", "transaction"])
def test_raw_statements_on_our_connections_are_refused(autocommit: bool, site: Pair) -> None:
    """On engines that exist already and on those that are made inside the block."""
    ConnectionManager.configure(site.configuration)
    with prevent_writes():
        database = ConnectionManager.get("default")
        engine = database.autocommit if autocommit else database.engine
        with engine.connect() as connection:
            for statement in ["INSERT INTO pages (text, hits) VALUES ('x', 0)", "update pages set text = 'x'"]:
                with pytest.raises(WritesPrevented):
                    connection.execute(sa.text(statement))
            with pytest.raises(WritesPrevented):
                connection.exec_driver_sql("SELECT 1; DELETE FROM pages")
            assert connection.execute(sa.text("SELECT text FROM pages WHERE text <> 'DELETE'")).scalar() == "home"
        with statement_connection("default", write=False) as connection, pytest.raises(WritesPrevented):
            connection.execute(sa.delete(Page.__table__))
        with detached_transaction("default") as tx, pytest.raises(WritesPrevented):
            tx.connection.execute(sa.delete(Page.__table__))
    assert contents(site) == ([("home", 0)], 0)


def test_one_database_may_be_written_and_another_not(site: Pair) -> None:
    """Named connections only; blocks inside add to it, and their end takes nothing from the outer one."""
    with prevent_writes("default"):
        Visit().save()
        with pytest.raises(WritesPrevented, match="'default'"):
            Page(text="new").save()
        with prevent_writes("secondary"):
            for record in (Visit(), Page(text="new")):
                with pytest.raises(WritesPrevented):
                    record.save()
        Visit().save()
        with pytest.raises(ZeroDivisionError), prevent_writes():
            raise ZeroDivisionError
        Visit().save()
        with pytest.raises(WritesPrevented):
            Page(text="new").save()
    Page(text="new").save()
    assert contents(site) == ([("home", 0), ("new", 0)], 3)
    with pytest.raises(UnknownConnection, match="secondary"), prevent_writes("secondry"):
        pytest.fail("there is no such connection")


def test_other_threads_go_on_writing(site: Pair) -> None:
    """A request that only reads hinders no other."""
    with prevent_writes():
        thread = threading.Thread(target=Visit().save)
        thread.start()
        thread.join(timeout=60)
        with pytest.raises(WritesPrevented):
            Visit().save()
    assert contents(site) == ([("home", 0)], 1)


def test_it_decorates_a_function(configured_database: TestDatabase) -> None:
    """Such as a handler of GET requests."""
    Page.create_table()

    @prevent_writes()
    def get(text: str) -> int:
        if text == "write":
            Page(text=text).save()
        return Page.find_all().count()

    assert (get("read"), get("read")) == (0, 0)
    with pytest.raises(WritesPrevented):
        get("write")
    Page(text="write").save()
    assert get("read") == 1


READS = [
    "SELECT 1",
    "  /* a comment; DELETE */ select ';INSERT' -- UPDATE",
    "(SELECT 1) UNION (SELECT 2)",
    "WITH x AS (SELECT 'DELETE FROM t') SELECT * FROM x",
    "SELECT * FROM t FOR UPDATE",
    "SELECT * FROM t FOR NO KEY UPDATE SKIP LOCKED",
    "SELECT \"update\", replace(a, 'x', 'y') FROM \"insert\"",
    "SELECT updated, deleted_at FROM t;",
    "EXPLAIN SELECT 1",
    "SHOW TABLES",
    "SAVEPOINT a",
    "RELEASE SAVEPOINT a",
    "PRAGMA main.table_info(t)",
    "SET CONSTRAINTS ALL IMMEDIATE",
    "BEGIN IMMEDIATE",
]
WRITES = [
    "INSERT INTO t VALUES (1)",
    "-- SELECT\ndelete from t",
    "/* SELECT */ UPDATE t SET a = 1",
    "SELECT 1; DROP TABLE t",
    "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
    "WITH x AS (SELECT 1) UPDATE t SET a = 1",
    "EXPLAIN ANALYZE INSERT INTO t VALUES (1)",
    "SELECT * INTO u FROM t",
    "CREATE TABLE t (id INT)",
    "TRUNCATE t",
    "CALL p()",
    "PRAGMA user_version = 5",
    "COPY t FROM STDIN",
    "ANALYZE",
]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])
def test_a_statement_is_known_by_its_words(kind: str) -> None:
    """Not by those in strings, names and comments; what is in doubt counts as a write."""
    assert [statement for statement in READS if writes(statement, kind)] == []
    assert [statement for statement in WRITES if not writes(statement, kind)] == []


def test_strings_end_where_the_dialect_ends_them() -> None:
    """A backslash hides a quote on MySQL and from PostgreSQL's E'' strings, and nowhere else."""
    hidden = r"SELECT '\'; DELETE FROM t; --'"
    assert not writes(hidden, "mariadb")
    assert writes(hidden, "postgresql")
    assert writes(hidden, "sqlite")
    assert not writes(r"SELECT E'\'; DELETE FROM t; --'", "postgresql")
    assert not writes("SELECT $a$; DELETE FROM t $a$", "postgresql")
    assert writes("/*!50000 DELETE FROM t */", "mysql")
    assert not writes("SELECT 1 # DELETE", "mariadb")


def test_blocks_that_are_over_cost_statements_nothing(configured_database: TestDatabase) -> None:
    """Inside, prepared statements are looked at as all others; behind it they go to the driver again."""
    configured_database.execute("CREATE TABLE plain (id INTEGER)")
    engine = ConnectionManager.get("default").engine
    insert = Prepared(sa.insert(sa.table("plain", sa.column("id", sa.Integer()))).inline())
    with prevent_writes():
        assert is_watched(engine)
        with pytest.raises(WritesPrevented), engine.connect() as connection:
            insert.run(connection, {"id": 1})
    assert not is_watched(engine)
    with engine.begin() as connection:
        insert.run(connection, {"id": 2})
    assert configured_database.rows("SELECT id FROM plain") == [(2,)]
