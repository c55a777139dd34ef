"""Between the last look and the commit of a repair nobody can bring the parent, take the child, or begin a saga."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from bench.databases import Pair, TestDatabase
from crosstie.orm import ConnectionManager
from crosstie.orm.driver_errors import classify
from crosstie.orm.errors import LockTimeout
from crosstie.orm.faults import armed
from crosstie.orm.integrity import AuditPhase, AuditProgress
from crosstie.workers.repair import Cap, Outcome, RepairReport, repair_reference
from integrity.blog import USERS, Blog

POSTGRESQL = pytest.mark.parametrize("crash_pair", [("postgresql", "sqlite")], indirect=True, ids="-".join)
_AT_ONCE = {"postgresql": "SET lock_timeout = '20ms'", "mariadb": "SET SESSION innodb_lock_wait_timeout = 0"}


@pytest.fixture
def configured(configured_crash_pair: Pair) -> Pair:
    """Each kind of database is the parent's once."""
    return configured_crash_pair


def plant(blog: Blog) -> None:
    """Ada with a post, and a post of nobody."""
    for user_id in (blog.user(name="ada").save().id, 900):
        blog.post(user_id=user_id).save()


def repair(**options: Any) -> RepairReport:
    """Delete the orphan."""
    return repair_reference(USERS, "delete", apply=True, cap=Cap(percent=100), **options)


def is_there(pair: Pair) -> bool:
    """Whether the orphan is."""
    return bool(pair.second.scalar("SELECT count(*) FROM posts WHERE user_id = 900"))


def must_wait(database: TestDatabase, statement: str) -> bool:
    """Whether the statement would have to wait for somebody's lock now; else it has run."""
    with database.connect() as connection, closing(connection.cursor()) as cursor:
        cursor.execute(_AT_ONCE.get(database.kind, "PRAGMA busy_timeout = 0"))
        try:
            cursor.execute(statement)
        except Exception as error:
            failure = classify(error)
            if failure is None or not issubclass(failure.error, LockTimeout):
                raise
            return True
    return False


def void(_: object) -> None:
    """Only for what it has done."""


