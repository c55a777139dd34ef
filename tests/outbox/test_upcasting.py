"""Events that older code has stored are read by newer code, step by step; what cannot be read says why."""

from __future__ import annotations

from typing import Any

import pytest

from bench.databases import Pair
from crosstie.outbox import Envelope, Event, subscriber, sweep_lanes, sync_routes
from crosstie.outbox.errors import EventDefinitionError, EventUnreadable
from crosstie.outbox.event import require_complete_upcasters

Fields = dict[str, Any]


class Ordered(Event):
    """Version 1 had `name`, version 2 had `first` and `last`."""

    __event_type__ = "upcast.ordered"
    __schema_version__ = 3

    customer: dict[str, str]
    amount: int


@Ordered.upcast(from_version=2)
def _nest(fields: Fields) -> Fields:
    return {"customer": {"first": fields["first"], "last": fields["last"]}, "amount": fields["amount"]}


@Ordered.upcast(from_version=1)
def _split(fields: Fields) -> Fields:
    first, last = fields.pop("name").split(" ")
    return {**fields, "first": first, "last": last}


def envelope(version: int, payload: str, event_type: str = "upcast.ordered") -> Envelope:
    """A stored event."""
    return Envelope("u", "k", event_type, version, payload, {"h": "1"})


@pytest.mark.parametrize(
    ("version", "payload"),
    [
        (1, '{"name":"Ada Lovelace","amount":3}'),
        (2, '{"first":"Ada","last":"Lovelace","amount":3}'),
        (3, '{"customer":{"first":"Ada","last":"Lovelace"},"amount":3}'),
    ],
)
def test_every_older_version_is_raised_to_the_newest(version: int, payload: str) -> None:
    """One function after another, whatever the order in which they were declared; headers stay."""
    event = envelope(version, payload).open()
    assert event.model_dump() == {"customer": {"first": "Ada", "last": "Lovelace"}, "amount": 3}
    assert dict(event.event_headers) == {"h": "1"}


def test_a_class_without_upcasters_reads_old_events_as_they_are() -> None:
    """A new version need not mean other fields: it may only be that older code could not understand the new ones."""

    class Widened(Event):
        __schema_version__ = 2
        kind: str

    assert envelope(1, '{"kind":"old"}', "Widened").open().model_dump() == {"kind": "old"}


def test_an_upcaster_that_raises_names_event_versions_and_line_but_no_value() -> None:
    """The message is stored and shown to people who need not see the data."""
    with pytest.raises(EventUnreadable) as caught:
        envelope(1, '{"name":"Secret","amount":3}').open()
    told = str(caught.value)
    assert "'upcast.ordered': upcaster _split from version 1 to 2 raised ValueError at test_upcasting.py, line " in told
    assert "Secret" not in told
    assert not caught.value.retryable


@pytest.mark.parametrize(("returned", "found"), [(None, "NoneType"), ({"a": object()}, "TypeError")])
def test_an_upcaster_that_returns_no_fields_is_told_apart(returned: Any, found: str) -> None:
    """Forgetting `return` is the usual way."""

    class Careless(Event):
        __schema_version__ = 2

    Careless.upcast(from_version=1)(lambda fields: returned)
    with pytest.raises(EventUnreadable, match=rf"'Careless': upcaster .*<lambda> from version 1 to 2 .*{found}"):
        envelope(1, "{}", "Careless").open()


def test_a_missing_link_is_found_before_anything_is_delivered() -> None:
    """By whoever writes the subscriptions, which every worker does first; and named by the version that it is from."""

    class Gappy(Event):
        __schema_version__ = 4

    Gappy.upcast(from_version=1)(dict)
    Gappy.upcast(from_version=3)(dict)
    with pytest.raises(EventDefinitionError, match=r"'Gappy' has version 4 and no upcaster from version 2"):
        require_complete_upcasters()
    with pytest.raises(EventDefinitionError, match="Gappy"):
        sync_routes()
    with pytest.raises(EventUnreadable, match="no upcaster leads from 2 to 3"):
        envelope(1, "{}", "Gappy").open()


def test_an_event_older_than_all_upcasters_is_unreadable() -> None:
    """They begin where the author says that events may still be stored."""

    class Young(Event):
        __schema_version__ = 3

    Young.upcast(from_version=2)(dict)
    require_complete_upcasters()
    with pytest.raises(EventUnreadable, match="found schema version 1, and no upcaster leads from 1 to 2"):
        envelope(1, "{}", "Young").open()


@pytest.mark.parametrize("version", [0, 3, 4])
def test_an_upcaster_from_a_version_that_cannot_be_stored_is_refused(version: int) -> None:
    """There is nothing above the class's own version, and nothing below the first."""
    with pytest.raises(EventDefinitionError, match="expected 1 to 2"):
        Ordered.upcast(from_version=version)(dict)


def test_two_upcasters_from_one_version_are_refused() -> None:
    """Only one of them could run."""
    with pytest.raises(EventDefinitionError, match=r"two upcasters from version 1: _split and dict"):
        Ordered.upcast(from_version=1)(dict)


@pytest.mark.parametrize("version", [0, "2", None, True])
def test_a_version_is_a_whole_number(version: Any) -> None:
    """Anything else could not be compared with what is stored."""
    with pytest.raises(EventDefinitionError, match="whole number from 1 on"):
        type("Odd", (Event,), {"__schema_version__": version, "__module__": __name__})


def test_a_consumer_with_new_code_takes_what_old_producers_publish(configured_crash_pair: Pair) -> None:
    """Both wait in one lane, and both arrive as the newest version."""
    arrived: list[Ordered] = []
    subscriber(Ordered, database="secondary")(lambda event: arrived.append(event))  # noqa: PLW0108 - a builtin has no signature
    assert not sync_routes("default").failed

    class Former(Event):
        __event_type__ = "upcast.former"
        name: str
        amount: int

    Former.__event_type__ = "upcast.ordered"  # the class as the producer's deployment still has it
    Former(name="Ada Lovelace", amount=1).publish("default")
    Ordered(customer={"first": "Ada", "last": "Lovelace"}, amount=2).publish("default")
    while sweep_lanes("default", owner="test"):
        pass
    assert sorted(event.amount for event in arrived) == [1, 2]
    assert {tuple(event.customer.values()) for event in arrived} == {("Ada", "Lovelace")}
