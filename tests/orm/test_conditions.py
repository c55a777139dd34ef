from __future__ import annotations

import enum
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from pydantic import Field

from bench.databases import TestDatabase
from crosstie.orm import ActiveRecord, Query, all_of, any_of, not_, sql
from crosstie.orm.combination import Given
from crosstie.orm.errors import InvalidQuery
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.statement_log import logged_statements


class Colour(enum.Enum):
    RED = "red"


class Ware(IntegerPKMixin, ActiveRecord):
    __table_name__ = "wares"
    __connection__ = "default"

    name: str
    size: int | None = None
    price: Decimal = Decimal(1)
    colour: str = "red"
    made_at: datetime = datetime(2024, 5, 1, tzinfo=UTC)
    code: UUID = Field(default_factory=uuid4)


class Tin(IntegerPKMixin, ActiveRecord):
    __table_name__ = "tins"
    __connection__ = "default"

    name: str


@pytest.fixture
def wares(configured_database: TestDatabase) -> TestDatabase:
    """Five wares, ids 1 to 5; the size of the last is NULL."""
    Ware.create_table()
    for number, size in enumerate([3, 1, 2, 1, None], 1):
        Ware(name=f"ware {number}", size=size, price=Decimal(number) / 2).save()
    return configured_database


def ids(query: Query[Ware]) -> list[int]:
    """The ids of a query's rows, in their order."""
    found: list[int] = query.order_by("id").pluck("id")
    return found


def test_conditions_join_by_or_and_not(wares: TestDatabase) -> None:
    """`any_of`, `all_of` and `not_` take what `where` takes, and stand inside each other."""
    rows = Ware.find_all()
    assert ids(rows.where(any_of(name="ware 1", size=2))) == [1, 3]
    assert ids(rows.where(any_of(Ware.c.id > 4, sql("size = :size", {"size": 3})))) == [1, 5]
    assert ids(rows.where(any_of(all_of(size=1, name="ware 2"), name=["ware 3", "ware 5"]))) == [2, 3, 5]
    assert ids(rows.where(not_(any_of(id=[1, 2], size=None)))) == [3, 4]
    assert ids(rows.where(any_of(size=1), any_of(id=[1, 2]), not_(id=4))) == [2]
    assert ids(rows.where(any_of(size=[]))) == []


def test_not_is_the_other_half_of_the_rows(wares: TestDatabase) -> None:
    """A row is in `where(x)` or in `where(not_(x))`, also where NULL makes x neither true nor false."""
    rows = Ware.find_all()
    conditions: list[Given] = [
        all_of(size=1),
        all_of(size=[1, 3]),
        all_of(size=None),
        all_of(Ware.c.size > 1),
        all_of(size=1, name="ware 2"),
        any_of(size=3, name="ware 2"),
        not_(size=1),
        sql("size <> :size", {"size": 1}),
    ]
    for condition in conditions:
        met, unmet = ids(rows.where(condition)), ids(rows.where(not_(condition)))
        assert sorted(met + unmet) == [1, 2, 3, 4, 5], condition
    assert ids(rows.where(not_(size=1))) == [1, 3, 5]


def test_joined_conditions_narrow_writes_too(wares: TestDatabase) -> None:
    """`update_all` and `delete_all` write the rows that the query would read."""
    assert Ware.find_all().where(any_of(id=1, size=1)).update_all(colour="blue") == 3
    assert Ware.find_all().where(not_(colour="blue")).delete_all() == 2
    assert ids(Ware.find_all()) == [1, 2, 4]


def test_sql_is_sent_with_its_values_bound(wares: TestDatabase) -> None:
    """Values of every type arrive as values; two conditions may use one name; colons and percents are text."""
    ware = Ware.find(3)
    rows = Ware.find_all()
    assert ids(rows.where("price > :low", {"low": 2})) == [5]
    assert ids(rows.where("price >= :low", {"low": Decimal("1.5")}).where("id <> :low", {"low": 4})) == [3, 5]
    assert ids(rows.where("id IN :ids AND colour = :colour", {"ids": (1, 3), "colour": Colour.RED})) == [1, 3]
    assert ids(rows.where("id IN :ids", {"ids": []})) == []
    assert ids(rows.where("made_at = :at", {"at": datetime(2024, 5, 1, tzinfo=UTC)})) == [1, 2, 3, 4, 5]
    assert ids(rows.where("code = :code", {"code": ware.code})) == [3]
    assert ids(rows.where("name = :name OR name LIKE 'ware 1%'", {"name": "x' OR 'x' = 'x"})) == [1]
    assert ids(rows.where(r"name <> 'a\:b' AND id = :id", {"id": 2})) == [2]


def test_sql_and_its_values_must_fit(wares: TestDatabase) -> None:
    """A missing, surplus or unfit value is refused before anything is sent, and text alone is no condition."""
    rows = Ware.find_all()
    with logged_statements() as log:
        unfit: list[tuple[str, dict[str, object]]] = [
            ("price > :low", {}),
            ("price > 3", {"low": 3}),
            ("price > :low", {"low": 3, "high": 4}),
            ("price > :low", {"low": object()}),
            ("price > :low", {"low": {"a": 1}}),
            ("price IN :low", {"low": [1, "2"]}),
            ("price IN :low", {"low": [1, None]}),
            ("made_at > :at", {"at": datetime(2024, 5, 1)}),  # noqa: DTZ001
        ]
        for text, values in unfit:
            with pytest.raises(InvalidQuery, match="value"):
                rows.where(text, values)
        for text in ("price > 3", "1 = 1"):
            with pytest.raises(InvalidQuery, match="expected keywords or an expression"):
                rows.where(text)  # type: ignore[call-overload]
        with pytest.raises(InvalidQuery, match="at least one condition"):
            any_of()
        with pytest.raises(InvalidQuery, match="no field 'naem'"):
            rows.where(any_of(not_(naem=1)))
    assert len(log) == 0


@pytest.mark.usefixtures("configured_database")
def test_another_table_in_a_joined_condition_needs_a_subquery() -> None:
    """However deep the expression stands."""
    with pytest.raises(InvalidQuery, match="subquery"):
        Ware.find_all().where(any_of(Tin.c.name == "x", name="y")).all()
    with pytest.raises(InvalidQuery, match="subquery"):
        Ware.find_all().where(not_(Tin.c.name == "x")).delete_all()


def test_named_queries_combine(wares: TestDatabase) -> None:
    """A class method that returns a query is a scope, and `merge` joins two of them."""
    small, cheap = Ware.find_all().where(size=1), Ware.find_all().where(Ware.c.price < 2)
    assert ids(small.merge(cheap)) == [2]
    assert ids(small) == [2, 4]
    with pytest.raises(InvalidQuery, match="merge"):
        small.merge(Tin.find_all())  # type: ignore[arg-type]


def test_sql_conditions_do_not_hide_in_a_statement_that_is_shown(wares: TestDatabase) -> None:
    """`to_sql` shows placeholders and sends nothing."""
    with logged_statements() as log:
        shown = Ware.find_all().where(name="secret").where("size = :n", {"n": 77}).where(id=[8, 9]).limit(66).to_sql()
    assert len(log) == 0
    assert "secret" not in shown
    assert not any(str(number) in shown for number in (77, 66))
    assert shown.startswith("SELECT ")
