"""A sweeper that listens works at once, and finds what no notification was sent for."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from bench.databases import Pair
from bench.processes import Child, Spawner
from bench.waiting import eventually
from crosstie.orm.connection import ConnectionManager
from crosstie.outbox import notification
from outbox import bank

SWEEPER = """
    from outbox import bank
    bank.subscribe()
    import crosstie.workers.foreground
    crosstie.workers.foreground.sweep_forever()
"""
LISTENING = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN crosstie%'"

pytestmark = pytest.mark.parametrize("crash_pair", [("postgresql", "mariadb")], indirect=True, ids="-".join)


@pytest.fixture
def every_ms() -> str:
    """How much time lies between two notifications of one process."""
    return "200"


@pytest.fixture
def pair(
    configured_crash_pair: Pair,
    spawn: Spawner,
    monkeypatch: pytest.MonkeyPatch,
    own_registries: Any,
    every_ms: str,
) -> Pair:
    """A bank, whose sweeper sweeps every ten minutes unless it is woken."""
    environment = {"CROSSTIE_SWEEP_INTERVAL_S": "600", "CROSSTIE_OUTBOX__NOTIFY_EVERY_MS": every_ms}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ConnectionManager.configure(configured_crash_pair.configuration)
    bank.open_bank()
    sweeper: Child = spawn.code(SWEEPER, environment=configured_crash_pair.environment | environment)
    sweeper.wait_for_line("sweeps default, secondary")
    eventually(lambda: configured_crash_pair.first.rows(LISTENING), describe="the sweeper listens")
    bank.transfer("c")
    arrived(configured_crash_pair, 1)
    return configured_crash_pair


def arrived(pair: Pair, count: int) -> None:
    """Wait until so many events have arrived."""
    eventually(lambda: len(bank.arrivals(pair.second)) >= count, describe=f"{count} events have arrived")
    assert len(bank.arrivals(pair.second)) == count


def notify_next() -> None:
    """Let this process's next commit notify, however short ago the last one was."""
    notification._next_s.clear()


@pytest.mark.parametrize("every_ms", ["5000"])  # so long may the last of those that do not notify take to commit
def test_a_commit_wakes_the_sweeper(pair: Pair) -> None:
    """So do those right after it, which do not notify."""
    notify_next()
    for _ in range(5):
        bank.transfer("a")
    arrived(pair, 6)
    notify_next()
    bank.transfer("b")
    arrived(pair, 7)


def test_a_connection_that_was_cut_is_made_again(pair: Pair) -> None:
    """What was published meanwhile is found when it listens again."""
    url = ConnectionManager.get("default").settings.url().set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        ((pid,),) = connection.execute(LISTENING).fetchall()
        connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
        eventually(
            lambda: pid not in [row[0] for row in pair.first.rows(LISTENING)], describe="the connection has ended"
        )
    notify_next()
    bank.transfer("a")
    arrived(pair, 2)
