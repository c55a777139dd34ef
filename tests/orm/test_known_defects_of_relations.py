"""Defects that users have met in ORMs over several databases: relations and queries.

None of them may become one of this ORM's. Each section holds one of them against every kind of database, or every pair
of kinds where two are needed; those of connections, transactions and models have a file of their own.
"""

from __future__ import annotations

import time
from typing import ClassVar

import pytest
import sqlalchemy as sa

from bench.databases import Pair
from crosstie.orm import ActiveRecord, any_of, not_
from crosstie.orm.errors import (
    CrossDatabaseQuery,
    InvalidQuery,
    NoSuchTable,
    ReferenceTypeMismatch,
)
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo, HasMany
from crosstie.orm.statement_log import logged_statements
from crosstie.workers.audit import run_audit
from orm.blog import Comment, Post, User, create_blog, seed_blog
from references.family import count, open_family, propagate, user_with


@pytest.fixture
def blog(configured: Pair) -> Pair:
    """Three users in the first database; in the second, two posts of each but the last, each with two comments."""
    create_blog()
    seed_blog()
    return configured


# -- 3. Errors of relations are swallowed: a missing table is None, or no records ---------------------------------


def test_an_error_of_a_relation_is_raised(configured: Pair) -> None:
    """Called, queried, counted, asked for or eagerly loaded, a missing table is an error that names its database."""
    User.create_table()
    user = User(username="ann").save()
    for ask in (
        user.posts,
        user.profile,
        user.posts.count,
        user.posts.query().all,
        User.find_all().with_("posts").all,
        User.find_all().with_("profile").all,
        User.find_all().with_count("posts").all,
        User.find_all().where_has("posts").all,
    ):
        with pytest.raises(NoSuchTable, match="secondary"):
            ask()


# -- 4. The children of a parent that has no key yet are all rows of the table ------------------------------------


def test_a_null_key_refers_to_nothing_and_asks_nothing(blog: Pair) -> None:
    """An unsaved parent has no children, though rows without a parent exist; a NULL reference is None."""
    Post(user_id=None, title="nobody's").save()
    with logged_statements() as log:
        assert User(username="new").posts() == []
        assert User(username="new").posts.count() == 0
        assert User(username="new").profile() is None
        assert Post(user_id=None, title="x").user() is None
        assert User(id=1, username="new, with a key").posts() == []
    assert len(log) == 0
    assert User(username="new").posts.query().all() == []
    assert User(username="new").posts.query().delete_all() == 0
    assert Post(user_id=None, title="x").user.query().count() == 0
    assert Post(user_id=1, title="new").user() == User.find(1)


# -- 5. What modifies one level of an eager load is ignored, or modifies another ----------------------------------


def test_a_modifier_of_a_nested_path_applies_to_its_own_level(blog: Pair) -> None:
    """The levels above and below are loaded whole, and each level in one query."""
    Comment.find(1).update(body="first")
    with logged_statements() as log:
        users = (
            User.find_all()
            .with_({"posts.comments": lambda comments: comments.where(body="first")}, "posts.comments.author")
            .order_by("id")
            .all()
        )
        bodies = [[comment.body for comment in post.comments()] for post in users[0].posts()]
        authors = [comment.author() for post in users[0].posts() for comment in post.comments()]
    assert [len(user.posts()) for user in users] == [2, 2, 0]
    assert sorted(bodies) == [[], ["first"]]
    assert authors == [users[0]]
    assert log.by_database == {"default": 2, "secondary": 2}
    users = User.find_all().with_({"posts": lambda posts: posts.where(title="post1.1")}, "posts.comments").all()
    assert [[len(post.comments()) for post in user.posts()] for user in users if user.posts()] == [[2]]


def test_each_level_has_a_modifier_of_its_own(blog: Pair) -> None:
    """And several for one level apply one after the other."""
    with logged_statements() as log:
        user = (
            User.find_all()
            .with_({"posts": lambda posts: posts.order_by("-id"), "posts.comments": lambda each: each.order_by("-id")})
            .with_(posts=lambda posts: posts.where(Post.c.id < 3))
            .where(id=1)
            .one()
        )
        assert [(post.id, [comment.id for comment in post.comments()]) for post in user.posts()] == [
            (2, [4, 3]),
            (1, [2, 1]),
        ]
    assert log.by_database == {"default": 1, "secondary": 2}


