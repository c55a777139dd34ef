"""Connections that rest between two uses: the same are used again; nobody is kept waiting or gets a stale one."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from bench.databases import Solo, TestDatabase
from bench.processes import Spawner
from crosstie.orm import ConnectionManager, liveness, pool
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.pool import RestingPool, pool_of
from crosstie.orm.prepared import Prepared
from crosstie.orm.transaction import detached_transaction

ONE = Prepared(sa.select(sa.literal_column("1").label("one")))


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    """Stands still, so that no stall of the machine makes a connection old."""
    still = _Clock()
    monkeypatch.setattr(pool, "time", still)
    monkeypatch.setattr(liveness, "time", still)
    return still


def _raw(connection: sa.Connection) -> Any:
    return connection.connection.dbapi_connection


def _used_by_a_transaction() -> Any:
    with detached_transaction("default") as tx:
        tx.connection.execute(sa.select(1))
        return _raw(tx.connection)


def _pool() -> RestingPool:
    return pool_of(ConnectionManager.get("default").engine)


def _questions_to_queues(monkeypatch: pytest.MonkeyPatch) -> list[RestingPool]:
    """The pools whose queue was asked, each time."""
    asked: list[RestingPool] = []
    get = RestingPool._do_get

    def noted(self: RestingPool) -> Any:
        asked.append(self)
        return get(self)

    monkeypatch.setattr(RestingPool, "_do_get", noted)
    return asked


def _pings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The connections that were tested before use."""
    pinged: list[object] = []
    dialect = ConnectionManager.get("default").engine.dialect
    ping = dialect.do_ping

    def noted(raw: Any) -> bool:
        pinged.append(raw)
        return ping(raw)

    monkeypatch.setattr(dialect, "do_ping", noted)
    return pinged


