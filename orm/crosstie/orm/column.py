"""From a pydantic field to a column: its type in each database, its nullability, and the checks that keep writes exact.

A value is refused before it is sent where one of the databases would silently change it: text longer than its column,
a decimal with more places, an integer beyond 64 bits, NaN.
"""

from __future__ import annotations

import enum
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple, TypeVar, Union, get_args, get_origin
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel, EmailStr, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation
from pydantic.fields import FieldInfo
from sqlalchemy.types import TypeEngine

from crosstie.orm import sql_types
from crosstie.orm.errors import ModelDefinitionError

__all__ = ["INT64", "TEXT_LENGTH", "Check", "Column", "FieldType", "annotated", "field_type", "markers"]

TEXT_LENGTH: Final = 255
"""Characters that a `str` field may have where its model says nothing about it."""
DECIMAL_DIGITS: Final = 38
DECIMAL_PLACES: Final = 10
INT64: Final = range(-(2**63), 2**63)

_M = TypeVar("_M")
Check = Callable[[Any], str | None]
"""Says what is wrong with a value that is about to be written, or None."""


@dataclass(frozen=True, eq=False)
class Column:
    """What a field says about its column: `title: Annotated[str, Column(sqlalchemy.Text)]`.

    `type_` replaces the type that follows from the annotation; `name` is the column's name where it is not the field's.
    """

    type_: TypeEngine[Any] | type[TypeEngine[Any]] | None = None
    name: str | None = None
    primary_key: bool = False
    unique: bool = False
    index: bool = False


class FieldType(NamedTuple):
    """A field's type as a column knows it.

    `family` is the Python type that decides whether two keys compare; `mutable` values change without an assignment.
    """

    sql_type: TypeEngine[Any]
    nullable: bool
    family: type | None
    mutable: bool
    adapter: TypeAdapter[Any]
    exact: type | None
    check: Check | None
    convert: Callable[[Any], Any] | None
    """Makes the Python value of what an explicit column type loads; the types chosen here load it already."""


def field_type(where: str, info: FieldInfo, marker: Column, *, is_key: bool) -> FieldType:
    """The column type of a field; `where` names it in messages. Raises ModelDefinitionError."""
    nullable, bare, annotated = _unwrap(info.annotation, info.metadata)
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(bare)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation) as error:
        raise ModelDefinitionError(f"{where}: the annotation cannot be used: {error}") from error
    python_type = _plain_type(bare)
    bounds = _Bounds.of(annotated)
    found = _mapped(python_type, bare, adapter, bounds, is_key=is_key)
    check = _check(python_type, bounds, explicit=marker.type_ is not None)
    if marker.type_ is not None:
        found = _given(marker.type_, is_key=is_key)
    if found is None:
        raise ModelDefinitionError(
            f"{where}: no column type follows from {bare!r}: declare Annotated[..., Column(<SQLAlchemy type>)]."
        )
    exact = bare if isinstance(bare, type) else None
    mutable = isinstance(found, sql_types.JsonDocument | sa.JSON)
    family = _family(python_type)
    trusted = marker.type_ is None or family in {str, int, float, bytes, bool} or _is_plain_json(bare)
    convert = None if trusted else _converter(adapter)
    return FieldType(found, nullable, family, mutable, adapter, exact, check, convert)


def _converter(adapter: TypeAdapter[Any]) -> Callable[[Any], Any]:
    validate = adapter.validate_python
    return lambda value: None if value is None else validate(value)


class _Unwrapped(NamedTuple):
    """An annotation taken apart: whether None is allowed, the type without it, and what was annotated anywhere."""

    nullable: bool
    bare: Any
    annotated: tuple[Any, ...]


def _unwrap(annotation: Any, annotated: Iterable[Any] = ()) -> _Unwrapped:
    found = list(annotated)
    while True:
        if get_origin(annotation) is typing.Annotated:
            annotation, *extra = get_args(annotation)
            found += extra
        elif type(annotation).__name__ == "TypeAliasType":  # `type Name = ...` of Python 3.12
            annotation = annotation.__value__
        else:
            break
    members = get_args(annotation) if get_origin(annotation) in {Union, types.UnionType} else ()
    if type(None) in members:
        rest = [member for member in members if member is not type(None)]
        _, bare, inner = _unwrap(rest[0] if len(rest) == 1 else Union[tuple(rest)])  # noqa: UP007 - made, not written
        return _Unwrapped(True, bare, (*found, *inner))
    flat: list[Any] = []
    for item in found:
        flat += item.metadata if isinstance(item, FieldInfo) else [item]
    return _Unwrapped(annotation is Any, annotation, tuple(flat))


def _plain_type(bare: Any) -> Any:
    """The class behind NewType, Literal and e-mail addresses."""
    while hasattr(bare, "__supertype__"):
        bare = bare.__supertype__
    if get_origin(bare) is Literal:
        classes = {type(value) for value in get_args(bare)}
        return classes.pop() if len(classes) == 1 else object
    return str if bare is EmailStr else bare


class _Bounds(NamedTuple):
    length: int | None
    digits: int | None
    places: int | None

    @classmethod
    def of(cls, annotated: Iterable[Any]) -> _Bounds:
        """What `Field(max_length=…, max_digits=…, decimal_places=…)` and annotated-types say."""
        found: dict[str, int] = {}
        for item in annotated:
            for name in ("max_length", "max_digits", "decimal_places"):
                value = getattr(item, name, None)
                if isinstance(value, int):
                    found[name] = value
        return cls(found.get("max_length"), found.get("max_digits"), found.get("decimal_places"))


