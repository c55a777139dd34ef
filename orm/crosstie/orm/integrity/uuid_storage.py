"""UUIDs in every storage that databases have for them: their own type, sixteen bytes, or text."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from enum import Enum, auto
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.integrity.catalog import ColumnFacts, Equality
from crosstie.orm.integrity.errors import UnexpectedKey
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.storage import KeyKind, Raw, TextStorage

__all__ = ["BINARY_TYPES", "UuidStorage"]

BINARY_TYPES: Final = frozenset({"bytea", "binary", "varbinary", "blob"})
_DASHED: Final = "-".join("_" * length for length in (8, 4, 4, 4, 12))


class _Form(Enum):
    OBJECT = auto()
    """PostgreSQL's type, for which the driver has objects; it sorts by bytes."""
    NATIVE = auto()
    """MariaDB's type, which the driver takes for text; it sorts some versions by their last bytes."""
    BYTES = auto()
    TEXT = auto()


class UuidStorage:
    """UUIDs as their server stores them; text with or without dashes, in lower or in upper case."""

    kind = KeyKind.UUID
    equality = Equality.IDENTICAL

    def __init__(self, facts: ColumnFacts) -> None:
        self._facts = facts
        self._form = _form(facts)
        self.is_native = self._form is not _Form.TEXT
        self.sorts_by_bytes = self._form in {_Form.OBJECT, _Form.BYTES}
        self.is_binary = self._form is _Form.BYTES
        self.spells_keys = not self.is_binary
        self._text = TextStorage(facts)
        self._ignores_case = facts.dialect in {"mysql", "mariadb"} and facts.equality is Equality.WIDE

    def typed(self, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
        """Ordered by the server, whose order of UUIDs need not be that of their bytes."""
        if self._form is _Form.OBJECT:
            return sa.type_coerce(column, sa.Uuid())
        if self._form is _Form.BYTES:
            return sa.type_coerce(column, sa.LargeBinary())
        return self._text.typed(column)

    distinct = typed

    def sixteen(self, key: sa.ColumnElement[Any], *, of_child: bool) -> sa.ColumnElement[Any]:
        """The bytes of what `typed` gives, on a server; NULL where a value is none, or so spelt that none finds it.

        PostgreSQL refuses some texts that are none. A parent is found by its bytes, however it is spelt.
        """
        kind = self._facts.dialect
        if self._form is _Form.OBJECT:
            return sa.func.uuid_send(key, type_=sa.LargeBinary())
        if self._form is _Form.NATIVE:
            # SQLAlchemy's own CAST leaves the length out.
            return sa.sql.functions.Function[bytes]("CAST", key.op("AS")(sa.literal_column("BINARY(16)")))
        if self._form is _Form.BYTES:
            is_one = sa.func.octet_length(key) == sa.literal_column("16")
            return sa.case((is_one, key), else_=None)
        text = sa.cast(key, sa.Text()) if kind == "postgresql" else key
        digits = sa.func.replace(text, sa.literal_column("'-'"), sa.literal_column("''"))
        is_one = sa.func.char_length(digits) == sa.literal_column("32")
        if of_child:
            plain = sa.func.char_length(text) == sa.literal_column("32")
            dashed = text.like(sa.literal_column(f"'{_DASHED}'"))
            one_case = sa.or_(text == sa.func.lower(text), text == sa.func.upper(text))
            is_one = sa.and_(is_one, sa.or_(plain, dashed), one_case)
        sent = sa.func.decode(digits, sa.literal_column("'hex'")) if kind == "postgresql" else sa.func.unhex(digits)
        return sa.case((is_one, sa.type_coerce(sent, sa.LargeBinary())), else_=None)

    def key(self, raw: Raw) -> Key:
        """Text has to be spelt in one of the ways that finds it again: `spellings`."""
        if isinstance(raw, uuid.UUID):
            return raw
        if self._form is _Form.BYTES and isinstance(raw, (bytes, bytearray, memoryview)) and len(raw) == 16:
            return uuid.UUID(bytes=bytes(raw))
        text = raw.rstrip(" ") if isinstance(raw, str) else ""
        key = _parsed(text)
        if key is None:
            raise UnexpectedKey(f"expected UUID keys, found {raw!r}")
        if self._form is _Form.TEXT and (text.lower() if self._ignores_case else text) not in self.spellings(key):
            raise UnexpectedKey(
                f"expected UUIDs of 32 digits, or with the usual four dashes, all in lower or all in upper case, and "
                f"found {raw!r}. Store it as {str(key)!r}."
            )
        return key

    def bytes_of_child(self, raws: Iterable[Raw]) -> bytes:
        """Those of every value. Raises UnexpectedKey."""
        return b"".join(self._uuid(raw).bytes for raw in raws)

    def bytes_of_parent(self, raws: Iterable[Raw]) -> bytes:
        """Those of every value that is a UUID, however it is spelt; the others are nobody's parent."""
        found = []
        for raw in raws:
            if isinstance(raw, uuid.UUID):
                found.append(raw.bytes)
            elif isinstance(raw, str) and (key := _parsed(raw)) is not None:
                found.append(key.bytes)
            elif isinstance(raw, bytes) and len(raw) == 16:
                found.append(raw)
        return b"".join(found)

    def spellings(self, key: Key) -> tuple[Raw, ...]:
        """One where the server knows UUIDs or stores their bytes, else four."""
        assert isinstance(key, uuid.UUID)
        if self._form is _Form.OBJECT:
            return (key,)
        if self._form is _Form.BYTES:
            return (key.bytes,)
        dashed = str(key)
        if self._form is _Form.NATIVE:
            return (dashed,)
        return (key.hex, dashed, key.hex.upper(), dashed.upper())

    def raw(self, sixteen: bytes) -> Raw:
        """A key's value where the column sorts by bytes."""
        return uuid.UUID(bytes=sixteen) if self._form is _Form.OBJECT else sixteen

    def only(self, column: sa.Column[Any], key: Key) -> sa.ColumnElement[bool]:
        """Any spelling of it."""
        return self.typed(column).in_(self.spellings(key))

    def _uuid(self, raw: Raw) -> uuid.UUID:
        key = self.key(raw)
        assert isinstance(key, uuid.UUID)
        return key


def _form(facts: ColumnFacts) -> _Form:
    if facts.type_name in BINARY_TYPES:
        return _Form.BYTES
    if facts.type_name == "uuid" and facts.dialect != "sqlite":
        return _Form.OBJECT if facts.dialect == "postgresql" else _Form.NATIVE
    return _Form.TEXT


def _parsed(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text.strip())
    except ValueError:
        return None
