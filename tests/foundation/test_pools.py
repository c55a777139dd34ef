"""Pools keep to what is configured, and each database has its own."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest
import sqlalchemy as sa

from bench.databases import Pair, TestDatabase
from crosstie.orm import ConnectionManager, open_transactions, transaction
from crosstie.orm.errors import ConfigurationError, PoolExhausted
from crosstie.orm.transaction import detached_transaction, statement_connection


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pool_size", 0),
        ("pool_size", -1),
        ("pool_size", 2.5),
        ("max_overflow", -1),
        ("pool_timeout_s", 0),
        ("pool_timeout_s", float("inf")),
        ("pool_timeout_s", float("nan")),
        ("pool_recycle_s", 0),
        ("connect_timeout_s", 0),
        ("busy_timeout_s", 0),
        ("lock_timeout_s", 0),
        ("busy_timeout_s", float("inf")),
        ("read_your_writes_s", -1),
    ],
)
def test_a_limit_that_means_nothing_is_refused(key: str, value: float) -> None:
    """When it is configured, by its name, and not at the first connection."""
    with pytest.raises(ConfigurationError, match=rf"main\.{key}"):
        ConnectionManager.configure({"main": {"driver": "sqlite", "database": "x.db", key: value}})


@pytest.mark.parametrize(("size", "overflow"), [(1, 0), (2, 1)])
def test_a_pool_opens_no_more_connections_than_it_may(size: int, overflow: int, database: TestDatabase) -> None:
    """`pool_size` and `max_overflow` together; single statements have a pool of the same size beside it."""
    ConnectionManager.configure(
        {"default": database.config | {"pool_size": size, "max_overflow": overflow, "pool_timeout_s": 0.1}}
    )
    for engine in (ConnectionManager.get("default").engine, ConnectionManager.get("default").autocommit):
        with ExitStack() as held:
            for _ in range(size + overflow):
                held.enter_context(engine.connect())
            with pytest.raises(sa.exc.TimeoutError):
                engine.connect()
        assert isinstance(engine.pool, sa.pool.QueuePool)
        assert engine.pool.checkedin() == size  # the others were closed
    with detached_transaction("default"), statement_connection("default", write=False) as connection:
        assert connection.execute(sa.select(1)).scalar() == 1


def test_a_thread_that_waits_gets_the_connection_that_another_gives_back(database: TestDatabase) -> None:
    """Within `pool_timeout_s` waiting is no error; and one that failed has taken nothing from the pool."""
    limits = {"pool_size": 1, "max_overflow": 0, "pool_timeout_s": 30}
    ConnectionManager.configure({"default": database.config | limits})
    got = threading.Event()
    began = threading.Event()

    def wait() -> None:
        began.set()
        with detached_transaction("default"):
            got.set()

    thread = threading.Thread(target=wait)
    with detached_transaction("default"):
        thread.start()
        assert began.wait(60)
        assert not got.is_set()
    assert got.wait(60)
    thread.join(timeout=60)

    ConnectionManager.configure({"default": database.config | limits | {"pool_timeout_s": 0.05}})
    for _ in range(3):
        with detached_transaction("default"), pytest.raises(PoolExhausted):
            detached_transaction("default").__enter__()
    with detached_transaction("default") as tx:
        assert tx.connection.execute(sa.select(1)).scalar() == 1


def test_a_connection_that_is_too_old_is_replaced_before_its_next_use(database: TestDatabase) -> None:
    """`pool_recycle_s`: servers and firewalls close connections that have lived for long."""
    ConnectionManager.configure({"default": database.config | {"pool_recycle_s": 100}})
    engine = ConnectionManager.get("default").autocommit
    seen: list[object] = []
    for age_s in (0, 90, 110):
        with engine.connect() as connection:
            seen.append(connection.connection.dbapi_connection)
            record = connection.connection._connection_record
            assert record is not None
            record.starttime -= age_s
    with engine.connect() as connection:
        seen.append(connection.connection.dbapi_connection)
    assert seen[0] is seen[1] is seen[2]
    assert seen[3] is not seen[2]


def test_what_is_open_on_one_database_is_not_used_for_another(pair: Pair) -> None:
    """Blocks of two databases inside each other, in either order: each statement goes to the one that it names."""
    ConnectionManager.configure(pair.configuration)
    for database in pair.databases:
        database.execute("CREATE TABLE t (name VARCHAR(20))")

    def insert(name: str) -> None:
        with statement_connection(name, write=True) as connection:
            connection.execute(sa.text("INSERT INTO t VALUES (:name)"), {"name": name})

    for outer, inner in (("default", "secondary"), ("secondary", "default")):
        with transaction(outer):
            insert(outer)
            with transaction(inner):
                insert(inner)
                insert(outer)
                assert list(open_transactions()) == [outer, inner]
            insert(outer)
        insert(inner)
    assert pair.first.rows("SELECT DISTINCT name FROM t") == [("default",)]
    assert pair.second.rows("SELECT DISTINCT name FROM t") == [("secondary",)]
    assert [database.scalar("SELECT count(*) FROM t") for database in pair.databases] == [5, 5]
