"""Events arrive at a broker as CloudEvents, in order for each key, once unless something breaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from bench.databases import Solo, TestDatabase
from bench.processes import Spawner
from brokers.conftest import open_forwarding_bank
from brokers.far_end import FarEnd, Queue, Stream, numbers_by_account
from crosstie.orm.transaction import transaction
from crosstie.outbox import from_cloudevent, pending, subscriber, sync_routes
from outbox import bank
from outbox.bank import Moved

Configure = Callable[..., dict[str, str]]
RELAY = """
    from crosstie.outbox import sweep_lanes
    while sweep_lanes("default", owner="child"):
        pass
"""


def test_events_arrive_once_and_in_order(
    far_end: FarEnd, configure: Configure, configured_database: TestDatabase
) -> None:
    """In the form of CloudEvents, with the identity that they have in the outbox, which is empty afterwards."""
    configure(url=far_end.url, source="/bank")
    open_forwarding_bank(far_end.name)
    for _ in range(3):
        for name in "abc":
            bank.transfer(name, times=40)
    uids = [row[0] for row in configured_database.rows("SELECT uid FROM crosstie_outbox")]
    assert bank.drain_all() == 360
    events = far_end.events()
    assert numbers_by_account(events) == {name: list(range(1, 121)) for name in "abc"}
    assert Counter(event["id"] for event in events) == Counter(uids)
    assert bank.stored(configured_database) == 0
    first = next(event for event in events if event["data"] == {"account": "b", "number": 1})
    assert {name: first[name] for name in ("specversion", "source", "type", "subject", "partitionkey")} == {
        "specversion": "1.0",
        "source": "/bank",
        "type": "bank.moved",
        "subject": "b",
        "partitionkey": "b",
    }
    assert from_cloudevent(first).open().model_dump() == {"account": "b", "number": 1}
    sequences = [event["sequence"] for event in events if event["subject"] == "a"]
    assert sequences == sorted(sequences)


def test_a_stream_entry_can_be_sorted_without_reading_its_event(redis_stream: Stream, configure: Configure) -> None:
    """Identity, type and key stand beside it."""
    configure(url=redis_stream.url)
    open_forwarding_bank(redis_stream.name)
    bank.transfer("a")
    bank.drain_all()
    (entry,), (event,) = redis_stream.entries(), redis_stream.events()
    assert (entry["id"], entry["type"], entry["key"]) == (event["id"], "bank.moved", "a")
    assert event["source"] == "urn:crosstie:default"


def test_a_stream_keeps_about_as_many_entries_as_it_is_told(redis_stream: Stream, configure: Configure) -> None:
    """Redis trims whole blocks of a hundred."""
    configure(url=redis_stream.url, stream_length="10")
    open_forwarding_bank(redis_stream.name)
    bank.transfer("a", times=500)
    bank.drain_all()
    assert 10 <= len(redis_stream.entries()) < 250


def test_a_message_is_persistent_and_says_what_it_is(rabbitmq_queue: Queue, configure: Configure) -> None:
    """It survives the broker's restart."""
    configure(url=rabbitmq_queue.url)
    open_forwarding_bank(rabbitmq_queue.name)
    bank.transfer("a")
    bank.drain_all()
    (event,) = rabbitmq_queue.events()
    about = rabbitmq_queue.messages[0].properties
    assert about["delivery_mode"] == 2
    assert about["content_type"].startswith("application/cloudevents+json")
    assert (about["message_id"], about["type"]) == (event["id"], "bank.moved")


def test_an_exchange_gets_the_destination_as_routing_key(rabbitmq_queue: Queue, configure: Configure) -> None:
    """What it is bound to is the broker's business."""
    exchange = f"{rabbitmq_queue.name}-exchange"
    rabbitmq_queue.channel.exchange_declare(exchange, "topic", durable=False, auto_delete=True)
    rabbitmq_queue.channel.queue_bind(rabbitmq_queue.name, exchange, "bank.#")
    configure(url=rabbitmq_queue.url, exchange=exchange)
    open_forwarding_bank("bank.moved")
    bank.transfer("a")
    assert bank.drain_all() == 1
    assert len(rabbitmq_queue.events()) == 1


