"""How a column stores keys: reading them, binding them, and comparing them as its own server does.

Three words: a *key* is the value as Python compares it; a *raw* value is what the server sends and takes for it; a
key's *spellings* are all raw values by which the column may store it.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from crosstie.orm.integrity.catalog import ColumnFacts, Equality
from crosstie.orm.integrity.errors import UnexpectedKey
from crosstie.orm.integrity.findings import Key

__all__ = ["INT64", "IntegerStorage", "KeyKind", "KeyStorage", "Raw", "TextStorage", "WholeNumber"]

Raw = Any
"""What the driver gives for a key and takes back unchanged."""

INT64: Final = range(-(2**63), 2**63)
"""The integers that are packed and reckoned with."""
_CHARSETS: Final = {"ascii": "ascii", "latin1": "cp1252"}
"""Python's names of the narrow character sets of MySQL."""


class KeyKind(StrEnum):
    """Keys of one kind can be compared, whatever the two databases call their types."""

    INTEGER = "integer"
    UUID = "uuid"
    TEXT = "text"
    COMPOSITE = "composite"


class KeyStorage(Protocol):
    """A column's way of storing keys of one kind."""

    @property
    def kind(self) -> KeyKind:
        """Which keys these are."""

    @property
    def equality(self) -> Equality:
        """How wide the column's own `=` is."""

    @property
    def is_native(self) -> bool:
        """Whether the server knows what kind of keys these are, so that each has one spelling."""

    @property
    def spells_keys(self) -> bool:
        """Whether a key's text is what records of sagas have for its column."""

    def typed(self, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
        """The column as keyset pages order and compare it: by its own rules and through its own index."""

    def distinct(self, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
        """The column such that two different keys never count as one."""

    def key(self, raw: Raw) -> Key:
        """The key of a value read through `distinct`. Raises UnexpectedKey."""

    def spellings(self, key: Key) -> tuple[Raw, ...]:
        """What to bind to find the key in the column; empty where the column cannot hold it."""

    def only(self, column: sa.Column[Any], key: Key) -> sa.ColumnElement[bool]:
        """The condition that a row has this very key."""


class WholeNumber(sa.types.TypeDecorator[int]):
    """A decimal without fraction, which the driver takes and gives as such."""

    impl = sa.Numeric(38, 0)
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: sa.Dialect) -> Decimal | None:
        """As a decimal."""
        del dialect
        return None if value is None else Decimal(value)

    def process_result_value(self, value: Any | None, dialect: sa.Dialect) -> int | None:
        """As an integer."""
        del dialect
        return None if value is None else int(value)


class IntegerStorage:
    """Integers of 64 bits with or without a sign, and decimals without fraction; a narrow column has no wide key."""

    kind = KeyKind.INTEGER
    equality = Equality.IDENTICAL
    spells_keys = True

    def __init__(self, facts: ColumnFacts | None = None) -> None:
        self._possible = INT64
        self._type: sa.types.TypeEngine[Any] = sa.BigInteger()
        self.is_native = True
        if facts is not None and facts.digits is not None:
            # Such keys are neither packed nor reckoned with: a server would have to make integers of them first.
            self.is_native, self._type = False, WholeNumber()
            self._possible = range(0 if facts.unsigned else 1 - 10**facts.digits, 10**facts.digits)
        elif facts is not None and facts.unsigned:
            self._type = mysql.BIGINT(unsigned=True)
            self._possible = range(2**64)

    def typed(self, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
        """Compared as BIGINT: bound as the column's own INTEGER, a key beyond it would be an error."""
        return sa.type_coerce(column, self._type)

    distinct = typed

    def key(self, raw: Raw) -> Key:
        """SQLite keeps text in an INTEGER column."""
        if type(raw) is not int or raw not in self._possible:
            raise UnexpectedKey(f"expected integer keys that fit 64 bits, found {raw!r}")
        return raw

    def keys(self, raws: Sequence[Raw]) -> None:
        """Check many at once: nothing but integers. Raises UnexpectedKey."""
        if set(map(type, raws)) - {int}:
            self.key(next(raw for raw in raws if type(raw) is not int))
        for raw in (min(raws), max(raws)) if raws else ():
            self.key(raw)

    def spellings(self, key: Key) -> tuple[Raw, ...]:
        """The integer itself; none where no row of the column can have it."""
        return (key,) if key in self._possible else ()

    def only(self, column: sa.Column[Any], key: Key) -> sa.ColumnElement[bool]:
        """Plain equality."""
        return self.typed(column) == key


class TextStorage:
    """Text under the column's own collation, which may call different texts equal."""

    kind = KeyKind.TEXT
    is_native = False
    spells_keys = True

    def __init__(self, facts: ColumnFacts) -> None:
        self.facts = facts
        self.equality = facts.equality
        self._codec = _CHARSETS.get(facts.charset or "")
        self._type: sa.types.TypeEngine[Any] = sa.String()
        if facts.dialect == "postgresql" and facts.type_name in {"bpchar", "citext"}:
            # As VARCHAR, `=` would neither ignore padding nor case, nor use the column's index.
            self._type = _NamedType(facts.type_name)

    def typed(self, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
        """Bound values take the column's own type and collation."""
        return sa.type_coerce(column, self._type)

    def distinct(self, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
        """Compared byte by byte, without the padding of CHAR."""
        if self.facts.dialect == "postgresql":
            return sa.cast(column, sa.Text()).collate("C")
        if self.facts.dialect == "sqlite":
            return sa.type_coerce(column, sa.String()).collate("BINARY")
        # BINARY, because even a _bin collation ignores trailing spaces.
        return sa.cast(sa.cast(column, mysql.CHAR(charset="utf8mb4")), sa.LargeBinary())

    def key(self, raw: Raw) -> Key:
        """MySQL and MariaDB send bytes, for which `distinct` asks."""
        if isinstance(raw, bytes):
            raw = raw.decode("utf-8")
        if not isinstance(raw, str):
            raise UnexpectedKey(f"expected text keys, found {raw!r}")
        return raw

    def spellings(self, key: Key) -> tuple[Raw, ...]:
        """The text itself, unless the column's character set lacks a letter of it: then no row can have it."""
        text = str(key)
        if self.facts.dialect == "postgresql" and "\0" in text:
            return ()
        if self._codec is not None:
            try:
                text.encode(self._codec)
            except UnicodeEncodeError:
                return ()
        if self.facts.charset in {"utf8", "utf8mb3"} and any(ord(letter) > 0xFFFF for letter in text):
            return ()
        return (text,)

    def only(self, column: sa.Column[Any], key: Key) -> sa.ColumnElement[bool]:
        """Equal by the column's rules, for the index, and byte by byte."""
        text = str(key)
        exact: str | bytes = text if self.facts.dialect in {"postgresql", "sqlite"} else text.encode("utf-8")
        return sa.and_(self.typed(column) == text, self.distinct(column) == exact)


class _NamedType(sa.types.UserDefinedType[str]):
    """A character type of PostgreSQL that SQLAlchemy would bind as VARCHAR."""

    cache_ok = True
    render_bind_cast = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_: Any) -> str:
        """The type's name in a cast."""
        return self.name.upper()
