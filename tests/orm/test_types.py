from __future__ import annotations

import enum
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal, NewType
from uuid import UUID

import pytest
import sqlalchemy as sa
from pydantic import BaseModel, Field
from typing_extensions import TypeAliasType

from bench.databases import TestDatabase
from crosstie.orm import ActiveRecord, ConnectionManager
from crosstie.orm.errors import DatabaseError, InvalidQuery, ModelDefinitionError, RecordInvalid
from crosstie.orm.field import Column, IntegerPKMixin, Text, UUIDMixin

UserId = NewType("UserId", int)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Address(BaseModel):
    street: str
    since: date
    tags: list[str] = []


class Everything(IntegerPKMixin, ActiveRecord):
    __table_name__ = "everything"
    __connection__ = "default"

    id: int | None = None
    whole: int | None = None
    ident: UserId | None = None
    word: str | None = None
    short: Annotated[str, Field(max_length=10)] | None = None
    text: Annotated[str | None, Column(sa.Text())] = None
    flag: bool | None = None
    real: float | None = None
    price: Annotated[Decimal, Field(max_digits=12, decimal_places=2)] | None = None
    rate: Decimal | None = None
    at: datetime | None = None
    day: date | None = None
    clock: time | None = None
    blob: bytes | None = None
    key: UUID | None = None
    color: Color | None = None
    level: Level | None = None
    mode: Literal["r", "w"] | None = None
    data: dict[str, Any] | None = None
    numbers: list[int] | None = None
    address: Address | None = None
    days: list[date] | None = None


FILLED: dict[str, Any] = {
    "whole": -42,
    "ident": 7,
    "word": "Ünïcödé ✓ 🚂 'quoted' \"double\" % %s :x \\ ;",
    "short": "ten chars!",
    "text": "x" * 100_000,
    "flag": True,
    "real": 0.1,
    "price": Decimal("1234567890.12"),
    "rate": Decimal("12345.0123456789"),
    "at": datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=UTC),
    "day": date(2024, 2, 29),
    "clock": time(23, 59, 59, 999999),
    "blob": bytes(range(256)) * 300,
    "key": UUID("00112233-4455-6677-8899-aabbccddeeff"),
    "color": Color.BLUE,
    "level": Level.HIGH,
    "mode": "w",
    "data": {"a": [1, 2.5, None, True, {"b": "ü"}], "empty": {}},
    "numbers": [3, 1, 2],
    "address": Address(street="Main", since=date(2020, 1, 1), tags=["x"]),
    "days": [date(2020, 1, 1)],
}
EXTREMES: list[dict[str, Any]] = [
    {"whole": 2**63 - 1, "real": 1.7976931348623157e308, "clock": time(0), "word": "", "blob": b"", "flag": False},
    {"whole": -(2**63), "real": 5e-324, "day": date(1, 1, 1), "data": {}, "numbers": [], "short": "漢字" * 5},
    {"whole": 0, "real": -0.0, "day": date(9999, 12, 31), "price": Decimal("-9999999999.99"), "rate": Decimal(0)},
    {"at": datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), "price": Decimal("0.01"), "word": "é" * 255},
    {"at": datetime(1970, 1, 1, tzinfo=UTC), "word": "trailing space ", "key": UUID(int=0)},
    {"at": datetime(1000, 1, 1, tzinfo=UTC), "word": "NULL", "key": UUID(int=2**128 - 1)},
]


@pytest.fixture
def everything(configured_database: TestDatabase) -> TestDatabase:
    """One database with the table of all types."""
    Everything.create_table()
    return configured_database


@pytest.mark.parametrize("values", [FILLED, {}, *EXTREMES], ids=["filled", "nulls", *map(str, range(len(EXTREMES)))])
def test_a_value_comes_back_as_it_was_written(everything: TestDatabase, values: dict[str, Any]) -> None:
    """Every type keeps its value and its Python type, through the loader and through pluck; NULL is None."""
    written = Everything(**values).save()
    read = Everything.find(written.id)
    assert read == written
    for name in Everything.model_fields:
        expected, found = getattr(written, name), getattr(read, name)
        assert (type(found), found) == (type(expected), expected), name
        assert Everything.find_all().pluck(name) == [expected], name
    assert read.at is None or read.at.utcoffset() == timedelta(0)
    assert read.changes == {}


