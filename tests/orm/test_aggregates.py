from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from pydantic import Field

from bench.databases import TestDatabase
from crosstie.orm import ActiveRecord
from crosstie.orm.errors import InvalidQuery
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.statement_log import logged_statements


class Sale(IntegerPKMixin, ActiveRecord):
    __table_name__ = "sales"
    __connection__ = "default"

    region: str
    item: str = "tea"
    amount: int | None = None
    price: Decimal | None = None
    weight: float | None = None
    is_paid: bool = False
    code: UUID = Field(default_factory=uuid4)
    sold_at: datetime = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
def sales(configured_database: TestDatabase) -> TestDatabase:
    """Five sales; nothing is known of the last."""
    Sale.create_table()
    for number, region in enumerate(["north", "north", "south", "south"], 1):
        at = datetime(2024, 1, number, tzinfo=UTC)
        item, price, weight = "tea" if number < 4 else "rum", Decimal(number) / 10, number / 4
        Sale(region=region, item=item, amount=number, price=price, weight=weight, sold_at=at).save()
    Sale(region="west").save()
    return configured_database


def test_sums_and_averages_are_exact_and_of_the_fields_type(sales: TestDatabase) -> None:
    """The same value of the same type on every database, whatever the server's own function would answer."""
    rows = Sale.find_all()
    answers = [rows.sum("amount"), rows.sum("price"), rows.sum("weight"), rows.avg("amount"), rows.avg("price")]
    assert answers == [10, Decimal("1.0"), 2.5, 2.5, Decimal("0.25")]
    assert [type(answer) for answer in answers] == [int, Decimal, float, float, Decimal]
    some = rows.where(Sale.c.id < 3)
    assert (some.sum("amount"), some.avg("amount"), some.avg("price")) == (3, 1.5, Decimal("0.15"))
    nothing = rows.where(region="west")
    assert (nothing.sum("amount"), nothing.sum("price"), nothing.avg("amount")) == (0, Decimal(0), None)
    third = rows.where(id=[1, 2, 4]).avg("price")
    assert third == Decimal("0.7") / 3


def test_extremes_are_values_of_the_field(sales: TestDatabase) -> None:
    """Numbers, text and instants; None where there is none."""
    rows = Sale.find_all()
    assert (rows.min("amount"), rows.max("amount")) == (1, 4)
    assert (rows.min("price"), rows.max("price")) == (Decimal("0.1"), Decimal("0.4"))
    assert (rows.min("region"), rows.max("region")) == ("north", "west")
    assert rows.max("sold_at") == datetime(2024, 1, 4, tzinfo=UTC)
    assert rows.where(region="west").max("amount") is None


def test_aggregates_respect_conditions_limit_and_offset(sales: TestDatabase) -> None:
    """What `all()` would load is what is added up, in one statement."""
    rows = Sale.find_all().order_by("id")
    with logged_statements() as log:
        assert rows.limit(2).sum("amount") == 3
        assert Sale.find_all().order_by("-id").offset(3).sum("amount") == 3
        assert rows.offset(1).limit(2).avg("price") == Decimal("0.25")
        assert rows.limit(3).max("sold_at") == datetime(2024, 1, 3, tzinfo=UTC)
        assert rows.limit(4).count("amount") == 4
    assert len(log) == 5


def test_count_of_a_field_and_of_its_different_values(sales: TestDatabase) -> None:
    """NULL is no value; `distinct` counts and plucks each value once."""
    rows = Sale.find_all()
    assert rows.count() == 5
    assert rows.count("amount") == 4
    assert rows.distinct().count("region") == 3
    assert rows.distinct().count() == 5
    assert rows.distinct().order_by("-region").pluck("region") == ["west", "south", "north"]
    assert sorted(rows.distinct().pluck("region", "item")) == [
        ("north", "tea"),
        ("south", "rum"),
        ("south", "tea"),
        ("west", "tea"),
    ]
    with pytest.raises(InvalidQuery, match="order by the fields"):
        rows.distinct().order_by("id").pluck("region")


def test_groups_answer_by_the_values_of_their_fields(sales: TestDatabase) -> None:
    """One field gives its values as keys, several give tuples; each answer is one statement."""
    rows = Sale.find_all()
    with logged_statements() as log:
        assert rows.group_by("region").count() == {"north": 2, "south": 2, "west": 1}
    assert len(log) == 1
    assert rows.group_by("region").sum("amount") == {"north": 3, "south": 7, "west": 0}
    assert rows.group_by("region").avg("price") == {"north": Decimal("0.15"), "south": Decimal("0.35"), "west": None}
    assert rows.group_by("region").min("amount") == {"north": 1, "south": 3, "west": None}
    assert rows.group_by("region").max("weight") == {"north": 0.5, "south": 1.0, "west": None}
    assert rows.group_by("region", "item").count() == {
        ("north", "tea"): 2,
        ("south", "tea"): 1,
        ("south", "rum"): 1,
        ("west", "tea"): 1,
    }
    assert rows.where(item="tea").group_by("region").count() == {"north": 2, "south": 1, "west": 1}
    assert list(rows.order_by("-region").limit(2).group_by("region").count()) == ["west", "south"]
    assert rows.group_by("is_paid").count() == {False: 5}


def test_having_narrows_groups(sales: TestDatabase) -> None:
    """By an expression, or SQL with bound values."""
    groups = Sale.find_all().group_by("region")
    assert groups.having(sa.func.count() > 1).count() == {"north": 2, "south": 2}
    assert groups.having("sum(amount) > :least", {"least": 5}).count() == {"south": 2}
    assert groups.having(sa.func.count() > 1).having(sa.func.max(Sale.c.amount) < 3).sum("amount") == {"north": 3}
    assert groups.count() == {"north": 2, "south": 2, "west": 1}


def test_what_cannot_be_computed_is_refused(sales: TestDatabase) -> None:
    """Sums of text, unknown fields, an order that groups do not have: before anything is sent."""
    rows = Sale.find_all()
    with logged_statements() as log:
        for ask in (
            lambda: rows.sum("region"),
            lambda: rows.avg("sold_at"),
            lambda: rows.sum("is_paid"),
            lambda: rows.max("is_paid"),
            lambda: rows.max("code"),
            lambda: rows.min("amuont"),
            lambda: rows.group_by("amuont"),
            lambda: rows.group_by("region").sum("item"),
            lambda: rows.order_by("id").group_by("region").count(),
            lambda: rows.group_by("region").having("count(*) > 1"),  # type: ignore[call-overload]
        ):
            with pytest.raises(InvalidQuery):
                ask()
        with pytest.raises(InvalidQuery, match="at least one field"):
            rows.group_by()  # type: ignore[call-overload]
    assert len(log) == 0
