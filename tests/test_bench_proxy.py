"""The proxy loses exactly what it is told to lose, before PostgreSQL and MariaDB alike."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

from bench import engines
from bench.databases import TestDatabase, fresh_database
from bench.links import Trigger
from bench.plaintext import asks_for_encryption, without_tls_offer
from bench.proxy import Proxy
from bench.waiting import eventually

LOST = (psycopg.OperationalError, pymysql.err.OperationalError)
ProxyTo = Callable[[TestDatabase], Proxy]


@pytest.fixture(params=["postgresql", "mariadb"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TestDatabase]:
    """A database behind a server, with an empty table `item`."""
    with fresh_database(request.param, tmp_path) as database:
        database.execute("CREATE TABLE item (id INTEGER PRIMARY KEY)")
        yield database


def connect(database: TestDatabase, proxy: Proxy) -> Any:
    """A raw connection through the proxy, in autocommit."""
    return engines.connect(database.proxied(proxy).config)


def run(connection: Any, statement: str) -> Any:
    """Run a statement and return its first row, if any."""
    with closing(connection.cursor()) as cursor:
        cursor.execute(statement)
        return cursor.fetchone() if cursor.description else None


def begin_insert(connection: Any) -> None:
    """Leave a transaction open that has inserted one row."""
    run(connection, "BEGIN")
    run(connection, "INSERT INTO item VALUES (1)")


def items(database: TestDatabase) -> int:
    """How many rows are durable."""
    return int(database.scalar("SELECT count(*) FROM item"))


def test_what_nobody_disturbs_passes(served: TestDatabase, proxy_to: ProxyTo) -> None:
    """Connections work as without the proxy, and it knows how many there are."""
    proxy = proxy_to(served)
    with closing(connect(served, proxy)) as connection:
        begin_insert(connection)
        run(connection, "COMMIT")
        assert proxy.connections == 1
    assert items(served) == 1
    eventually(lambda: proxy.connections == 0, describe="the connection is closed behind the proxy too")


def test_a_cut_resets_connections_and_refuses_new_ones_until_healed(served: TestDatabase, proxy_to: ProxyTo) -> None:
    """A server that is gone, and back again at the same address."""
    proxy = proxy_to(served)
    with closing(connect(served, proxy)) as connection:
        proxy.cut()
        assert proxy.connections == 0
        with pytest.raises(LOST):
            run(connection, "SELECT 1")
    with pytest.raises(LOST, match="refused"):
        connect(served, proxy)
    proxy.heal()
    with closing(connect(served, proxy)) as connection:
        assert run(connection, "SELECT 1") == (1,)


def test_the_lost_acknowledgement_of_a_commit(served: TestDatabase, proxy_to: ProxyTo) -> None:
    """The client sees an error, and yet the row is durable."""
    proxy = proxy_to(served)
    with closing(connect(served, proxy)) as connection:
        begin_insert(connection)
        trigger = proxy.cut_after(b"COMMIT")
        with pytest.raises(LOST):
            run(connection, "COMMIT")
    trigger.wait()
    assert items(served) == 1


def test_an_answer_is_waited_for_however_long_it_takes(served: TestDatabase, proxy_to: ProxyTo) -> None:
    """The trigger acts when the server has finished, not when the request has gone out."""
    slow = {"postgresql": "pg_sleep(0.3)", "mariadb": "(SELECT sleep(0.3)) AS pause"}[served.kind]
    proxy = proxy_to(served)
    with ThreadPoolExecutor(1) as pool, closing(connect(served, proxy)) as connection:
        trigger = proxy.cut_after(b"INSERT")
        insert = pool.submit(run, connection, f"INSERT INTO item SELECT 1 FROM {slow}")
        trigger.wait()
        assert items(served) == 1
        with pytest.raises(LOST):
            insert.result(timeout=60)


def test_the_lost_commit(served: TestDatabase, proxy_to: ProxyTo) -> None:
    """The client sees the same error, and the row never comes."""
    proxy = proxy_to(served)
    with closing(connect(served, proxy)) as connection:
        begin_insert(connection)
        trigger = proxy.cut_after(b"COMMIT", moment="withheld")
        with pytest.raises(LOST):
            run(connection, "COMMIT")
    trigger.wait()
    # Once the server has rolled back, the key can be inserted by somebody else.
    assert served.execute("INSERT INTO item VALUES (1)") == 1


def test_a_commit_forwarded_before_the_cut_arrives(served: TestDatabase, proxy_to: ProxyTo) -> None:
    """The client sees an error, and the last request is still executed."""
    proxy = proxy_to(served)
    with closing(connect(served, proxy)) as connection:
        begin_insert(connection)
        trigger = proxy.cut_after(b"COMMIT", moment="forwarded")
        with pytest.raises(LOST):
            run(connection, "COMMIT")
    trigger.wait()
    eventually(lambda: items(served) == 1, describe="the commit that was forwarded")


def test_the_servers_end_is_closed_in_order_after_what_was_forwarded() -> None:
    """A server that reads late still gets the request, and then an ordinary end: no reset overtakes it."""
    with socket.create_server(("127.0.0.1", 0)) as server, Proxy(*server.getsockname()) as proxy:
        trigger = proxy.cut_after(b"COMMIT", moment="forwarded")
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as client:
            client.sendall(b"COMMIT")
            trigger.wait()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        with server.accept()[0] as connection:
            connection.settimeout(60)
            assert connection.recv(100) == b"COMMIT"
            assert connection.recv(100) == b""


@pytest.mark.parametrize("moment", ["withheld", "answered"])
def test_a_deaf_proxy_keeps_back_and_delivers_once_healed(served: TestDatabase, proxy_to: ProxyTo, moment: Any) -> None:
    """The client waits without an error; whether the commit is durable meanwhile depends on what was kept back."""
    proxy = proxy_to(served)
    with ThreadPoolExecutor(1) as pool, closing(connect(served, proxy)) as connection:
        begin_insert(connection)
        trigger = proxy.deaf_after(b"COMMIT", moment=moment)
        commit = pool.submit(run, connection, "COMMIT")
        trigger.wait()
        assert items(served) == (1 if moment == "answered" else 0)
        assert not commit.done()
        proxy.heal()
        commit.result(timeout=60)
        assert run(connection, "SELECT count(*) FROM item") == (1,)


def test_requests_arrive_while_the_answers_are_lost(served: TestDatabase, proxy_to: ProxyTo) -> None:
    """Deaf in one direction, the server executes what the client never hears of."""
    proxy = proxy_to(served)
    with ThreadPoolExecutor(1) as pool, closing(connect(served, proxy)) as connection:
        proxy.deaf("to_client")
        insert = pool.submit(run, connection, "INSERT INTO item VALUES (1)")
        eventually(lambda: items(served) == 1, describe="the insert")
        assert not insert.done()
        proxy.cut()
        with pytest.raises(LOST):
            insert.result(timeout=60)


def test_a_new_connection_to_a_deaf_proxy_hears_nothing(served: TestDatabase, proxy_to: ProxyTo) -> None:
    """It is accepted, and then nothing comes; after healing it gets what it waited for."""
    proxy = proxy_to(served)
    proxy.deaf()
    with ThreadPoolExecutor(1) as pool:
        connecting = pool.submit(connect, served, proxy)
        eventually(lambda: proxy.connections == 1, describe="the connection is accepted")
        assert not connecting.done()
        proxy.heal()
        with closing(connecting.result(timeout=60)) as connection:
            assert run(connection, "SELECT 1") == (1,)


def test_a_trigger_that_nothing_pulls_says_so(served: TestDatabase, proxy_to: ProxyTo) -> None:
    """A test that waits for a loss that never came fails; a pattern from before the arming does not count."""
    proxy = proxy_to(served)
    with closing(connect(served, proxy)) as connection:
        begin_insert(connection)
        run(connection, "COMMIT")
        trigger = proxy.cut_after(b"COMMIT")
        assert run(connection, "SELECT 1") == (1,)
        with pytest.raises(AssertionError, match="did not pass to_server within"):
            trigger.wait(within_s=0.01)
        proxy.heal()
        run(connection, "COMMIT")
    assert not trigger.fired.is_set()


def test_a_client_that_arrives_at_the_moment_of_the_cut_is_reset_and_its_socket_closed() -> None:
    """It was accepted, and its connection not yet made, when the proxy stops listening."""
    with socket.create_server(("127.0.0.1", 0)) as server, Proxy(*server.getsockname()) as proxy:
        for _ in range(20):
            held, go_on = threading.Event(), threading.Event()

            def hold(held: threading.Event = held, go_on: threading.Event = go_on) -> None:
                held.set()
                go_on.wait(60)

            proxy._loop.call_soon_threadsafe(hold)
            assert held.wait(60)
            with ThreadPoolExecutor(1) as pool, socket.create_connection(("127.0.0.1", proxy.port)) as client:
                cut = pool.submit(proxy.cut)
                go_on.set()
                cut.result()
                client.settimeout(60)
                with suppress(ConnectionResetError):
                    assert client.recv(1) == b""
            proxy.heal()
    gc.collect()  # an unclosed socket is a warning, and that an error


def test_a_proxy_before_a_dead_server_resets_its_clients() -> None:
    """It adds no life of its own to a server that is down."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with Proxy("127.0.0.1", nobody.getsockname()[1]) as proxy, socket.socket() as client:
            client.settimeout(60)
            with pytest.raises(ConnectionResetError):  # by either call: the reset may be that quick
                client.connect(("127.0.0.1", proxy.port))
                client.recv(1)


