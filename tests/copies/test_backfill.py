"""Copies of rows that were there before, or were written past the ORM: backfilled, compared, repaired."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from bench.databases import Pair
from bench.faults import crash_at, crash_env
from bench.processes import Spawner
from copies.forum import copied, differing, open_forum, propagate, stored
from crosstie.orm.copies import CopyGroup
from crosstie.outbox import backfill, compare_copies, select_copies
from crosstie.outbox.errors import BackfillOvertaken, UnknownCopy

WALK: Final = """
    from copies.forum import define
    from crosstie.outbox import backfill, select_copies
    models = define()
    backfill(select_copies(["Post.username"])[0], chunk_size=2)
"""


@pytest.fixture
def forum(configured: Pair) -> Any:
    """The models, over every pair of databases."""
    return open_forum()


def posts() -> CopyGroup:
    """The copies in posts."""
    return select_copies(["Post.username"])[0]


def old_rows(pair: Pair, users: int, posts_each: int = 1) -> None:
    """Users and posts, written past the ORM and so without copies."""
    pair.first.execute_many(
        "INSERT INTO users (id, username) VALUES (%s, %s)", [(n, f"user {n}") for n in range(1, users + 1)]
    )
    rows = [(n, "", 0) for n in range(1, users + 1) for _ in range(posts_each)]
    pair.second.execute_many("INSERT INTO posts (user_id, title, lock_version) VALUES (%s, %s, %s)", rows)


def test_a_backfill_reaches_every_row(forum: Any, configured: Pair) -> None:
    """Of whichever parent, in chunks; a second walk changes nothing."""
    old_rows(configured, 7, 2)
    assert backfill(posts(), chunk_size=3) == 7
    assert propagate() == 3
    assert copied(configured) == [(n, f"user {n}") for n in range(1, 8) for _ in range(2)]
    assert backfill(posts(), chunk_size=3) == 7
    propagate()
    assert differing(configured) == []


def test_a_backfill_waits_for_workers(forum: Any, configured: Pair) -> None:
    """Never do more events wait than were allowed."""
    old_rows(configured, 9)
    waits: list[int] = []

    def work(_: float) -> None:
        waits.append(stored(configured.databases))
        propagate()

    assert backfill(posts(), chunk_size=1, limit_waiting=2, pause=work) == 9
    propagate()
    assert waits == [2, 2, 2, 2]
    assert differing(configured) == []


def test_an_interrupted_backfill_goes_on_where_it_was(forum: Any, configured: Pair) -> None:
    """Each parent is told once; with `restart` it begins anew."""
    old_rows(configured, 6)
    with pytest.raises(Exception, match=r"backfill\.chunk-committed"), crash_at("backfill.chunk-committed", nth=2):
        backfill(posts(), chunk_size=2)
    assert stored(configured.databases) == 2
    assert backfill(posts(), chunk_size=2) == 6
    assert stored(configured.databases) == 3
    with pytest.raises(Exception, match=r"backfill\.chunk-committed"), crash_at("backfill.chunk-committed"):
        backfill(posts(), chunk_size=2)
    assert backfill(posts(), chunk_size=2, restart=True) == 6
    states = configured.first.rows("SELECT state, rows_checked FROM crosstie_audit_run")
    assert sorted((str(state), int(walked)) for state, walked in states) == [("incomplete", 2), ("ok", 6), ("ok", 6)]


def test_a_killed_backfill_goes_on_where_it_was(forum: Any, configured: Pair, spawn: Spawner) -> None:
    """SIGKILL between two chunks: the next walk tells of the rest."""
    old_rows(configured, 5)
    environment = configured.environment | crash_env("backfill.chunk-committed", 2)
    spawn.code(WALK, environment=environment).wait_killed()
    told: list[int] = []
    assert backfill(posts(), chunk_size=2, progress=told.append) == 5
    assert told == [5]
    propagate()
    assert differing(configured) == []


def test_two_backfills_at_once_are_one(forum: Any, configured: Pair) -> None:
    """The one that finds the position moved on stops, and says why."""
    old_rows(configured, 4)
    inner: list[int] = []

    def other(_: int) -> None:
        if not inner:
            inner.append(0)
            inner[0] = backfill(posts(), chunk_size=2)

    with pytest.raises(BackfillOvertaken):
        backfill(posts(), chunk_size=2, progress=other)
    assert inner == [4]


def test_writers_during_a_backfill_are_not_overtaken(forum: Any, configured: Pair) -> None:
    """A user renamed after it was told of, and one that is made meanwhile."""
    old_rows(configured, 4)

    def write(walked: int) -> None:
        forum.User.find(1).update(username=f"renamed {walked}")
        if walked < 4:  # it would follow new rows for ever
            forum.Post(user_id=forum.User(id=100 + walked, username="new").save().id).save()

    backfill(posts(), chunk_size=1, progress=write)
    propagate()
    assert differing(configured) == []
    assert copied(configured)[0][1].startswith("renamed ")


def test_differences_are_found_and_repaired_by_events(forum: Any, configured: Pair) -> None:
    """Wrong values, values without a parent's key, NULL where there is a value; orphans are counted and kept."""
    old_rows(configured, 5)
    backfill(posts())
    propagate()
    assert compare_copies(posts()).is_right
    configured.second.execute("UPDATE posts SET username = 'x' WHERE user_id = 1")
    configured.second.execute("UPDATE posts SET username = NULL WHERE user_id = 2")
    configured.second.execute("UPDATE posts SET user_id = NULL WHERE user_id = 3")
    configured.first.execute("DELETE FROM users WHERE id = 4")
    found = compare_copies(posts(), chunk_size=2, settle_s=0)
    assert (found.rows, found.differing, found.orphans, found.is_right, found.repairing) == (5, 3, 1, False, False)
    assert [(one.key, one.fields) for one in found.differences] == [({"id": n}, ("username",)) for n in (1, 2, 3)]
    assert stored(configured.databases) == 0
    assert compare_copies(posts(), chunk_size=2, settle_s=0, repair=True).repairing
    assert stored(configured.databases) > 0
    assert copied(configured)[0] == (1, "x"), "an event does it, and nothing else"
    propagate()
    assert copied(configured) == [(1, "user 1"), (2, "user 2"), (None, None), (4, "user 4"), (5, "user 5")]
    found = compare_copies(posts(), settle_s=0)
    assert (found.differing, found.orphans) == (0, 1)


