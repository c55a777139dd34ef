"""A row that somebody has locked holds a lane for part of its lease, and no event is blamed for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from bench.databases import Pair, TestDatabase
from bench.guard import configured_databases
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.transaction import statement_connection, transaction
from crosstie.outbox import subscriber, sweep_lanes
from outbox import bank
from outbox.bank import Moved

WITH_ROW_LOCKS = [("sqlite", "postgresql"), ("postgresql", "mariadb"), ("mariadb", "postgresql")]
LONGEST_WAIT = {
    "sqlite": "PRAGMA busy_timeout",
    "postgresql": "SHOW lock_timeout",
    "mariadb": "SELECT @@SESSION.innodb_lock_wait_timeout",
}
SHORT: dict[str, dict[str, Any]] = {
    "sqlite": {"busy_timeout_s": 0.07},
    "postgresql": {"options": {"options": "-c timezone=UTC -c lock_timeout=70"}},
    "mariadb": {"options": {"init_command": "SET time_zone = '+00:00', innodb_lock_wait_timeout = 1"}},
}


@pytest.fixture(autouse=True)
def _leases_of_four_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSTIE_OUTBOX__LEASE_S", "4")


def moves_on(event: Moved) -> None:
    """Note the movement in the target's own account."""
    with statement_connection("secondary", write=True) as connection:
        mine = bank.account.c.name == event.account
        connection.execute(sa.update(bank.account).where(mine).values(moves=event.number))


def one_by_one() -> None:
    """A subscriber of single events."""
    bank.subscribe(moves_on)


def together() -> None:
    """A subscriber of many at once."""

    def receive(events: list[Moved]) -> None:
        for event in events:
            moves_on(event)

    subscriber(Moved, database="secondary", batch=True)(receive)


@contextmanager
def locked(database: TestDatabase, account: str) -> Iterator[None]:
    """Somebody else's transaction has locked the row, for as long as the block lasts."""
    with database.connect() as connection, closing(connection.cursor()) as cursor:
        cursor.execute("BEGIN")
        cursor.execute(f"UPDATE account SET moves = moves WHERE name = '{account}'")
        yield
        cursor.execute("ROLLBACK")


def sweep_elsewhere() -> int:
    """A sweep that has its time, and not for ever: without a bound it would wait until the lock is gone."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(sweep_lanes, "default", owner="one").result(timeout=60)
    finally:
        pool.shutdown(wait=False)


def longest_wait(connection: Any, kind: str) -> str:
    """What the database says."""
    return str(connection.exec_driver_sql(LONGEST_WAIT[kind]).scalar_one())


@pytest.mark.turns("crash_pair")
@pytest.mark.parametrize("crash_pair", WITH_ROW_LOCKS, indirect=True, ids="-".join)
@pytest.mark.parametrize("subscribing", [one_by_one, together])
def test_a_blocked_row_ends_the_attempt_before_the_lease_does(
    configured_crash_pair: Pair, subscribing: Callable[[], None]
) -> None:
    """The lane backs off, other keys arrive meanwhile, nothing is parked; then the event is applied."""
    pair = configured_crash_pair
    ConnectionManager.configure(pair.configuration)
    subscribing()
    bank.open_bank()
    bank.create_accounts("secondary")
    bank.transfer("a")
    bank.transfer("b")
    with locked(pair.second, "a"):
        assert sweep_elsewhere() == 1
        ((owner, failures, deaths, error),) = pair.first.rows(
            "SELECT owner, failures, deaths, last_error FROM crosstie_lane WHERE failures > 0"
        )
        assert (owner, failures, deaths) == ("", 1, 0)
        assert "LockTimeout" in error
        assert bank.stored(pair.first) == 1
    assert bank.parked(pair.first) == []
    bank.ready_now(pair.first)
    assert sweep_elsewhere() == 1
    assert sorted(pair.second.rows("SELECT name, moves FROM account")) == [("a", 1), ("b", 1), ("c", 0)]


@pytest.mark.parametrize("crash_pair", [*WITH_ROW_LOCKS, ("mariadb", "sqlite")], indirect=True, ids="-".join)
def test_what_others_wait_for_is_as_it_was(configured_crash_pair: Pair) -> None:
    """The relay's bound ends with its transaction, or where somebody else takes the connection."""
    pair = configured_crash_pair
    kind = pair.second.kind
    seen: list[str] = []

    def receive(event: Moved) -> None:
        with statement_connection("secondary", write=False) as connection:
            seen.append(longest_wait(connection, kind))

    ConnectionManager.configure(
        {name: options | {"pool_size": 1, "max_overflow": 0} for name, options in pair.configuration.items()}
    )
    bank.subscribe(receive)
    bank.open_bank()
    for _ in range(2):
        with transaction("secondary") as tx:
            before = longest_wait(tx.connection, kind)
        bank.transfer("a")
        sweep_lanes("default", owner="one")
        with transaction("secondary") as tx:
            assert longest_wait(tx.connection, kind) == before
        assert before not in seen
    assert seen == [{"sqlite": "2000", "postgresql": "2s", "mariadb": "2"}[kind]] * 2


@pytest.mark.parametrize("crash_pair", [*WITH_ROW_LOCKS, ("mariadb", "sqlite")], indirect=True, ids="-".join)
def test_a_shorter_wait_that_is_configured_stays(crash_pair: Pair) -> None:
    """The bound is no permission to wait longer."""
    kind = crash_pair.second.kind
    seen: list[str] = []

    def receive(event: Moved) -> None:
        with statement_connection("secondary", write=False) as connection:
            seen.append(longest_wait(connection, kind))

    second = dataclasses.replace(crash_pair.second, config=crash_pair.second.config | SHORT[kind])
    with configured_databases(Pair(crash_pair.first, second)):
        bank.subscribe(receive)
        bank.open_bank()
        bank.transfer("a")
        assert sweep_lanes("default", owner="one") == 1
    assert seen == [{"sqlite": "70", "postgresql": "70ms", "mariadb": "1"}[kind]]
