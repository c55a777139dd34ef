"""Repairs: nothing without being told so, nothing that is no orphan, everything kept and brought back on demand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.databases import Pair
from crosstie.orm import ActiveRecord, ConnectionManager
from crosstie.sagas import saga, sweep_sagas
from crosstie.workers.repair import (
    Cap,
    Outcome,
    Policy,
    RepairRefused,
    UnknownRepair,
    recreates,
    recreation,
    repair_reference,
    undo_repair,
)
from integrity.blog import USERS, Blog
from integrity.notes import define_notes

ONE = pytest.mark.parametrize("pair", [("sqlite", "postgresql")], indirect=True, ids="-".join)
ALL = Cap(percent=100.0)


def plant(blog: Blog) -> int:
    """Ada with two posts, and three posts of two users that never were; returns Ada's key."""
    ada = blog.user(name="ada").save()
    for user_id in (ada.id, ada.id, 900, 900, 901):
        blog.post(user_id=user_id).save()
    return int(ada.id)


def posts(pair: Pair) -> list[tuple[int, int | None]]:
    """(id, user_id) of every post."""
    return [(row[0], row[1]) for row in pair.second.rows("SELECT id, user_id FROM posts ORDER BY id")]


def kept(pair: Pair, database: str = "secondary") -> int:
    """Rows of the quarantine that wait for an undo."""
    query = "SELECT count(*) FROM crosstie_quarantine WHERE state = 'repaired'"
    return int(pair.by_name[database].scalar(query))


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(configured: Pair, blog: Blog) -> None:
    """It is what happens unless `apply` is given."""
    plant(blog)
    before = posts(configured)
    report = repair_reference(USERS, "delete", cap=ALL)
    assert (report.repair_id, report.count(Outcome.PLANNED), report.exit_status) == (None, 3, 1)
    assert sorted(row.child_key["id"] for row in report.rows) == [3, 4, 5]
    assert (posts(configured), kept(configured)) == (before, 0)


@pytest.mark.parametrize("policy", ["set_null", "delete", "quarantine"])
def test_orphans_are_repaired_and_brought_back(configured: Pair, blog: Blog, policy: str) -> None:
    """Each as the policy says, no other row; the undo restores every row as it was, once."""
    ada = plant(blog)
    before = posts(configured)
    report = repair_reference(USERS, policy, apply=True, cap=ALL)
    assert (report.count(Outcome.REPAIRED), report.exit_status) == (3, 0), report.rows
    left = [(1, ada), (2, ada)] + ([(3, None), (4, None), (5, None)] if policy == "set_null" else [])
    assert posts(configured) == left
    assert kept(configured) == 3
    assert repair_reference(USERS, policy, apply=True, cap=ALL).rows == ()

    assert report.repair_id is not None
    undone = undo_repair(report.repair_id)
    assert (undone.exit_status, len(undone.rows), undone.before) == (0, 3, 0)
    assert (posts(configured), kept(configured)) == (before, 0)
    again = undo_repair(report.repair_id)
    assert (again.rows, again.before) == ((), 3)


