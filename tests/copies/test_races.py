"""Interleavings by which a copy could be left wrong, each made on purpose, and events that come late or twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from bench.databases import Pair
from copies.forum import copied, open_forum, propagate, settle, stored
from crosstie.orm import transaction
from crosstie.orm.copies import CopyGroup
from crosstie.orm.faults import armed
from crosstie.outbox import select_copies
from crosstie.outbox.copies import tell_of_copies, tell_of_originals


@pytest.fixture
def forum(configured: Pair) -> Any:
    """The models, over every pair of databases."""
    return open_forum()


def elsewhere(work: Callable[[], object]) -> None:
    """Do it in another thread, to its end."""
    with ThreadPoolExecutor() as pool:
        done: Future[object] = pool.submit(work)
    done.result()


def after_lookup(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    """Once, after an original was looked up for a row and before the row is written."""
    look_up = CopyGroup.originals
    looked: list[Sequence[Any]] = []

    def then_work(group: CopyGroup, connection: sa.Connection, keys: Sequence[Any]) -> dict[Any, tuple[Any, ...]]:
        found = look_up(group, connection, keys)
        if not looked:
            looked.append(keys)
            elsewhere(work)
        return found

    monkeypatch.setattr(CopyGroup, "originals", then_work)


@pytest.mark.parametrize("way", ["save", "bulk_create", "upsert"])
def test_a_parent_renamed_between_lookup_and_insert(
    forum: Any, configured: Pair, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Its event is applied before the child is there; the child's own event makes good for it."""
    user = forum.User(username="old").save()
    propagate()

    def rename() -> None:
        forum.User.find(user.id).update(username="new")
        # There bulk_create looks up inside its transaction, so the event itself waits for it.
        if way != "bulk_create" or configured.second.kind != "sqlite":
            propagate()
            assert stored(configured.databases) == 0

    after_lookup(monkeypatch, rename)
    post = forum.Post(user_id=user.id)
    ways = {
        "save": post.save,
        "bulk_create": lambda: forum.Post.bulk_create([post]),
        "upsert": lambda: forum.Post(id=5, user_id=user.id).upsert(on="id"),
    }
    ways[way]()
    assert copied(configured) == [(user.id, "old")], "else this is not the race"
    settle(configured.databases)
    assert copied(configured) == [(user.id, "new")]


@pytest.mark.parametrize("way", ["save", "update_all", "bulk_update"])
def test_a_parent_renamed_between_lookup_and_a_change_of_the_foreign_key(
    forum: Any, configured: Pair, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The child refers to another parent while the event of its new one is applied."""
    ann, bob = forum.User(username="ann").save(), forum.User(username="bob").save()
    post = forum.Post(user_id=ann.id).save()
    propagate()

    def rename() -> None:
        forum.User.find(bob.id).update(username="rob")
        if way != "bulk_update" or configured.second.kind != "sqlite":
            propagate()

    after_lookup(monkeypatch, rename)
    post.user_id = bob.id
    ways = {
        "save": post.save,
        "update_all": lambda: forum.Post.find_all().update_all(user_id=bob.id),
        "bulk_update": lambda: forum.Post.bulk_update([post]),
    }
    ways[way]()
    assert copied(configured) == [(bob.id, "bob")], "else this is not the race"
    settle(configured.databases)
    assert copied(configured) == [(bob.id, "rob")]


def test_an_insert_that_commits_after_its_parents_event_was_applied(forum: Any, configured: Pair) -> None:
    """The row is written but invisible; SQLite has one writer, and on MariaDB the event waits for it."""
    user = forum.User(username="old").save()
    propagate()

    def rename() -> None:
        forum.User.find(user.id).update(username="new")
        if configured.second.kind == "postgresql":
            propagate()
            assert stored(configured.databases) == 0

    with transaction("secondary"):
        forum.Post(user_id=user.id).save()
        elsewhere(rename)
    assert copied(configured) == [(user.id, "old")]
    settle(configured.databases)
    assert copied(configured) == [(user.id, "new")]


def test_originals_are_read_after_the_rows_are_locked(forum: Any, configured: Pair) -> None:
    """So a name that is written while an older one's event is being applied is not overwritten by the older."""
    user = forum.User(username="a").save()
    forum.Post(user_id=user.id).save()
    propagate()
    user.update(username="b")
    renamed: list[int] = []

    def rename() -> None:
        renamed.append(1)
        elsewhere(lambda: forum.User.find(user.id).update(username="c"))

    with armed("copies.locked", rename):
        propagate(["default"])
    assert (renamed, copied(configured)) == ([1], [(user.id, "c")])


def test_events_may_come_late_twice_and_in_any_order(forum: Any, configured: Pair) -> None:
    """They say where to look, and not what is there."""
    group = select_copies(["Post.username"])[0]
    user = forum.User(username="a").save()
    post = forum.Post(user_id=user.id).save()
    columns = "route, lane, uid, key, operation, type, schema_version, payload, headers, created_at_ms"
    if configured.first.kind == "mariadb":
        columns = columns.replace("key,", "`key`,")
    else:
        columns = columns.replace("key,", '"key",')
    old = configured.first.rows(f"SELECT {columns} FROM crosstie_outbox")
    propagate()
    user.update(username="b")
    propagate()
    places = ", ".join(["%s"] * 10)
    configured.first.execute_many(f"INSERT INTO crosstie_outbox ({columns}) VALUES ({places})", old * 2)
    for _ in range(3):
        with transaction("default") as tx:
            tell_of_originals(tx, group, [(user.id,)])
        with transaction("secondary") as tx:
            tell_of_copies(tx, group, [(post.id,), (77,)])
    propagate()
    assert stored(configured.databases) == 0
    assert copied(configured) == [(user.id, "b")]


def test_a_parent_inserted_after_its_child_was_looked_at(forum: Any, configured: Pair) -> None:
    """Another thread knows the key before the parent is committed; the parent's own event finds the child."""
    if configured.first.kind == "sqlite":
        pytest.skip("nobody can look up anything in a SQLite database while it is written to")

    def insert_child() -> None:
        forum.Post(user_id=9).save()
        propagate(["secondary"])
        assert copied(configured) == [(9, None)]

    with transaction("default"):
        forum.User(id=9, username="late").save()
        elsewhere(insert_child)
    propagate()
    assert copied(configured) == [(9, "late")]


def test_a_deleted_parent_leaves_copies_and_a_new_one_brings_its_own(forum: Any, configured: Pair) -> None:
    """Without on_delete the copy stays, for the audit to tell."""
    user = forum.User(username="ann").save()
    key = user.id
    forum.Post(user_id=key).save()
    propagate()
    user.delete()
    propagate()
    assert copied(configured) == [(key, "ann")]
    forum.User(id=key, username="bob").save()
    propagate()
    assert copied(configured) == [(key, "bob")]
