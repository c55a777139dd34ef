"""An event as it is stored: its JSON, and what the relay must know without reading it."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from crosstie.outbox.errors import EventInvalid, EventTooNew, EventUnreadable
from crosstie.outbox.event import Event, event_class
from crosstie.outbox.trace_context import traced

__all__ = ["Envelope"]

MAX_KEY_LENGTH = 190


@dataclass(frozen=True, slots=True)
class Envelope:
    """One publication of an event; `uid` is the same in every database that it reaches."""

    uid: str
    key: str
    type: str
    schema_version: int
    payload: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, event: Event) -> Envelope:
        """Wrap an event that is being published. Raises EventInvalid."""
        uid = _new_uid()
        return cls(
            uid=uid,
            key=_key(event) if event.__key__ is not None else uid,
            type=event.__event_type__,
            schema_version=event.__schema_version__,
            # What model_dump_json would do, without what it first looks for.
            payload=event.__pydantic_serializer__.to_json(event, round_trip=True).decode(),
            headers=traced(event.event_headers),
        )

    @property
    def partition(self) -> int:
        """A stable number from 0 to 2³²-1 that events of one key share; modulo the number of lanes, the lane."""
        return zlib.crc32(self.key.encode())

    @property
    def headers_json(self) -> str:
        """The headers as they are stored."""
        return json.dumps(dict(self.headers), separators=(",", ":"), ensure_ascii=False) if self.headers else "{}"

    def open(self) -> Event:
        """The event again. Raises UnknownEventType, EventTooNew, EventUnreadable."""
        cls = event_class(self.type)
        if self.schema_version > cls.__schema_version__:
            raise EventTooNew(
                f"event type {self.type!r}: expected schema version {cls.__schema_version__} or older, found "
                f"{self.schema_version}. This worker runs older code than the producer: deploy it, the event waits."
            )
        try:
            # By field names, as it was written: aliases are for the outside.
            payload = cls.__upcasters__.raise_up(self.payload, self.schema_version)
            event = cls.model_validate_json(payload, by_alias=False, by_name=True)
        except ValidationError as error:
            raise EventUnreadable(f"event type {self.type!r} does not fit its class: {_complaints(error)}.") from None
        return event.with_headers(self.headers) if self.headers else event


def _new_uid() -> str:
    """A random UUID (version 4) as text; the object that the standard library makes of it costs more than the rest."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def _key(event: Event) -> str:
    name = event.__key__
    assert name is not None
    value: Any = getattr(event, name)
    if type(value) not in (str, int, UUID):
        # As JSON has it: enums by value, dates in ISO form, so that every producer writes one key alike.
        value = event.model_dump(mode="json", include={name})[name]
    if value is None or isinstance(value, dict | list):
        raise EventInvalid(
            f"{type(event).__qualname__}.{name} is its key, and keys are single values; found {type(value).__name__}."
        )
    key = str(value)
    if not 0 < len(key) <= MAX_KEY_LENGTH or "\x00" in key:
        raise EventInvalid(
            f"{type(event).__qualname__}.{name} is its key: expected 1 to {MAX_KEY_LENGTH} characters without NUL, "
            f"found {len(key)}."
        )
    return key


def _complaints(error: ValidationError) -> str:
    """Which fields are wrong and how, without their values: the text is stored and shown."""
    return "; ".join(
        f"{item['loc'][0] if item['loc'] else 'the whole'}: {item['type']}"
        for item in error.errors(include_input=False, include_url=False, include_context=False)
    )
