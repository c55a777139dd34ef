from __future__ import annotations

import time
from typing import ClassVar

import pytest

from bench.databases import Pair
from crosstie.orm import ActiveRecord
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo, HasMany
from crosstie.orm.statement_log import logged_statements
from orm.blog import Comment, Post, User, create_blog, seed_blog


@pytest.fixture
def blog(configured: Pair) -> Pair:
    """Two databases: four users in the first; posts, profiles and comments in the second."""
    create_blog()
    seed_blog(users=4, posts=3, comments=2)
    return configured


def test_two_queries_load_users_and_posts_of_two_databases(blog: Pair) -> None:
    """One to each database, and none when the relations are used."""
    with logged_statements() as log:
        users = User.find_all().with_("posts").order_by("id").all()
        titles = [sorted(post.title for post in user.posts()) for user in users]
        assert all(post.user() is user for user in users for post in user.posts())
    assert log.by_database == {"default": 1, "secondary": 1}
    assert titles == [[f"post{n}.{i}" for i in (1, 2, 3)] for n in (1, 2, 3)] + [[]]


def test_a_nested_path_costs_one_query_per_relation(blog: Pair) -> None:
    """Shared beginnings of paths are loaded once; what is known through the inverse is not asked for."""
    with logged_statements() as log:
        users = User.find_all().with_("posts", "posts.comments.author", "profile", "posts.user").all()
        comments = [comment for user in users for post in user.posts() for comment in post.comments()]
        authors = {author.username for comment in comments if (author := comment.author()) is not None}
        mottos = {profile.motto for user in users if (profile := user.profile()) is not None}
        assert all(post.user() is user for user in users for post in user.posts())
    assert log.by_database == {"default": 2, "secondary": 3}
    assert len(comments) == 18
    assert authors == {"user1", "user2", "user3"}
    assert mottos == {"motto1", "motto2", "motto3", "motto4"}


def test_each_key_is_asked_for_once_and_misses_are_remembered(blog: Pair) -> None:
    """Many children of few parents send few keys; a parent that is missing, or NULL, is not looked up again."""
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


def test_nothing_to_load_asks_nothing(blog: Pair) -> None:
    """No rows, or no keys, and the other database is not disturbed."""
    Post.find_all().update_all(user_id=None)
    with logged_statements() as log:
        User.find_all().where(id=99).with_("posts.comments").all()
        Post.find_all().with_("user").all()
    assert log.by_database == {"default": 1, "secondary": 1}


def test_first_one_and_iteration_load_eagerly_too(blog: Pair) -> None:
    """However the rows are asked for."""
    query = User.find_all().with_("posts").order_by("id")
    for user in (query.first(), query.where(id=1).one(), next(iter(query))):
        assert user is not None
        with logged_statements() as log:
            assert len(user.posts()) == 3
        assert len(log) == 0


def test_two_records_of_one_row_have_lists_of_their_own(blog: Pair) -> None:
    """Appending to one's list does not change the other's."""
    comments = Comment.find_all().where(post_id=1).with_("post.comments").all()
    post = comments[0].post()
    assert post is not None
    assert post is comments[1].post()
    assert len(post.comments()) == 2


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
    for count in (few, many):
        begin = time.perf_counter()
        with logged_statements() as log:
            parents = Parent.find_all().where(Parent.c.id <= count).with_("children").all()
            assert all(len(parent.children()) == 1 for parent in parents)
        assert len(parents) == count
        assert log.by_database == {"default": 1, "secondary": 1}
        spent_s[count] = time.perf_counter() - begin
    assert spent_s[many] < 40 * spent_s[few] + 1
    with logged_statements() as log:
        children = Child.find_all().with_("parent").all()
        assert sum(child.parent() is not None for child in children) == many
    assert log.by_database == {"secondary": 1, "default": 1}
