"""Real brokers with a destination of the test's own, and a bank whose movements are forwarded there."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest
import redis

from bench.databases import TestDatabase
from bench.servers import require
from brokers.far_end import FarEnd, Queue, Stream
from crosstie.orm.connection import ConnectionManager
from crosstie.outbox import forward, sync_routes
from outbox import bank
from outbox.bank import Moved


@pytest.fixture(autouse=True)
def _own_registries(own_registries: None, no_hurry: None) -> None:
    """For every test of this folder."""


@pytest.fixture
def redis_stream() -> Iterator[FarEnd]:
    """A stream of the test's own, removed after it."""
    url = require("redis")
    client: Any = redis.Redis.from_url(url)
    stream = Stream(url, f"crosstie-test-{uuid.uuid4().hex[:12]}", client)
    yield stream
    client.delete(stream.name)
    client.close()


@pytest.fixture
def rabbitmq_queue() -> Iterator[FarEnd]:
    """A queue of the test's own, removed after it."""
    url = require("rabbitmq")
    with kombu.Connection(url) as connection:
        queue = Queue(url, f"crosstie-test-{uuid.uuid4().hex[:12]}", connection)
        queue.create()
        yield queue
        queue.remove()


@pytest.fixture(params=["redis_stream", "rabbitmq_queue"])
def far_end(request: pytest.FixtureRequest) -> FarEnd:
    """Where the events arrive, in turn at each broker."""
    end: FarEnd = request.getfixturevalue(request.param)
    return end


@pytest.fixture
def configure(configured_database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Call it with settings of the broker `shop`; returns the environment in which a child process has them too."""

    def configured(**settings: str) -> dict[str, str]:
        environment = {f"CROSSTIE_BROKERS__SHOP__{name.upper()}": value for name, value in settings.items()}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        ConnectionManager.configure({"default": configured_database.config})
        return environment

    return configured


def open_forwarding_bank(to: str) -> None:
    """Accounts a, b and c, whose movements go to the broker and nowhere else."""
    bank.create_accounts("default")
    forward(Moved, broker="shop", to=to)
    assert not sync_routes().failed
