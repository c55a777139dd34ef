from __future__ import annotations

import pytest

from bench.databases import Pair
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
