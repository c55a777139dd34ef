"""A transaction's last statement goes with its COMMIT: both happen or neither, and a lost answer is said to be one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import pytest
import sqlalchemy as sa

from bench.databases import Solo, TestDatabase
from bench.guard import configured_databases
from bench.proxy import Moment, Proxy
from crosstie.orm import transaction
from crosstie.orm.answer import Answer
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CommitInDoubt, DatabaseError, DuplicateKey, IntegrityViolation, NoSuchTable
from crosstie.orm.final_statement import FinalStatement
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.prepared import Prepared

SERVERS = pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
POSTGRESQL = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
COMMIT = {"postgresql": b"COMMIT\x00", "mariadb": b"; COMMIT; END"}
NOTE = sa.table("notes", sa.column("id", sa.BigInteger()), sa.column("body", sa.Text()))
INSERT = Prepared(sa.insert(NOTE).inline())
RETURNING = Prepared(sa.insert(NOTE).returning(NOTE.c.id))


@pytest.fixture
def notes(configured_database: TestDatabase) -> TestDatabase:
    """A database with a table of notes."""
    configured_database.execute("CREATE TABLE notes (id BIGINT PRIMARY KEY, body TEXT)")
    return configured_database


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of databases in which a statement went with its COMMIT."""
    kinds: list[str] = []
    original = FinalStatement.run_and_commit

    def run_and_commit(self: FinalStatement, database: Any, connection: sa.Connection) -> Answer:
        kinds.append(database.kind)
        return original(self, database, connection)

    monkeypatch.setattr(FinalStatement, "run_and_commit", run_and_commit)
    return kinds


def write(tx: LocalTransaction, number: int = 1) -> None:
    """A statement that runs at once."""
    tx.mark_written()
    INSERT.run(tx.connection, {"id": number, "body": "first"})


def note(number: int, body: str | None = None, *, then: Callable[[Answer], object] | None = None) -> FinalStatement:
    """A statement that may wait for the COMMIT."""
    return FinalStatement(INSERT, {"id": number, "body": body}, then=then or (lambda _: None))


def ids(database: TestDatabase) -> list[int]:
    """What was committed."""
    return [row[0] for row in database.rows("SELECT id FROM notes ORDER BY id")]


def test_the_last_statement_goes_with_the_commit(notes: TestDatabase, together: list[str]) -> None:
    """The same on SQLite, where it makes no difference; what was given before runs before."""
    told: list[Answer] = []
    with transaction("default") as tx:
        write(tx)
        tx.conclude_with(note(2, then=told.append))
        tx.conclude_with(note(3, then=told.append))
        assert len(told) == 1
        tx.after_commit(lambda: told.append(told[-1]))
    assert [answer.rowcount for answer in told] == [1, 1, 1]
    assert ids(notes) == [1, 2, 3]
    assert together == [kind for kind in [notes.kind] if kind != "sqlite"]


def test_nothing_of_it_stays_where_the_block_fails(notes: TestDatabase, together: list[str]) -> None:
    """It was never sent."""
    with pytest.raises(ZeroDivisionError), transaction("default") as tx:
        write(tx)
        tx.conclude_with(note(2))
        raise ZeroDivisionError
    assert ids(notes) == []
    assert together == []


def test_the_only_statement_is_enough(notes: TestDatabase) -> None:
    """MariaDB has no transaction before the first, and it must not be taken for one that an error has ended."""
    with transaction("default") as tx:
        tx.mark_written()
        tx.conclude_with(note(1))
    assert ids(notes) == [1]


@pytest.mark.parametrize("rounds", [1, 2])
def test_rows_come_back_and_values_are_not_changed(notes: TestDatabase, rounds: int) -> None:
    """Placeholders, quotes, other alphabets, nothing, and numbers of any size; prepared anew and again."""
    texts = ["%s %(id)s :id $1 ?", "'; COMMIT; END -- \"\\", "üñ€\U0001f600\u2028", "", None, "x" * 10_000]
    told: list[Answer] = []
    for number, text in enumerate(texts * rounds):
        with transaction("default") as tx:
            write(tx, -1 - number)
            values = {"id": 2**63 - 1 - number, "body": text}
            tx.conclude_with(FinalStatement(RETURNING, values, returns=True, then=told.append))
    stored = notes.rows("SELECT id, body FROM notes WHERE id > 0 ORDER BY id DESC")
    assert stored == [(2**63 - 1 - number, text) for number, text in enumerate(texts * rounds)]
    assert [tuple(map(tuple, answer.rows)) for answer in told] == [((row[0],),) for row in stored]


def test_one_that_is_refused_commits_nothing(notes: TestDatabase) -> None:
    """The connection lives on, and the next transaction on it begins clean."""
    notes.execute("INSERT INTO notes VALUES (2, 'theirs')")
    for number, error in ((2, DuplicateKey), (2, DuplicateKey)):
        with pytest.raises(error), transaction("default") as tx:
            write(tx)
            tx.conclude_with(note(number))
    with transaction("default") as tx:
        write(tx, 4)
        tx.conclude_with(note(5))
    assert ids(notes) == [2, 4, 5]
    assert ConnectionManager.get("default").engine.pool.checkedin() == 1  # type: ignore[attr-defined]


def test_a_missing_table_is_named(notes: TestDatabase) -> None:
    """As by a statement of its own."""
    gone = Prepared(sa.insert(sa.table("gone", sa.column("id", sa.Integer()))).inline())
    with pytest.raises(NoSuchTable, match="gone"), transaction("default") as tx:
        write(tx)
        tx.conclude_with(FinalStatement(gone, {"id": 1}))
    assert ids(notes) == []


