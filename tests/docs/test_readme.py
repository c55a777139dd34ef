"""The README's example runs, and its promises about it are kept."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from bench.databases import Pair
from bench.documents import run_document
from crosstie.orm import ConnectionManager
from crosstie.outbox import sweep_lanes, sync_routes
from crosstie.outbox.tables import create_tables
from crosstie.sagas import sweep_sagas


@pytest.fixture
def shop(pair: Pair) -> Iterator[ModuleType]:
    """The module of the example, on databases of the test."""
    module = run_document("README.md", name="readme_shop")  # its servers are configured, and never asked
    ConnectionManager.configure({"default": pair.first.config, "warehouse": pair.second.config})
    for name in ConnectionManager.names():
        create_tables(ConnectionManager.get(name))
    module.Order.create_table()
    module.Reservation.create_table()
    return module


def test_an_order_is_placed_in_both_databases_and_its_event_arrives_once(shop: ModuleType, pair: Pair) -> None:
    """The saga writes both databases, and the subscriber adds its reservation once, however often one looks."""
    sync_routes()

    order_id = shop.place_order("A1")
    for _ in range(2):
        for name in ConnectionManager.names():
            sweep_sagas(name)
            sweep_lanes(name, owner="test")

    order = shop.Order.find(order_id)
    assert [reservation.quantity for reservation in order.reservations()] == [2, 1]
    assert pair.second.scalar("SELECT count(*) FROM reservations") == 2
