"""CloudEvents 1.0: what leaves obeys the specification, what comes in is read or refused by the attribute's name."""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
from typing import Any

import pytest

from crosstie.outbox import Envelope, Event
from crosstie.outbox.cloudevent import cloudevent_json, from_cloudevent, to_cloudevent
from crosstie.outbox.errors import EventInvalid, EventUnreadable

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Placed(Event):
    __event_type__ = "cloud.placed"
    __key__ = "order_id"
    __schema_version__ = 2

    order_id: int
    sku: str


def envelope(**headers: str) -> Envelope:
    """An event with headers."""
    return Envelope.of(Placed(order_id=7, sku="ü").with_headers(headers))


def told(one: Envelope) -> dict[str, Any]:
    """It as a CloudEvent."""
    when = dt.datetime(2026, 11, 24, 10, 0, 0, 123456, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    return to_cloudevent(one, source="/shop/default", sequence=42, time=when)


def test_the_attributes_say_what_the_event_is() -> None:
    """Each under its name in the specification and its extensions."""
    one = envelope(traceparent=TRACE, tenant="acme")
    assert told(one) == {
        "specversion": "1.0",
        "id": one.uid,
        "source": "/shop/default",
        "type": "cloud.placed",
        "subject": "7",
        "partitionkey": "7",
        "sequence": "00000000000000000042",
        "time": "2026-11-24T09:00:00.123Z",
        "datacontenttype": "application/json",
        "dataschema": "urn:crosstie:event:cloud.placed:2",
        "schemaversion": 2,
        "traceparent": TRACE,
        "tenant": "acme",
        "data": {"order_id": 7, "sku": "ü"},
    }


def test_the_json_without_reading_the_payload_is_the_same() -> None:
    """A relay need not know what it carries."""
    one = envelope(tenant="acme")
    when = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
    text = cloudevent_json(one, source="/s", sequence=1, time=when)
    assert json.loads(text) == to_cloudevent(one, source="/s", sequence=1, time=when)
    assert "time" not in json.loads(cloudevent_json(one, source="/s"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Tenant", "a"),
        ("tenant_id", "a"),
        ("id", "forged"),
        ("data", "forged"),
        ("data_base64", "forged"),
        ("a" * 21, "a"),
        ("control", "a\nb"),
        ("empty", ""),
        ("größe", "a"),
    ],
)
def test_a_header_that_cannot_be_an_attribute_survives_all_the_same(name: str, value: str) -> None:
    """No attribute is overwritten, and every name and value obeys the specification."""
    one = envelope(**{name: value})
    event = told(one)
    assert event["id"] == one.uid
    assert all(re.fullmatch("[a-z0-9]{1,20}", attribute) for attribute in event)
    assert all(value for value in event.values())
    assert not any(re.search(r"[\x00-\x1f\x7f-\x9f]", str(value)) for key, value in event.items() if key != "data")
    assert from_cloudevent(event).headers == {name: value}


@pytest.mark.parametrize("headers", [{}, {"traceparent": TRACE, "tracestate": "a=b", "X-Y": "z"}])
def test_an_event_comes_back_as_it_left(headers: dict[str, str]) -> None:
    """As a dict, as text and as bytes."""
    one = envelope(**headers)
    text = cloudevent_json(one, source="/s")
    for form in (json.loads(text), text, text.encode()):
        assert from_cloudevent(form) == one
        assert from_cloudevent(form).open().model_dump() == {"order_id": 7, "sku": "ü"}


def test_sequences_sort_as_texts_like_their_numbers() -> None:
    """The extension asks for it."""
    numbers = [1, 9, 10, 99, 100, 2**63 - 1]
    texts = [to_cloudevent(envelope(), source="/s", sequence=number)["sequence"] for number in numbers]
    assert texts == sorted(texts)


@pytest.mark.parametrize("key", ["a\nb", "\x7f", "\ud800"])
def test_a_key_that_no_attribute_can_hold_is_refused(key: str) -> None:
    """The event stays where it is, and the message does not quote it."""
    one = Envelope("u", key, "t", 1, "{}", {})
    with pytest.raises(EventInvalid, match="the key of a CloudEvent: expected a text without control characters"):
        cloudevent_json(one, source="/s")


def foreign(**attributes: Any) -> dict[str, Any]:
    """The least that somebody else's event has."""
    required = {"specversion": "1.0", "id": "1", "source": "//elsewhere", "type": "t"}
    return {name: value for name, value in (required | attributes).items() if value is not None}


def test_an_event_of_somebody_else_is_read() -> None:
    """With the key that it has, and what it says beside as headers."""
    one = from_cloudevent(foreign(subject="s", data=[1], comexampleflag=True, datacontenttype="application/vnd.x+json"))
    assert one == Envelope("1", "s", "t", 1, "[1]", {"comexampleflag": "true"})
    assert from_cloudevent(foreign(subject="s", partitionkey="p")).key == "p"
    assert from_cloudevent(foreign()).key == "1"
    assert from_cloudevent(foreign(data_base64=base64.b64encode(b'{"a":1}').decode())).payload == '{"a":1}'


@pytest.mark.parametrize(
    ("event", "complaint"),
    [
        (foreign(specversion="0.3"), "specversion '1.0', found '0.3'"),
        (foreign(id=None), "attribute 'id' with a text, found None"),
        (foreign(source=""), "attribute 'source'"),
        (foreign(type=3), "attribute 'type' with a text, found 3"),
        (foreign(Subject="s"), "found 'Subject'"),
        (foreign(datacontenttype="text/xml"), "found 'text/xml'"),
        (foreign(data={}, data_base64="e30="), "both data and data_base64"),
        (foreign(data_base64="%"), "JSON in Base64"),
        (foreign(schemaversion="2"), "schemaversion"),
        (foreign(crosstieheaders="[]"), "crosstieheaders"),
        ("[1]", "a JSON object, found list"),
        (b"\xff", "found no JSON"),
    ],
)
def test_an_event_against_the_specification_is_refused_by_name(event: Any, complaint: str) -> None:
    """So that its sender can mend it."""
    with pytest.raises(EventUnreadable, match=re.escape(complaint)):
        from_cloudevent(event)
