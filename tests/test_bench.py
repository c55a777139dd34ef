"""The bench keeps its promises about databases and servers: without that, a green test proves nothing."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from bench import engines, guard, leftovers, servers
from bench.databases import KINDS, DatabaseKind, Pair, Solo, TestDatabase, Trio, fresh_database
from bench.faults import HANGING, crash_at, crash_env, hang_env
from bench.processes import Spawner
from bench.waiting import eventually

SERVED: list[engines.ServedKind] = ["postgresql", "mariadb"]
HERE = Path(__file__).parent


@pytest.fixture(params=SERVED)
def served(request: pytest.FixtureRequest) -> engines.ServedKind:
    """Each kind of database that is a server, where it runs."""
    kind: engines.ServedKind = request.param
    servers.require(kind)
    return kind


def names_on(kind: engines.ServedKind) -> set[str]:
    """The databases that exist on a server."""
    listing = "SELECT datname FROM pg_database" if kind == "postgresql" else "SHOW DATABASES"
    config = engines.server_config(kind, servers.server_url(kind))
    with closing(engines.connect(config)) as admin, closing(admin.cursor()) as cursor:
        cursor.execute(listing)
        return {str(row[0]) for row in cursor.fetchall()}


def test_a_database_is_empty_and_writable(database: TestDatabase) -> None:
    """Each kind starts empty and keeps what its own statements write, any text and NULL included."""
    database.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name VARCHAR(20))")
    assert database.execute("INSERT INTO item VALUES (%s, %s)", (1, "één 🚂")) == 1
    database.execute_many("INSERT INTO item VALUES (%s, %s)", [(n, None) for n in range(2, 5)])
    assert database.rows("SELECT id, name FROM item WHERE id < %s ORDER BY id", (3,)) == [(1, "één 🚂"), (2, None)]
    assert database.scalar("SELECT count(*) FROM item") == 4
    assert database.scalar("SELECT id FROM item WHERE name LIKE '%n%'") == 1
    assert database.scalar("SELECT id FROM item WHERE id = 9") is None


def test_its_own_statements_see_only_what_is_durable(database: TestDatabase) -> None:
    """A row that a transaction elsewhere has not committed is not there yet."""
    database.execute("CREATE TABLE item (id INTEGER PRIMARY KEY)")
    engine = sa.create_engine(database.url)
    with engine.connect() as connection:
        connection.execute(sa.text("INSERT INTO item VALUES (1)"))
        assert database.scalar("SELECT count(*) FROM item") == 0
        connection.commit()
        assert database.scalar("SELECT count(*) FROM item") == 1
    engine.dispose()


def test_the_databases_of_a_pair_are_two(pair: Pair) -> None:
    """What is written to one is not in the other, two files of one kind included."""
    assert list(pair.configuration) == ["default", "secondary"]
    pair.first.execute("CREATE TABLE item (id INTEGER PRIMARY KEY)")
    pair.second.execute("CREATE TABLE item (id INTEGER PRIMARY KEY)")
    pair.first.execute("INSERT INTO item VALUES (1)")
    assert pair.second.scalar("SELECT count(*) FROM item") == 0


def test_a_trio_has_one_database_of_each_kind(trio: Trio) -> None:
    """All three kinds take part in every variant."""
    assert {database.kind for database in trio.databases} == set(KINDS)
    assert list(trio.by_name) == ["default", "secondary", "tertiary"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_databases_of_one_kind_have_nothing_in_common(kind: DatabaseKind, tmp_path: Path) -> None:
    """Tests that run at the same time cannot see each other's tables."""
    with fresh_database(kind, tmp_path) as first, fresh_database(kind, tmp_path) as second:
        first.execute("CREATE TABLE item (id INTEGER PRIMARY KEY)")
        second.execute("CREATE TABLE item (id INTEGER PRIMARY KEY)")
        assert first.config != second.config


def test_a_database_is_dropped_whoever_is_still_in_it(served: engines.ServedKind, tmp_path: Path) -> None:
    """An open transaction with locks does not keep a database alive after its test."""
    with fresh_database(served, tmp_path) as database:
        database.execute("CREATE TABLE item (id INTEGER PRIMARY KEY)")
        lingering = engines.connect(database.config)
        with closing(lingering.cursor()) as cursor:
            cursor.execute("BEGIN")
            cursor.execute("INSERT INTO item VALUES (1)")
        assert database.name in names_on(served)
    assert database.name not in names_on(served)
    lingering.close()


