"""Column types whose values are the same on every database: UTC datetimes, exact decimals, enums by value, JSON.

Each is a SQLAlchemy type, so plain Core statements over a model's table read and write the same Python values. A result
processor stands only where a driver answers with something else than the Python value.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from crosstie.orm.errors import DatabaseError, RecordInvalid

__all__ = [
    "BINARY",
    "CLOCK_TIME",
    "INTEGER",
    "TEXT",
    "UUID",
    "EnumByValue",
    "ExactDecimal",
    "JsonDocument",
    "UtcDateTime",
    "key_bytes",
    "key_text",
    "naive_complaint",
]

Processor = Callable[[Any], Any]
SQLITE_EXACT_DIGITS: Final = 15
"""A double holds every decimal number of so many digits."""

INTEGER: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""64 bits; SQLite numbers rows by itself only in a column declared INTEGER PRIMARY KEY."""
TEXT: Final = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
"""Text without a limit; MySQL's plain TEXT ends at 64 KiB."""
BINARY: Final = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
CLOCK_TIME: Final = sa.Time().with_variant(mysql.TIME(fsp=6), "mysql", "mariadb")
UUID: Final = sa.Uuid(native_uuid=False).with_variant(postgresql.UUID(as_uuid=True), "postgresql")
"""Native on PostgreSQL alone: MariaDB's native type sorts by other bytes than everybody else."""


def key_text(length: int) -> TypeEngine[str]:
    """Text that can be a key: MySQL indexes no TEXT, and its usual collations call 'a', 'A' and 'a ' the same key."""
    mysql_type = mysql.VARCHAR(length, collation="utf8mb4_0900_bin")
    mariadb_type = mysql.VARCHAR(length, collation="utf8mb4_nopad_bin")
    return sa.String(length).with_variant(mysql_type, "mysql").with_variant(mariadb_type, "mariadb")


def key_bytes(length: int) -> TypeEngine[bytes]:
    """Bytes that can be a key: MySQL indexes no BLOB."""
    return sa.LargeBinary(length).with_variant(mysql.VARBINARY(length), "mysql", "mariadb")


def naive_complaint(value: datetime) -> str | None:
    """What is wrong with a datetime that has no zone; None for an aware one."""
    if value.tzinfo is not None:
        return None
    return (
        f"expected a datetime with a time zone and found the naive {value!r}: write datetime.now(UTC), or declare the "
        "column Annotated[datetime, Column(sqlalchemy.DateTime())]."
    )


class UtcDateTime(TypeDecorator[datetime]):
    """An instant: aware in Python, TIMESTAMP WITH TIME ZONE on PostgreSQL, UTC without a zone elsewhere."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Microseconds everywhere; MySQL keeps whole seconds unless told."""
        if dialect.name in {"mysql", "mariadb"}:
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(sa.DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse what has no zone. Raises RecordInvalid."""
        if value is None:
            return None
        complaint = naive_complaint(value)
        if complaint is not None:
            raise RecordInvalid(complaint)
        return value if dialect.name == "postgresql" else value.astimezone(UTC).replace(tzinfo=None)

    def result_processor(self, dialect: Dialect, coltype: object) -> Processor | None:
        """PostgreSQL's driver answers with aware values."""
        if dialect.name == "postgresql":
            return None
        return _utc_from_text if dialect.name == "sqlite" else _utc


def _utc(value: datetime | None) -> datetime | None:
    return None if value is None else value.replace(tzinfo=UTC)


def _utc_from_text(value: str | None) -> datetime | None:
    if value is None:
        return None
    read = datetime.fromisoformat(value)
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)


class ExactDecimal(TypeDecorator[Decimal]):
    """NUMERIC(precision, scale); SQLite has only doubles, so more digits than they hold exactly are refused there."""

    impl = sa.Numeric
    cache_ok = True

    def __init__(self, precision: int, scale: int) -> None:
        super().__init__(precision, scale)
        self.precision = precision
        self.scale = scale

    def bind_processor(self, dialect: Dialect) -> Processor | None:
        """A double for SQLite, the Decimal itself elsewhere."""
        return _double_of if dialect.name == "sqlite" else None

    def result_processor(self, dialect: Dialect, coltype: object) -> Processor | None:
        """The digits that were written, with the column's scale."""
        if dialect.name != "sqlite":
            return super().result_processor(dialect, coltype)
        form = f".{self.scale}f"
        return lambda value: None if value is None else Decimal(format(value, form))


def _double_of(value: Decimal | float | None) -> float | None:
    if isinstance(value, Decimal):
        if not value.is_finite() or len(value.normalize().as_tuple().digits) > SQLITE_EXACT_DIGITS:
            raise RecordInvalid(
                f"expected a number that SQLite holds exactly, of at most {SQLITE_EXACT_DIGITS} digits, and found "
                f"{value}: round it, or keep this model in another kind of database."
            )
        return float(value)
    return value


class EnumByValue(TypeDecorator[enum.Enum]):
    """A member of an enumeration, stored as its value: text or a whole number."""

    impl = sa.String
    cache_ok = True

    def __init__(self, enumeration: type[enum.Enum]) -> None:
        super().__init__()
        self.enumeration = enumeration

    @property
    def is_text(self) -> bool:
        """Whether the values are text."""
        return all(isinstance(member.value, str) for member in self.enumeration)

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """VARCHAR with room for the longest value, or an integer."""
        if not self.is_text:
            return dialect.type_descriptor(INTEGER)
        longest = max((len(member.value) for member in self.enumeration), default=1)
        return dialect.type_descriptor(sa.String(max(longest, 32)))

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """The member's value; a bare value is taken for its member. Raises RecordInvalid."""
        if value is None:
            return None
        try:
            return self.enumeration(value).value
        except ValueError:
            raise RecordInvalid(self._unknown(value)) from None

    def result_processor(self, dialect: Dialect, coltype: object) -> Processor | None:
        """The member. Raises DatabaseError where the column holds a value that no member has."""
        members = {member.value: member for member in self.enumeration}
        members[None] = None  # type: ignore[assignment]

        def member_of(value: Any) -> Any:
            try:
                return members[value]
            except KeyError:
                raise DatabaseError(
                    f"the database holds a value that the model lacks: {self._unknown(value)}"
                ) from None

        return member_of

    def _unknown(self, value: object) -> str:
        valid = ", ".join(repr(member.value) for member in self.enumeration)
        return f"expected one of {valid} for {self.enumeration.__name__} and found {value!r}."


class JsonDocument(TypeDecorator[Any]):
    """A JSON document; JSONB on PostgreSQL. None is SQL's NULL, never JSON's.

    `adapter` turns the field's type into JSON values and back; `plain` types are JSON values already.
    """

    impl = sa.JSON(none_as_null=True)
    cache_ok = True

    def __init__(self, adapter: TypeAdapter[Any], plain: bool) -> None:
        super().__init__()
        self.adapter = adapter
        self.plain = plain

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """JSONB where there is one."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.JSONB(none_as_null=True))
        return dialect.type_descriptor(sa.JSON(none_as_null=True))

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """JSON values of what the field holds."""
        return None if value is None else self.adapter.dump_python(value, mode="json")

    def result_processor(self, dialect: Dialect, coltype: object) -> Processor | None:
        """What the field's type makes of the document; a plain type takes it as it is."""
        decode: Processor | None = self.impl_instance.result_processor(dialect, coltype)
        if self.plain:
            return decode
        validate = self.adapter.validate_python

        def read(value: Any) -> Any:
            if decode is not None:
                value = decode(value)
            return None if value is None else validate(value)

        return read