_SIMPLE: Final[dict[Any, TypeEngine[Any]]] = {
    int: sql_types.INTEGER,
    bool: sa.Boolean(),
    float: sa.Double(),
    datetime: sql_types.UtcDateTime(),
    date: sa.Date(),
    time: sql_types.CLOCK_TIME,
    UUID: sql_types.UUID,
}
_PLAIN_JSON: Final = (str, int, float, bool, type(None), Any, object)


def _mapped(
    python_type: Any, bare: Any, adapter: TypeAdapter[Any], bounds: _Bounds, *, is_key: bool
) -> TypeEngine[Any] | None:
    if python_type in _SIMPLE:
        return _SIMPLE[python_type]
    if python_type is str:
        length = bounds.length or TEXT_LENGTH
        return sql_types.key_text(length) if is_key else sa.String(length)
    if python_type is bytes:
        return sql_types.key_bytes(bounds.length or TEXT_LENGTH) if is_key or bounds.length else sql_types.BINARY
    if python_type is Decimal:
        places = DECIMAL_PLACES if bounds.places is None else bounds.places
        return sql_types.ExactDecimal(bounds.digits or max(DECIMAL_DIGITS, places), places)
    if isinstance(python_type, type) and issubclass(python_type, enum.Enum):
        return sql_types.EnumByValue(python_type) if _value_type(python_type) else None
    if _is_document(bare):
        return sql_types.JsonDocument(adapter, _is_plain_json(bare))
    return None


def _value_type(enumeration: type[enum.Enum]) -> type | None:
    for candidate in (str, int):
        if all(isinstance(member.value, candidate) for member in enumeration):
            return candidate
    return None


def _is_document(bare: Any) -> bool:
    origin = get_origin(bare) or bare
    if origin is Any or typing.is_typeddict(bare) or hasattr(origin, "__dataclass_fields__"):
        return True
    return isinstance(origin, type) and issubclass(origin, BaseModel | Mapping | Sequence | Set)


def _is_plain_json(bare: Any) -> bool:
    origin, arguments = get_origin(bare) or bare, get_args(bare)
    if origin in {list, dict}:
        return (not arguments or arguments[0] is str or origin is list) and all(map(_is_plain_json, arguments))
    if origin in {Union, types.UnionType}:
        return all(map(_is_plain_json, arguments))
    return origin in _PLAIN_JSON


def _given(type_: TypeEngine[Any] | type[TypeEngine[Any]], *, is_key: bool) -> TypeEngine[Any]:
    given = type_() if isinstance(type_, type) else type_
    if type(given) is sa.Text and given.length is None:
        return sql_types.key_text(TEXT_LENGTH) if is_key else sql_types.TEXT
    return given


def _family(python_type: Any) -> type | None:
    if isinstance(python_type, type) and issubclass(python_type, enum.Enum):
        return _value_type(python_type)
    return python_type if isinstance(python_type, type) else None


def _check(python_type: Any, bounds: _Bounds, *, explicit: bool) -> Check | None:
    if python_type is str:
        return _has_no_nul if explicit or bounds.length is not None else _text_fits
    if explicit:
        return None
    if python_type is int:
        return _integer_fits
    if python_type is datetime:
        return sql_types.naive_complaint
    if python_type is time:
        return _has_no_zone
    if python_type is float:
        return _is_number
    if python_type is Decimal:
        places = DECIMAL_PLACES if bounds.places is None else bounds.places
        return _decimal_check(bounds.digits or max(DECIMAL_DIGITS, places), places)
    return None


def _has_no_nul(value: str) -> str | None:
    return "expected text without NUL characters, which PostgreSQL does not hold." if "\0" in value else None


def _text_fits(value: str) -> str | None:
    if len(value) <= TEXT_LENGTH:
        return _has_no_nul(value)
    return (
        f"expected at most {TEXT_LENGTH} characters and found {len(value)}: declare Field(max_length=...), "
        "or Text of crosstie.orm.field for text of any length."
    )


def _integer_fits(value: int) -> str | None:
    return None if value in INT64 else f"expected an integer of 64 bits and found {value}."


def _has_no_zone(value: time) -> str | None:
    return None if value.tzinfo is None else f"expected a time of day without a zone and found {value!r}."


def _is_number(value: float) -> str | None:
    return None if math.isfinite(value) else f"expected a finite number, which every database holds, and found {value}."


def _decimal_check(digits: int, places: int) -> Check:
    def fits(value: Decimal) -> str | None:
        if not value.is_finite():
            return f"expected a finite number and found {value}."
        _, figures, exponent = value.normalize().as_tuple()
        assert isinstance(exponent, int)
        if -exponent <= places and len(figures) + exponent <= digits - places:
            return None
        return f"expected at most {digits} digits, {places} of them decimal places, and found {value}: round it first."

    return fits


def markers(info: FieldInfo) -> Iterable[Column]:
    """The column markers among a field's annotations."""
    return annotated(info, Column)


def annotated(info: FieldInfo, kind: type[_M]) -> Iterable[_M]:
    """What of this kind is among a field's annotations, wherever it stands."""
    return (item for item in _unwrap(info.annotation, info.metadata).annotated if isinstance(item, kind))
