"""The examples of docs/cache.md run, and do what the page says."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from uuid import uuid4

import pytest
import redis

from bench.databases import Pair
from bench.documents import run_document
from bench.guard import configured_databases
from crosstie.orm.registry import registry
from crosstie.orm.statement_log import logged_statements
from crosstie.outbox import sync_routes


@pytest.fixture
def page(pair: Pair, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of the examples, with two authors and three posts."""
    prefix = f"crosstie-test-{uuid4().hex}"
    monkeypatch.setenv("CROSSTIE_CACHE__REDIS_URL", redis_url)
    monkeypatch.setenv("CROSSTIE_CACHE__PREFIX", prefix)
    monkeypatch.setenv("CROSSTIE_CACHE__TIMEOUT_S", "5")
    with configured_databases(pair), registry.isolated():
        module = run_document("docs/cache.md", name="cache_page")
        module.Author.create_table()
        module.Post.create_table()
        assert not sync_routes().failed
        for name in ("ann", "bob"):
            module.Author(name=name).save()
        for author_id in (1, 1, 2):
            module.Post(title=f"of {author_id}", author_id=author_id).save()
        yield module
    with redis.Redis.from_url(redis_url) as client:
        for name in client.scan_iter(f"{prefix}:*"):
            client.delete(name)


def test_a_page_of_posts_asks_for_its_authors_once(page: ModuleType) -> None:
    """The second page finds them all."""
    for asked in ({"secondary": 1, "default": 1}, {"secondary": 1}):
        with logged_statements() as log:
            assert page.page_of_posts() == [("of 1", "ann"), ("of 1", "ann"), ("of 2", "bob")]
        assert log.by_database == asked


def test_a_request_looks_each_author_up_once(page: ModuleType) -> None:
    """Two authors of three posts, and then none."""
    for asked in ({"secondary": 1, "default": 2}, {"secondary": 1}):
        with logged_statements() as log:
            assert sorted(page.handle_request()) == ["ann", "ann", "bob"]
        assert log.by_database == asked


def test_raw_sql_is_told_by_hand(page: ModuleType) -> None:
    """In its own transaction."""
    page.page_of_posts()
    page.capitalise(1)
    assert page.page_of_posts()[0] == ("of 1", "ANN")


def test_the_figures_count(page: ModuleType) -> None:
    """Hits and misses of this process."""
    before = page.figures()
    page.page_of_posts()
    page.page_of_posts()
    after = page.figures()
    assert (after.hits - before.hits, after.misses - before.misses, after.fills - before.fills) == (2, 2, 2)