def test_a_database_used_again_has_a_new_name_and_nothing_in_it(tmp_path: Path) -> None:
    """Whatever a test put into it, the next test's database is as if it had just been created."""
    with fresh_database("postgresql", tmp_path) as first:
        for statement in (
            "CREATE TABLE item (id serial PRIMARY KEY, name text)",
            "CREATE TYPE mood AS ENUM ('calm')",
            "CREATE FUNCTION one() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
            "CREATE SCHEMA other",
            "CREATE TABLE other.item (id integer)",
        ):
            first.execute(statement)
    with fresh_database("postgresql", tmp_path) as second:
        assert second.name != first.name
        assert first.name not in names_on("postgresql")
        for catalog in ("pg_class", "pg_type", "pg_proc"):
            assert second.scalar(f"SELECT count(*) FROM {catalog} WHERE oid >= 16384") == 0
        second.execute("CREATE TABLE item (id integer)")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT lo_create(0)",
        "CREATE PUBLICATION changes",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = 65', current_database()); END $$",
    ],
    ids=["large object", "publication", "setting"],
)
@pytest.mark.parametrize("furnished", [False, True])
def test_a_database_that_dropping_its_schemas_does_not_empty_is_not_used_again(
    statement: str, furnished: bool, tmp_path: Path
) -> None:
    """It is dropped instead."""
    with fresh_database("postgresql", tmp_path, furnished=furnished) as database:
        database.execute(statement)
    assert database.name not in names_on("postgresql")


