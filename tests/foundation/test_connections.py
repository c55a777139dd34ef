"""Connections: dead ones are found, errors are understood by their codes, a fork shares nothing."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from bench.databases import DatabaseKind, Solo, TestDatabase, fresh_database
from bench.guard import configured_databases
from bench.processes import Spawner
from bench.proxy import Proxy
from crosstie.orm import ConnectionManager, errors, local_transaction
from crosstie.orm.clock import now_ms
from crosstie.orm.errors import (
    CrosstieError,
    DatabaseUnavailable,
    DuplicateKey,
    IntegrityViolation,
    LockTimeout,
    NoSuchTable,
    PoolExhausted,
)
from crosstie.orm.transaction import detached_transaction, statement_connection, transaction


def _run(sql: str) -> None:
    with statement_connection("default", write=True) as connection:
        connection.execute(sa.text(sql))


def test_the_clock_is_the_databases_own_in_milliseconds(configured_database: TestDatabase) -> None:
    """Leases compare times of one database; all three kinds count from the same epoch."""
    before = time.time() * 1000
    with statement_connection("default", write=False) as connection:
        now = connection.execute(sa.select(now_ms())).scalar_one()

    assert isinstance(now, int)
    assert before - 2000 < now < time.time() * 1000 + 2000


def test_errors_of_every_driver_become_ours(configured_database: TestDatabase) -> None:
    """Told apart by SQLSTATE or errno, with the driver's own exception as the cause."""
    _run("CREATE TABLE t (id INT PRIMARY KEY, n INT NOT NULL CHECK (n > 0))")
    _run("INSERT INTO t VALUES (1, 1)")

    for sql, expected in [
        ("INSERT INTO t VALUES (1, 1)", DuplicateKey),
        ("INSERT INTO t VALUES (2, NULL)", IntegrityViolation),
        ("INSERT INTO t VALUES (2, 0)", IntegrityViolation),
        ("SELECT * FROM missing", NoSuchTable),
        ("SELECT missing FROM t", NoSuchTable),
    ]:
        with pytest.raises(expected, match=r"database 'default' \(") as mapped:
            _run(sql)
        assert type(mapped.value) is expected, sql
        assert isinstance(mapped.value.__cause__, sa.exc.DBAPIError)


def test_a_lock_that_is_not_released_is_a_timeout(database: TestDatabase) -> None:
    """Retryable, and said to be."""
    impatient: dict[str, dict[str, object]] = {
        "sqlite": {"busy_timeout_s": 0.1},
        "postgresql": {"options": {"options": "-c lock_timeout=100"}},
        "mariadb": {"options": {"init_command": "SET innodb_lock_wait_timeout = 1"}},
    }
    ConnectionManager.configure({"default": database.config | impatient[database.kind]})
    database.execute("CREATE TABLE t (id INT PRIMARY KEY)")
    database.execute("INSERT INTO t VALUES (1)")

    with detached_transaction("default") as tx:
        tx.connection.execute(sa.text("UPDATE t SET id = 2"))
        with pytest.raises(LockTimeout) as blocked:
            _run("UPDATE t SET id = 3")
    assert blocked.value.retryable


@pytest.mark.parametrize(
    ("kind", "shown", "expected"),
    [
        ("postgresql", "SHOW lock_timeout", ["50s", "7s", "200ms"]),
        ("mariadb", "SELECT @@SESSION.innodb_lock_wait_timeout", [50, 7, 1]),
    ],
)
def test_every_wait_for_a_lock_ends_by_itself(
    kind: DatabaseKind, shown: str, expected: list[object], tmp_path: Path
) -> None:
    """Also where the server would wait for ever: what two transactions hold in two databases, no server knows of."""
    with fresh_database(kind, tmp_path) as database:
        for lock_timeout_s, bound in zip((None, 7, 0.2), expected, strict=True):
            ConnectionManager.configure({"default": database.config | {"lock_timeout_s": lock_timeout_s}})
            with suppress(ZeroDivisionError), detached_transaction("default") as tx:
                tx.connection.execute(sa.select(1))
                raise ZeroDivisionError  # a rollback does not take it back
            with detached_transaction("default") as tx, statement_connection("default", write=False) as alone:
                assert [one.execute(sa.text(shown)).scalar() for one in (tx.connection, alone)] == [bound, bound]


def test_a_shorter_wait_that_the_server_has_stays(tmp_path: Path) -> None:
    """As the role, the database or the options of the connection have it."""
    with fresh_database("postgresql", tmp_path) as database:
        ConnectionManager.configure({"default": database.config | {"options": {"options": "-c lock_timeout=70"}}})
        with detached_transaction("default") as tx:
            assert tx.connection.execute(sa.text("SHOW lock_timeout")).scalar() == "70ms"


