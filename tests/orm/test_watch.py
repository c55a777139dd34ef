"""Watchers are told of every write of the ORM, inside its transaction, and of what the rows really held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any

import pytest

from bench.databases import Solo, TestDatabase
from bench.guard import configured_databases
from crosstie.orm import ActiveRecord, transaction, watch
from crosstie.orm.column import Column
from crosstie.orm.errors import StaleRecord
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.local_transaction import LocalTransaction, current
from crosstie.orm.mapping import TableMapping
from crosstie.orm.watch import RowChange


class Rollback(Exception):
    """Raised by a test to leave a block."""


class Item(IntegerPKMixin, ActiveRecord):
    __table_name__ = "watched_item"
    __connection__ = "default"

    id: int | None = None
    sku: Annotated[str, Column(unique=True)]
    price: Decimal = Decimal("1.00")
    stock: Annotated[int, Column(name="in_stock")] = 0
    note: str | None = None


@dataclass
class Log:
    """A watcher that notes what it is told."""

    fields: tuple[str, ...] = ("sku", "stock")
    told: list[RowChange] = field(default_factory=list)

    def changed(self, tx: LocalTransaction, mapping: TableMapping, changes: Sequence[RowChange]) -> None:
        assert current("default") is tx, "it is told inside the transaction"
        self.told += changes

    def take(self) -> list[tuple[Any, Any, Any]]:
        """What was told since the last time, keys apart, without fields that others asked for."""
        taken = [
            (change.key[0], *(None if one is None else {n: one[n] for n in self.fields} for one in values))
            for change in self.told
            for values in [(change.before, change.after)]
        ]
        self.told.clear()
        return taken


@pytest.fixture
def log(database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model's table, and its watcher."""
    watcher = Log()
    monkeypatch.setattr(watch, "_finders", [])
    with configured_databases(Solo(database), tables=False):
        watch.watch_with(lambda mapping: watcher if mapping.model is Item else None)
        Item.create_table()
        yield watcher


def row(sku: str, stock: int = 0) -> dict[str, Any]:
    """What the watcher sees of a row."""
    return {"sku": sku, "stock": stock}


def test_records_are_told_one_by_one(log: Log) -> None:
    """Insert, update, increment and delete, each with the values on both of its sides."""
    item = Item(sku="a").save()
    assert log.take() == [(item.id, None, row("a"))]
    item.update(stock=2)
    item.increment(stock=3)
    assert log.take() == [(item.id, row("a"), row("a", 2)), (item.id, row("a", 2), row("a", 5))]
    item.delete()
    assert log.take() == [(item.id, row("a", 5), None)]


def test_an_update_of_other_fields_is_not_told(log: Log) -> None:
    """Nor one that leaves the watched ones as they were."""
    item = Item(sku="a").save()
    log.take()
    item.update(note="x", price=Decimal("2.50"))
    Item.find_all().update_all(sku="a")
    assert log.take() == []


def test_values_before_are_those_of_the_row_and_not_of_the_record(log: Log) -> None:
    """Somebody else has changed the row since the record was loaded."""
    item = Item(sku="a", stock=1).save()
    Item.find(item.id).update(stock=7)
    log.take()
    item.stock = 2
    item.save()
    assert log.take() == [(item.id, row("a", 7), row("a", 2))]


def test_statements_over_many_rows_are_told_row_by_row(log: Log) -> None:
    """Their rows are not known before they run, and are found under lock."""
    items = Item.bulk_create([Item(sku=sku, stock=n) for n, sku in enumerate("abc")])
    assert log.take() == [(one.id, None, row(one.sku, one.stock)) for one in items]
    assert Item.find_all().where(sku=["a", "b", "z"]).update_all(stock=9) == 2
    assert sorted(log.take()) == [(items[0].id, row("a", 0), row("a", 9)), (items[1].id, row("b", 1), row("b", 9))]
    for item in items:
        item.refresh().stock += 1
    Item.bulk_update(items)
    assert [(one[1]["stock"], one[2]["stock"]) for one in sorted(log.take())] == [(9, 10), (9, 10), (2, 3)]
    assert Item.find_all().where(Item.c.stock > 9).delete_all() == 2
    assert sorted(one[0] for one in log.take()) == [items[0].id, items[1].id]
    assert Item.find_all().where(sku="nobody").update_all(stock=1) == 0
    assert Item.find_all().where(sku="nobody").delete_all() == 0
    assert log.take() == []


def test_an_upsert_is_told_for_what_it_turned_out_to_be(log: Log) -> None:
    """An insert, then an update of the same row."""
    item = Item(sku="a", stock=1).upsert(on="sku")
    Item(sku="a", stock=2).upsert(on="sku")
    assert log.take() == [(item.id, None, row("a", 1)), (item.id, row("a", 1), row("a", 2))]


def test_a_watcher_that_raises_takes_the_write_back(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no transaction was open: a watched write has one."""

    def refuse(*_: object) -> None:
        raise Rollback

    item = Item(sku="a").save()
    monkeypatch.setattr(log, "changed", refuse)
    for write in (lambda: item.update(stock=1), item.delete, Item(sku="b").save, Item.find_all().delete_all):
        with pytest.raises(Rollback):
            write()
    assert [(one.sku, one.stock) for one in Item.find_all().all()] == [("a", 0)]
    with transaction("default") as tx, pytest.raises(Rollback):
        item.update(stock=1)
    assert tx.recorder is None


def test_what_a_watcher_writes_is_told_by_itself(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watcher may write to the watched model too."""
    log_it = log.changed

    def add_another(tx: LocalTransaction, mapping: TableMapping, changes: Sequence[RowChange]) -> None:
        log_it(tx, mapping, changes)
        if changes[0].after == {**changes[0].after, "sku": "a"}:  # type: ignore[dict-item]
            Item(sku="b").save()

    monkeypatch.setattr(log, "changed", add_another)
    Item(sku="a").save()
    assert [after["sku"] for _, _, after in log.take()] == ["a", "b"]


def test_a_write_that_finds_no_row_is_not_told(log: Log) -> None:
    """It raises, as it does without a watcher."""
    item = Item(sku="a").save()
    Item.find_all().delete_all()
    log.take()
    for write in (lambda: item.update(stock=1), item.delete):
        with pytest.raises(StaleRecord):
            write()
    assert log.take() == []


def test_a_watcher_that_is_declared_later_is_found(log: Log) -> None:
    """The model was written to before."""
    item = Item(sku="a").save()
    late = Log(fields=("note",))
    watch.watch_with(lambda mapping: late if mapping.model is Item else None)
    item.update(note="x")
    item.update(stock=1)
    assert late.take() == [(item.id, {"note": None}, {"note": "x"})]
    assert len(log.take()) == 2
