"""The examples of docs/references.md run, and do what the page says."""

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
        module = run_document("docs/references.md", name="references_page")
        for model in (module.User, module.Post, module.Review, module.Invoice):
            model.create_table()
        assert module.propagate() == 0
        yield module


def test_a_post_needs_its_user(page: ModuleType) -> None:
    """One that exists; the message names the reference and the key."""
    assert page.post_for(page.User(name="a").save().id) == "saved"
    assert page.post_for(77).startswith("Post.user: expected a User with id = 77 in database 'default'")


def test_a_user_leaves_with_posts_and_without_reviews(page: ModuleType, configured: Pair) -> None:
    """Posts are deleted, reviews keep no author, an invoice refuses."""
    user = page.User(name="a").save()
    page.post_for(user.id)
    page.Review(author_id=user.id).save()
    invoice = page.Invoice(user_id=user.id).save()
    assert page.leave(user) == "there are invoices"
    invoice.delete()
    assert page.leave(user) == "gone"
    assert page.Post.find_all().one().user() is None
    assert page.propagate() == 2
    assert configured.second.rows("SELECT * FROM posts") == []
    assert configured.second.rows("SELECT author_id FROM reviews") == [(None,)]
