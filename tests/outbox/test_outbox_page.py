"""The examples of docs/outbox.md run, and do what the page says."""

from __future__ import annotations

from types import ModuleType

import pytest

from bench.databases import Pair
from bench.documents import run_document
from bench.faults import crash_at
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.transaction import transaction
from crosstie.outbox import Envelope, pending, subscriber, sweep_lanes
from crosstie.sagas import SagaAborted, saga


@pytest.fixture
def page(configured: Pair) -> ModuleType:
    """The module of the examples, with its tables."""
    module = run_document("docs/outbox.md", name="outbox_page")
    module.Order.create_table()
    module.Shipment.create_table()
    assert module.deliver() == 0
    return module


def test_an_order_is_shipped_in_the_other_database(page: ModuleType, configured: Pair) -> None:
    """Once, also when the script is run again."""
    order = page.place("A1")
    assert (page.deliver(), page.deliver()) == (1, 0)
    assert configured.second.rows("SELECT order_id, sku FROM shipments") == [(order.id, "A1")]


def test_an_order_by_plain_sql_is_shipped_too(page: ModuleType, configured: Pair) -> None:
    """The caller's connection decides over both the row and the event."""
    with ConnectionManager.get("default").engine.connect() as connection:
        page.place_with_sql(connection, 7, "B2")
        connection.commit()
        page.place_with_sql(connection, 8, "C3")
    assert page.deliver() == 1
    assert configured.second.rows("SELECT order_id, sku FROM shipments") == [(7, "B2")]
    assert configured.first.rows("SELECT id FROM orders") == [(7,)]


def test_a_model_of_another_database_is_out_of_a_subscribers_reach(page: ModuleType, configured: Pair) -> None:
    """A model may be read there, and not saved; the parked event says so."""

    @subscriber(page.OrderPlaced, database="secondary")
    def mark(event: page.OrderPlaced) -> None:  # type: ignore[name-defined]
        order = page.Order.find(event.order_id)
        order.sku = "shipped"
        order.save()

    page.place("A1")
    assert page.deliver() == 0
    (backlog,) = (one for one in pending("default") if one.route == "secondary")
    assert backlog.parked == 1
    assert "a subscriber of database 'secondary' wrote to 'default'" in str(backlog.last_error)
    assert configured.second.rows("SELECT * FROM shipments") == []
    assert configured.first.rows("SELECT sku FROM orders") == [("A1",)]


def test_changes_of_rows_are_labelled(page: ModuleType, configured: Pair) -> None:
    """A new customer and a renamed one; a new password is nobody's business."""
    page.Customer.create_table()
    page.Label.create_table()
    customer = page.Customer(name="Ada").save()
    customer.update(name="Grace")
    customer.update(password_hash="x")
    assert page.deliver() == 2
    assert configured.second.rows("SELECT text FROM labels ORDER BY id") == [
        (f"{customer.id}: Ada",),
        (f"{customer.id}: Grace (was Ada)",),
    ]


def test_refunds_are_made_many_at_once(page: ModuleType, configured: Pair) -> None:
    """All that the relay has read."""
    page.Refund.create_table()
    with transaction("default"):
        for number in (1, 2, 3):
            page.OrderCancelled(order_id=number, reason={"en": "late"}).publish()
    assert page.deliver() == 3
    assert sorted(configured.second.rows("SELECT order_id, reason FROM refunds")) == [(n, "late") for n in (1, 2, 3)]


def test_an_event_survives_as_a_cloudevent(page: ModuleType) -> None:
    """Fields and key alike."""
    event = page.OrderPlaced(order_id=1, sku="A1")
    assert page.there_and_back(event) == event


def test_old_versions_pass_through_the_upcasters(page: ModuleType) -> None:
    """Both of the page's, or one of them."""
    for version, stored in ((1, '{"order_id":1}'), (2, '{"order_id":1,"reason":"unknown"}')):
        event = Envelope("u", "1", "order.cancelled", version, stored, {}).open()
        assert event == page.OrderCancelled(order_id=1, reason={"en": "unknown"})


def test_events_of_a_real_saga_leave_if_it_commits(page: ModuleType, configured: Pair) -> None:
    """From home's outbox and from a branch's; and none of them if it does not."""
    with saga("place"):
        first = page.Order(sku="home").save()
        page.Shipment(order_id=0, sku="branch").save()
        page.OrderPlaced(order_id=first.id, sku="from home").publish()
        page.OrderPlaced(order_id=first.id, sku="from a branch").publish("secondary")
    assert page.deliver() == 1
    assert sweep_lanes("secondary", owner="script") == 1
    arrived = ["branch", "from home", "from a branch"]
    assert [row[0] for row in configured.second.rows("SELECT sku FROM shipments ORDER BY id")] == arrived

    with crash_at("saga.branch-committed"), pytest.raises(SagaAborted), saga("place"):
        page.Order(sku="never").save()
        page.Shipment(order_id=0, sku="never").save()
        page.OrderPlaced(order_id=1, sku="never from home").publish()
        page.OrderPlaced(order_id=1, sku="never from a branch").publish("secondary")
    assert (page.deliver(), sweep_lanes("secondary", owner="script")) == (0, 0)
    assert [row[0] for row in configured.second.rows("SELECT sku FROM shipments ORDER BY id")] == arrived
    assert [database.scalar("SELECT count(*) FROM crosstie_outbox") for database in configured.databases] == [0, 0]