def test_what_is_under_way_is_no_difference(forum: Any, configured: Pair) -> None:
    """A difference is believed when it is still there after a while."""
    user = forum.User(username="a").save()
    forum.Post(user_id=user.id).save()
    propagate()
    user.update(username="b")
    waited: list[float] = []

    def work(seconds: float) -> None:
        waited.append(seconds)
        propagate()

    assert compare_copies(posts(), pause=work).is_right
    assert len(waited) == 1


def test_a_copy_is_found_by_its_names(forum: Any) -> None:
    """By model or table; copies on one foreign key are one group."""
    group = posts()
    names = ["posts.username", "secondary.posts.seen_at", group.name]
    assert {one.name for one in select_copies(names)} == {group.name}
    assert {one.name for one in select_copies()} == {
        "secondary.posts.user_id -> default.users.id",
        "secondary.badges.owner_email -> default.users.email",
    }
    with pytest.raises(UnknownCopy, match=r"'Post\.usernam'.*Post\.username"):
        select_copies(["Post.usernam"])


def test_the_commands(forum: Any, configured: Pair, spawn: Spawner) -> None:
    """Walk, compare, repair; the exit status says whether rows differ."""
    old_rows(configured, 3)

    def run(*arguments: str) -> tuple[int, str]:
        command = ("-m", "crosstie.workers", *arguments, "--import", "copies.forum_models")
        child = spawn.python(*command, environment=configured.environment)
        return child.wait(), child.output

    status, output = run("verify-copies", "--json", "--settle", "0")
    assert status == 1, output
    by_name = {one["name"]: one for one in json.loads(output)["copies"]}
    assert by_name[posts().name]["differing"] == 3
    assert "3 rows of 'users' are told" in run("backfill", "Post.username")[1]
    propagate()
    status, output = run("verify-copies", "posts.username", "--settle", "0")
    assert (status, "Every copy equals its original." in output) == (0, True)
    configured.second.execute("UPDATE posts SET username = 'x'")
    status, output = run("verify-copies", "--repair", "--settle", "0.1")
    assert (status, "Events for the rows that differ are written" in output) == (1, True)
    propagate()
    assert differing(configured) == []
