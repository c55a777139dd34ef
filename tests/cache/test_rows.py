"""A row that comes from the cache is the row that was put in: types exactly, whatever the database."""

from __future__ import annotations

import enum
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, NewType
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
import redis
import sqlalchemy as sa
from pydantic import AfterValidator, BaseModel, Field, SecretStr, create_model

from bench.databases import Pair
from bench.guard import configured_databases
from crosstie.orm import ActiveRecord
from crosstie.orm.cache import Cached
from crosstie.orm.cache.codec import codec_of
from crosstie.orm.field import Column, IntegerPKMixin, OptimisticLockMixin, Text, TimestampMixin, UUIDMixin
from crosstie.orm.mapping import mapping_of
from crosstie.orm.relation import BelongsTo
from crosstie.orm.statement_log import logged_statements
from crosstie.outbox import sync_routes

Cents = NewType("Cents", int)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Address(BaseModel):
    street: str
    since: date
    rooms: tuple[int, ...] = ()


def shout(text: str) -> str:
    """A validator that changes what it is given, which a load must not run."""
    return text.upper() + "!"


class Thing(UUIDMixin, TimestampMixin, OptimisticLockMixin, ActiveRecord):
    __table_name__ = "things"
    __connection__ = "default"

    whole: int = 2**62
    name: str = 'ü "quoted" \\ 🦆\n'
    long: Text = "x" * 5000
    shouted: Annotated[str, AfterValidator(shout)] = "quiet"
    yes: bool = True
    ratio: float = 0.1 + 0.2
    price: Annotated[Decimal, Field(max_digits=12, decimal_places=4)] = Decimal("12.5000")
    at: datetime = datetime(2024, 2, 29, 12, 0, 0, 123456, UTC)
    elsewhere: datetime = datetime(2024, 2, 29, 12, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    plain: Annotated[datetime, Column(sa.DateTime())] = datetime(2024, 2, 29, 12)  # noqa: DTZ001 - the column has no zone
    day: date = date(2024, 2, 29)
    clock: time = time(23, 59, 59, 999999)
    other: UUID = UUID(int=5)
    raw: bytes = bytes(range(256))
    colour: Colour = Colour.BLUE
    level: Level = Level.HIGH
    cents: Cents = Cents(7)
    mood: Literal["good", "bad"] = "good"
    tags: list[str] = ["a", "b"]  # noqa: RUF012 - pydantic copies it
    counts: dict[str, Any] = {"a": 1, "b": [1.5, None, True]}  # noqa: RUF012 - pydantic copies it
    address: Address = Address(street="x", since=date(2020, 1, 1), rooms=(1, 2))
    absent: str | None = None
    no_address: Address | None = None
    renamed: Annotated[int, Column(name="an_other_name")] = 3


class Tag(IntegerPKMixin, ActiveRecord):
    __table_name__ = "tags"
    __connection__ = "secondary"

    id: int | None = None
    thing_id: UUID

    thing: ClassVar[BelongsTo[Thing]] = BelongsTo(foreign_key="thing_id", cache=True)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, crash_pair: Pair, furnished: None, prefix: str) -> Any:
    """The tables, and the routes."""
    with configured_databases(crash_pair):
        for model in (Thing, Tag):
            model.create_table()
        sync_routes()
        yield


def _values(record: Any) -> dict[str, tuple[type, Any]]:
    return {name: (type(value), value) for name, value in record.__dict__.items()}


def test_every_type_comes_back_exactly(models: Any) -> None:
    """Equal, of the same types, loaded, with nothing to save."""
    thing = Thing(shouted="as it is").save()
    tag = Tag(thing_id=thing.id).save()
    loaded = Thing.find(thing.id)
    for asked in (True, False):
        with logged_statements() as log:
            found = Tag.find(tag.id).thing()
        assert log.by_database == {"secondary": 1} | ({"default": 1} if asked else {})
        assert found == loaded
        assert _values(found) == _values(loaded)
        assert found is not None
        assert found.model_dump() == loaded.model_dump()
        assert found.model_fields_set == loaded.model_fields_set
        assert not found.is_new
        assert found.changes == {}


def test_zones_come_back(models: Any) -> None:
    """An instant is the same in any zone, and what is reckoned from it is not."""
    codec = codec_of(mapping_of(Thing))
    for zone in (UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("UTC"), timezone(timedelta(hours=-3))):
        for fold in (0, 1):
            at = datetime(2024, 10, 27, 2, 30, tzinfo=zone, fold=fold)
            text = codec.write(Thing(at=at))
            assert text is not None
            found = codec.read(text)
            assert found is not None
            assert (found.at, found.at.tzinfo, found.at.utcoffset()) == (at, zone, at.utcoffset())


def test_a_found_record_is_changed_and_saved_like_a_loaded_one(models: Any) -> None:
    """Documents that change without an assignment too, and under the lock version that was found."""
    tag = Tag(thing_id=Thing().save().id).save()
    assert tag.thing()
    tag.thing.reset()
    found = tag.thing()
    assert found is not None
    found.tags.append("c")
    found.counts["b"] = 2
    found.price = Decimal(1)
    assert set(found.changes) == {"tags", "counts", "price"}
    found.save()
    tag.thing.reset()
    again = tag.thing()
    assert again == Thing.find(found.id)
    assert again is not None
    assert (again.tags, again.lock_version) == (["a", "b", "c"], 1)


def test_documents_of_found_records_are_their_own(models: Any) -> None:
    """A change of one is seen nowhere else."""
    tag = Tag(thing_id=Thing().save().id).save()
    assert tag.thing()
    first, second = Tag.find(tag.id).thing(), Tag.find(tag.id).thing()
    assert first is not None
    assert second is not None
    first.tags.append("c")
    assert second.tags == ["a", "b"]


