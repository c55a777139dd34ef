"""Rows as the cache keeps them: a JSON list of the columns' values, from which the loader makes records.

JSON has fewer types than columns have. So a row is kept only if it is read back exactly as it was; one with a value
that does not come back stays out of the cache.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import warnings
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import PydanticJsonSchemaWarning

from crosstie.orm.errors import DatabaseError
from crosstie.orm.loader import Loader, make_loader
from crosstie.orm.sql_types import EnumByValue, JsonDocument

if TYPE_CHECKING:
    from crosstie.orm.mapping import MappedField, TableMapping
    from crosstie.orm.model import ActiveRecord

__all__ = ["RowCodec", "codec_of"]

Convert = Callable[[Any], Any]

_VERSION: Final = "1"
_AS_IT_IS: Final = (str, int, float, bool)


def _text_of_instant(value: datetime) -> str:
    """With the name of its zone, if that has one: PostgreSQL's driver gives the zone of the session."""
    zone = value.tzinfo
    if isinstance(zone, ZoneInfo) and zone.key:
        return f"{value.astimezone(UTC).isoformat()} {zone.key}"
    return value.isoformat()


def _instant(text: str) -> datetime:
    moment, _, zone = text.partition(" ")
    found = datetime.fromisoformat(moment)
    return found.astimezone(ZoneInfo(zone)) if zone else found


_AS_TEXT: Final[dict[type, tuple[Convert, Convert]]] = {
    Decimal: (str, Decimal),
    datetime: (_text_of_instant, _instant),
    date: (date.isoformat, date.fromisoformat),
    time: (time.isoformat, time.fromisoformat),
    UUID: (str, UUID),
    bytes: (lambda value: b64encode(value).decode(), b64decode),
}


class _Way(NamedTuple):
    """To JSON and back, for one field; None where the value is JSON already."""

    there: Convert | None
    back: Convert | None


class RowCodec:
    """Writes the rows of one model and reads them; whose `fingerprint` is another reads them wrongly, or not at all."""

    def __init__(self, mapping: TableMapping) -> None:
        self._fields = tuple(mapping.fields.values())
        ways = [_way(field) for field in self._fields]
        self._there = [way.there for way in ways]
        self._load: Loader = make_loader(mapping.model, self._fields, [_or_none(way.back) for way in ways])
        told = json.dumps([_VERSION, [_description(field) for field in self._fields]])
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()[:16]

    def write(self, record: ActiveRecord) -> str | None:
        """The row of a record that was just loaded; None where it would not come back as it is."""
        held = record.__dict__
        values = [held[field.name] for field in self._fields]
        try:
            plain = [
                value if value is None or convert is None else convert(value)
                for value, convert in zip(values, self._there, strict=True)
            ]
            text = json.dumps(plain, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            text.encode()
            again = self.read(text)
        except (ValueError, TypeError, AttributeError):
            return None
        if again is None:
            return None
        back = [again.__dict__[field.name] for field in self._fields]
        return text if all(map(_is_alike, values, back)) else None

    def read(self, text: str | bytes) -> Any | None:
        """The record, as if just loaded; None for a text that is no such row."""
        try:
            values = json.loads(text)
            if not isinstance(values, list) or len(values) != len(self._fields):
                return None
            return self._load([values])[0]
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, DatabaseError):
            return None


def _is_alike(one: Any, other: Any) -> bool:
    zones = [getattr(value, "tzinfo", None) for value in (one, other)]
    return type(one) is type(other) and bool(one == other) and zones[0] == zones[1]


def codec_of(mapping: TableMapping) -> RowCodec:
    """The codec of a model, made on first use."""
    found: RowCodec | None = mapping.loaders.get(RowCodec)
    if found is None:
        found = mapping.loaders[RowCodec] = RowCodec(mapping)
    return found


def _way(field: MappedField) -> _Way:
    kind = field.column.type
    if isinstance(kind, JsonDocument):
        adapter = kind.adapter
        return _Way(_dumped(adapter.dump_python), None if kind.plain else adapter.validate_python)
    if isinstance(kind, EnumByValue):
        return _Way(lambda member: member.value, kind.enumeration)
    if field.family in _AS_IT_IS and field.convert is None:
        return _Way(None, None)
    if field.family in _AS_TEXT:
        return _Way(*_AS_TEXT[field.family])
    return _Way(_dumped(field.adapter.dump_python), field.adapter.validate_python)


def _dumped(dump: Callable[..., Any]) -> Convert:
    return lambda value: dump(value, mode="json")


def _or_none(convert: Convert | None) -> Convert | None:
    if convert is None:
        return None
    return lambda value: None if value is None else convert(value)


def _description(field: MappedField) -> Sequence[str]:
    kind = field.column.type
    told = [field.name, field.column.name, f"{type(kind).__qualname__} {kind!r}", f"{field.exact!r} {field.family!r}"]
    if isinstance(kind, EnumByValue):
        told += [repr(member.value) for member in kind.enumeration]
    elif field.mutable or isinstance(kind, sa.JSON) or not (field.family in _AS_IT_IS or field.family in _AS_TEXT):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PydanticJsonSchemaWarning)
                told.append(json.dumps(field.adapter.json_schema(mode="serialization"), sort_keys=True))
        except PydanticInvalidForJsonSchema:
            told.append(secrets.token_hex(8))  # nobody can compare it, so no other process may read it
    # Where an object lies in memory says nothing about it.
    return [re.sub(r" at 0x[0-9a-f]+", "", text) for text in told]
