"""Fixtures of the audit's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.databases import Pair
from crosstie.orm.registry import registry
from integrity.blog import Blog, define_blog
from integrity.tables import Linked, linked


@pytest.fixture
def world(configured: Pair) -> Linked:
    """Linked tables with BIGINT keys, over every pair."""
    return linked(configured)


@pytest.fixture
def no_models() -> Iterator[None]:
    """The models that other tests have imported declare references too; for this test there are none."""
    with registry.isolated():
        registry._models.clear()
        registry.generation += 1
        yield


@pytest.fixture
def blog(configured: Pair, no_models: None) -> Blog:
    """Models whose references cross the pair, and their tables: users in `default`, posts in `secondary`."""
    return define_blog()
