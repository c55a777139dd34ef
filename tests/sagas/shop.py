"""Models of the saga tests: two databases of a shop, and a third for the crash tests over three."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from crosstie.orm.field import IntegerPKMixin

from bench.databases import TestDatabase
from crosstie.orm import ActiveRecord


class Order(IntegerPKMixin, ActiveRecord):
    """Lives in `default`."""

    __table_name__ = "orders"
    __connection__ = "default"

    id: int | None = None
    sku: str
    amount: Decimal


class Stock(IntegerPKMixin, ActiveRecord):
    """Lives in `secondary`."""

    __table_name__ = "stock"
    __connection__ = "secondary"

    id: int | None = None
    sku: str
    reserved: int = 0
    note: str | None = None


class Invoice(IntegerPKMixin, ActiveRecord):
    """Lives in `tertiary`."""

    __table_name__ = "invoices"
    __connection__ = "tertiary"

    id: int | None = None
    sku: str
    paid: bool = False


MODELS: list[type[ActiveRecord]] = [Order, Stock, Invoice]
SKUS = ["keep", "change", "delete", "count"]


def create_shop(names: Iterable[str]) -> None:
    """Create the tables of these databases, with four rows in each."""
    for model in MODELS:
        if model.__connection__ in names:
            model.create_table()
            for sku in SKUS:
                model(**({"sku": sku, "amount": Decimal("1.50")} if model is Order else {"sku": sku})).save()


def contents(databases: dict[str, TestDatabase]) -> dict[str, list[tuple[object, ...]]]:
    """All business rows, read back by connections of the test's own."""
    tables = {"default": "orders", "secondary": "stock", "tertiary": "invoices"}
    return {name: database.rows(f"SELECT * FROM {tables[name]} ORDER BY id") for name, database in databases.items()}


def saga_states(databases: dict[str, TestDatabase]) -> dict[str, list[str]]:
    """The states of all saga records, by database."""
    return {
        name: [str(state) for (state,) in database.rows("SELECT state FROM crosstie_saga ORDER BY saga_id")]
        for name, database in databases.items()
    }
