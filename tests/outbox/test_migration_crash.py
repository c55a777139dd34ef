"""Changes of crosstie's tables by processes that die half-way, and by several processes at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest
import sqlalchemy as sa

from bench.databases import Solo, TestDatabase
from bench.faults import HANGING, crash_env, hang_env
from bench.guard import configured_databases
from bench.processes import Spawner
from bench.waiting import eventually
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.faults import armed
from crosstie.outbox.migrations import current_version, newest_version, upgrade, upgrade_to
from crosstie.outbox.tables import drop_tables
from outbox.schema_shape import shape

PROGRAM: Final = """
    from crosstie.orm import ConnectionManager
    from crosstie.outbox.migrations import downgrade, upgrade
    default = ConnectionManager.get("default")
    print("ready", flush=True)
    print("done", {change})
"""
UPGRADE: Final = PROGRAM.format(change="upgrade(default)")
WAITING: Final = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock'",
    "mariadb": "SELECT count(*) FROM information_schema.processlist WHERE db = database() AND state = 'User lock'",
}
"""How many sessions of the database wait for a lock."""
DOWNGRADE: Final = PROGRAM.format(change="downgrade(default, 0)")


@pytest.fixture
def empty(database: TestDatabase) -> Iterator[Database]:
    """A configured database without crosstie's tables."""
    with configured_databases(Solo(database), tables=False):
        yield ConnectionManager.get("default")


@pytest.fixture
def wanted(empty: Database) -> dict[str, Any]:
    """The tables as an undisturbed upgrade makes them; dropped again."""
    upgrade(empty)
    found = shape(empty.engine)
    drop_tables(empty)
    return found


@pytest.mark.parametrize(
    "fault",
    [("migration.table-created", 1), ("migration.table-created", 7), ("migration.applied", 1)],
)
def test_an_upgrade_that_was_killed_is_completed_by_the_next(
    empty: Database, database: TestDatabase, wanted: dict[str, Any], spawn: Spawner, fault: tuple[str, int]
) -> None:
    """Where DDL commits by itself, tables without their indexes and without a version are left behind."""
    environment = Solo(database).environment
    spawn.code(UPGRADE, environment=environment | crash_env(*fault)).wait_killed()
    assert current_version(empty) == 0
    if not empty.capabilities.transactional_ddl:
        assert sa.inspect(empty.engine).get_table_names()
    assert upgrade(empty)[-1] == newest_version()
    assert shape(empty.engine) == wanted


def test_a_downgrade_that_was_killed_is_completed_by_the_next(
    empty: Database, database: TestDatabase, spawn: Spawner
) -> None:
    """After the tables are gone, before that is noted."""
    upgrade(empty)
    environment = Solo(database).environment
    spawn.code(DOWNGRADE, environment=environment | crash_env("migration.taken-back")).wait_killed()
    assert current_version(empty) == newest_version()
    spawn.code(DOWNGRADE, environment=environment).wait_ok()
    assert sa.inspect(empty.engine).get_table_names() == []


def test_a_process_waits_for_another_that_upgrades_and_takes_over_where_it_dies(
    empty: Database, database: TestDatabase, wanted: dict[str, Any], spawn: Spawner
) -> None:
    """One is stopped in the middle, another comes, the first is killed."""
    environment = Solo(database).environment
    first = spawn.code(UPGRADE, environment=environment | hang_env("migration.applied"), name="first")
    first.wait_for_line(HANGING)
    second = spawn.code(UPGRADE, environment=environment, name="second")
    second.wait_for_line("ready")
    assert current_version(empty) == 0
    first.kill()
    assert f"done {list(range(1, newest_version() + 1))}" in second.wait_ok()
    assert shape(empty.engine) == wanted


def test_one_that_comes_while_another_upgrades_waits_and_finds_it_done(
    empty: Database, database: TestDatabase, wanted: dict[str, Any]
) -> None:
    """The first is held between its tables and the note of their version until the second waits for it."""
    reached, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        assert go_on.wait(60)

    with armed("migration.applied", hold), ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(upgrade, empty)
            assert reached.wait(60)
            second = pool.submit(upgrade, empty)
            waiting = WAITING.get(database.kind)  # a SQLite file tells nobody who waits for it
            if waiting is not None:
                eventually(lambda: second.done() or database.scalar(waiting))
        finally:
            go_on.set()
    assert (first.result(), second.result()) == (list(range(1, newest_version() + 1)), [])
    assert shape(empty.engine) == wanted


def test_one_that_comes_before_the_first_has_committed_does_nothing(empty: Database, wanted: dict[str, Any]) -> None:
    """The caller commits last: where the lock is not the transaction's, what it protected is committed before."""
    with empty.engine.connect() as connection, ThreadPoolExecutor(1) as pool:
        try:
            assert upgrade_to(connection, newest_version()) == list(range(1, newest_version() + 1))
            second = pool.submit(upgrade, empty)
            if not empty.capabilities.transactional_ddl:
                assert second.result(timeout=60) == []
        finally:
            connection.commit()
        assert second.result(timeout=60) == []
    assert shape(empty.engine) == wanted


def test_of_processes_that_upgrade_at_once_one_does_it(
    empty: Database, database: TestDatabase, wanted: dict[str, Any], spawn: Spawner
) -> None:
    """The others find it done, and none of them fails."""
    children = [spawn.code(UPGRADE, environment=Solo(database).environment, name=f"child {n}") for n in range(3)]
    outputs = [child.wait_ok() for child in children]
    done = f"done {list(range(1, newest_version() + 1))}"
    assert sorted(output.count(done) for output in outputs) == [0, 0, 1]
    assert sum("done []" in output for output in outputs) == 2
    assert shape(empty.engine) == wanted
