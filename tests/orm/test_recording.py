from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from bench.databases import TestDatabase
from crosstie.orm import ActiveRecord, LocalTransaction
from crosstie.orm.errors import StaleRecord
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.recorder import Rows, condition


class Stock(IntegerPKMixin, ActiveRecord):
    __table_name__ = "stock"
    __connection__ = "default"

    sku: str
    amount: int = 0


class Recorder:
    """Writes down each call, with the rows that the condition matches at that moment."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def _rows(self, tx: LocalTransaction, table: sa.Table, rows: Rows) -> list[tuple[Any, ...]]:
        statement = sa.select(table.c.id, table.c.amount).where(condition(table, rows)).order_by(table.c.id)
        return [tuple(row) for row in tx.connection.execute(statement)]

    def inserted(
        self, tx: LocalTransaction, table: sa.Table, keys: Sequence[tuple[Any, ...]], *, numbered: bool = False
    ) -> None:
        self.calls.append(("inserted", table.name, *keys))

    def updating(
        self, tx: LocalTransaction, table: sa.Table, rows: Rows, columns: Collection[str], *, upserting: bool = False
    ) -> object:
        self.calls.append(("updating", self._rows(tx, table, rows), list(columns)))
        return (table, rows)

    def updated(self, tx: LocalTransaction, token: object) -> None:
        assert isinstance(token, tuple)
        self.calls.append(("updated", self._rows(tx, *token)))

    def deleting(self, tx: LocalTransaction, table: sa.Table, rows: Rows) -> None:
        self.calls.append(("deleting", self._rows(tx, table, rows)))

    def incrementing(self, tx: LocalTransaction, table: sa.Table, rows: Rows, deltas: Mapping[str, Any]) -> object:
        known = rows if isinstance(rows, tuple) else None
        self.calls.append(("incrementing", self._rows(tx, table, rows), dict(deltas), known))
        return (table, rows)

    def incremented(self, tx: LocalTransaction, token: object) -> None:
        assert isinstance(token, tuple)
        self.calls.append(("incremented", self._rows(tx, *token)))

    def uncaptured(self, tx: LocalTransaction, reason: str) -> None:
        self.calls.append(("uncaptured", reason))


@pytest.fixture
def stock(configured_database: TestDatabase) -> TestDatabase:
    """One database with the table of stock."""
    Stock.create_table()
    return configured_database


def test_every_write_is_seen_by_the_transactions_recorder(stock: TestDatabase) -> None:
    """Before or after the statement as its kind needs, with the condition that picks the rows."""
    recorder = Recorder()
    with Stock.transaction() as tx:
        tx.recorder = recorder
        one, two = Stock(sku="a").save(), Stock(sku="b", amount=5).save()
        one.update(amount=7)
        one.save()
        two.increment(amount=-2)
        Stock.find_all().where(sku=["a", "b"]).update_all(amount=1)
        Stock.find_all().where(Stock.c.amount > 100).update_all(amount=1)
        one.delete()
        Stock.find_all().delete_all()
    assert recorder.calls == [
        ("inserted", "stock", (1,)),
        ("inserted", "stock", (2,)),
        ("updating", [(1, 0)], ["amount"]),
        ("updated", [(1, 7)]),
        ("incrementing", [(2, 5)], {"amount": -2}, (2,)),
        ("incremented", [(2, 3)]),
        ("updating", [(1, 7), (2, 3)], ["amount"]),
        ("updated", [(1, 1), (2, 1)]),
        ("updating", [], ["amount"]),
        ("updated", []),
        ("deleting", [(1, 1)]),
        ("deleting", [(2, 1)]),
    ]


def test_an_update_that_finds_no_row_is_not_taken_down(stock: TestDatabase) -> None:
    """The recorder hears of the update before it runs, and of its success only if there was one."""
    recorder = Recorder()
    record = Stock(sku="a").save()
    stock.execute("DELETE FROM stock")
    with pytest.raises(StaleRecord), Stock.transaction() as tx:
        tx.recorder = recorder
        record.update(amount=1)
    assert recorder.calls == [("updating", [], ["amount"])]


def test_an_increment_that_finds_no_row_is_not_taken_down(stock: TestDatabase) -> None:
    """The recorder hears of the increment before it runs, and of its success only if there was one."""
    recorder = Recorder()
    record = Stock(sku="a").save()
    stock.execute("DELETE FROM stock")
    with pytest.raises(StaleRecord), Stock.transaction() as tx:
        tx.recorder = recorder
        record.increment(amount=1)
    assert recorder.calls == [("incrementing", [], {"amount": 1}, (1,))]


def test_a_change_of_the_schema_cannot_be_captured(stock: TestDatabase) -> None:
    """Where a transaction can hold it at all, the recorder is told that nobody can undo it."""
    if stock.kind == "mariadb":
        pytest.skip("a transaction cannot hold it, and test_definition holds that it is refused")
    recorder = Recorder()
    with Stock.transaction() as tx:
        tx.recorder = recorder
        Stock.drop_table()
    assert recorder.calls == [("uncaptured", "drop_table() of Stock changes the schema")]
