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
    module.Sale.create_table()
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


def test_tables_are_joined(page: ModuleType) -> None:
    """For conditions, orders and figures; each product is there once, or not sold at all."""
    for product_id, pieces in ((2, 1), (1, 2), (1, 3), (5, 4)):
        page.Sale(product_id=product_id, pieces=pieces).save()
    assert [sale.pieces for sale in page.teas_sold()] == [3, 2, 1]
    assert page.pieces_by_code() == {"a": 5, "b": 1, "e": 4}
    assert [product.code for product in page.sold_at_all()] == ["a", "b", "e"]
    assert [product.code for product in page.never_sold()] == ["c", "d"]


def test_some_fields_are_read_and_written(page: ModuleType, configured_database: TestDatabase) -> None:
    """And the others stay as they are."""
    assert page.price_list()[0] == {"code": "a", "price": Decimal(4)}
    page.raise_prices()
    assert [row["price"] for row in page.price_list()] == [8, 16, 24, 60, 6]
    assert configured_database.scalar("SELECT sum(stock) FROM products") == 16


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