def test_values_come_back_as_they_were_written_in_bulk(everything: TestDatabase) -> None:
    """Many rows in one statement have the same values as each would have alone, NULLs among them."""
    written = Everything.bulk_create(Everything(**values) for values in [FILLED, {}, *EXTREMES] * 2)
    read = {record.id: record for record in Everything.find_all()}
    assert len(read) == len(written)
    for record in written:
        found = read[record.id]
        assert found == record
        for name in Everything.model_fields:
            assert type(getattr(found, name)) is type(getattr(record, name)), name


@pytest.mark.parametrize("name", [name for name in FILLED if name not in {"data", "numbers", "address", "days"}])
def test_a_value_finds_its_row_by_keyword(everything: TestDatabase, name: str) -> None:
    """Comparison, IN lists and NULL work for every type that compares."""
    row = Everything(**FILLED).save()
    other = Everything().save()
    found = Everything.find_by(**{name: FILLED[name]})
    assert found is not None
    assert found.id == row.id
    rows = Everything.find_all().order_by("id")
    assert [one.id for one in rows.where(**{name: [FILLED[name]]})] == [row.id]
    assert [one.id for one in rows.where(**{name: None})] == [other.id]
    assert [one.id for one in rows.where(**{name: [None, FILLED[name]]})] == [row.id, other.id]
    assert [one.id for one in rows.where(getattr(Everything.c, name) == FILLED[name])] == [row.id]


def test_an_instant_is_the_same_whatever_zone_it_is_written_in(everything: TestDatabase) -> None:
    """A datetime of another zone is stored as the instant that it is, and comes back in UTC."""
    there = datetime(2026, 7, 1, 1, 0, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    row = Everything(at=there).save()
    read = Everything.find(row.id)
    assert read.at == there
    assert str(read.at) == "2026-06-30 19:30:00+00:00"
    assert Everything.find_all().where(Everything.c.at < there + timedelta(microseconds=1)).count() == 1
    assert Everything.find_all().where(Everything.c.at < there).count() == 0


def test_a_naive_datetime_is_refused(everything: TestDatabase) -> None:
    """Nobody can say which instant it means, so it is neither written nor compared."""
    naive = datetime(2026, 1, 1)  # noqa: DTZ001 - what is tested
    with pytest.raises(RecordInvalid, match="time zone"):
        Everything(at=naive).save()
    with pytest.raises(RecordInvalid, match="time zone"):
        Everything.find_by(at=naive)
    with Everything.transaction(), pytest.raises(RecordInvalid, match="time zone"):
        Everything(at=naive).save()  # no statement was sent: the transaction is whole
    assert Everything.find_all().count() == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"word": "x" * 256}, "at most 255 characters"),
        ({"word": "a\0b"}, "NUL"),
        ({"text": "a\0b"}, "NUL"),
        ({"short": "a\0b"}, "NUL"),
        ({"clock": time(12, tzinfo=UTC)}, "without a zone"),
        ({"whole": 2**63}, "64 bits"),
        ({"whole": -(2**63) - 1}, "64 bits"),
        ({"real": float("nan")}, "finite"),
        ({"real": float("inf")}, "finite"),
        ({"rate": Decimal("0.12345678901")}, "decimal places"),
        ({"rate": Decimal("1e29")}, "at most 38 digits"),
    ],
)
def test_what_a_database_would_change_is_refused(
    everything: TestDatabase, values: dict[str, Any], message: str
) -> None:
    """Too long, too large, too many places: the same error on every database, before anything is sent."""
    with pytest.raises(RecordInvalid, match=message):
        Everything(**values).save()
    row = Everything().save()
    with pytest.raises(RecordInvalid, match=message):
        row.update(**values)
    with pytest.raises(RecordInvalid, match=message):
        Everything.find_all().update_all(**values)
    assert Everything.find(row.id) == Everything(id=row.id)