def test_a_closed_proxy_leaves_no_thread_and_no_socket(served: TestDatabase) -> None:
    """Closed in the worst state: deaf, with a statement on its way."""
    threads, files = set(threading.enumerate()), set(Path("/proc/self/fd").iterdir())
    with Proxy(served.direct["host"], served.direct["port"]) as proxy, ThreadPoolExecutor(1) as pool:
        connection = connect(served, proxy)
        trigger = proxy.deaf_after(b"SELECT 2")
        statement = pool.submit(run, connection, "SELECT 2")
        trigger.wait()
        proxy.close()
        with pytest.raises(LOST):
            statement.result(timeout=60)
        connection.close()
    assert set(threading.enumerate()) == threads
    assert set(Path("/proc/self/fd").iterdir()) == files


def test_a_pattern_torn_apart_is_found_and_an_old_one_is_not() -> None:
    """Networks cut where they like; and only bytes that are still to come can pull a trigger."""
    trigger = Trigger(b"COMMIT", "to_server", "answered")
    assert trigger.completed_by(b"MIT;", after=b"x COM")
    assert trigger.completed_by(b"T", after=b"COMMI")
    assert not trigger.completed_by(b"SELECT", after=b"COMMIT")
    assert not trigger.completed_by(b"SELECT", after=b"")
    either = Trigger((b"BEGIN", b"COMMIT"), "to_server", "answered")
    assert either.completed_by(b"BEGIN", after=b"")
    assert either.completed_by(b"MIT", after=b"BEGIN COM")
    assert not either.completed_by(b"MIT", after=b"BEGIN")


