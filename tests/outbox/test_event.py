"""Events: declared as pydantic models, found again by their type, read back as they were."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import math
import pickle
import uuid
from typing import Any

import pydantic
import pytest

from crosstie.orm.errors import CrosstieError
from crosstie.outbox import Envelope, Event, errors
from crosstie.outbox.errors import EventDefinitionError, EventInvalid, UnknownEventType
from crosstie.outbox.event import event_class


class Colour(enum.Enum):
    RED = "red"


class Rich(Event):
    """One field of every kind that JSON does not have by itself."""

    __key__ = "ref"

    ref: uuid.UUID
    amount: decimal.Decimal
    at: dt.datetime
    day: dt.date
    took: dt.timedelta
    blob: bytes
    ratio: float
    colour: Colour
    tags: frozenset[str]
    note: str | None = None
    alias: str = pydantic.Field(default="", alias="as")


def rich(**changes: Any) -> Rich:
    """An event with values that are easily damaged on the way."""
    values: dict[str, Any] = {
        "ref": uuid.UUID(int=7),
        "amount": decimal.Decimal("1.10"),
        "at": dt.datetime(2026, 11, 24, 7, 0, 0, 123456, tzinfo=dt.UTC),
        "day": dt.date(2026, 11, 24),
        "took": dt.timedelta(days=1, microseconds=5),
        "blob": b"\x00\xff",
        "ratio": math.inf,
        "colour": Colour.RED,
        "tags": frozenset({"a", "ü\x00"}),
        "as": "x",
    }
    return Rich(**(values | changes))


def test_an_event_comes_back_as_it_was() -> None:
    """Through its stored JSON, with types and special values kept."""
    event = rich()
    envelope = Envelope.of(event)
    assert envelope.open() == event
    assert str(envelope.open().model_dump()["amount"]) == "1.10"
    assert math.isnan(Envelope.of(rich(ratio=math.nan)).open().model_dump()["ratio"])
    assert "\x00" not in envelope.payload


def test_headers_travel_with_the_event() -> None:
    """They are no part of its fields, and a copy carries them."""
    event = rich().with_headers({"trace": "1"}).with_headers({"tenant": "t"})
    envelope = Envelope.of(event)
    assert dict(envelope.open().event_headers) == {"trace": "1", "tenant": "t"}
    assert dict(rich().event_headers) == {}
    assert "trace" not in envelope.payload


def test_an_event_cannot_be_changed() -> None:
    """It tells of what has happened."""
    with pytest.raises(pydantic.ValidationError):
        rich().note = "changed"


def test_every_publication_has_a_uid_of_its_own() -> None:
    """The same event published twice is two facts; without a key, the uid is the key."""

    class Keyless(Event):
        number: int

    first, second = Envelope.of(Keyless(number=1)), Envelope.of(Keyless(number=1))
    assert first.uid != second.uid
    assert first.key == first.uid
    assert Keyless(number=1) == Keyless(number=1)


@pytest.mark.parametrize(
    ("annotation", "value", "key"),
    [
        (str, "a", "a"),
        (int, 12, "12"),
        (uuid.UUID, uuid.UUID(int=1), str(uuid.UUID(int=1))),
        (Colour, Colour.RED, "red"),
        (dt.date, dt.date(2026, 1, 2), "2026-01-02"),
        (bool, True, "True"),
    ],
)
def test_a_key_is_the_fields_value_as_text(annotation: type, value: object, key: str) -> None:
    """Written alike by every producer, so that all of them mean the same lane."""
    cls = pydantic.create_model("Keyed", __base__=Event, ref=(annotation, ...))
    cls.__key__ = "ref"
    assert Envelope.of(cls.model_validate({"ref": value})).key == key


@pytest.mark.parametrize("value", [None, ["a"], {"a": 1}])
def test_a_key_that_is_no_single_value_is_refused(value: object) -> None:
    """It could not say which lane is meant."""

    class Odd(Event):
        __key__ = "ref"
        ref: Any

    with pytest.raises(EventInvalid, match="keys are single values"):
        Envelope.of(Odd(ref=value))


def test_the_lane_of_a_key_never_changes() -> None:
    """CRC-32 of the key in UTF-8: another number would send old and new events of a key different ways."""

    class Keyed(Event):
        __key__ = "ref"
        ref: str

    partitions = [Envelope.of(Keyed(ref=ref)).partition for ref in ("a", "ü", "order-1")]
    assert partitions == [3904355907, 1675192789, 3769860079]


def test_the_type_is_the_class_name_unless_it_is_given() -> None:
    """And it is never inherited: a subclass is another fact."""

    class Plain(Event):
        pass

    class Named(Event):
        __event_type__ = "named.event"

    class Special(Named):
        extra: int = 0

    assert (Plain.__event_type__, Named.__event_type__, Special.__event_type__) == ("Plain", "named.event", "Special")
    assert event_class("named.event") is Named


def test_two_classes_of_one_type_are_an_error() -> None:
    """A stored event could be either; the message names both."""

    class Taken(Event):
        __event_type__ = "test.taken"

    with pytest.raises(EventDefinitionError, match=r"(?s)'test.taken' is taken.*<locals>.Taken.*<locals>.Thief"):

        class Thief(Event):
            __event_type__ = "test.taken"

    assert event_class("test.taken") is Taken


def test_a_class_that_is_defined_again_replaces_itself() -> None:
    """Reloading a module is no error."""

    def define() -> type[Event]:
        class Again(Event):
            pass

        return Again

    define()
    again = define()
    assert event_class("Again") is again


def test_a_key_that_is_no_field_is_an_error() -> None:
    """Found when the class is made, with the fields that there are."""
    with pytest.raises(EventDefinitionError, match=r"'ordr'.*Expected one of: order, amount"):

        class Misspelt(Event):
            __key__ = "ordr"
            order: int
            amount: int


@pytest.mark.parametrize("event_type", ["", "x" * 201, None, 3])
def test_a_type_that_cannot_be_stored_is_an_error(event_type: Any) -> None:
    """It is found when the class is made."""
    with pytest.raises(EventDefinitionError, match="1 to 200 characters"):
        type("Bad", (Event,), {"__event_type__": event_type, "__module__": __name__})


def test_an_unknown_type_names_the_way_out() -> None:
    """The module that defines it was not imported."""
    with pytest.raises(UnknownEventType, match=r"'test.nobody'.*`imports`"):
        event_class("test.nobody")


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_survives_the_way_between_processes(name: str) -> None:
    """Celery's pool pickles what a task raises."""
    kind: type[CrosstieError] = getattr(errors, name)
    error = kind("what was expected, what was found, what to do")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (type(again), str(again), again.code, again.retryable) == (kind, str(error), kind.code, kind.retryable)
    assert kind.code.startswith("outbox")


def test_error_codes_are_unique() -> None:
    """A program tells errors apart by them."""
    codes = [getattr(errors, name).code for name in errors.__all__]
    assert len(codes) == len(set(codes))
