"""The examples of docs/queries.md run, and do what the page says."""

from __future__ import annotations

from decimal import Decimal
from types import ModuleType

import pytest

from bench.databases import TestDatabase
from bench.documents import run_document
from crosstie.orm.errors import StaleRecord


@pytest.fixture
def page(configured_database: TestDatabase) -> ModuleType:
    """The module of the examples, with five products."""
    module = run_document("docs/queries.md", name="queries_page")
    module.Product.create_table()
    module.Product.bulk_create(
        module.Product(code=code, kind=kind, price=Decimal(price), stock=stock)
        for code, kind, price, stock in [
            ("a", "tea", 4, 10),
            ("b", "tea", 8, 0),
            ("c", "tea", 12, 5),
            ("d", "book", 30, 1),
            ("e", "cup", 3, 0),
        ]
    )
    return module


def test_conditions_join_as_the_page_says(page: ModuleType) -> None:
    """By OR, by NOT, and scopes by `merge`."""
    assert page.worth_a_look().order_by("code").pluck("code") == ["a", "d"]
    assert [product.code for product in page.bargains_gone()] == ["b", "e"]


def test_the_figures_are_the_same_everywhere(page: ModuleType) -> None:
    """Values and types."""
    assert page.figures() == {
        "value": Decimal(57),
        "average": Decimal(8),
        "dearest": Decimal(30),
        "kinds": 3,
        "per kind": {"tea": 3, "book": 1, "cup": 1},
        "stock of large kinds": {"tea": 15},
    }


def test_many_rows_are_walked_and_paged(page: ModuleType, configured_database: TestDatabase) -> None:
    """Every one once."""
    assert page.walk() == 3
    assert configured_database.scalar("SELECT count(*) FROM products WHERE checked_at IS NOT NULL") == 3
    shown = page.second_page()
    assert [product.code for product in shown] == ["c", "d"]
    assert (shown.total, shown.pages, shown.has_next) == (5, 3, True)


def test_the_last_one_is_taken_once(page: ModuleType) -> None:
    """And a record of before learns of it."""
    before = page.Product.find_by(code="d")
    assert [page.take_one("d"), page.take_one("d"), page.take_one("nothing")] == [True, False, False]
    with pytest.raises(StaleRecord):
        before.update(stock=7)


def test_a_row_is_inserted_or_updated(page: ModuleType) -> None:
    """One row for one code."""
    first, second = page.receive("x", Decimal(5)), page.receive("x", Decimal(6))
    assert (first.id, second.price) == (second.id, Decimal(6))
    assert page.product_of("x").id == first.id
    assert page.product_of("y").price == Decimal(1)


def test_what_is_archived_is_hidden(page: ModuleType) -> None:
    """And still there."""
    assert page.archive() == 2
    assert page.Product.find_all().count() == 3
    assert page.Product.find_all().only_deleted().order_by("code").pluck("code") == ["b", "e"]
