"""The examples of docs/relations.md run, and do what the page says."""

from __future__ import annotations

from types import ModuleType

import pytest

from bench.databases import Trio
from bench.documents import run_document
from crosstie.orm.statement_log import logged_statements


@pytest.fixture
def page(configured_trio: Trio) -> ModuleType:
    """The module of the examples, with two users, three posts, and what belongs to them."""
    module = run_document("docs/relations.md", name="relations_page")
    for model in (module.User, module.Profile, module.Post, module.Comment, module.Tag, module.Tagging):
        model.create_table()
    for name in ("zoe", "bob", "ida"):
        module.User(name=name).save()
    module.Profile(user_id=1, motto="onwards").save()
    for user_id, title, published in ((1, "one", True), (1, "two", True), (1, "draft", False), (2, "three", True)):
        module.Post(user_id=user_id, title=title, published=published).save()
    for post_id, body in ((1, "first"), (1, "second"), (3, "third")):
        module.Comment(post_id=post_id, body=body).save()
    for name in ("red", "blue"):
        module.Tag(name=name).save()
    for post_id, tag_id in ((1, 2), (1, 1), (4, 2)):
        module.Tagging(post_id=post_id, tag_id=tag_id).save()
    return module


def test_the_overview_is_one_query_for_each_table(page: ModuleType) -> None:
    """Every level as it was asked for, and nothing left to ask."""
    with logged_statements() as log:
        bob, ida, zoe = page.overview()
    # users, tags / profiles, posts, comments, and the posts and the comments of the count / taggings
    assert log.by_database == {"default": 2, "secondary": 5, "tertiary": 1}
    with logged_statements() as log:
        assert [post.title for post in zoe.posts()] == ["two", "one"]
        assert [comment.body for comment in zoe.posts()[1].comments()] == ["first", "second"]
        assert [tag.name for tag in zoe.posts()[1].tags()] == ["blue", "red"]
        assert [user.comments.count() for user in (bob, ida, zoe)] == [0, 0, 3]
        assert zoe.profile().motto == "onwards"
        assert ida.profile() is None
        assert zoe.posts()[0].user() is zoe
    assert len(log) == 0


def test_rows_are_found_by_what_they_are_related_to(page: ModuleType) -> None:
    """Over three databases, in one query for each table."""
    assert [user.name for user in page.silent_authors()] == ["bob"]
    with logged_statements() as log:
        assert [user.name for user in page.authors_of("blue")] == ["zoe", "bob"]
    assert log.by_database == {"default": 2, "secondary": 1, "tertiary": 1}
    assert [user.name for user in page.authors_of("red")] == ["zoe"]


def test_relations_lead_through_others(page: ModuleType) -> None:
    """Both ways, over the posts in between."""
    assert [comment.body for comment in page.User.find(1).comments()] == ["first", "second", "third"]
    assert page.Comment.find(3).author() == page.User.find(1)


def test_a_strict_query_says_what_to_write(page: ModuleType) -> None:
    """Model and relation, and the way out."""
    assert "User.profile was loaded lazily" in page.refused()
