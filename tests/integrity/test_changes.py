"""Audits of changes: they find what an audit of everything would find, whoever made the change and however late."""

from __future__ import annotations

import random
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa

from bench import engines
from bench.databases import Pair, TestDatabase
from crosstie.orm import ConnectionManager
from crosstie.orm.faults import FaultInjected, armed
from crosstie.orm.integrity import AuditPhase, AuditProgress, AuditResult, AuditScope, AuditState
from crosstie.workers import audit_notes
from crosstie.workers.audit import run_audit
from crosstie.workers.audit_triggers import create_noting, drop_noting
from crosstie.workers.errors import ChangesNotNoted
from integrity.tables import Linked, linked, orphans

CHANGES, FULL = AuditScope.CHANGES, AuditScope.FULL
SERVERS = pytest.mark.parametrize(
    "pair", [("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)
ONE = pytest.mark.parametrize("pair", [("sqlite", "postgresql")], indirect=True, ids="-".join)
ALONE = pytest.mark.parametrize("pair", [("sqlite", "sqlite")], indirect=True, ids="-".join)


@pytest.fixture
def noted(world: Linked) -> Linked:
    """Posts 1 to 9 of users 1 to 9, all of them read since changes are noted."""
    world.register(range(1, 10))
    world.post([(key, key) for key in range(1, 10)])
    create_noting(world.reference)
    assert run(world).scope is FULL
    return world


def run(world: Linked, scope: AuditScope = CHANGES, **options: Any) -> AuditResult:
    """Audit the reference as a run of its own."""
    (result,) = run_audit([world.reference], scope=scope, **options).results
    return result


def notes(database: TestDatabase) -> int:
    """How many are kept there."""
    return int(database.scalar("SELECT count(*) FROM crosstie_audit_key"))


def test_every_kind_of_change_is_found_and_nothing_else_is_looked_at(noted: Linked) -> None:
    """By raw SQL: children inserted and changed, parents deleted and given another key."""
    assert (run(noted).keys_checked, run(noted).scope) == (0, CHANGES)
    noted.post([(20, 900), (21, 1), (22, None)])
    noted.child.execute("UPDATE posts SET user_id = 901 WHERE id = 2")
    noted.child.execute("UPDATE posts SET id = 23 WHERE id = 3")
    noted.child.execute("DELETE FROM posts WHERE id = 9")
    noted.parent.execute("DELETE FROM users WHERE id IN (4, 9)")
    noted.parent.execute("UPDATE users SET id = 500 WHERE id = 5")
    found = run(noted)
    assert orphans(found) == {20: 900, 2: 901, 4: 4, 5: 5}
    assert (found.state, found.scope, found.keys_checked) == (AuditState.FINDINGS, CHANGES, 6)
    assert orphans(run(noted, FULL)) == orphans(found)


def test_what_was_not_in_order_is_looked_at_until_it_is(noted: Linked) -> None:
    """An orphan is reported by each audit, and no more once its parent is there or its row is gone."""
    noted.post([(20, 900), (21, 901)])
    assert orphans(run(noted)) == {20: 900, 21: 901}
    assert orphans(run(noted)) == {20: 900, 21: 901}
    noted.register([900])
    assert orphans(run(noted)) == {21: 901}
    noted.child.execute("DELETE FROM posts WHERE id = 21")
    assert run(noted).state is AuditState.OK
    assert (notes(noted.child), notes(noted.parent)) == (0, 0)


def test_random_changes_are_found_as_by_reading_everything(noted: Linked) -> None:
    """Against a model in Python, over many small audits; the seed is printed."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    dice = random.Random(seed)
    posts: dict[int, int | None] = {key: key for key in range(1, 10)}
    users = set(range(1, 10))
    for _ in range(8):
        for _ in range(dice.randrange(1, 5)):
            user, post = dice.randrange(1, 15), dice.randrange(1, 30)
            match dice.choice(["post", "change", "remove", "join", "leave"]):
                case "post" if post not in posts:
                    noted.post([(post, user)])
                    posts[post] = user
                case "change" if post in posts:
                    value = dice.choice([None, user])
                    noted.child.execute("UPDATE posts SET user_id = %s WHERE id = %s", (value, post))
                    posts[post] = value
                case "remove" if post in posts:
                    noted.child.execute("DELETE FROM posts WHERE id = %s", (post,))
                    del posts[post]
                case "join" if user not in users:
                    noted.register([user])
                    users.add(user)
                case "leave" if user in users:
                    noted.parent.execute("DELETE FROM users WHERE id = %s", (user,))
                    users.remove(user)
        expected = {post: user for post, user in posts.items() if user is not None and user not in users}
        found = run(noted)
        assert (found.scope, orphans(found)) == (CHANGES, expected)


@SERVERS
def test_a_change_that_commits_late_is_found_by_the_audit_after_it(noted: Linked) -> None:
    """Its note has a smaller id than others that were looked at long ago."""
    with closing(engines.connect(noted.child.direct)) as writer, closing(engines.connect(noted.parent.direct)) as gone:
        for connection, statement in (
            (writer, "INSERT INTO posts (id, user_id) VALUES (20, 900)"),
            (gone, "DELETE FROM users WHERE id = 4"),
        ):
            connection.cursor().execute("BEGIN")
            connection.cursor().execute(statement)
        noted.post([(21, 901)])
        noted.parent.execute("DELETE FROM users WHERE id = 5")
        assert orphans(run(noted)) == {21: 901, 5: 5}
        assert orphans(run(noted, FULL)) == {21: 901, 5: 5}
        writer.cursor().execute("COMMIT")
        gone.cursor().execute("COMMIT")
    found = run(noted)
    assert (found.scope, orphans(found)) == (CHANGES, {20: 900, 21: 901, 4: 4, 5: 5})


def test_what_is_written_while_everything_is_read_is_looked_at_later(noted: Linked) -> None:
    """Behind the reader's back: its note was not there when the reader began, and stays."""

    def write(step: AuditProgress) -> None:
        if step.phase is AuditPhase.RECONCILING:
            noted.child.execute("UPDATE posts SET user_id = 0 WHERE id = 1")
            noted.parent.execute("DELETE FROM users WHERE id = 2")

    assert orphans(run(noted, FULL, progress=write)) == {}
    found = run(noted)
    assert (found.scope, orphans(found)) == (CHANGES, {1: 0, 2: 2})


def test_triggers_that_were_made_anew_have_everything_read(noted: Linked) -> None:
    """Nobody noted what was written between; and without triggers, changes are no answer at all."""
    assert len(drop_noting(noted.reference)) >= 4
    noted.post([(20, 900)])
    noted.parent.execute("DELETE FROM users WHERE id = 4")
    create_noting(noted.reference)
    found = run(noted)
    assert (found.scope, orphans(found)) == (FULL, {20: 900, 4: 4})
    assert "made anew" in found.notes[0]
    assert run(noted).scope is CHANGES
    drop_noting(noted.reference)
    found = run(noted)
    assert found.scope is FULL
    assert "crosstie audit triggers" in found.notes[0]
    assert create_noting(noted.reference)
    assert run(noted).scope is FULL
    assert create_noting(noted.reference) == []


@SERVERS
def test_a_table_of_parents_that_is_truncated_has_everything_read(noted: Linked) -> None:
    """PostgreSQL has a trigger for it; in MariaDB the table is another one afterwards."""
    noted.parent.execute("TRUNCATE TABLE users")
    found = run(noted)
    assert (found.scope, found.orphan_rows) == (FULL, 9)
    assert run(noted).orphan_rows == 9


@pytest.mark.parametrize("pair", [("mariadb", "postgresql")], indirect=True, ids="-".join)
def test_a_trigger_that_is_switched_off_notes_nothing(noted: Linked) -> None:
    """PostgreSQL keeps it, and does not fire it."""
    noted.parent.execute("ALTER TABLE users DISABLE TRIGGER ALL")
    assert run(noted).scope is FULL


@ONE
def test_a_row_that_is_found_with_two_keys_is_one_finding(noted: Linked) -> None:
    """It was read with one orphaned key, and has another by the time that this is looked at."""
    noted.post([(20, 900), (21, 901)])
    noted.child.execute("DELETE FROM posts WHERE id = 21")

    def change(step: AuditProgress) -> None:
        if step.phase is AuditPhase.RECONCILING:
            noted.child.execute("UPDATE posts SET user_id = 901 WHERE id = 20")

    found = run(noted, AuditScope.PART, progress=change)
    assert (found.state, orphans(found)) == (AuditState.FINDINGS, {20: 901})
    assert noted.child.rows("SELECT child_key, parent_key FROM crosstie_finding") == [("[20]", "901")]


@ONE
def test_an_audit_that_did_not_reach_its_end_takes_no_note_away(
    noted: Linked, configured: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one looks at everything that it was to look at."""
    noted.post([(20, 900)])
    noted.parent.execute("DELETE FROM users WHERE id = 4")
    noted.parent.execute("ALTER TABLE users RENAME TO away")
    assert run(noted).state is AuditState.INCOMPLETE
    noted.parent.execute("ALTER TABLE away RENAME TO users")

    def broken(*_: Any, **__: Any) -> AuditResult:
        raise ZeroDivisionError("a slip")

    with monkeypatch.context() as patched:
        patched.setattr(audit_notes, "audit_keys", broken)
        assert run(noted).state is AuditState.INCOMPLETE
    found = run(noted)
    assert (found.scope, orphans(found)) == (CHANGES, {20: 900, 4: 4})


@ONE
def test_a_kill_between_both_databases_has_notes_looked_at_again(noted: Linked) -> None:
    """The run has ended in the child's database, and those of the parent's are still there."""
    noted.parent.execute("DELETE FROM users WHERE id = 4")
    with armed("notes.recorded"), pytest.raises(FaultInjected):
        run(noted)
    assert notes(noted.parent) == 1
    assert orphans(run(noted)) == {4: 4}
    assert notes(noted.parent) == 0


@ALONE
def test_more_orphans_than_are_listed_have_everything_read(noted: Linked, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not listed cannot be looked at again."""
    noted.post([(key, 900 + key) for key in range(20, 25)])
    monkeypatch.setattr("crosstie.orm.integrity.judgement.Tally.open_keys", lambda _: None)
    assert run(noted).orphan_rows == 5
    monkeypatch.undo()
    found = run(noted)
    assert (found.scope, found.orphan_rows) == (FULL, 5)
    assert run(noted).scope is CHANGES


@ALONE
def test_everything_is_read_from_time_to_time(noted: Linked, monkeypatch: pytest.MonkeyPatch, configured: Pair) -> None:
    """Restores, and whatever else no trigger tells, are found then."""
    assert run(noted).scope is CHANGES
    monkeypatch.setenv("CROSSTIE_AUDIT__FULL_EVERY_S", "3600")
    ConnectionManager.configure(configured.configuration)
    assert run(noted).scope is CHANGES
    noted.child.execute("UPDATE crosstie_audit_run SET detail = replace(detail, '\"at_ms\": 1', '\"at_ms\": ')")
    found = run(noted)
    assert (found.scope, "days old" in found.notes[0]) == (FULL, True)


@ALONE
def test_without_a_record_changes_cannot_be_told(world: Linked) -> None:
    """The place where notes would be is missing."""
    world.child.execute("DROP TABLE crosstie_audit_key")
    found = run(world)
    assert found.state is AuditState.INCOMPLETE
    assert "crosstie init" in (found.reason or "")
    assert run(world, FULL).state is AuditState.OK


@pytest.mark.parametrize("pair", [("postgresql", "postgresql"), ("mariadb", "mariadb")], indirect=True, ids="-".join)
@pytest.mark.parametrize("keys", ["text", "bytes", "integers"])
def test_what_triggers_cannot_tell_is_refused(configured: Pair, keys: str) -> None:
    """Cascades of InnoDB, partitions, bytes, texts equal in several spellings; such references are read whole."""
    parent = configured.second
    if keys == "bytes":
        world = linked(configured, {"postgresql": "BYTEA", "mariadb": "BINARY(16)"}, declared=sa.Uuid)
        expected = "stores bytes"
    elif keys == "text":
        parent_type = {"postgresql": "CHAR(9)", "mariadb": "VARCHAR(9)"}
        world = linked(configured, parent_type, declared=sa.String(9))
        expected = "spelt otherwise"
    else:
        world = linked(configured)
        parent.execute("DROP TABLE users")
        if parent.kind == "mariadb":
            parent.execute("CREATE TABLE firms (id INT PRIMARY KEY)")
            parent.execute(
                "CREATE TABLE users (id BIGINT PRIMARY KEY, firm INT,"
                " CONSTRAINT users_firm FOREIGN KEY (firm) REFERENCES firms (id) ON DELETE CASCADE)"
            )
        else:
            parent.execute("CREATE TABLE users (id BIGINT PRIMARY KEY) PARTITION BY RANGE (id)")
            parent.execute("CREATE TABLE few_users PARTITION OF users FOR VALUES FROM (0) TO (1000)")
        expected = "cascades" if parent.kind == "mariadb" else "partitions"
    with pytest.raises(ChangesNotNoted, match=expected):
        create_noting(world.reference)
    found = run(world)
    assert (found.state, found.scope) == (AuditState.OK, FULL)
    assert expected in found.notes[0]
