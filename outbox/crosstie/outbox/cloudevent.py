"""Events as CloudEvents 1.0 in JSON, which is how they leave for brokers and how others may send them.

Besides the required attributes an event has `subject` and `partitionkey` (its key), `sequence` (its number in its
outbox, padded so that texts sort like numbers), `time`, `dataschema`, `schemaversion`, and its headers, `traceparent`
among them. A header that cannot be an attribute travels inside `crosstieheaders`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from crosstie.outbox.envelope import Envelope
from crosstie.outbox.errors import EventInvalid, EventUnreadable

__all__ = ["CONTENT_TYPE", "cloudevent_json", "from_cloudevent", "to_cloudevent"]

CONTENT_TYPE: Final = "application/cloudevents+json; charset=utf-8"
SCHEMA: Final = "urn:crosstie:event"

_OWN: Final = frozenset(
    {
        "specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "data",
        "data_base64", "partitionkey", "sequence", "schemaversion", "crosstieheaders",
    }
)  # fmt: skip
_NAME: Final = re.compile(r"[a-z0-9]{1,20}")
_FORBIDDEN: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""What CloudEvents allows in no text."""
_IS_JSON: Final = re.compile(r"[^/\s;]+/([^/\s;]+\+)?json", re.IGNORECASE)
_ABSENT: Final = object()


def to_cloudevent(
    envelope: Envelope, *, source: str, sequence: int | None = None, time: datetime | None = None
) -> dict[str, Any]:
    """The event as a CloudEvent, ready for `json.dumps`. Raises EventInvalid for a key that no text attribute can hold.

    `source` is a URI reference that names the producer; `time` (UTC-aware) and `sequence` are those of the commit.
    """
    return _attributes(envelope, source, sequence, time) | {"data": json.loads(envelope.payload)}


def cloudevent_json(
    envelope: Envelope, *, source: str, sequence: int | None = None, time: datetime | None = None
) -> str:
    """The same as JSON, without reading the payload."""
    attributes = json.dumps(_attributes(envelope, source, sequence, time), ensure_ascii=False, separators=(",", ":"))
    return f'{attributes[:-1]},"data":{envelope.payload}}}'


def from_cloudevent(event: Mapping[str, Any] | str | bytes) -> Envelope:
    """The envelope of a CloudEvent in structured JSON, whoever made it. Raises EventUnreadable naming the attribute.

    The key is `partitionkey`, else `subject`, else `id`; unknown attributes become headers.
    """
    given = _parsed(event)
    if given.get("specversion") != "1.0":
        raise EventUnreadable(f"CloudEvent: expected specversion '1.0', found {given.get('specversion')!r}.")
    wrong = next((name for name in given if name != "data_base64" and not re.fullmatch("[a-z0-9]+", name)), None)
    if wrong is not None:
        raise EventUnreadable(f"CloudEvent: attribute names are lower-case letters and digits, found {wrong!r}.")
    uid = _required(given, "id")
    _required(given, "source")
    headers = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in given.items()
        if name not in _OWN and value is not None
    }
    return Envelope(
        uid=uid,
        key=str(given.get("partitionkey") or given.get("subject") or uid),
        type=_required(given, "type"),
        schema_version=_version(given),
        payload=_payload(given),
        headers=headers | _hidden_headers(given),
    )


def _attributes(envelope: Envelope, source: str, sequence: int | None, time: datetime | None) -> dict[str, Any]:
    key = _text("key", envelope.key)
    attributes: dict[str, Any] = {
        "specversion": "1.0",
        "id": envelope.uid,
        "source": _text("source", source),
        "type": _text("type", envelope.type),
        "subject": key,
        "partitionkey": key,
        "datacontenttype": "application/json",
        "dataschema": f"{SCHEMA}:{quote(envelope.type, safe='')}:{envelope.schema_version}",
        "schemaversion": envelope.schema_version,
    }
    if sequence is not None:
        attributes["sequence"] = f"{sequence:020}"
    if time is not None:
        attributes["time"] = time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    hidden = {}
    for name, value in envelope.headers.items():
        if name in _OWN or not _NAME.fullmatch(name) or not value or _FORBIDDEN.search(value):
            hidden[name] = value
        else:
            attributes[name] = value
    if hidden:
        attributes["crosstieheaders"] = json.dumps(hidden)
    return attributes


def _text(what: str, value: str) -> str:
    if not value or _FORBIDDEN.search(value):
        found = "one with some" if value else "an empty one"
        raise EventInvalid(
            f"the {what} of a CloudEvent: expected a text without control characters, found {found}. Publish the event "
            "with another."
        )
    return value


def _parsed(event: Mapping[str, Any] | str | bytes) -> Mapping[str, Any]:
    if isinstance(event, Mapping):
        return event
    try:
        parsed: object = json.loads(event)
    except ValueError:
        raise EventUnreadable("CloudEvent: expected a JSON object, found no JSON.") from None
    if not isinstance(parsed, dict):
        raise EventUnreadable(f"CloudEvent: expected a JSON object, found {type(parsed).__name__}.")
    return parsed


def _required(given: Mapping[str, Any], name: str) -> str:
    value: object = given.get(name)
    if not isinstance(value, str) or not value:
        raise EventUnreadable(f"CloudEvent: expected the attribute {name!r} with a text, found {value!r}.")
    return value


def _version(given: Mapping[str, Any]) -> int:
    version: object = given.get("schemaversion", 1)
    if type(version) is not int or version < 1:
        raise EventUnreadable(f"CloudEvent: expected schemaversion to be a whole number from 1 on, found {version!r}.")
    return version


def _payload(given: Mapping[str, Any]) -> str:
    kind = str(given.get("datacontenttype") or "application/json").partition(";")[0].strip()
    if not _IS_JSON.fullmatch(kind):
        raise EventUnreadable(f"CloudEvent: expected datacontenttype 'application/json', found {kind!r}.")
    data = given.get("data", _ABSENT)
    if data is not _ABSENT and "data_base64" in given:
        raise EventUnreadable("CloudEvent: found both data and data_base64: one event has one of them.")
    if data is not _ABSENT:
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    try:
        text = base64.b64decode(given.get("data_base64", "e30="), validate=True).decode()  # an event without data: {}
        json.loads(text)
    except (binascii.Error, TypeError, ValueError):
        raise EventUnreadable("CloudEvent: expected data_base64 to be JSON in Base64.") from None
    return text


def _hidden_headers(given: Mapping[str, Any]) -> dict[str, str]:
    try:
        hidden: object = json.loads(given.get("crosstieheaders", "{}"))
    except (TypeError, ValueError):
        hidden = None
    if not isinstance(hidden, dict) or not all(isinstance(value, str) for value in hidden.values()):
        raise EventUnreadable("CloudEvent: expected crosstieheaders to be a JSON object of texts.")
    return hidden
