from __future__ import annotations

import copy
import enum
import pickle
from typing import Annotated, ClassVar
from uuid import UUID

import pytest

from bench.databases import Pair
from crosstie.orm import ActiveRecord
from crosstie.orm.errors import InvalidQuery, ModelDefinitionError
from crosstie.orm.field import Column, IntegerPKMixin, UUIDMixin
from crosstie.orm.relation import BelongsTo, HasMany, HasOne
from crosstie.orm.statement_log import logged_statements
from orm.blog import Comment, Post, Profile, User, create_blog, seed_blog


@pytest.fixture
def blog(configured: Pair) -> Pair:
    """Two databases: three users in the first; posts, profiles and comments in the second."""
    create_blog()
    seed_blog()
    return configured


def test_relations_cross_databases_both_ways(blog: Pair) -> None:
    """A user's posts come from the other database, and a post's user from the first."""
    user = User.find_by(username="user1")
    assert user is not None
    assert [post.title for post in sorted(user.posts(), key=lambda post: post.title)] == ["post1.1", "post1.2"]
    post = Post.find_by(title="post2.1")
    assert post is not None
    author = post.user()
    assert author is not None
    assert author.username == "user2"
    profile = author.profile()
    assert profile is not None
    assert profile.motto == "motto2"
    assert User.find(3).posts() == []


def test_what_was_loaded_is_not_asked_for_again(blog: Pair) -> None:
    """One query per relation and record, until it is told to ask again."""
    user, post = User.find(1), Post.find(1)
    with logged_statements() as log:
        assert user.posts() is user.posts()
        assert post.user() is post.user()
    assert log.by_database == {"default": 1, "secondary": 1}
    user.posts.reset()
    with logged_statements() as log:
        assert not user.posts.is_loaded
        user.posts()
        assert user.posts.is_loaded
    assert len(log) == 1


def test_the_inverse_is_set_without_a_query(blog: Pair) -> None:
    """A record found from another leads back to that very object."""
    user = User.find(1)
    with logged_statements() as log:
        posts = user.posts()
        assert all(post.user() is user for post in posts)
        profile = user.profile()
        assert profile is not None
        assert profile.user() is user
    assert log.by_database == {"secondary": 2}


def test_a_changed_reference_is_followed_anew(blog: Pair) -> None:
    """What was loaded counts only for the key that it was loaded for."""
    post = Post.find(1)
    first = post.user()
    post.user_id = 2
    second = post.user()
    assert first is not None
    assert second is not None
    assert (first.id, second.id) == (1, 2)
    post.user_id = None
    assert post.user() is None
    new = User(username="new")
    assert new.posts() == []
    new.save()
    Post(user_id=new.id, title="hers").save()
    assert [one.title for one in new.posts()] == ["hers"]


def test_a_relation_is_a_query_too(blog: Pair) -> None:
    """`query()` narrows the related rows further, in their own database."""
    user = User.find(1)
    assert user.posts.query().where(title="post1.2").pluck("id") == [2]
    assert user.posts.query().count() == 2
    assert Post.find(1).user.query().one() == user


def test_assigned_relations_are_used_as_loaded(blog: Pair) -> None:
    """`user._posts = [...]` is what `user.posts()` answers, with no query, until the record is refreshed."""
    user = User.find(1)
    with pytest.raises(AttributeError):
        user._posts  # type: ignore[attr-defined] # noqa: B018
    posts = Post.find_all().where(user_id=1).limit(1).all()
    user._posts = posts  # type: ignore[attr-defined]
    with logged_statements() as log:
        assert user.posts() is posts
        assert user._posts is posts  # type: ignore[attr-defined]
        assert posts[0].user() is user
    assert len(log) == 0
    posts[0]._user = None
    assert posts[0].user() is None
    for wrong in (None, "x", [1], posts[0], [User.find(2)]):
        with pytest.raises(InvalidQuery, match="_posts: expected a list of Post"):
            user._posts = wrong
    with pytest.raises(InvalidQuery, match="_user: expected a User or None"):
        posts[0]._user = posts
    assert len(user.refresh().posts()) == 2


def test_loaded_relations_are_no_part_of_the_record(blog: Pair) -> None:
    """Comparison, dumps, repr, copies and pickles are those of the row alone, though records lead to each other."""
    bare, user = User.find(1), User.find(1)
    posts = user.posts()
    assert posts[0].user() is user
    assert user == bare
    assert user.model_dump() == bare.model_dump()
    assert user.model_dump_json() == bare.model_dump_json()
    assert repr(user) == repr(bare)
    assert user.model_fields_set == bare.model_fields_set
    assert dict(user) == dict(bare)
    for other in (user.model_copy(), copy.copy(user), copy.deepcopy(user), pickle.loads(pickle.dumps(user))):  # noqa: S301
        assert other == bare
        assert not hasattr(other, "_posts")
    user.username = "changed"  # pydantic replaces the record's dictionary here
    assert user.posts() is posts