def test_a_row_that_would_not_come_back_stays_out() -> None:
    """A secret is shown to nobody, so JSON has stars in its place."""

    class Safe(IntegerPKMixin, ActiveRecord):
        __table_name__ = "safes"
        __connection__ = "default"

        id: int | None = None
        code: Annotated[SecretStr, Column(sa.String(20))]

    codec = codec_of(mapping_of(Safe))
    assert codec.write(Safe(id=1, code=SecretStr("1234"))) is None


def test_a_lone_surrogate_stays_out() -> None:
    """SQLite may hold one, and UTF-8 has none."""

    class Note(IntegerPKMixin, ActiveRecord):
        __table_name__ = "notes"
        __connection__ = "default"

        id: int | None = None
        text: str

    assert codec_of(mapping_of(Note)).write(Note(id=1, text="\ud800")) is None


def _fingerprint(**fields: Any) -> str:
    made = type(
        "Thing",
        (IntegerPKMixin, ActiveRecord),
        {
            "__module__": __name__,
            "__qualname__": "Made",
            "__table_name__": "made",
            "__connection__": "default",
            "__annotations__": {"id": int | None, **fields},
            "id": None,
        },
    )
    return codec_of(mapping_of(made)).fingerprint


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"a": str, "b": int},
        {"b": int},
        {"a": int},
        {"a": Annotated[str, Field(max_length=20)]},
        {"a": Annotated[str, Column(name="z")]},
        {"a": Colour},
        {"a": Address},
        {"a": list[str]},
        {"a": Annotated[Decimal, Field(decimal_places=2)]},
        {"a": Annotated[Decimal, Field(decimal_places=3)]},
    ],
    ids=str,
)
def test_a_model_with_other_columns_has_another_form(fields: dict[str, Any]) -> None:
    """So that a deployment never reads the rows of another; the same columns are the same form in every process."""
    assert _fingerprint(**fields) != _fingerprint(a=str)
    assert _fingerprint(**fields) == _fingerprint(**fields)


def test_a_type_that_has_changed_has_another_form() -> None:
    """Under the name that it had: a member more, a field less."""
    enums = [enum.Enum("Colour", names, module=__name__) for names in ({"RED": "red"}, {"RED": "red", "BLUE": "blue"})]
    documents = [
        create_model("Document", __module__=__name__, street=(str, "")),
        create_model("Document", __module__=__name__, street=(str, ""), house=(int, 0)),
    ]
    for before, after in (enums, documents):
        assert repr(before) == repr(after)
        assert _fingerprint(a=before) != _fingerprint(a=after)
        assert _fingerprint(a=before) == _fingerprint(a=before)


def test_two_models_of_one_table_keep_their_own_forms(crash_pair: Pair, prefix: str) -> None:
    """And a write by either is told to both, by one with other columns too."""

    class Person(IntegerPKMixin, ActiveRecord):
        __table_name__ = "people"
        __connection__ = "default"

        id: int | None = None
        name: str
        age: int = 1

    class Name(IntegerPKMixin, ActiveRecord):
        __table_name__ = "people"
        __connection__ = "default"

        id: int | None = None
        name: str

    class Link(IntegerPKMixin, ActiveRecord):
        __table_name__ = "links"
        __connection__ = "secondary"

        id: int | None = None
        person_id: int

        person: ClassVar[BelongsTo[Person]] = BelongsTo(foreign_key="person_id", cache=True)
        name: ClassVar[BelongsTo[Name]] = BelongsTo(foreign_key="person_id", cache=Cached(ttl_s=5))

    def found() -> list[Any]:
        link = Link.find(1)
        return [one and one.name for one in (link.person(), link.name())]

    with configured_databases(crash_pair):
        Person.create_table()
        Link.create_table()
        sync_routes()
        Person(name="Ann").save()
        Link(person_id=1).save()
        assert found() == ["Ann", "Ann"]
        with logged_statements() as log:
            assert found() == ["Ann", "Ann"]
        assert log.by_database == {"secondary": 1}
        Name.find(1).update(name="Bob")
        assert found() == ["Bob", "Bob"]
        Person.find(1).update(age=2)
        assert found() == ["Bob", "Bob"]


def test_the_shorter_time_holds(crash_pair: Pair, prefix: str, keys: Any, redis_url: str) -> None:
    """Two relations to one row: neither finds a row that is older than its own time allows."""

    class Person(IntegerPKMixin, ActiveRecord):
        __table_name__ = "people"
        __connection__ = "default"

        id: int | None = None

    class Link(IntegerPKMixin, ActiveRecord):
        __table_name__ = "links"
        __connection__ = "secondary"

        id: int | None = None
        person_id: int

        long: ClassVar[BelongsTo[Person]] = BelongsTo(foreign_key="person_id", cache=Cached(ttl_s=1000))
        short: ClassVar[BelongsTo[Person]] = BelongsTo(foreign_key="person_id", cache=Cached(ttl_s=10))

    with configured_databases(crash_pair):
        Person.create_table()
        Link.create_table()
        sync_routes()
        with redis.Redis.from_url(redis_url) as client:
            for first in ("long", "short"):
                person = Person().save()
                link = Link(person_id=person.id or 0).save()
                left = []
                for name in (first, "short", "long"):
                    getattr(link, name).reset()
                    assert getattr(link, name)() is not None
                    left.append(client.pttl(keys("row")[-1]) / 1000)
                assert 0 < left[0] <= (1000 if first == "long" else 10)
                assert 0 < left[2] <= left[1] <= 10