# -- 7. A parent that is missing is looked up again at each access ------------------------------------------------


def test_what_is_missing_is_looked_up_once(blog: Pair) -> None:
    """A parent, an only child and children alike, each with one query."""
    orphan = Post(user_id=99, title="orphan").save()
    lonely = User(username="lonely").save()
    with logged_statements() as log:
        for _ in range(3):
            assert orphan.user() is None
            assert lonely.profile() is None
            assert lonely.posts() == []
    assert log.by_database == {"default": 1, "secondary": 2}


def test_what_was_missing_in_an_eager_load_is_not_looked_up_again(blog: Pair) -> None:
    """Many children of few parents send few keys; a parent that is missing, or NULL, stays so."""
    Post(user_id=99, title="orphan").save()
    Post(user_id=None, title="nobody's").save()
    with logged_statements() as log:
        posts = Post.find_all().with_("user").all()
        users = {post.title: post.user() for post in posts}
    assert log.by_database == {"secondary": 1, "default": 1}
    assert users["orphan"] is None
    assert users["nobody's"] is None
    first = users["post1.1"]
    assert first is not None
    assert first is users["post1.2"]


# -- 8. Keys of different types are compared, and find nothing ----------------------------------------------------


def test_keys_that_do_not_compare_are_refused(configured: Pair) -> None:
    """Text against integer would match nothing on one database and too much on another; nothing is sent."""

    class Owner(IntegerPKMixin, ActiveRecord):
        __table_name__ = "owners"
        __connection__ = "default"

        id: int | None = None
        things: ClassVar[HasMany[Thing]] = HasMany(foreign_key="owner_id")

    class Thing(IntegerPKMixin, ActiveRecord):
        __table_name__ = "things"
        __connection__ = "secondary"

        owner_id: str
        data: dict[str, int] | None = None

        owner: ClassVar[BelongsTo[Owner]] = BelongsTo(foreign_key="owner_id")
        odd: ClassVar[BelongsTo[Owner]] = BelongsTo(foreign_key="data")

    Owner.create_table()
    configured.first.execute("INSERT INTO owners (id) VALUES (1)")
    expected = r"things\.owner_id \(str\) against owners\.id \(int\)"
    with logged_statements() as log:
        for ask in (
            lambda: Thing(owner_id="1").owner(),
            lambda: Owner(id=1).things(),
            lambda: Thing.find_all().with_("owner"),
            lambda: Owner.find_all().with_("things"),
            lambda: Owner.find_all().where_has("things"),
            lambda: Thing.find_all().where_missing("owner"),
        ):
            with pytest.raises(ReferenceTypeMismatch, match=expected):
                ask()
        with pytest.raises(ReferenceTypeMismatch, match="no key"):
            Thing(owner_id="1").odd()
    assert len(log) == 0


def test_a_key_given_as_text_is_the_same_key(blog: Pair) -> None:
    """Or is refused, where it can be none."""
    assert User.find("1") == User.find(1)
    assert Post.find_all().where(user_id="1").count() == Post.find_all().where(user_id=[1, "1"]).count() == 2
    author = Post(user_id="2", title="x").user()  # type: ignore[arg-type]
    assert author == User.find(2)
    with pytest.raises(InvalidQuery, match=r"posts\.user_id.*'x'"):
        Post.find_all().where(user_id="x")


# -- 9. Batches are dealt out by comparing each with each, and one list of keys breaks the driver's limit ----------


class Parent(IntegerPKMixin, ActiveRecord):
    __table_name__ = "parents"
    __connection__ = "default"

    children: ClassVar[HasMany[Child]] = HasMany(foreign_key="parent_id", inverse_of="parent")


class Child(IntegerPKMixin, ActiveRecord):
    __table_name__ = "children"
    __connection__ = "secondary"

    parent_id: int

    parent: ClassVar[BelongsTo[Parent]] = BelongsTo(foreign_key="parent_id")