class Region(enum.Enum):
    NORTH = "n"
    SOUTH = "s"


class Depot(ActiveRecord):
    __table_name__ = "depots"
    __connection__ = "default"

    code: Annotated[str, Column(primary_key=True)]

    regions: ClassVar[HasMany[Delivery]] = HasMany(foreign_key="region", inverse_of="depot")


class Delivery(UUIDMixin, ActiveRecord):
    __table_name__ = "deliveries"
    __connection__ = "secondary"

    region: Region
    follows: UUID | None = None
    label: str | None = None

    depot: ClassVar[BelongsTo[Depot]] = BelongsTo(foreign_key="region")
    former: ClassVar[BelongsTo[Delivery]] = BelongsTo(foreign_key="follows")
    later: ClassVar[HasOne[Delivery]] = HasOne(foreign_key="follows")
    twin: ClassVar[BelongsTo[Delivery]] = BelongsTo(foreign_key="label", primary_key="label")


def test_keys_of_any_kind_refer(configured: Pair) -> None:
    """Text to an enumeration's values, UUIDs, a key that is not the primary one; lazily and eagerly alike."""
    Depot.create_table()
    Delivery.create_table()
    Depot(code="n").save()
    first = Delivery(region=Region.NORTH, label="x").save()
    second = Delivery(region=Region.SOUTH, follows=first.id, label="x").save()
    for eager in (False, True):
        deliveries = Delivery.find_all().with_("depot", "former", "later", "twin") if eager else Delivery.find_all()
        found = {delivery.id: delivery for delivery in deliveries}
        one, two = found[first.id], found[second.id]
        with logged_statements() as log:
            assert one.depot() == Depot(code="n")
            assert two.depot() is None
            assert two.former() == first
            assert one.former() is None
            assert one.later() == second
            assert two.later() is None
            twin = two.twin()
            assert twin is not None
            assert twin.label == "x"
        assert eager is (len(log) == 0)
    depots = Depot.find_all().with_("regions").all()
    assert [delivery.id for delivery in depots[0].regions()] == [first.id]
    assert [delivery.id for delivery in Depot.find("n").regions()] == [first.id]


def test_a_relation_that_leads_nowhere_says_why() -> None:
    """Every mistake in a declaration names the model, the relation, and the nearest name."""

    class Target(IntegerPKMixin, ActiveRecord):
        __table_name__ = "targets"
        __connection__ = "default"

        owner_id: int
        other_id: int

        owner: ClassVar[BelongsTo[Source]] = BelongsTo(foreign_key="owner_id")
        others: ClassVar[HasMany[Source]] = HasMany(foreign_key="owner_id")

    class Source(IntegerPKMixin, ActiveRecord):
        __table_name__ = "sources"
        __connection__ = "default"

        no_key: ClassVar[HasMany[Target]] = HasMany(foreign_key="ownr_id")
        no_model: ClassVar[HasMany[Targett]] = HasMany(foreign_key="owner_id")  # type: ignore[name-defined] # noqa: F821
        no_inverse: ClassVar[HasMany[Target]] = HasMany(foreign_key="owner_id", inverse_of="ownr")
        not_inverse: ClassVar[HasMany[Target]] = HasMany(foreign_key="other_id", inverse_of="owner")
        same_side: ClassVar[HasMany[Target]] = HasMany(foreign_key="owner_id", inverse_of="others")
        untold: ClassVar = HasMany(foreign_key="owner_id")  # type: ignore[var-annotated]

    source = Source(id=1)
    for name, message in {
        "no_key": r"Source\.no_key: .*Target has no field 'ownr_id'\. Did you mean 'owner_id'",
        "no_model": r"Source refers to a model 'Targett'",
        "no_inverse": r"Source\.no_inverse: inverse_of names 'ownr', which .*Target has not\. Did you mean 'owner'",
        "not_inverse": r"Target\.owner is not its inverse",
        "same_side": r"Target\.others is not its inverse",
        "untold": r"Source\.untold does not say to which model it leads",
    }.items():
        with pytest.raises(ModelDefinitionError, match=message):
            getattr(source, name)()


def test_a_relation_annotated_like_a_field_is_refused() -> None:
    """Without ClassVar pydantic would take it for data."""
    with pytest.raises(ModelDefinitionError, match="class variable"):

        class Wrong(IntegerPKMixin, ActiveRecord):
            __table_name__ = "wrong"
            __connection__ = "default"

            posts: HasMany[Post] = HasMany(foreign_key="user_id")


def test_comments_and_authors_lead_across_and_back(blog: Pair) -> None:
    """A chain of three relations, two of which change the database."""
    comment = Comment.find(1)
    post = comment.post()
    assert post is not None
    user = post.user()
    assert user is not None
    assert user == comment.author()
    assert Profile.find_by(user_id=user.id) == user.profile()