def test_a_parent_is_made_anew_by_the_registered_function(
    configured: Pair, blog: Blog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each missing key; the undo takes those parents away again."""
    monkeypatch.setattr(recreation, "_makers", {})

    @recreates("posts.user_id")
    def placeholder(key: Any) -> ActiveRecord:
        made: ActiveRecord = blog.user(id=key, name="(gone)")
        return made

    plant(blog)
    report = repair_reference(USERS, Policy.RECREATE, apply=True, cap=ALL)
    assert (report.count(Outcome.REPAIRED), report.exit_status) == (3, 0), report.rows
    users = "SELECT id, name FROM users WHERE id >= 900 ORDER BY id"
    assert configured.first.rows(users) == [(900, "(gone)"), (901, "(gone)")]
    assert kept(configured, "default") == 2
    assert repair_reference(USERS, Policy.RECREATE, cap=ALL).audit.orphan_rows == 0

    configured.first.execute("UPDATE users SET name = 'Grace' WHERE id = 901")
    assert report.repair_id is not None
    undone = undo_repair(report.repair_id)
    assert {row.parent_key: row.restored for row in undone.rows} == {"901": False, "900": True}
    assert "somebody has changed name since" in str([row.reason for row in undone.rows])
    assert configured.first.rows(users) == [(901, "Grace")]


@ONE
def test_a_function_that_makes_another_parent_fails_and_leaves_nothing(configured: Pair, blog: Blog) -> None:
    """What it made is rolled back."""
    plant(blog)
    report = repair_reference(USERS, "recreate", apply=True, cap=ALL, recreate=lambda key: blog.user(id=key + 50))
    assert report.count(Outcome.FAILED) == 3
    assert "there is none after it" in (report.rows[0].reason or "")
    assert configured.first.scalar("SELECT count(*) FROM users") == 1


@ONE
def test_without_a_registered_function_nothing_is_recreated(configured: Pair, blog: Blog) -> None:
    """The error says how to register one."""
    plant(blog)
    with pytest.raises(RepairRefused, match=r"@recreates\('posts.user_id'\)"):
        repair_reference(USERS, "recreate", cap=ALL)


def test_a_row_that_was_changed_since_stays_in_the_quarantine(configured: Pair, blog: Blog) -> None:
    """The undo names it and the reason, restores the others, and tries it again when asked again."""
    plant(blog)
    report = repair_reference(USERS, "set_null", apply=True, cap=ALL)
    assert report.repair_id is not None
    configured.second.execute("UPDATE posts SET user_id = 1 WHERE id = 4")
    undone = undo_repair(report.repair_id)
    assert {row.child_key["id"]: row.restored for row in undone.rows} == {3: True, 4: False, 5: True}
    assert undone.exit_status == 1
    assert "somebody has changed user_id" in str([row.reason for row in undone.rows])
    assert "user_id" in configured.second.scalar("SELECT error FROM crosstie_quarantine WHERE state = 'repaired'")

    configured.second.execute("UPDATE posts SET user_id = NULL WHERE id = 4")
    assert undo_repair(report.repair_id).exit_status == 0
    assert posts(configured)[3] == (4, 900)


def test_callbacks_run_and_what_they_write_is_undone_too(configured: Pair, no_models: None) -> None:
    """`delete` is the delete of the ORM, with its lock version; one callback that fails costs its own row alone."""
    notes = define_notes()
    for writer_id in (900, 901):
        notes.note(writer_id=writer_id).save()
    report = repair_reference("notes.writer_id", "delete", apply=True, cap=ALL)
    assert {row.parent_key: (row.outcome, row.reason) for row in report.rows} == {
        900: (Outcome.REPAIRED, None),
        901: (Outcome.FAILED, "ValueError: not this one"),
    }
    assert configured.second.rows("SELECT id FROM notes") == [(2,)]
    assert configured.second.rows("SELECT note_id FROM traces") == [(1,)]
    assert report.repair_id is not None
    assert undo_repair(report.repair_id).exit_status == 0
    assert configured.second.rows("SELECT id, writer_id FROM notes ORDER BY id") == [(1, 900), (2, 901)]
    assert configured.second.rows("SELECT note_id FROM traces") == []


@ONE
def test_set_null_raises_the_lock_version(configured: Pair, no_models: None) -> None:
    """Whoever holds the record learns of the change when saving it."""
    note = define_notes().note(writer_id=900).save()
    repair_reference("notes.writer_id", "set_null", apply=True, cap=ALL)
    assert configured.second.rows("SELECT writer_id, lock_version FROM notes") == [(None, note.lock_version + 1)]


@ONE
def test_the_quarantine_keeps_columns_that_no_model_knows(configured: Pair, blog: Blog) -> None:
    """The whole row is kept and restored."""
    plant(blog)
    configured.second.execute("ALTER TABLE posts ADD COLUMN secret VARCHAR(20)")
    configured.second.execute("UPDATE posts SET secret = 'x' WHERE id = 5")
    report = repair_reference(USERS, "quarantine", apply=True, cap=ALL)
    (row,) = configured.second.rows("SELECT image FROM crosstie_quarantine WHERE parent_key = '901'")
    assert json.loads(row[0])["secret"] == "x"
    assert report.repair_id is not None
    undo_repair(report.repair_id)
    assert configured.second.scalar("SELECT secret FROM posts WHERE id = 5") == "x"


def test_the_cap_trips_before_anything_is_written(configured: Pair, blog: Blog) -> None:
    """By rows, by percent; and always where the parents' table is empty."""
    plant(blog)
    before = posts(configured)
    with pytest.raises(RepairRefused, match="at most 2 orphan rows and found 3"):
        repair_reference(USERS, "delete", apply=True, cap=Cap(rows=2, percent=100))
    with pytest.raises(RepairRefused, match=r"at most 10 % of the rows and found 60 % \(3 of 5\)"):
        repair_reference(USERS, "delete", apply=True)
    configured.first.execute("DELETE FROM users")
    with pytest.raises(RepairRefused, match="no rows at all"):
        repair_reference(USERS, "delete", apply=True, cap=ALL)
    assert (posts(configured), kept(configured)) == (before, 0)


@ONE
def test_an_incomplete_audit_repairs_nothing(configured: Pair, blog: Blog) -> None:
    """Nobody knows what is an orphan while the parents' database is down."""
    plant(blog)
    ConnectionManager.configure(
        configured.configuration | {"default": {"driver": "sqlite", "database": "/nowhere/at/all.db"}}
    )
    before = posts(configured)
    with pytest.raises(RepairRefused, match=r"audit is incomplete .*'default'"):
        repair_reference(USERS, "delete", apply=True, cap=ALL)
    assert posts(configured) == before


@ONE
def test_without_a_quarantine_nothing_is_repaired(configured: Pair, blog: Blog) -> None:
    """What is not kept could not be brought back."""
    plant(blog)
    configured.second.execute("DROP TABLE crosstie_quarantine")
    with pytest.raises(RepairRefused, match="run `crosstie init`"):
        repair_reference(USERS, "delete", apply=True, cap=ALL)


@ONE
def test_a_column_that_takes_no_null_is_not_nulled(configured: Pair, no_models: None) -> None:
    """It is said before anything is tried."""
    define_notes().bill(writer_id=900).save()
    with pytest.raises(RepairRefused, match="takes NULL"):
        repair_reference("bills.writer_id", "set_null", cap=ALL)


def test_rows_in_the_hands_of_a_saga_are_spared(configured: Pair, blog: Blog) -> None:
    """A saga that was open at the audit defers its rows; one that begins after it spares them."""
    plant(blog)
    with saga("post", home="default"):
        blog.user(name="grace").save()
        blog.post.find_by(id=5).update(user_id=902)
    report = repair_reference(USERS, "delete", apply=True, cap=ALL)
    assert {row.parent_key for row in report.rows} == {900}
    assert posts(configured)[-1] == (5, 902)
    assert sweep_sagas("secondary").settled == 1
    assert repair_reference(USERS, "delete", apply=True, cap=ALL).count(Outcome.REPAIRED) == 1


@ONE
def test_a_repair_inside_a_transaction_is_refused(configured: Pair, blog: Blog) -> None:
    """It has its own."""
    with blog.post.transaction(), pytest.raises(RepairRefused, match="call it outside"):
        repair_reference(USERS, "delete")


@ONE
def test_an_unknown_repair_cannot_be_undone(configured: Pair, blog: Blog) -> None:
    """The error says where the known ones are listed."""
    with pytest.raises(UnknownRepair, match="crosstie audit repairs"):
        undo_repair("nobody")