def test_what_a_killed_run_left_is_dropped_by_the_next(
    served: engines.ServedKind, spawn: Spawner, tmp_path: Path
) -> None:
    """Databases of a dead process go; those of a living one stay."""
    child = spawn.code(
        """
        import os, pathlib, signal, sys
        from bench.databases import fresh_database
        with fresh_database(sys.argv[1], pathlib.Path()) as database:
            print("made", database.name)
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        served,
    )
    name = child.wait_for_line("made").split()[1]
    child.wait_killed()
    assert leftovers.owner_pid(name) == child.pid
    assert name in names_on(served)
    child.close()  # reaps it; until then its number is taken

    def swept() -> bool:
        leftovers.drop_leftovers()
        return name not in names_on(served)

    with fresh_database(served, tmp_path) as mine:
        eventually(swept, describe="the sweep")  # another session's sweep may hold the lock for a moment
        assert mine.name in names_on(served)


@pytest.mark.parametrize("name", ["orders", "crosstie_test_", "crosstie_test_000000_17_main_ab", "17"])
def test_a_database_that_is_not_known_to_be_a_dead_runs_has_no_owner(name: str) -> None:
    """A user's database, another machine's and a broken name are never swept."""
    assert leftovers.owner_pid(name) is None


def test_a_name_tells_its_owner_and_fits() -> None:
    """Names are unique, belong to this process, and PostgreSQL does not cut them."""
    first, second = leftovers.unique_name(), leftovers.unique_name()
    assert first != second
    assert leftovers.owner_pid(first) == os.getpid()
    assert len(first.encode()) <= 63


@pytest.mark.parametrize(
    ("failure", "ci", "verdict"),
    [(None, False, "use"), (None, True, "use"), ("refused", False, "skip"), ("refused", True, "fail")],
)
def test_a_missing_server_skips_at_home_and_fails_in_ci(failure: str | None, ci: bool, verdict: str) -> None:
    """Nobody needs four servers to begin with, and no CI run passes without them."""
    decided, reason = servers.complaint(servers.Probe("redis", "redis://somewhere", failure), ci=ci)
    assert decided == verdict
    assert not failure or (servers.MISSING in reason and "CROSSTIE_TEST_REDIS_URL" in reason and failure in reason)


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("1", True), ("false", False), ("", False)])
def test_ci_is_told_by_its_variable(value: str, expected: bool) -> None:
    """The variable that CI systems set is believed."""
    assert servers.in_ci({"CI": value}) is expected


def test_a_server_that_says_nothing_counts_as_missing_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe does not wait for ever on a port where somebody listens and never speaks."""
    monkeypatch.setattr(servers, "PROBE_TIMEOUT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("CROSSTIE_TEST_RABBITMQ_URL", f"amqp://guest:secret@127.0.0.1:{silent.getsockname()[1]}//")
        found = servers.probe.__wrapped__("rabbitmq")
    assert found.failure is not None
    assert "secret" not in found.address


@pytest.mark.parametrize("ci", ["true", "false"])
def test_the_summary_says_what_was_not_tested(ci: str) -> None:
    """A whole run without PostgreSQL: its tests are skipped with a loud line, or fail in CI."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        address = f"postgresql://root@127.0.0.1:{nobody.getsockname()[1]}/postgres"
        run = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                "-k",
                "writable and not mariadb",
                str(HERE / "test_bench.py"),
            ],
            env=os.environ | {"CROSSTIE_TEST_POSTGRESQL_URL": address, "CI": ci},
            cwd=HERE.parent,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert run.returncode == (1 if ci == "true" else 0), run.stdout
    assert re.search(r"1 passed, .*1 error" if ci == "true" else r"1 passed, 1 skipped", run.stdout), run.stdout
    assert ("NOT TESTED (1 skipped): postgresql at" in run.stdout) is (ci == "false"), run.stdout


def test_a_transaction_left_open_fails_its_test(database: TestDatabase) -> None:
    """The guard names the database, rolls back, and closes the pools."""
    from crosstie.orm.connection import ConnectionManager
    from crosstie.orm.local_transaction import LocalTransaction, open_transactions

    database.execute("CREATE TABLE item (id INTEGER PRIMARY KEY)")
    ConnectionManager.configure(Solo(database).configuration)
    tx = LocalTransaction(ConnectionManager.get("default"))
    tx.connection.execute(sa.text("INSERT INTO item VALUES (1)"))
    with pytest.raises(AssertionError, match="open transaction on 'default'"):
        guard.release()
    assert not open_transactions()
    assert database.scalar("SELECT count(*) FROM item") == 0
    guard.release()


def test_a_configured_pair_has_crossties_tables_in_both(configured: Pair) -> None:
    """Code under test finds its two databases under their names, with the tables of its own."""
    from crosstie.orm.connection import ConnectionManager

    assert ConnectionManager.names() == ["default", "secondary"]
    for database in configured.databases:
        assert database.scalar("SELECT count(*) FROM crosstie_saga") == 0
        assert database.scalar("SELECT count(*) FROM crosstie_outbox") == 0


def test_a_child_finds_the_same_databases(crash_pair: Pair, spawn: Spawner) -> None:
    """The environment made of a pair configures a process of its own."""
    child = spawn.code(
        """
        from crosstie.orm.connection import ConnectionManager
        for name in ConnectionManager.names():
            ConnectionManager.ping(name)
            print(name, ConnectionManager.get(name).kind)
        ConnectionManager.dispose()
        """,
        environment=crash_pair.environment,
    )
    expected = [f"{name} {database.kind}" for name, database in crash_pair.by_name.items()]
    assert child.wait_ok().splitlines() == expected


def test_an_armed_child_dies_at_the_place(spawn: Spawner) -> None:
    """The second time, as asked, and by a real SIGKILL."""
    child = spawn.code(
        """
        from crosstie.orm.faults import fault_point
        for turn in (1, 2, 3):
            print("turn", turn)
            fault_point("saga.home-committed")
        """,
        environment=crash_env("saga.home-committed", nth=2),
    )
    assert child.wait_killed().splitlines() == ["turn 1", "turn 2"]


def test_a_child_told_to_hang_stops_at_the_place_and_says_so(spawn: Spawner) -> None:
    """Its signal lets a test act while the child is between two steps."""
    child = spawn.code(
        "from crosstie.orm.faults import fault_point; fault_point('relay.claimed'); print('went on')",
        environment=hang_env("relay.claimed"),
    )
    child.wait_for_line(HANGING)
    assert child.exit_code is None
    child.kill()
    assert "went on" not in child.output


def test_a_place_that_is_never_reached_fails_the_test_that_armed_it() -> None:
    """A crash test whose crash did not happen proves nothing; nor does one of a place that is not there."""
    from crosstie.orm.faults import FaultInjected, fault_point

    with pytest.raises(AssertionError, match="was not reached"), crash_at("saga.home-committed"):
        pass
    with pytest.raises(FaultInjected), crash_at("saga.home-committed"):
        fault_point("saga.home-committed")
    with pytest.raises(ValueError, match="no fault point"):
        crash_env("saga.nowhere")


def test_waiting_returns_the_first_true_value_and_shows_the_last_false_one() -> None:
    """A value that comes late is waited for; one that never comes is shown."""
    values: Iterator[int] = iter([0, 0, 7])
    assert eventually(lambda: next(values)) == 7
    with pytest.raises(AssertionError, match=r"not within 0.02 s: the count; the last value was \[\]"):
        eventually(list, within_s=0.02, describe="the count")
    with pytest.raises(psycopg.OperationalError):
        eventually(lambda: psycopg.connect(host="127.0.0.1", port=1), within_s=5)