def test_an_exhausted_pool_says_which_and_what_to_do(database: TestDatabase) -> None:
    """Not a bare timeout of some queue."""
    ConnectionManager.configure(
        {"default": database.config | {"pool_size": 1, "max_overflow": 0, "pool_timeout_s": 0.1}}
    )

    with (
        detached_transaction("default"),
        pytest.raises(PoolExhausted, match=r"'default'.*pool_size"),
        detached_transaction("default"),
    ):
        pytest.fail("the pool has one connection")


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_connections_that_died_in_the_pool_are_found_before_use(
    kind: DatabaseKind, tmp_path: Path, proxy_to: Callable[[TestDatabase], Proxy]
) -> None:
    """A server restart costs one failed statement, not one for each pooled connection."""
    with fresh_database(kind, tmp_path) as database:
        proxy = proxy_to(database)
        with configured_databases(Solo(database.proxied(proxy)), tables=False):
            held = [ConnectionManager.get("default").engine.connect() for _ in range(3)]
            for connection in held:
                connection.close()
            ConnectionManager.ping("default")
            proxy.cut()
            proxy.heal()

            failures = 0
            for _ in range(4):
                try:
                    _run("SELECT 1")
                    with detached_transaction("default") as tx:
                        tx.connection.execute(sa.text("SELECT 1"))
                except DatabaseUnavailable:
                    failures += 1
            assert failures <= 1


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_server_that_accepts_and_says_nothing_is_unavailable(
    kind: DatabaseKind, tmp_path: Path, proxy_to: Callable[[TestDatabase], Proxy]
) -> None:
    """The handshake is bounded too, so that a broken network does not hang a worker for ever."""
    with fresh_database(kind, tmp_path) as database:
        proxy = proxy_to(database)
        proxy.deaf()
        impatient = database.proxied(proxy).config | {"connect_timeout_s": 2}
        ConnectionManager.configure({"default": impatient})

        with pytest.raises(DatabaseUnavailable, match="'default'"):
            ConnectionManager.ping("default")
        proxy.heal()


def test_a_forked_child_uses_connections_of_its_own(database: TestDatabase, spawn: Spawner) -> None:
    """Celery forks: a socket that parent and child both read would mix up their answers."""
    if database.kind == "sqlite":
        identity = "SELECT 1"
    else:
        identity = "SELECT pg_backend_pid()" if database.kind == "postgresql" else "SELECT CONNECTION_ID()"
    program = f"""
import os, sqlalchemy as sa
from crosstie.orm import ConnectionManager, open_transactions, transaction
from crosstie.orm.transaction import detached_transaction, statement_connection
ConnectionManager.configure()
def identity():
    with statement_connection("default", write=False) as connection:
        return connection.execute(sa.text({identity!r})).scalar()
mine = identity()
with transaction("default") as tx:
    tx.connection.execute(sa.text("CREATE TABLE forked (id INT)")) if {database.kind == "sqlite"} else None
    child = os.fork()
    if child == 0:
        assert not open_transactions()
        if {database.kind != "sqlite"}:
            assert identity() != mine
            os.execvp("true", ["true"])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
assert identity() == mine
"""
    spawn.code(program, environment=Solo(database).environment).wait_ok()


def test_threads_do_not_share_transactions(configured_database: TestDatabase) -> None:
    """One thread's rollback takes back nothing of another's."""
    _run("CREATE TABLE t (id INT PRIMARY KEY)")
    barrier = threading.Barrier(4) if configured_database.kind != "sqlite" else None
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with transaction("default") as tx:
                tx.mark_written()
                tx.connection.execute(sa.text("INSERT INTO t VALUES (:n)"), {"n": number})
                if barrier is not None:
                    barrier.wait(60)
                if number % 2:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        except (CrosstieError, threading.BrokenBarrierError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert configured_database.rows("SELECT id FROM t ORDER BY id") == [(0,), (2,)]


def test_engines_that_run_no_transaction_of_ours_are_not_listened_to(configured_database: TestDatabase) -> None:
    """A listener costs each statement some microseconds: a fifth of a get by key on SQLite."""
    default = ConnectionManager.get("default")
    foreign = sa.create_engine("sqlite://")
    for name, listener in (
        ("handle_error", local_transaction._notice_error),
        ("commit", local_transaction._refuse_foreign_commit),
        ("rollback", local_transaction._notice_foreign_rollback),
    ):
        assert sa.event.contains(default.engine, name, listener)
        assert not sa.event.contains(default.autocommit, name, listener)
        assert not sa.event.contains(foreign, name, listener)
    foreign.dispose()


@pytest.mark.parametrize("name", [name for name in errors.__all__ if not name.endswith("Warning")])
def test_every_error_has_a_code_and_survives_pickling(name: str) -> None:
    """Programs tell errors apart by their code, and Celery's prefork pool sends them between processes."""
    kind: type[CrosstieError] = getattr(errors, name)
    error = kind("why")

    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes

    assert (type(again), str(again), again.code) == (kind, "why", kind.code)
    assert isinstance(kind.retryable, bool)


def test_error_codes_are_unique() -> None:
    """A code names one class."""
    kinds = [getattr(errors, name) for name in errors.__all__ if not name.endswith("Warning")]

    assert len({kind.code for kind in kinds}) == len(kinds)