def test_an_event_waits_for_a_queue_that_does_not_exist(
    rabbitmq_queue: Queue, configure: Configure, configured_database: TestDatabase
) -> None:
    """RabbitMQ would confirm it and throw it away; the route says what is missing."""
    rabbitmq_queue.remove()
    configure(url=rabbitmq_queue.url)
    open_forwarding_bank(rabbitmq_queue.name)
    bank.transfer("a", times=2)
    assert bank.drain_all() == 0
    (backlog,) = pending("default")
    assert (backlog.route, backlog.depth) == (f"broker:shop:{rabbitmq_queue.name}", 2)
    assert "NO_ROUTE" in str(backlog.last_error)
    rabbitmq_queue.create()
    bank.ready_now(configured_database)
    assert bank.drain_all() == 2
    assert numbers_by_account(rabbitmq_queue.events()) == {"a": [1, 2]}


def test_a_queue_that_is_full_holds_its_route_back(
    rabbitmq_queue: Queue, configure: Configure, configured_database: TestDatabase
) -> None:
    """What was confirmed before is acknowledged, and does not come twice."""
    rabbitmq_queue.remove()
    rabbitmq_queue.create(**{"x-max-length": 2, "x-overflow": "reject-publish"})
    configure(url=rabbitmq_queue.url)
    open_forwarding_bank(rabbitmq_queue.name)
    bank.transfer("a", times=5)
    arrived: list[Any] = []
    for _ in range(3):
        bank.ready_now(configured_database)
        bank.drain_all()
        arrived = rabbitmq_queue.events()
    assert [event["data"]["number"] for event in arrived] == [1, 2, 3, 4, 5]


def test_events_go_to_databases_and_brokers_alike(
    far_end: FarEnd, configure: Configure, configured_database: TestDatabase
) -> None:
    """Each route has its own rows; what the broker gets is told to no subscriber, and the other way round."""
    configure(url=far_end.url)
    seen: list[int] = []

    def receive(event: Moved) -> None:
        seen.append(event.number)

    subscriber(Moved, database="default")(receive)
    open_forwarding_bank(far_end.name)
    bank.transfer("a", times=2)
    assert bank.stored(configured_database) == 4
    assert bank.drain_all() == 4
    assert seen == [1, 2]
    assert numbers_by_account(far_end.events()) == {"a": [1, 2]}


def test_what_rolls_back_is_not_published(far_end: FarEnd, configure: Configure) -> None:
    """As with every route."""
    configure(url=far_end.url)
    open_forwarding_bank(far_end.name)
    with pytest.raises(ZeroDivisionError), transaction("default"):
        bank.transfer("a")
        raise ZeroDivisionError
    bank.drain_all()
    assert far_end.events() == []


def test_a_relay_needs_no_code_of_the_events(
    far_end: FarEnd, configure: Configure, configured_database: TestDatabase, spawn: Spawner
) -> None:
    """What goes to a broker is not opened on the way, whatever its version."""
    environment = configure(url=far_end.url)
    open_forwarding_bank(far_end.name)
    bank.transfer("a", times=2)
    configured_database.execute("UPDATE crosstie_outbox SET schema_version = 7")
    spawn.code(RELAY, environment=Solo(configured_database).environment | environment).wait_ok()
    events = far_end.events()
    assert numbers_by_account(events) == {"a": [1, 2]}
    assert {event["schemaversion"] for event in events} == {7}


def test_a_key_that_no_cloudevent_can_hold_is_parked_alone(
    far_end: FarEnd, configure: Configure, configured_database: TestDatabase
) -> None:
    """The others of the batch are published once."""
    configure(url=far_end.url)
    open_forwarding_bank(far_end.name)
    with transaction("default"):
        for account in ("a", "x\x01", "a", "b"):
            Moved(account=account, number=1).publish()
    configured_database.execute("UPDATE crosstie_outbox SET lane = 0")
    bank.drain_all()
    assert sorted(event["subject"] for event in far_end.events()) == ["a", "a", "b"]
    assert bank.stored(configured_database) == 0
    assert configured_database.scalar("SELECT count(*) FROM crosstie_parked") == 1
    assert sync_routes().failed == {}
