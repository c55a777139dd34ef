"""What is kept that nobody needs any more goes after a time, by jobs of its own and never in the way of an event."""

from __future__ import annotations

import logging

import pytest

from bench.databases import Pair, TestDatabase
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import DatabaseUnavailable
from crosstie.outbox import sweep_lanes
from crosstie.outbox.errors import OperationRefused
from crosstie.outbox.operation import Selection, redrive
from crosstie.outbox.origins import forget_origin, inbox_origins, origins_of
from crosstie.outbox.retention import skip_dead
from crosstie.workers.retention import forget_audit_runs
from crosstie.workers.sweep import database_jobs
from outbox import bank

DAY_MS = 86_400_000


@pytest.fixture
def dead(configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch, own_registries: None) -> Pair:
    """The first movement of an account is dead after its only attempt, and the second waits behind it."""
    monkeypatch.setenv("CROSSTIE_OUTBOX__ATTEMPTS", "1")
    monkeypatch.setenv("CROSSTIE_OUTBOX__DEAD_RETENTION_S", "86400")
    ConnectionManager.configure(configured_crash_pair.configuration)
    bank.subscribe(bank.poisoned_by(1))
    bank.open_bank()
    bank.transfer("a", times=2)
    sweep_lanes("default", owner="one")
    assert parked(configured_crash_pair) == ["dead", "behind"]
    return configured_crash_pair


def parked(pair: Pair) -> list[str]:
    """The states of the parked events."""
    return [state for _, state, _, _ in bank.parked(pair.first)]


def age(database: TestDatabase, table: str, column: str) -> None:
    """Let two days pass for a column."""
    database.execute(f"UPDATE {table} SET {column} = {column} - {2 * DAY_MS}")


def test_an_event_that_is_dead_for_too_long_is_skipped_and_its_key_goes_on(
    dead: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """Not before its time, and logged: it is lost. The lane's owner deletes it."""
    assert skip_dead("default") == 0
    age(dead.first, "crosstie_parked", "next_at_ms")
    with caplog.at_level(logging.WARNING):
        assert skip_dead("default") == 1
    assert "has been dead for longer than outbox.dead_retention_s" in caplog.text
    assert skip_dead("default") == 0
    assert parked(dead) == ["skipped", "behind"]
    bank.drain_all()
    assert (parked(dead), bank.arrivals(dead.second)) == ([], [("a", 2)])


def test_an_event_that_is_tried_anew_is_dead_no_more(dead: Pair) -> None:
    """Its time begins again when it dies again."""
    age(dead.first, "crosstie_parked", "next_at_ms")
    assert redrive("default", Selection()) == 1
    assert skip_dead("default") == 0
    sweep_lanes("default", owner="one")
    assert (parked(dead), skip_dead("default")) == (["dead", "behind"], 0)


def test_without_the_setting_a_dead_event_waits_for_ever(dead: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """To lose an event must have been asked for."""
    age(dead.first, "crosstie_parked", "next_at_ms")
    monkeypatch.delenv("CROSSTIE_OUTBOX__DEAD_RETENTION_S")
    ConnectionManager.configure(dead.configuration)
    assert (skip_dead("default"), parked(dead)) == (0, ["dead", "behind"])


def test_old_runs_of_audits_are_forgotten_but_for_the_last_of_each_reference(configured_crash_pair: Pair) -> None:
    """With their findings; one that is the last stays however old it is."""
    second = configured_crash_pair.second
    new_ms, old_ms = 4_000_000_000_000, 1_000
    rows = [("r1", "a", old_ms), ("r2", "a", new_ms), ("r1", "b", old_ms), ("r3", "c", old_ms), ("r4", "c", old_ms + 1)]
    for run_id, reference, at_ms in rows:
        second.execute(
            "INSERT INTO crosstie_audit_run (run_id, reference, state, started_at_ms, rows_checked, findings)"
            " VALUES (%s, %s, 'ok', %s, 0, 0)",
            (run_id, reference, at_ms),
        )
        second.execute(
            "INSERT INTO crosstie_finding (run_id, reference, child_key, parent_key, kind, found_at_ms)"
            " VALUES (%s, %s, '1', '2', 'orphan', %s)",
            (run_id, reference, at_ms),
        )
    assert forget_audit_runs("secondary") == 2
    assert forget_audit_runs("secondary") == 0
    for table in ("crosstie_audit_run", "crosstie_finding"):
        left = second.rows(f"SELECT run_id, reference FROM {table} ORDER BY reference, run_id")
        assert left == [("r2", "a"), ("r1", "b"), ("r4", "c")]


def test_both_are_jobs_of_every_database(configured_crash_pair: Pair) -> None:
    """They run by the clock, with no event in hand."""
    jobs = {job.name: job for job in database_jobs("default")}
    for name in ("skip_dead", "forget_audit_runs"):
        assert jobs[name].run() == 0


@pytest.fixture
def heard(configured_crash_pair: Pair, own_registries: None) -> str:
    """An origin of which `secondary` has heard."""
    bank.open_bank()
    bank.transfer("a")
    bank.drain_all()
    (found,) = {one.origin for one in inbox_origins("secondary")}
    assert found in origins_of("default")
    return found


def test_an_origin_that_is_alive_is_not_forgotten(configured_crash_pair: Pair, heard: str) -> None:
    """Forgetting it could apply its last batch twice."""
    with pytest.raises(OperationRefused, match="of which database 'default' has lanes"):
        forget_origin("secondary", heard, unused_for_s=0)
    assert configured_crash_pair.second.scalar("SELECT count(*) FROM crosstie_inbox") == 1


def test_an_origin_that_has_vanished_is_forgotten_once_it_was_not_heard_of_for_long(
    configured_crash_pair: Pair, heard: str
) -> None:
    """A database that is not configured here may deliver too, so time must have passed."""
    configured_crash_pair.first.execute("UPDATE crosstie_lane SET origin = 'default:another'")
    with pytest.raises(OperationRefused, match=r"has not heard of for 86400 s, .*--unused-for"):
        forget_origin("secondary", heard, unused_for_s=86_400)
    age(configured_crash_pair.second, "crosstie_inbox", "used_at_ms")
    (one,) = inbox_origins("secondary")
    assert 2 * DAY_MS / 1000 <= one.unused_s < 2 * DAY_MS / 1000 + 600
    assert forget_origin("secondary", heard, unused_for_s=86_400) == 1
    assert forget_origin("secondary", heard, unused_for_s=86_400) == 0
    assert inbox_origins("secondary") == []


def test_each_batch_says_that_its_origin_was_heard_of(configured_crash_pair: Pair, heard: str) -> None:
    """The time in the inbox is that of the last one."""
    age(configured_crash_pair.second, "crosstie_inbox", "used_at_ms")
    bank.transfer("a")
    bank.drain_all()
    (one,) = inbox_origins("secondary")
    assert (one.origin, one.unused_s < 600) == (heard, True)


def test_nothing_is_forgotten_while_a_database_cannot_be_asked(configured_crash_pair: Pair, heard: str) -> None:
    """It may be the one."""
    down = {"driver": "sqlite", "database": "/nowhere/at/all.db"}
    ConnectionManager.configure(configured_crash_pair.configuration | {"default": down})
    with pytest.raises(DatabaseUnavailable):
        forget_origin("secondary", heard, unused_for_s=0)
    assert len(inbox_origins("secondary")) == 1
