"""Models of the saga tests: two databases of a shop, and a third for the crash tests over three."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from bench.databases import TestDatabase
from bench.waiting import eventually
from crosstie.orm import ActiveRecord
from crosstie.orm.field import IntegerPKMixin
from crosstie.sagas import sweep_sagas


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


def create_shop(names: Iterable[str], tags: Iterable[str] = ("",)) -> None:
    """Create the tables of these databases, with four rows for each tag in each; a tag is a prefix of the sku."""
    for model in MODELS:
        if str(model.__connection__) in names:
            model.create_table()
            for sku in [tag + sku for tag in tags for sku in SKUS]:
                model(**({"sku": sku, "amount": Decimal("1.50")} if model is Order else {"sku": sku})).save()


def contents(databases: dict[str, TestDatabase], tag: str = "") -> dict[str, list[tuple[object, ...]]]:
    """The business rows of this tag, read back by connections of the test's own."""
    tables = {"default": "orders", "secondary": "stock", "tertiary": "invoices"}
    return {
        name: database.rows(f"SELECT * FROM {tables[name]} WHERE sku LIKE %s ORDER BY id", (f"{tag}%",))
        for name, database in databases.items()
    }


def saga_states(databases: dict[str, TestDatabase]) -> dict[str, list[str]]:
    """The states of all saga records, by database."""
    return {
        name: [str(state) for (state,) in database.rows("SELECT state FROM crosstie_saga ORDER BY saga_id")]
        for name, database in databases.items()
    }


def sweep_until_undone(databases: dict[str, TestDatabase], branches: Iterable[str]) -> None:
    """Sweep until these branches are undone or refused, whose COMMITs a process sent and died: servers may be slow."""

    def undone() -> bool:
        sweep_until_quiet(databases)
        states = saga_states(databases)
        return all(states[name] in (["undone"], ["refused"]) for name in branches)

    eventually(undone, describe="the commits of the dead are undone or refused")


def sweep_until_quiet(databases: dict[str, TestDatabase]) -> None:
    """Sweep until no saga has anything left to do.

    A server may take a moment to notice that a killed client is gone, and to release its locks.
    """

    def quiet() -> bool:
        for name in databases:
            sweep_sagas(name)
        left = {state for states in saga_states(databases).values() for state in states}
        return not left & {"applied", "aborted", "owed"}

    eventually(quiet, describe="no saga is unfinished")
