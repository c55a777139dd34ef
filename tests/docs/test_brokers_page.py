"""The examples of docs/brokers.md run, and do what the page says."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from bench.databases import TestDatabase
from bench.documents import run_document
from crosstie.orm.connection import ConnectionManager
from crosstie.outbox import from_cloudevent, pending, sweep_lanes, sync_routes
from crosstie.outbox.brokers import kinds

pytestmark = pytest.mark.xdist_group("brokers-page")
"""The page names its streams and queues, which there are once on this machine."""


@pytest.fixture
def page(configured_database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Call it with settings of the broker for the module of the examples, with its table and its route."""

    def run(**settings: str) -> ModuleType:
        monkeypatch.setattr(kinds, "_kinds", {})
        for name, value in settings.items():
            monkeypatch.setenv(f"CROSSTIE_BROKERS__SHOP__{name.upper()}", value)
        ConnectionManager.configure({"default": configured_database.config})
        module = run_document("docs/brokers.md", name="brokers_page")
        module.Invoice.create_table()
        assert not sync_routes().failed
        return module

    return run


def deliver() -> int:
    """Sweep until nothing moves."""
    moved = 0
    while found := sweep_lanes("default", owner="script"):
        moved += found
    return moved


def test_a_kind_of_ones_own_takes_the_events(page: Callable[..., ModuleType]) -> None:
    """As CloudEvents, under the destination."""
    module = page(url="archive://here")
    invoice = module.issue(1250)
    assert deliver() == 1
    (message,) = module.ARCHIVE["invoices"]
    assert (message.type, message.key) == ("invoice.issued", str(invoice.id))
    event = from_cloudevent(message.body).open()
    assert event.model_dump() == {"invoice_id": invoice.id, "total_cents": 1250}


def test_a_full_archive_lets_the_rest_wait(page: Callable[..., ModuleType]) -> None:
    """With its own words in the status."""
    module = page(url="archive://here", stream_length="2")
    for cents in (1, 2, 3):
        module.issue(cents)
    deliver()
    assert len(module.ARCHIVE["invoices"]) == 2
    (backlog,) = pending("default")
    assert (backlog.depth, "the archive is full" in str(backlog.last_error)) == (1, True)


def test_the_same_events_go_to_redis(page: Callable[..., ModuleType], redis_url: str) -> None:
    """With the URL as the only difference."""
    import redis

    module = page(url=redis_url)
    invoice = module.issue(5)
    with redis.Redis.from_url(redis_url) as client:
        try:
            assert deliver() == 1
            entries = client.xrange("invoices")
            assert [entry[b"key"].decode() for _, entry in entries] == [str(invoice.id)]
        finally:
            client.delete("invoices")