def test_sqlite_takes_as_many_digits_as_it_holds_exactly(everything: TestDatabase) -> None:
    """Fifteen digits come back exactly from every database; more are refused where a double would round them."""
    fifteen = Decimal("12345.0123456789")
    assert Everything.find(Everything(rate=fifteen).save().id).rate == fifteen
    sixteen = Decimal("123456.0123456789")
    if everything.kind == "sqlite":
        with pytest.raises(RecordInvalid, match="SQLite"):
            Everything(rate=sixteen).save()
        with pytest.raises(RecordInvalid, match="SQLite"):
            Everything.find_by(rate=sixteen)
    else:
        assert Everything.find(Everything(rate=sixteen).save().id).rate == sixteen


def test_increments_of_a_decimal_stay_exact(everything: TestDatabase) -> None:
    """0.1 + 0.2 is 0.3, in the database too."""
    row = Everything(price=Decimal("0.10")).save()
    row.increment(price=Decimal("0.20"))
    assert row.price == Decimal("0.30")
    assert Everything.find_all().where(price=Decimal("0.30")).count() == 1
    assert Everything.find(row.id).price == Decimal("0.30")


def test_a_json_document_that_changed_in_place_is_saved(everything: TestDatabase) -> None:
    """A document is compared with a copy made when it was loaded, so no assignment is needed."""
    row = Everything(data={"a": [1]}, address=Address(street="Main", since=date(2020, 1, 1))).save()
    for record in (row, Everything.find(row.id)):
        assert record.changes == {}
        assert record.data is not None
        assert record.address is not None
        record.data["a"].append(2)
        record.address.tags.append("new")
        assert set(record.changes) == {"data", "address"}
        record.save()
        assert record.changes == {}
        read = Everything.find(row.id)
        assert (read.data, read.address) == (record.data, record.address)


def test_json_is_not_compared_by_keyword(everything: TestDatabase) -> None:
    """Databases compare documents differently, so a keyword is refused, and an expression works."""
    Everything(data={"color": "red"}).save()
    with pytest.raises(InvalidQuery, match="JSON"):
        Everything.find_by(data={"color": "red"})
    assert Everything.find_all().where(Everything.c.data["color"].as_string() == "red").count() == 1
    assert Everything.find_all().where(data=None).count() == 0


def test_an_unknown_enum_value_in_a_row_is_an_error(everything: TestDatabase) -> None:
    """A value that no member has is not silently dropped."""
    row = Everything(color=Color.RED).save()
    everything.execute("UPDATE everything SET color = 'green'")
    with pytest.raises(DatabaseError, match=r"'green'.*|expected one of 'red', 'blue' for Color and found 'green'"):
        Everything.find(row.id)


class Tag(ActiveRecord):
    __table_name__ = "tags"
    __connection__ = "default"

    name: Annotated[str, Column(primary_key=True)]
    slug: Annotated[Text, Column(unique=True)]
    body: Text = ""


def test_text_can_be_a_key(configured_database: TestDatabase) -> None:
    """A text key has an exact collation: case and trailing spaces make another key, on MariaDB too."""
    Tag.create_table()
    for name in ["a", "A", "a ", "ä", "🚂"]:
        Tag(name=name, slug=name + "-slug", body="b" * 70_000).save()
    assert {tag.name for tag in Tag.find_all()} == {"a", "A", "a ", "ä", "🚂"}
    assert Tag.find("a ").slug == "a -slug"
    assert len(Tag.find("A").body) == 70_000


class Document(UUIDMixin, ActiveRecord):
    __table_name__ = "documents"
    __connection__ = "default"

    parent_id: UUID | None = None


def test_a_uuid_key_is_known_before_the_save(configured_database: TestDatabase) -> None:
    """The mixin makes the key; the row is found by the UUID and by its text."""
    Document.create_table()
    first = Document()
    assert first.is_new
    second = Document(parent_id=first.id)
    assert first.id != second.id
    first.save()
    second.save()
    assert Document.find(first.id) == first
    assert Document.find(str(second.id)).parent_id == first.id


