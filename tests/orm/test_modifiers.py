from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.databases import Trio
from crosstie.orm.errors import InvalidQuery
from crosstie.orm.modifier import Modifier
from crosstie.orm.statement_log import logged_statements
from orm.blog import Post, User, create_blog, seed_blog


@pytest.fixture
def blog(configured_trio: Trio) -> Trio:
    """Four users in one database; three posts for each but the last, two comments for each post in another."""
    create_blog()
    seed_blog(users=4, posts=3, comments=2)
    return configured_trio


def titles(user: User) -> list[str]:
    """The titles of what is loaded, in its order."""
    return [post.title for post in user.posts()]


def test_a_modifier_narrows_and_orders_what_is_loaded(blog: Trio) -> None:
    """In the one query of the relation; nothing is asked when the relation is used."""
    with logged_statements() as log:
        users = (
            User.find_all()
            .with_(posts=lambda posts: posts.where(Post.c.title != "post1.2").order_by("-title"))
            .order_by("id")
            .all()
        )
        assert titles(users[0]) == ["post1.3", "post1.1"]
        assert titles(users[1]) == ["post2.3", "post2.2", "post2.1"]
        assert titles(users[3]) == []
        assert all(post.user() is user for user in users for post in user.posts())
    assert log.by_database == {"default": 1, "secondary": 1}


def test_a_path_that_comes_back_does_not_replace_what_was_loaded_above(blog: Trio) -> None:
    """`posts.user.posts`, narrowed, is on other objects than the users that the query found."""
    users = User.find_all().with_("posts", {"posts.user.posts": lambda posts: posts.where(title="post1.1")}).all()
    ann = next(user for user in users if user.id == 1)
    assert len(ann.posts()) == 3
    author = ann.posts()[0].user()
    assert author == ann
    assert author is not None
    assert titles(author) == ["post1.1"]
    users = User.find_all().with_("posts", "posts.user.posts").all()
    assert all(post.user() is user for user in users for post in user.posts())


def test_a_narrowed_parent_is_missing(blog: Trio) -> None:
    """A parent that the modifier does not let pass is None, without another query."""
    posts = Post.find_all().with_(user=lambda users: users.where(User.c.age > 22)).order_by("id").all()
    with logged_statements() as log:
        found = [author.username for post in posts if (author := post.user()) is not None]
    assert found == ["user3"] * 3
    assert len(log) == 0


def test_a_modifier_may_load_further_relations(blog: Trio) -> None:
    """What it asks of its query is done, with the records of all parents at once."""
    with logged_statements() as log:
        users = User.find_all().with_(posts=lambda posts: posts.with_("comments").where_has("comments")).all()
        assert sum(len(post.comments()) for user in users for post in user.posts()) == 18
    assert log.by_database == {"default": 1, "secondary": 2}


@pytest.mark.parametrize(
    ("modifier", "message"),
    [
        (lambda posts: posts.limit(1), r"with_\('posts'\): a limit or an offset"),
        (lambda posts: posts.offset(1), "a limit or an offset"),
        (lambda posts: None, "returned None"),
        (lambda posts: User.find_all(), "query of Post"),
        (lambda posts: posts.where(nothing=1), "no field 'nothing'"),
    ],
)
def test_a_modifier_that_cannot_hold_for_each_record_is_refused_at_once(
    modifier: Callable[[Any], Any], message: str
) -> None:
    """A limit of all parents' rows together is what nobody means; a forgotten return is found too."""
    given: Modifier = modifier
    with pytest.raises(InvalidQuery, match=message):
        User.find_all().with_(posts=given)
    with pytest.raises(InvalidQuery):
        User.find_all().with_count(posts=given)
    with pytest.raises(InvalidQuery):
        User.find_all().where_has("posts", given)