@pytest.mark.parametrize(
    ("moment", "deafens"), [("answered", ("to_server",)), ("withheld", ("to_client",))], ids=["answered", "withheld"]
)
def test_a_trigger_that_would_deliver_what_it_keeps_back_is_refused(moment: Any, deafens: Any) -> None:
    """Keeping back an answer needs ears that are shut to answers."""
    with pytest.raises(ValueError, match="must be among what goes deaf"):
        Trigger(b"COMMIT", "to_server", moment, deafens=deafens)


def test_tls_is_taken_out_of_a_mysql_greeting_and_nothing_else_is_touched() -> None:
    """Only the one bit goes: a driver that would encrypt then talks plainly, and patterns can be seen."""
    body = b"\x0a8.4.0\x00" + b"\x01\x02\x03\x04" + b"saltsalt" + b"\x00" + b"\xff\xff" + b"\x21more"
    greeting = len(body).to_bytes(3, "little") + b"\x00" + body
    plain = without_tls_offer(greeting)
    changed = [(a, b) for a, b in zip(greeting, plain, strict=True) if a != b]
    assert changed == [(0xFF, 0xF7)]
    assert without_tls_offer(b"R\x00\x00\x00\x08\x00\x00\x00\x00") == b"R\x00\x00\x00\x08\x00\x00\x00\x00"
    assert asks_for_encryption(bytes.fromhex("0000000804d2162f"))
    assert not asks_for_encryption(b"\x00\x00\x00\x08user")
