"""The examples of docs/denormalized.md run, and do what the page says."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from bench.databases import Pair
from bench.documents import run_document
from crosstie.orm.registry import registry


@pytest.fixture
def page(configured: Pair) -> Iterator[ModuleType]:
    """The module of the examples, with its tables; its models leave with it."""
    with registry.isolated():
        module = run_document("docs/denormalized.md", name="denormalized_page")
        for model in (module.User, module.Post):
            model.create_table()
        assert module.propagate() == 0
        yield module


def test_a_post_has_its_authors_name_and_gets_the_new_one(page: ModuleType) -> None:
    """At once when it is written, and by a worker when the author is renamed."""
    user = page.User(username="ann").save()
    assert page.write(user, "one").username == "ann"
    user.update(username="anna")
    assert page.propagate() == 3
    assert (page.posts_of("ann"), page.posts_of("anna")) == ([], ["one"])


def test_a_copy_has_one_owner(page: ModuleType) -> None:
    """The message says whose column it is."""
    post = page.write(page.User(username="ann").save(), "one")
    assert page.rename_here(post, "eve").startswith("Post.username is a copy of 'user.username', which its")


def test_old_rows_are_filled_compared_and_repaired(page: ModuleType, configured: Pair) -> None:
    """All by events."""
    user = page.User(username="ann").save()
    post = page.write(user, "one")
    page.propagate()
    configured.second.execute("UPDATE posts SET username = NULL")
    assert page.fill_old_posts() == 1
    page.propagate()
    assert page.posts_of("ann") == ["one"]
    configured.second.execute("UPDATE posts SET username = 'x'")
    assert page.wrong_rows(repair=True) == [{"id": post.id}]
    page.propagate()
    assert page.wrong_rows(repair=False) == []