def test_seventy_thousand_keys_are_one_query_and_linear_work(configured: Pair) -> None:
    """No driver's parameter limit is met, and ten times the keys do not cost a hundred times the time."""
    Parent.create_table()
    Child.create_table()
    many, few = 70_000, 7_000
    keys = [(key,) for key in range(1, many + 1)]
    configured.first.execute_many("INSERT INTO parents (id) VALUES (%s)", keys)
    configured.second.execute_many("INSERT INTO children (parent_id) VALUES (%s)", keys)
    spent_s = {}
    for number in (few, many):
        begin = time.process_time()
        with logged_statements() as log:
            parents = Parent.find_all().where(Parent.c.id <= number).with_("children").all()
            assert all(len(parent.children()) == 1 for parent in parents)
        assert len(parents) == number
        assert log.by_database == {"default": 1, "secondary": 1}
        spent_s[number] = time.process_time() - begin
    assert spent_s[many] < 40 * spent_s[few] + 1
    with logged_statements() as log:
        children = Child.find_all().with_("parent").all()
        assert sum(child.parent() is not None for child in children) == many
    assert log.by_database == {"secondary": 1, "default": 1}


# -- 11. One statement over two databases answers with the rows of one, or with a syntax error --------------------


def test_a_statement_over_two_databases_is_refused_before_it_is_sent(blog: Pair) -> None:
    """Both databases are named; subqueries, unions, joined conditions and orders are looked into."""
    users, posts = sa.select(User.c.id), sa.select(Post.c.user_id)
    joined = User.__table__.join(Post.__table__, Post.c.user_id == User.c.id)
    with logged_statements() as log:
        for ask in (
            lambda: User.find_all().where(Post.c.title == "x"),
            lambda: User.find_all().where(User.c.id == Post.c.user_id),
            lambda: User.find_all().where(User.c.id.in_(posts)),
            lambda: User.find_all().where(User.c.id.in_(sa.union(users, posts))),
            lambda: User.find_all().where(User.c.id.in_(sa.select(User.c.id).select_from(joined))),
            lambda: User.find_all().where(sa.exists().where(Post.c.user_id == User.c.id)),
            lambda: User.find_all().where(any_of(not_(User.c.id == Post.c.user_id), username="x")),
            lambda: User.find_all().order_by(Post.c.title.desc()),
            lambda: User.find_all().where(sa.select(sa.func.count()).select_from(Post.__table__).scalar_subquery() > 1),
            lambda: User.find_all().where(Post.__table__.alias("p").c.title == "x"),
            lambda: User.find_all().group_by("username").having(sa.func.max(Post.c.id) > 1),
            lambda: User.find_all().join("posts"),
            lambda: User.find_all().left_join("posts.comments"),
        ):
            with pytest.raises(CrossDatabaseQuery, match=r"'default'.*'secondary'"):
                ask()
        with pytest.raises(InvalidQuery, match="query of User"):
            User.find_all().merge(Post.find_all())  # type: ignore[arg-type]
    assert len(log) == 0


# -- 12. A parent's delete leaves its children behind in the other database ---------------------------------------


@pytest.mark.usefixtures("own_registries")
def test_a_deleted_parents_children_do_not_stay_behind(configured: Pair) -> None:
    """Those that go with it are deleted, those that do not lose their reference; those of another parent stay."""
    family = open_family()
    user, other = (user_with(family, posts=2, comments=1, badges=1) for _ in range(2))
    user.delete()
    propagate()
    for table, left in (("posts", 2), ("badges", 1)):
        assert count(configured, table, f"user_id = {user.id}") == 0
        assert count(configured, table, f"user_id = {other.id}") == left
    assert count(configured, "comments") == 2
    assert count(configured, "badges", "user_id IS NULL") == 1


def test_children_that_were_left_behind_are_found(blog: Pair) -> None:
    """Where nothing was said about deletes, an audit names each of them."""
    User.find(1).delete()
    (result,) = run_audit(["posts.user_id"]).results
    assert result.reason is None
    assert [finding.child_key["id"] for finding in result.findings] == [1, 2]