@contextmanager
def impatient(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Repairs wait for locks no longer than a second."""
    monkeypatch.setenv("CROSSTIE_SAGA__LOCK_TIMEOUT_S", "1")
    hasty = {
        name: database.config | ({"busy_timeout_s": 0.1} if database.kind == "sqlite" else {})
        for name, database in pair.by_name.items()
    }
    ConnectionManager.configure(hasty)
    yield


@pytest.mark.parametrize("statement", ["INSERT INTO users (id, name) VALUES (900, 'x')", "UPDATE users SET id = 900"])
def test_a_parent_cannot_come_before_the_repair_has_committed(configured: Pair, blog: Blog, statement: str) -> None:
    """Whoever brings it waits from the last look until the child is gone durably, and can bring it afterwards."""
    plant(blog)
    waited: list[bool] = []
    with armed("repair.recorded", lambda: waited.append(must_wait(configured.first, statement))):
        report = repair()
    assert (waited, report.count(Outcome.REPAIRED), is_there(configured)) == ([True], 1, False)
    assert not must_wait(configured.first, statement)
    assert configured.first.scalar("SELECT count(*) FROM users WHERE id = 900") == 1


def test_a_parent_that_came_after_the_audit_keeps_its_child(configured: Pair, blog: Blog) -> None:
    """The fence stands before the parent is looked for again."""
    plant(blog)

    def bring(step: AuditProgress) -> None:
        if step.phase is AuditPhase.DONE:
            configured.first.execute("INSERT INTO users (id, name) VALUES (900, 'x')")

    report = repair(progress=bring)
    assert [(row.outcome, row.reason) for row in report.rows] == [
        (Outcome.SPARED, "The row's parent is there by now, so the row is no orphan.")
    ]
    assert is_there(configured)


def test_a_parent_that_is_about_to_come_keeps_its_child(
    configured: Pair, blog: Blog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its insert is open when the repair wants its fence: the row is spared, whichever way the insert ends."""
    plant(blog)
    with impatient(configured, monkeypatch), configured.first.connect() as other, closing(other.cursor()) as cursor:
        begun: list[int] = []

        def begin(step: AuditProgress) -> None:
            if step.phase is AuditPhase.DONE:
                begun.append(cursor.execute("BEGIN") is None)
                cursor.execute("INSERT INTO users (id, name) VALUES (900, 'x')")

        report = repair(progress=begin)
        cursor.execute("COMMIT")
    assert [row.outcome for row in report.rows] == [Outcome.SPARED]
    assert "somebody is at work there" in (report.rows[0].reason or "")
    assert is_there(configured)


def test_a_child_that_has_another_parent_by_now_is_spared(configured: Pair, blog: Blog) -> None:
    """It is read again under lock, by its primary and its foreign key."""
    plant(blog)
    with armed("repair.fenced", lambda: void(configured.second.execute("UPDATE posts SET user_id = 1 WHERE id = 2"))):
        report = repair()
    assert [(row.outcome, row.reason) for row in report.rows] == [
        (Outcome.SPARED, "the row is gone, or refers to another key by now")
    ]
    assert configured.second.scalar("SELECT count(*) FROM posts") == 2


def test_a_child_cannot_change_before_the_repair_has_committed(configured: Pair, blog: Blog) -> None:
    """Its row is locked."""
    plant(blog)
    waited: list[bool] = []
    change = "UPDATE posts SET user_id = 1 WHERE id = 2"
    with armed("repair.recorded", lambda: waited.append(must_wait(configured.second, change))):
        assert repair().count(Outcome.REPAIRED) == 1
    assert waited == [True]


def test_a_saga_that_has_begun_since_the_audit_spares_its_rows(configured: Pair, blog: Blog) -> None:
    """Its records are read once the child's row is locked."""
    plant(blog)
    log = json.dumps([{"op": "update", "table": "posts", "key": {"id": 2}, "before": {}, "after": {}}])

    def begin() -> None:
        configured.second.execute(
            "INSERT INTO crosstie_saga (saga_id, step, participant, role, state, name, home, participants, undo_log,"
            " created_at_ms, updated_at_ms, expires_at_ms, next_at_ms, attempts)"
            " VALUES ('s', 0, 'secondary', 'branch', 'applied', 's', 'default', %s, %s, 0, 0, 0, 0, 0)",
            ('["secondary", "default"]', log),
        )

    with armed("repair.fenced", begin):
        report = repair()
    assert "saga" in (report.rows[0].reason or "")
    assert is_there(configured)


def _at_the_point(pair: Pair, statement: str) -> tuple[bool, RepairReport]:
    waited: list[bool] = []
    look: Callable[[], None] = lambda: waited.append(must_wait(pair.first, statement))  # noqa: E731
    with armed("repair.recorded", look):
        report = repair()
    return waited[0], report


@POSTGRESQL
def test_on_postgresql_others_may_insert_other_parents_meanwhile(configured: Pair, blog: Blog) -> None:
    """A placeholder holds the key alone, whatever columns the table insists on; and nothing of it stays."""
    configured.first.execute("CREATE TYPE mood AS ENUM ('calm', 'glad')")
    configured.first.execute(
        "ALTER TABLE users ADD COLUMN born DATE NOT NULL DEFAULT now(), ADD COLUMN token UUID NOT NULL DEFAULT"
        " gen_random_uuid(), ADD COLUMN extra JSONB NOT NULL DEFAULT '{}', ADD COLUMN share NUMERIC(5, 2) NOT NULL"
        " DEFAULT 0, ADD COLUMN tags TEXT[] NOT NULL DEFAULT '{}', ADD COLUMN mood mood NOT NULL DEFAULT 'calm',"
        " ADD COLUMN is_new BOOLEAN NOT NULL DEFAULT true, ADD COLUMN raw BYTEA NOT NULL DEFAULT '',"
        " ADD COLUMN span INTERVAL NOT NULL DEFAULT '0'"
    )
    plant(blog)
    for column in ("born", "token", "extra", "share", "tags", "mood", "is_new", "raw", "span"):
        configured.first.execute(f"ALTER TABLE users ALTER COLUMN {column} DROP DEFAULT")
    waits, report = _at_the_point(
        configured,
        "INSERT INTO users (id, name, born, token, extra, share, tags, mood, is_new, raw, span) VALUES"
        " (901, 'x', now(), gen_random_uuid(), '{}', 0, '{}', 'glad', true, '', '0')",
    )
    assert (waits, report.count(Outcome.REPAIRED)) == (False, 1)
    assert [row[0] for row in configured.first.rows("SELECT id FROM users ORDER BY id")] == [1, 901]


@POSTGRESQL
@pytest.mark.parametrize(
    "change",
    [
        "ADD CONSTRAINT named CHECK (name <> '')",
        "DROP CONSTRAINT users_pkey",
        "ADD COLUMN place POINT NOT NULL DEFAULT point(0, 0), ADD CONSTRAINT far CHECK (place[0] <> 0) NOT VALID",
    ],
)
def test_on_postgresql_a_table_that_refuses_a_placeholder_is_closed_to_writers(
    configured: Pair, blog: Blog, change: str
) -> None:
    """Slower for others, and as safe."""
    plant(blog)
    configured.first.execute(f"ALTER TABLE users {change}")
    waits, report = _at_the_point(configured, "INSERT INTO users (id, name) VALUES (900, 'x')")
    assert (waits, report.count(Outcome.REPAIRED)) == (True, 1), report.rows
    assert is_there(configured) is False


@POSTGRESQL
def test_a_fence_that_is_lost_takes_the_repair_with_it(configured: Pair, blog: Blog) -> None:
    """The server has ended the connection: nothing keeps the parent out any more, so nothing is committed."""
    plant(blog)
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = %s"
    with armed("repair.fenced", lambda: void(configured.first.rows(end, (configured.first.name,)))):
        report = repair()
    assert [row.outcome for row in report.rows] == [Outcome.FAILED]
    assert "'default'" in (report.rows[0].reason or "")
    assert is_there(configured)