def test_the_next_transaction_has_the_same_connection_without_going_to_the_queue(
    configured_database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone the first one asks the queue; single statements have connections of their own, which rest alike."""
    asked = _questions_to_queues(monkeypatch)

    used = [_used_by_a_transaction() for _ in range(3)]
    database = ConnectionManager.get("default")
    for _ in range(3):
        assert list(database.prepared(ONE, {}).rows) == [(1,)]

    assert used[0] is used[1] is used[2]
    assert asked == [_pool(), pool_of(database.autocommit)]
    assert (_pool().checkedout(), _pool().checkedin()) == (0, 1)


def test_whoever_waits_at_the_queue_gets_a_connection_that_rests(database: TestDatabase) -> None:
    """Code that uses the engine directly shares the limit of the pool with everything else."""
    limits = {"pool_size": 1, "max_overflow": 0, "pool_timeout_s": 60}
    ConnectionManager.configure({"default": database.config | limits})
    engine = ConnectionManager.get("default").engine
    raw = _used_by_a_transaction()
    with engine.connect() as connection:
        assert _raw(connection) is raw
    assert _used_by_a_transaction() is raw

    waits, got = threading.Event(), threading.Event()

    def wait() -> None:
        waits.set()
        with engine.connect():
            got.set()

    thread = threading.Thread(target=wait)
    with detached_transaction("default"):
        thread.start()
        assert waits.wait(60)
    assert got.wait(60)
    thread.join(60)


def test_many_threads_share_few_connections(database: TestDatabase) -> None:
    """Through the pool and around it at once: all are served, and none is lost."""
    ConnectionManager.configure(
        {"default": database.config | {"pool_size": 2, "max_overflow": 1, "pool_timeout_s": 60}}
    )
    engine = ConnectionManager.get("default").engine
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(40):
                if (number + turn) % 3:
                    with detached_transaction("default") as tx:
                        assert tx.connection.execute(sa.select(sa.literal(number))).scalar() == number
                else:
                    with engine.connect() as connection:
                        assert connection.execute(sa.select(sa.literal(number))).scalar() == number
        except BaseException as error:  # noqa: BLE001 - shown by the test itself
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert failures == []
    assert _pool().checkedout() == 0
    assert 1 <= _pool().checkedin() <= 3


def test_a_connection_that_has_rested_for_long_is_tested_before_use(
    configured_database: TestDatabase, clock: _Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By when it was used and not by when it went to the queue, where all that is old is tested."""
    pinged = _pings(monkeypatch)

    raw = _used_by_a_transaction()
    assert _used_by_a_transaction() is raw
    assert pinged == []
    clock.now += 3600.0
    assert _used_by_a_transaction() is raw
    assert pinged == [raw]


def test_a_busy_connection_goes_to_the_queue_now_and_then(
    configured_database: TestDatabase, clock: _Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `pool_recycle_s` is kept: it never rests for as long as a second, and is old all the same."""
    asked = _questions_to_queues(monkeypatch)

    for _ in range(121):
        _used_by_a_transaction()
        clock.now += 0.5

    assert len(asked) == 3  # at 0, 30 and 60 seconds


def test_after_a_loss_no_connection_is_used_untested(
    configured_database: TestDatabase, clock: _Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that restarts takes all of them."""
    pinged = _pings(monkeypatch)
    raw = _used_by_a_transaction()

    clock.now += 0.01
    ConnectionManager.get("default").liveness.note_loss()
    assert _used_by_a_transaction() is raw
    assert pinged == [raw]


def test_listeners_of_others_hear_of_each_use(configured_database: TestDatabase) -> None:
    """Those who set a role or a search path when a connection is taken rely on it."""
    taken: list[object] = []
    returned: list[object] = []
    _used_by_a_transaction()
    engine = ConnectionManager.get("default").engine
    event.listen(engine, "checkout", lambda *_: taken.append(_))
    event.listen(engine, "checkin", lambda *_: returned.append(_))

    for _ in range(3):
        _used_by_a_transaction()

    assert (len(taken), len(returned)) == (2, 3)  # one rested already when they began to listen


def test_what_a_block_did_to_its_connection_is_over_with_it(configured_database: TestDatabase) -> None:
    """An isolation level and listeners are of the connection that the block was given, and of no other."""
    heard: list[str] = []
    with detached_transaction("default") as tx:
        usual = tx.connection.get_isolation_level()
        raw = _raw(tx.connection)
        event.listen(tx.connection, "before_cursor_execute", lambda *args: heard.append(args[2]))
    with ConnectionManager.get("default").engine.connect() as connection:
        connection.execution_options(isolation_level="SERIALIZABLE")
    with detached_transaction("default") as tx:
        tx.connection.execute(sa.select(1))
        assert _raw(tx.connection) is raw
        assert tx.connection.get_isolation_level() == usual
    assert heard == []


def test_a_transaction_that_nobody_ended_is_rolled_back_before_the_next(configured_database: TestDatabase) -> None:
    """Its connection is lost to the garbage collector, and goes the long way back."""
    configured_database.execute("CREATE TABLE t (id INT PRIMARY KEY)")
    _used_by_a_transaction()
    lost = LocalTransaction(ConnectionManager.get("default"), visible=False)
    lost.connection.execute(sa.text("INSERT INTO t VALUES (1)"))
    del lost
    gc.collect()

    with detached_transaction("default") as tx:
        tx.connection.execute(sa.text("INSERT INTO t VALUES (2)"))
        tx.mark_written()
    assert configured_database.rows("SELECT id FROM t") == [(2,)]


def test_disposing_closes_what_rests(configured_database: TestDatabase) -> None:
    """And what is in use then is closed when it comes back to a pool that is no longer the engine's."""
    engine = ConnectionManager.get("default").engine
    raw = _used_by_a_transaction()
    closed: list[object] = []
    event.listen(engine, "close", lambda connection, _: closed.append(connection))
    engine.dispose()
    assert closed == [raw]

    with detached_transaction("default") as tx:
        in_use = _raw(tx.connection)
        engine.dispose()
    assert _used_by_a_transaction() is not in_use


def test_a_forked_child_leaves_alone_what_rests_in_its_parent(database: TestDatabase, spawn: Spawner) -> None:
    """Neither using it, nor giving it up, nor ending says a word on the parent's sockets."""
    program = """
import gc, os, sqlalchemy as sa
from crosstie.orm import ConnectionManager
from crosstie.orm.transaction import detached_transaction
ConnectionManager.configure()
def used():
    with detached_transaction("default") as tx:
        assert tx.connection.execute(sa.select(7)).scalar() == 7
        return tx.connection.connection.dbapi_connection
mine = used()
child = os.fork()
if child == 0:
    assert used() is not mine
    gc.collect()
    raise SystemExit(0)
assert os.waitpid(child, 0)[1] == 0
assert used() is mine
"""
    spawn.code(program, environment=Solo(database).environment).wait_ok()


def test_sqlalchemys_connection_is_used_again_where_nobody_else_has_had_it(configured_database: TestDatabase) -> None:
    """What a caller has had in hand is closed with his transaction, and nothing is to be had of one that has ended."""
    with detached_transaction("default") as first:
        hidden = first.bare
        ONE.fetch(hidden)
    with detached_transaction("default") as second:
        assert second.bare is hidden
        shown = second.connection
        assert shown is hidden
        assert shown.in_transaction(), "a commit() or rollback() on it is to be noticed"
    assert shown.closed
    third = LocalTransaction(ConnectionManager.get("default"), visible=False)
    assert third.bare is not shown
    third.rollback()
    with detached_transaction("default") as other:
        ONE.fetch(other.bare)
        third.rollback()  # the connection is another's by now
        ONE.fetch(other.bare)
    with pytest.raises(sa.exc.ResourceClosedError, match="this transaction has ended"):
        third.connection.execute(sa.select(1))
