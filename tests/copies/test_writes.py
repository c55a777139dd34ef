"""What each way of writing an original or a foreign key does to the copies."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar

import pytest

from bench.databases import Pair
from copies.forum import Rank, copied, open_forum, propagate
from crosstie.orm import ActiveRecord, transaction
from crosstie.orm.column import Column
from crosstie.orm.denormalized import Denormalized
from crosstie.orm.errors import RecordInvalid
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo
from crosstie.outbox import sync_routes

NOON = datetime(2026, 11, 24, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def forum(configured: Pair) -> Any:
    """The models, over every pair of databases."""
    return open_forum()


def test_a_new_child_has_its_copies_at_once(forum: Any, configured: Pair) -> None:
    """In the record and in the row, before any event has gone anywhere."""
    user = forum.User(username="ann", rank=Rank.MEMBER, balance=Decimal("1.50"), seen_at=NOON, settings={"a": [1]})
    user.save()
    post = forum.Post(user_id=user.id).save()
    stored = forum.Post.find(post.id)
    for one in (post, stored):
        assert (one.username, one.user_rank, one.balance, one.seen_at, one.settings) == (
            "ann",
            Rank.MEMBER,
            Decimal("1.50"),
            NOON,
            {"a": [1]},
        )
    assert propagate() == 3, "the user is told to posts and badges, the post to itself"
    assert forum.Post.find(post.id) == stored


def test_a_child_without_a_parent_has_none(forum: Any, configured: Pair) -> None:
    """Nor one whose parent does not exist; its copies come with the parent."""
    forum.Post().save()
    forum.Post(user_id=7).save()
    assert propagate() == 1
    assert copied(configured) == [(None, None), (7, None)]
    forum.User(id=7, username="late").save()
    propagate()
    assert copied(configured) == [(None, None), (7, "late")]


def test_every_write_of_an_original_arrives(forum: Any, configured: Pair) -> None:
    """save, update_all, bulk_update, upsert: each in the children of the rows concerned, and in no others."""
    ann, bob = forum.User(username="ann", email="a").save(), forum.User(username="bob", email="b").save()
    for user in (ann, bob):
        forum.Post(user_id=user.id).save()
    propagate()
    ann.update(username="anna")
    propagate()
    assert copied(configured) == [(ann.id, "anna"), (bob.id, "bob")]
    assert forum.User.find_all().where(username="bob").update_all(username="rob") == 1
    propagate()
    assert copied(configured) == [(ann.id, "anna"), (bob.id, "rob")]
    bob.refresh()
    ann.username, bob.username = "x", "y"
    forum.User.bulk_update([ann, bob])
    propagate()
    assert copied(configured) == [(ann.id, "x"), (bob.id, "y")]
    forum.User(username="z", email="b").upsert(on="email")
    propagate()
    assert copied(configured) == [(ann.id, "x"), (bob.id, "z")]


def test_an_increment_of_an_original_arrives(forum: Any, configured: Pair) -> None:
    """Added up in the database, and copied as it is there."""
    user = forum.User(balance=Decimal("0.10")).save()
    post = forum.Post(user_id=user.id).save()
    user.increment(balance=Decimal("0.20"))
    propagate()
    assert forum.Post.find(post.id).balance == Decimal("0.30")


def test_values_of_every_type_arrive_and_null_too(forum: Any, configured: Pair) -> None:
    """Enumerations, decimals, times, documents; then NULL in place of each."""
    user = forum.User().save()
    post = forum.Post(user_id=user.id).save()
    user.update(rank=Rank.GUEST, balance=Decimal("-2.05"), seen_at=NOON, settings={"a": {"b": None}})
    propagate()
    post.refresh()
    assert (post.user_rank, post.balance, post.seen_at) == (Rank.GUEST, Decimal("-2.05"), NOON)
    assert post.settings == {"a": {"b": None}}
    user.update(rank=None, balance=None, seen_at=None, settings=None)
    propagate()
    post.refresh()
    assert (post.user_rank, post.balance, post.seen_at, post.settings) == (None, None, None, None)


def test_other_writes_tell_nobody(forum: Any, configured: Pair) -> None:
    """Neither of the parent's other columns nor of the child's."""
    user = forum.User().save()
    post = forum.Post(user_id=user.id).save()
    propagate()
    user.update(note="x")
    forum.User.find_all().update_all(username=user.username, note="y")
    post.update(title="t")
    assert propagate() == 0


def test_a_child_that_is_given_another_parent_gets_its_copies(forum: Any, configured: Pair) -> None:
    """By save, update_all, bulk_update and upsert, at once; and none with no parent."""
    ann, bob = forum.User(username="ann", email="a").save(), forum.User(username="bob", email="b").save()
    post = forum.Post(user_id=ann.id).save()
    post.update(user_id=bob.id)
    assert (post.username, copied(configured)) == ("bob", [(bob.id, "bob")])
    forum.Post.find_all().update_all(user_id=ann.id)
    assert copied(configured) == [(ann.id, "ann")]
    post.refresh()
    post.user_id = bob.id
    forum.Post.bulk_update([post])
    assert (post.username, copied(configured)) == ("bob", [(bob.id, "bob")])
    forum.Post.find_all().update_all(user_id=None)
    assert copied(configured) == [(None, None)]
    badge = forum.Badge(place="hall", number=1, owner="a").upsert(on=("place", "number"))
    assert badge.owner_name == "ann"
    badge = forum.Badge(place="hall", number=1, owner="b").upsert(on=("place", "number"))
    assert (badge.owner, badge.owner_name) == ("b", "bob")
    propagate()
    assert copied(configured) == [(None, None)]
    bob.update(username="rob")
    propagate()
    assert configured.second.rows("SELECT owner_username FROM badges") == [("rob",)]


def test_many_new_children_are_filled_by_one_query(forum: Any, configured: Pair) -> None:
    """bulk_create looks each parent up once."""
    users = [forum.User(username=name).save() for name in "ab"]
    posts = [forum.Post(user_id=users[n % 2].id) for n in range(10)]
    forum.Post.bulk_create(posts)
    assert [post.username for post in posts] == list("ab") * 5
    assert [name for _, name in copied(configured)] == list("ab") * 5


@pytest.mark.parametrize("write", ["create", "save", "update_all", "touch", "upsert"])
def test_the_application_does_not_write_copies(forum: Any, configured: Pair, write: str) -> None:
    """Whichever way it tries, it is told who owns the column."""
    user = forum.User(username="ann").save()
    post = forum.Post(user_id=user.id).save()
    attempts = {
        "create": lambda: forum.Post(user_id=user.id, username="eve").save(),
        "save": lambda: post.update(username="eve"),
        "update_all": lambda: forum.Post.find_all().update_all(username="eve"),
        "touch": lambda: post.touch("seen_at"),
        "upsert": lambda: forum.Post(id=post.id, user_id=user.id).upsert(on="id", update=["username"]),
    }
    with pytest.raises(RecordInvalid, match=r"Post\.\w+ is a copy of 'user\.\w+', which its own database owns"):
        attempts[write]()
    assert copied(configured) == [(user.id, "ann")]


def test_a_copied_value_that_is_right_may_be_given(forum: Any, configured: Pair) -> None:
    """So a record that was loaded can be saved as another."""
    user = forum.User(username="ann").save()
    post = forum.Post(user_id=user.id).save()
    forum.Post(**(post.model_dump() | {"id": None})).save()
    assert copied(configured) == [(user.id, "ann")] * 2


def test_a_rolled_back_write_tells_nobody_and_leaves_the_record_as_it_was(forum: Any, configured: Pair) -> None:
    """In the whole transaction, and in a savepoint."""
    user = forum.User(username="ann").save()
    propagate()
    post = forum.Post(user_id=user.id)
    with pytest.raises(ZeroDivisionError), transaction("secondary"):
        post.save()
        raise ZeroDivisionError
    assert (post.username, post.is_new) == (None, True)
    with transaction("default"):
        with pytest.raises(ZeroDivisionError), transaction("default"):
            user.update(username="x")
            raise ZeroDivisionError
        user.update(note="kept")
    # The record's unsaved change is saved after all, so it is told.
    assert (user.refresh().username, propagate()) == ("x", 2)


def test_a_write_of_a_copy_is_not_the_applications(forum: Any, configured: Pair) -> None:
    """A record that somebody holds does not become stale by it, and no time stamp changes."""
    user = forum.User(username="ann").save()
    post = forum.Post(user_id=user.id).save()
    user.update(username="anna")
    propagate()
    post.update(title="t")
    assert (post.lock_version, copied(configured)) == (1, [(user.id, "anna")])


def test_copies_follow_what_becomes_of_children_whose_parent_is_deleted(configured: Pair) -> None:
    """With set_null the foreign key goes, and the copy with it."""

    class Owner(IntegerPKMixin, ActiveRecord):
        __table_name__ = "owners"
        __connection__ = "default"

        id: int | None = None
        name: str

    class Thing(IntegerPKMixin, ActiveRecord):
        __table_name__ = "things"
        __connection__ = "secondary"

        id: int | None = None
        owner_id: int | None = None
        owner_name: Annotated[str | None, Denormalized("owner.name")] = None

        owner: ClassVar[BelongsTo[Owner]] = BelongsTo(foreign_key="owner_id", on_delete="set_null")

    for model in (Owner, Thing):
        model.create_table()
    assert not sync_routes().failed
    owner = Owner(name="ann").save()
    Thing(owner_id=owner.id).save()
    propagate()
    owner.delete()
    propagate()
    assert configured.second.rows("SELECT owner_id, owner_name FROM things") == [(None, None)]


def test_another_model_of_the_table_may_name_its_fields_otherwise(configured: Pair) -> None:
    """And may lack copies; its rows have them all the same."""
    forum = open_forum()

    class Draft(IntegerPKMixin, ActiveRecord):
        __table_name__ = "posts"
        __connection__ = "secondary"

        id: int | None = None
        author: Annotated[int | None, Column(name="user_id")] = None
        signature: Annotated[str | None, Column(name="username"), Denormalized("writer.username")] = None
        title: str = ""
        lock_version: int = 0

        writer: ClassVar[BelongsTo[Any]] = BelongsTo(foreign_key="author")

    Draft.writer._target = lambda: forum.User  # type: ignore[method-assign]
    user = forum.User(username="ann", rank=Rank.MEMBER).save()
    draft = Draft(author=user.id).save()
    assert (draft.signature, set(draft.__dict__)) == ("ann", set(Draft.model_fields))
    assert Draft(id=draft.id, author=user.id, title="t").upsert(on="id").signature == "ann"
    propagate()
    assert forum.Post.find(draft.id).user_rank is Rank.MEMBER
    with pytest.raises(RecordInvalid, match=r"Draft\.signature is a copy of 'writer\.username'"):
        draft.update(signature="eve")
