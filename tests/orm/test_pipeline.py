"""PostgreSQL: what goes to libpq directly does what the driver's cursor would have done, in fewer requests."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from bench.databases import TestDatabase
from crosstie.orm import pipeline, transaction
from crosstie.orm.errors import DatabaseError, DuplicateKey, TransactionPoisoned
from crosstie.orm.prepared import Prepared

pytestmark = pytest.mark.parametrize("database", ["postgresql"], indirect=True)

NOTE = sa.table("notes", sa.column("id", sa.BigInteger()), sa.column("body", sa.Text()))
INSERT = Prepared(sa.insert(NOTE).inline())


@pytest.fixture
def notes(configured_database: TestDatabase) -> TestDatabase:
    """A database with a table of notes."""
    configured_database.execute("CREATE TABLE notes (id BIGINT PRIMARY KEY, body TEXT)")
    return configured_database


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many answers each request had."""
    seen: list[int] = []
    original = pipeline._exchange

    def exchange(raw: Any, send: Any) -> Any:
        results = original(raw, send)
        seen.append(len(results))
        return results

    monkeypatch.setattr(pipeline, "_exchange", exchange)
    return seen


def write(connection: sa.Connection, number: int) -> None:
    """One row."""
    INSERT.run(connection, {"id": number, "body": None})


def test_begin_goes_with_the_first_statement(notes: TestDatabase, requests: list[int]) -> None:
    """BEGIN, PREPARE and the first; the second; COMMIT. Then all is known."""
    for number in (1, 3):
        with transaction("default") as tx:
            tx.mark_written()
            write(tx.connection, number)
            write(tx.connection, number + 1)
    assert requests == [3, 1, 1, 2, 1, 1]
    assert notes.scalar("SELECT count(*) FROM notes") == 4


def test_nothing_is_sent_for_a_transaction_of_nothing(notes: TestDatabase, requests: list[int]) -> None:
    """There is nothing to commit."""
    with transaction("default"):
        pass
    assert requests == []


def test_a_transaction_begins_as_the_connection_was_told(notes: TestDatabase) -> None:
    """Isolation, and whether it may write."""
    kinds = sa.func.concat(
        sa.func.current_setting("transaction_isolation"),
        " ",
        sa.func.current_setting("transaction_read_only"),
        " ",
        sa.func.current_setting("transaction_deferrable"),
    )
    asked = Prepared(sa.select(kinds))
    with transaction("default") as tx:
        raw: Any = tx.connection.connection.dbapi_connection
        raw.isolation_level, raw.read_only, raw.deferrable = psycopg.IsolationLevel.SERIALIZABLE, True, True
        assert asked.fetch(tx.connection).rows == [("serializable on on",)]
    with transaction("default") as tx:
        raw.isolation_level, raw.read_only, raw.deferrable = psycopg.IsolationLevel.REPEATABLE_READ, False, False
        assert asked.fetch(tx.connection).rows == [("repeatable read off off",)]


def test_a_tracer_is_not_gone_around(notes: TestDatabase) -> None:
    """Whoever has put a cursor of its own into the connection sees every statement."""
    seen: list[str] = []

    class Traced(psycopg.Cursor[Any]):
        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(str(query).split(maxsplit=1)[0])
            return super().execute(query, *args, **kwargs)

    with transaction("default") as tx:
        raw: Any = tx.connection.connection.dbapi_connection
        raw.cursor_factory = Traced
        tx.mark_written()
        write(tx.connection, 1)
    assert seen == ["INSERT", "COMMIT"]
    assert notes.scalar("SELECT count(*) FROM notes") == 1


def test_no_more_is_prepared_than_the_driver_would(notes: TestDatabase) -> None:
    """Memory of the server's; what comes later runs unprepared."""
    with transaction("default") as tx:
        raw: Any = tx.connection.connection.dbapi_connection
        raw.prepared_max = 2
        for number in range(4):
            label: sa.ColumnElement[str] = sa.literal_column(f"'statement {number}'")
            assert Prepared(sa.select(label)).fetch(tx.connection).rows == [(f"statement {number}",)]
        count = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'crosstie%%'"
        assert tx.connection.exec_driver_sql(count).scalar_one() == 2


def test_a_failed_statement_fails_the_transaction_and_not_the_connection(notes: TestDatabase) -> None:
    """It stays in the pool, and the next one finds it clean."""
    with pytest.raises(TransactionPoisoned), transaction("default") as tx:
        tx.mark_written()
        write(tx.connection, 1)
        raw: Any = tx.connection.connection.dbapi_connection
        with pytest.raises(DuplicateKey), tx.mapped_errors():
            write(tx.connection, 1)
    assert not raw.closed
    with transaction("default") as tx:
        assert tx.connection.connection.dbapi_connection is raw
        tx.mark_written()
        write(tx.connection, 1)
    assert notes.scalar("SELECT count(*) FROM notes") == 1


def test_what_cannot_be_sent_is_refused(notes: TestDatabase) -> None:
    """PostgreSQL has no NUL in its texts; nothing has left, and the transaction can still go on behind a savepoint."""
    with transaction("default") as tx:
        tx.mark_written()
        write(tx.connection, 1)
        with pytest.raises(DatabaseError), transaction("default"), tx.mapped_errors():
            INSERT.run(tx.connection, {"id": 2, "body": "a\0b"})
        write(tx.connection, 3)
    assert [row[0] for row in notes.rows("SELECT id FROM notes ORDER BY id")] == [1, 3]