@POSTGRESQL
def test_a_constraint_that_commit_checks_refuses_both(notes: TestDatabase) -> None:
    """PostgreSQL answers the statement well, and then the COMMIT with an error."""
    notes.execute("ALTER TABLE notes ADD replies_to BIGINT REFERENCES notes DEFERRABLE INITIALLY DEFERRED")
    orphan = sa.insert(sa.table("notes", sa.column("id", sa.BigInteger()), sa.column("replies_to", sa.BigInteger())))
    with pytest.raises(IntegrityViolation), transaction("default") as tx:
        write(tx)
        tx.conclude_with(FinalStatement(Prepared(orphan.inline()), {"id": 2, "replies_to": 77}))
    assert ids(notes) == []


@POSTGRESQL
def test_statements_that_are_not_to_be_prepared_are_not(database: TestDatabase) -> None:
    """Behind a pool of connections by transaction, where `prepare_threshold` is None."""
    database.config["options"] = {"prepare_threshold": None}
    with configured_databases(Solo(database)):
        database.execute("CREATE TABLE notes (id BIGINT PRIMARY KEY, body TEXT)")
        for number in (1, 3):
            with transaction("default") as tx:
                write(tx, number)
                tx.conclude_with(note(number + 1))
        with transaction("default") as tx:
            prepared = tx.connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements").scalar_one()
    assert ids(database) == [1, 2, 3, 4]
    assert prepared == 0


@POSTGRESQL
def test_a_statement_that_somebody_deallocated_is_prepared_again(notes: TestDatabase) -> None:
    """One transaction fails, as with the driver's own; the next does not."""
    for number in (1, 3):
        with transaction("default") as tx:
            write(tx, number)
            tx.conclude_with(note(number + 1))
            if number == 3:
                tx.at_close(lambda connection: connection.exec_driver_sql("DEALLOCATE ALL"))
    with pytest.raises(DatabaseError, match="does not exist"), transaction("default") as tx:
        tx.connection.exec_driver_sql("INSERT INTO notes VALUES (5, '')")
        tx.conclude_with(note(6))
    with transaction("default") as tx:
        tx.connection.exec_driver_sql("INSERT INTO notes VALUES (7, '')")
        tx.conclude_with(note(8))
    assert ids(notes) == [1, 2, 3, 4, 7, 8]


@POSTGRESQL
@pytest.mark.parametrize("ending", ["ROLLBACK", "ROLLBACK TO SAVEPOINT", "DROP"])
def test_what_the_driver_deallocates_is_prepared_again(notes: TestDatabase, ending: str) -> None:
    """After a rollback or a DROP it has nothing prepared any more, and no transaction fails for that."""
    for number in range(1, 9):  # so often that the driver prepares, too
        with transaction("default") as tx:
            write(tx, number)
            tx.conclude_with(note(number + 100))
    with suppress(ZeroDivisionError), transaction("default") as tx:
        write(tx, 9)
        if ending == "DROP":
            tx.connection.exec_driver_sql("CREATE TABLE brief (id INT)")
            tx.connection.exec_driver_sql("DROP TABLE brief")
        elif ending == "ROLLBACK TO SAVEPOINT":
            with suppress(ZeroDivisionError), tx.connection.begin_nested():
                raise ZeroDivisionError
        else:
            raise ZeroDivisionError
    with transaction("default") as tx:
        write(tx, 10)
        tx.conclude_with(note(110))
    assert ids(notes)[-2:] == [108, 110]


@SERVERS
@pytest.mark.parametrize("moment", ["withheld", "answered"])
def test_a_lost_answer_leaves_the_outcome_open(
    database: TestDatabase, proxy_to: Callable[[TestDatabase], Proxy], moment: Moment
) -> None:
    """It is said so, whether both happened or neither, and the connection is not used again."""
    proxy = proxy_to(database)
    with configured_databases(Solo(database.proxied(proxy))):
        database.execute("CREATE TABLE notes (id BIGINT PRIMARY KEY, body TEXT)")
        with transaction("default") as tx:
            write(tx)
            tx.conclude_with(note(2))
        proxy.cut_after(COMMIT[database.kind], moment=moment)
        with pytest.raises(CommitInDoubt), transaction("default") as tx:
            write(tx, 3)
            tx.conclude_with(note(4))
        proxy.heal()
        with transaction("default") as tx:
            write(tx, 5)
            tx.conclude_with(note(6))
    assert ids(database) == [1, 2, *([3, 4] if moment == "answered" else []), 5, 6]


@POSTGRESQL
def test_an_interrupted_one_leaves_no_connection_that_waits_for_its_answer(
    notes: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it would have been, the next transaction must not read it as its own."""
    import psycopg

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def interrupt() -> AbstractContextManager[None]:
        return monkeypatch.context()  # type: ignore[return-value]

    with pytest.raises(KeyboardInterrupt), interrupt(), transaction("default") as tx:
        write(tx)
        tx.conclude_with(note(2))
        monkeypatch.setattr(psycopg.Connection, "wait", interrupted)
    monkeypatch.undo()
    with transaction("default") as tx:
        write(tx, 3)
        tx.conclude_with(note(4))
    assert ids(notes)[-2:] == [3, 4]
    assert ids(notes) in ([3, 4], [1, 2, 3, 4])