class Membership(ActiveRecord):
    __table_name__ = "memberships"
    __connection__ = "default"

    user_id: Annotated[int, Column(primary_key=True)]
    group_id: Annotated[int, Column(primary_key=True)]
    role: Annotated[str, Column(name="role_name")] = "member"


def test_a_composite_key_finds_updates_and_deletes_one_row(configured_database: TestDatabase) -> None:
    """Both parts of the key are in every statement; a column may have another name than its field."""
    Membership.create_table()
    for user_id, group_id in [(1, 1), (1, 2), (2, 1)]:
        Membership(user_id=user_id, group_id=group_id).save()
    Membership.find((1, 2)).update(role="admin")
    Membership.find((2, 1)).delete()
    rows = configured_database.rows("SELECT user_id, group_id, role_name FROM memberships ORDER BY 1, 2")
    assert rows == [(1, 1, "member"), (1, 2, "admin")]
    assert Membership.find_by(role="admin") == Membership(user_id=1, group_id=2, role="admin")
    with pytest.raises(InvalidQuery, match=r"user_id, group_id"):
        Membership.find(1)


Label = TypeAliasType("Label", Annotated[str, Field(max_length=12)])


def test_what_is_said_about_a_column_is_found_wherever_it_stands() -> None:
    """Inside Optional, inside an alias, or around both."""

    class Tagged(IntegerPKMixin, ActiveRecord):
        __table_name__ = "tagged"
        __connection__ = "default"

        one: Label
        two: Label | None = None
        three: Annotated[Annotated[str, Field(max_length=12)] | None, Column(index=True)] = None
        four: Annotated[str, Field(max_length=12)] | None = None
        five: str | None = Field(default=None, max_length=12)
        six: Text | None = None

    types = {column.name: column.type for column in Tagged.c}
    assert [getattr(types[name], "length", None) for name in ("one", "two", "three", "four", "five")] == [12] * 5
    assert isinstance(types["six"], sa.Text)
    assert [column.name for column in Tagged.c if column.index] == ["three"]
    assert [column.name for column in Tagged.c if not column.nullable] == ["id", "one"]


def test_a_type_without_a_column_says_what_to_do() -> None:
    """An annotation that maps to no column type is refused when the table is first needed."""

    class Odd(IntegerPKMixin, ActiveRecord):
        __table_name__ = "odd"
        __connection__ = "default"

        value: int | str

    with pytest.raises(ModelDefinitionError, match=r"Odd\.value.*Column\("):
        Odd.__table__  # noqa: B018 - building it is what is tested


def test_a_column_type_of_ones_own_is_validated_when_loaded(configured_database: TestDatabase) -> None:
    """With an explicit SQLAlchemy type the field's own type still decides what the program sees."""

    class Span(IntegerPKMixin, ActiveRecord):
        __table_name__ = "spans"
        __connection__ = "default"

        lasts: Annotated[timedelta, Column(sa.Interval())]

    Span.create_table()
    span = Span(lasts=timedelta(hours=1, seconds=5)).save()
    assert Span.find(span.id) == span
    assert Span.find_all().pluck("lasts") == [timedelta(hours=1, seconds=5)]


def test_plain_core_statements_see_the_same_values(everything: TestDatabase) -> None:
    """The table is plain SQLAlchemy: what the ORM wrote, a Core statement reads as the same Python values."""
    row = Everything(**FILLED).save()
    table = Everything.__table__
    with ConnectionManager.get("default").engine.begin() as connection:
        found = connection.execute(sa.select(table).where(table.c.id == row.id)).mappings().one()
        connection.execute(
            sa.insert(table),
            {**found, "id": None}
            if everything.kind != "postgresql"
            else [{name: value for name, value in found.items() if name != "id"}],
        )
    assert dict(found) == dict(row)
    first, second = Everything.find_all().order_by("id")
    assert first.model_dump(exclude={"id"}) == second.model_dump(exclude={"id"})
