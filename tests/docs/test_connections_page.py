"""The examples of docs/connections.md run, and do what the page says."""

from __future__ import annotations

from types import ModuleType

import pytest

from bench.databases import Pair
from bench.documents import ROOT, run_document
from bench.faults import crash_at
from crosstie.orm import ConnectionManager, connected_to
from crosstie.orm.configuration import ConnectionSettings
from crosstie.orm.errors import NoTenantChosen, UnknownConnection, WritesPrevented
from crosstie.outbox.tables import create_tables
from crosstie.sagas import SagaAborted


@pytest.fixture
def page(pair: Pair) -> ModuleType:
    """The module of the examples, with an order of acme's."""
    ConnectionManager.configure({"tenant_acme": pair.first.config, "tenant_bolt": pair.second.config})
    module = run_document("docs/connections.md", name="connections_page")
    for number, tenant, region in ((1, "acme", "eu"), (2, "bolt", "us")):
        create_tables(ConnectionManager.get(f"tenant_{tenant}"))
        with connected_to(tenant=tenant, region=region, customer=number):
            for model in (module.Order, module.Parcel, module.Customer):
                model.create_table()
    with connected_to(tenant="acme"):
        module.Order(item="saw").save()
    return module


def test_each_tenant_has_its_own_rows(page: ModuleType) -> None:
    """And a tenant that is not configured has no rows, but an error."""
    assert (page.items("acme"), page.items("bolt")) == (["saw"], [])
    with pytest.raises(UnknownConnection):
        page.items("nobody")
    with pytest.raises(NoTenantChosen):
        page.Order.find(1)


def test_an_order_is_handed_over_or_not(page: ModuleType) -> None:
    """By a saga over two tenants."""
    with crash_at("saga.branch-committed"), pytest.raises(SagaAborted):
        page.hand_over(1, "acme", "bolt")
    assert (page.items("acme"), page.items("bolt")) == (["saw"], [])
    page.hand_over(1, "acme", "bolt")
    assert (page.items("acme"), page.items("bolt")) == ([], ["saw"])


def test_shards_are_found_by_a_map_and_by_a_function(page: ModuleType, pair: Pair) -> None:
    """In one block, each by its own key."""
    for number in (3, 4):
        page.save_both(number)
    assert pair.first.rows("SELECT * FROM parcels ORDER BY id") == [(1, "customer 3"), (2, "customer 4")]
    assert (pair.first.rows("SELECT id FROM customers"), pair.second.rows("SELECT id FROM customers")) == (
        [(3,)],
        [(4,)],
    )


def test_a_handler_that_only_reads_cannot_write(page: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where somebody makes it write later."""
    assert page.get_order("acme", 1) == {"id": 1, "item": "saw"}
    monkeypatch.setattr(page.Order, "model_dump", lambda self: self.delete())
    with pytest.raises(WritesPrevented):
        page.get_order("acme", 1)
    assert page.items("acme") == ["saw"]


def test_the_table_of_keys_is_true() -> None:
    """Every default that the page gives."""
    rows = [
        line.split("|")[1:3] for line in (ROOT / "docs/connections.md").read_text().splitlines() if line[:3] == "| `"
    ]
    told = {name.strip(" `"): default.strip() for name, default in rows}
    fields = ConnectionSettings.model_fields
    assert len(told) == 9
    words = {"read_only": "false", "lock_timeout_s": "the server's"}
    assert told == {name: words.get(name) or f"{fields[name].default:g}" for name in told}
    assert fields["lock_timeout_s"].default is None
