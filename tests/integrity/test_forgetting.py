"""Runs that are ended, superseded or forgotten wait for no row of another run, which somebody is just writing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from bench import engines
from bench.databases import TestDatabase
from crosstie.orm import ConnectionManager
from crosstie.orm.integrity import AuditResult, AuditState
from crosstie.workers import audit_record
from crosstie.workers.audit_record import close_run, open_run
from crosstie.workers.retention import forget_audit_runs

KINDS = pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
RUN = (
    "INSERT INTO crosstie_audit_run (run_id, reference, state, started_at_ms, rows_checked, findings, epoch)"
    " VALUES (%s, %s, %s, %s, 0, 0, 1)"
)
FINDING = (
    "INSERT INTO crosstie_finding (run_id, reference, child_key, parent_key, kind, found_at_ms)"
    " VALUES (%s, %s, '1', '2', 'orphan', 0)"
)


@pytest.fixture
def busy(configured_database: TestDatabase) -> Iterator[TestDatabase]:
    """Others are writing the run and the finding of another reference, whose keys lie between all others."""
    database = configured_database
    for number in range(4):
        database.execute(RUN, (f"r{number}", "mine", "ok", 1_000 + number))
        database.execute(FINDING, (f"r{number}", "mine"))
    database.execute(RUN, ("r1", "theirs", "running", 2_000))
    with closing(engines.connect(database.direct)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("BEGIN")
        cursor.execute("UPDATE crosstie_audit_run SET owner = 'they' WHERE reference = 'theirs' AND run_id = 'r1'")
        cursor.execute(FINDING, ("r1", "theirs"))
        yield database
        cursor.execute("ROLLBACK")


def left(database: TestDatabase, table: str) -> list[str]:
    """The runs of the reference in a table."""
    return [run for (run,) in database.rows(f"SELECT run_id FROM {table} WHERE reference = 'mine' ORDER BY run_id")]


@KINDS
def test_old_runs_are_forgotten_beside_those_who_write(busy: TestDatabase) -> None:
    """By the clock: all but the last one of the reference."""
    assert forget_audit_runs("default") == 3
    assert (left(busy, "crosstie_audit_run"), left(busy, "crosstie_finding")) == (["r3"], ["r3"])


@KINDS
def test_a_run_ends_beside_those_who_write(busy: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """It forgets the runs that are more than enough."""
    monkeypatch.setattr(audit_record, "RUNS_KEPT", 2)
    held, _ = open_run(ConnectionManager.get("default"), "r9", "mine", None, owner="me", lease_s=60)
    close_run(held, AuditResult("mine", AuditState.OK))
    assert (left(busy, "crosstie_audit_run"), left(busy, "crosstie_finding")) == (["r3", "r9"], ["r3"])


@KINDS
def test_a_run_is_superseded_beside_those_who_write(busy: TestDatabase) -> None:
    """The one that never ended, of the same reference alone."""
    busy.execute("UPDATE crosstie_audit_run SET state = 'running' WHERE reference = 'mine' AND run_id = 'r2'")
    _, superseded = open_run(ConnectionManager.get("default"), "r9", "mine", None, owner="me", lease_s=60)
    assert [one.run_id for one in superseded] == ["r2"]
    assert busy.rows("SELECT run_id FROM crosstie_audit_run WHERE state = 'incomplete'") == [("r2",)]
