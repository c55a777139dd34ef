"""Models with cached relations must not reach other tests, which would then be told of writes of theirs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis

from bench.databases import Pair
from bench.guard import configured_databases
from cache.blog import open_blog
from crosstie.orm.registry import registry


@pytest.fixture(autouse=True)
def models_of_the_test_alone(own_registries: None) -> Iterator[None]:
    """Forget the models and subscribers that the test has defined."""
    with registry.isolated():
        yield


@pytest.fixture
def prefix(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Redis as it will be configured, with names of the test's own, which are deleted after it."""
    made = f"crosstie-test-{uuid4().hex}"
    monkeypatch.setenv("CROSSTIE_CACHE__REDIS_URL", redis_url)
    monkeypatch.setenv("CROSSTIE_CACHE__PREFIX", made)
    monkeypatch.setenv("CROSSTIE_CACHE__TIMEOUT_S", "5")  # a loaded machine is no outage
    yield made
    with redis.Redis.from_url(redis_url) as client:
        for name in client.scan_iter(f"{made}:*"):
            client.delete(name)


@pytest.fixture
def blog(crash_pair: Pair, prefix: str, furnished: None) -> Iterator[Any]:
    """The models, with each kind of database for the authors in turn."""
    del prefix
    with configured_databases(crash_pair):
        yield open_blog()


@pytest.fixture
def keys(redis_url: str, prefix: str) -> Iterator[Any]:
    """The names in Redis that begin with the test's prefix and a word."""
    with redis.Redis.from_url(redis_url) as client:
        yield lambda word: sorted(name.decode() for name in client.scan_iter(f"{prefix}:{word}:*"))
