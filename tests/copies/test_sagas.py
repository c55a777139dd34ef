"""Copies and sagas: what a saga writes is copied if it commits, and what somebody copied too early is put right."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from bench.databases import Trio
from copies.forum import open_forum, propagate, settle
from crosstie.orm import ActiveRecord
from crosstie.orm.faults import FaultInjected, armed
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.mapping import mapping_of
from crosstie.sagas import SagaAborted, saga, sweep_sagas


class Log(IntegerPKMixin, ActiveRecord):
    """What makes `tertiary` home."""

    __table_name__ = "log"
    __connection__ = "tertiary"

    id: int | None = None


@pytest.fixture
def forum(configured_trio: Trio) -> Any:
    """The models over three databases; users and posts are in branches."""
    Log.create_table()
    return open_forum()


def aborted_after(meanwhile: Callable[[], object], write: Callable[[], object]) -> None:
    """A saga that is aborted; `meanwhile` runs in another thread when its branches have committed."""
    done: list[Future[object]] = []

    def stop() -> None:
        with ThreadPoolExecutor() as pool:
            done.append(pool.submit(meanwhile))
        raise FaultInjected("saga.home-recorded")

    with armed("saga.home-recorded", stop), pytest.raises(SagaAborted), saga("x"):
        Log().save()
        write()
    done[0].result()


def require_many_writers(trio: Trio) -> None:
    """A saga that has read a SQLite file keeps other writers out until it is decided."""
    if trio.first.kind == "sqlite":
        pytest.skip("nobody can write to the SQLite database of the users meanwhile")


def name_of(trio: Trio, post: Any) -> object:
    """The copy in the post's row."""
    return trio.second.scalar("SELECT username FROM posts WHERE id = %s", (post.id,))


def test_a_saga_that_commits_is_told(forum: Any, configured_trio: Trio) -> None:
    """The children of the user that it has renamed, and the child that it has made itself."""
    user = forum.User(username="ann").save()
    old = forum.Post(user_id=user.id).save()
    with saga("rename"):
        Log().save()
        user.update(username="anna")
        new = forum.Post(user_id=user.id).save()
    assert new.username == "anna"
    propagate()
    assert [name_of(configured_trio, post) for post in (old, new)] == ["anna", "anna"]


def test_what_was_copied_from_an_aborted_saga_is_put_right(forum: Any, configured_trio: Trio) -> None:
    """A child that was made, and aligned, while the name of the aborted saga was in the database."""
    user = forum.User(username="ann").save()
    seen: list[Any] = []

    def meanwhile() -> None:
        seen.append(forum.Post(user_id=user.id).save())
        propagate()
        assert name_of(configured_trio, seen[0]) == "dirty", "else this proves nothing"

    aborted_after(meanwhile, lambda: user.update(username="dirty"))
    assert configured_trio.first.scalar("SELECT username FROM users") == "ann"
    settle(configured_trio.databases)
    assert name_of(configured_trio, seen[0]) == "ann"


def test_a_parent_that_an_undo_brings_back_has_its_copies(forum: Any, configured_trio: Trio) -> None:
    """A child that was made while the parent was gone has none; then it gets them."""
    user = forum.User(username="ann").save()
    key = user.id
    seen: list[Any] = []

    def meanwhile() -> None:
        seen.append(forum.Post(user_id=key).save())
        propagate()
        assert name_of(configured_trio, seen[0]) is None

    aborted_after(meanwhile, user.delete)
    settle(configured_trio.databases)
    assert name_of(configured_trio, seen[0]) == "ann"


def test_a_child_that_an_undo_gives_back_to_its_parent_is_aligned(forum: Any, configured_trio: Trio) -> None:
    """Its parent was renamed while it was somebody else's child, and that parent too."""
    require_many_writers(configured_trio)
    ann, bob = forum.User(username="ann").save(), forum.User(username="bob").save()
    post = forum.Post(user_id=ann.id).save()
    propagate()

    def meanwhile() -> None:
        ann.update(username="anna")
        bob.update(username="rob")
        propagate()
        assert name_of(configured_trio, post) == "rob"

    aborted_after(meanwhile, lambda: post.update(user_id=bob.id))
    settle(configured_trio.databases)
    assert name_of(configured_trio, post) == "anna"
    assert configured_trio.second.scalar("SELECT count(*) FROM crosstie_saga WHERE quarantine IS NOT NULL") == 0


def test_an_insert_whose_copy_was_aligned_can_be_undone(forum: Any, configured_trio: Trio) -> None:
    """The change of a copy is nobody's change of the row."""
    require_many_writers(configured_trio)
    user = forum.User(username="ann").save()

    def meanwhile() -> None:
        user.update(username="anna")
        propagate()

    # The child's own event waits for the saga; that of its parent finds the child.
    aborted_after(meanwhile, lambda: forum.Post(user_id=user.id).save())
    assert configured_trio.second.rows("SELECT * FROM posts") == []
    settle(configured_trio.databases)


def test_an_undo_needs_no_models(forum: Any, configured_trio: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    """The subscriptions in the database say who wants to know."""
    from crosstie.orm import copies

    user = forum.User(username="ann").save()
    post = forum.Post(user_id=user.id).save()
    propagate()
    configured_trio.second.execute("UPDATE posts SET username = 'dirty'")

    def forget() -> None:
        monkeypatch.setattr(copies, "_index", lambda generation: copies._Index((), {}, {}))

    aborted_after(forget, lambda: user.update(username="dirty"))
    monkeypatch.undo()
    assert configured_trio.first.scalar("SELECT count(*) FROM crosstie_outbox") == 2
    settle(configured_trio.databases)
    assert name_of(configured_trio, post) == "ann"


def test_an_aborted_saga_leaves_no_events_behind(forum: Any, configured_trio: Trio) -> None:
    """Those that its branches wrote are gone with it, but for the undo's own."""
    user = forum.User(username="ann").save()
    propagate()
    aborted_after(lambda: None, lambda: user.update(username="x"))
    saga_ids = configured_trio.first.rows("SELECT saga_id FROM crosstie_outbox")
    assert saga_ids == [(None,), (None,)]


def test_a_copy_that_is_redone_too_late_is_put_right(forum: Any, configured_trio: Trio) -> None:
    """The user was renamed between home's commit and the redo, when nobody could see the post."""
    user = forum.User(username="ann").save()

    def die() -> None:
        raise KeyboardInterrupt

    with (
        armed("forward.home-committed", die),
        pytest.raises(KeyboardInterrupt),
        saga("post", recover="forward", expiry_s=-1) as s,
    ):
        Log().save()
        # By a statement that tells nobody, and has filled in the copy itself.
        row = {"id": 50, "user_id": user.id, "username": "ann", "title": "t", "lock_version": 0}
        s.connection("secondary").execute(sa.insert(mapping_of(forum.Post).table), row)
    user.update(username="anna")
    propagate()

    assert sweep_sagas("tertiary").settled == 1

    assert configured_trio.second.rows("SELECT username FROM posts") == [("ann",)]
    propagate()
    assert configured_trio.second.rows("SELECT username FROM posts") == [("anna",)]
