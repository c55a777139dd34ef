from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar

import pytest

from bench.databases import Pair, TestDatabase
from crosstie.orm import ActiveRecord
from crosstie.orm.errors import InvalidQuery, ModelDefinitionError, RecordInvalid, RecordNotFound, StaleRecord
from crosstie.orm.faults import armed
from crosstie.orm.field import (
    CompositePKMixin,
    IntegerPKMixin,
    OptimisticLockMixin,
    SoftDeleteMixin,
    TimestampMixin,
)
from crosstie.orm.relation import BelongsTo, HasMany
from crosstie.orm.statement_log import logged_statements
from crosstie.sagas import SagaAborted, saga


class Draft(IntegerPKMixin, OptimisticLockMixin, ActiveRecord):
    __table_name__ = "drafts"
    __connection__ = "default"

    text: str
    views: int = 0


class Writer(IntegerPKMixin, TimestampMixin, SoftDeleteMixin):
    __table_name__ = "writers"
    __connection__ = "default"

    name: str

    novels: ClassVar[HasMany[Novel]] = HasMany(foreign_key="writer_id", inverse_of="writer")


class Novel(IntegerPKMixin, OptimisticLockMixin, SoftDeleteMixin):
    __table_name__ = "novels"
    __connection__ = "secondary"

    title: str
    writer_id: int

    writer: ClassVar[BelongsTo[Writer]] = BelongsTo(foreign_key="writer_id", inverse_of="novels")


class Consignment(CompositePKMixin, ActiveRecord):
    __table_name__ = "consignments"
    __connection__ = "default"
    __primary_key__ = ("order_id", "sku")

    order_id: int
    sku: str
    amount: int = 0


class Critique(IntegerPKMixin, ActiveRecord):
    __table_name__ = "critiques"
    __connection__ = "secondary"

    writer_id: int | None = None

    writer: ClassVar[BelongsTo[Writer]] = BelongsTo(foreign_key="writer_id", validate=True)


@pytest.fixture
def drafts(configured_database: TestDatabase) -> TestDatabase:
    """One draft, of version 0."""
    Draft.create_table()
    Draft(text="first").save()
    return configured_database


@pytest.fixture
def library(configured: Pair) -> Pair:
    """Two writers in one database, and two novels of each in the other."""
    Writer.create_table()
    Novel.create_table()
    for name in ("ada", "bob"):
        writer = Writer(name=name).save()
        assert writer.id is not None
        for number in (1, 2):
            Novel(title=f"{name} {number}", writer_id=writer.id).save()
    return configured


def test_a_write_of_a_record_that_somebody_has_written_is_refused(drafts: TestDatabase) -> None:
    """The second of two writers learns of the first, whether it saves, touches or deletes; nothing is overwritten."""
    mine, theirs = Draft.find(1), Draft.find(1)
    theirs.update(text="theirs")
    assert theirs.lock_version == 1
    mine.text = "mine"
    for write in (mine.save, mine.delete, lambda: Draft.bulk_update([mine])):
        with pytest.raises(StaleRecord):
            write()
    assert (mine.lock_version, mine.changes) == (0, {"text": ("first", "mine")})
    assert drafts.rows("SELECT text, lock_version FROM drafts") == [("theirs", 1)]
    mine.refresh().update(text="mine")
    assert drafts.rows("SELECT text, lock_version FROM drafts") == [("mine", 2)]
    mine.delete()
    assert Draft.find_all().count() == 0


def test_every_assignment_raises_the_version_and_increments_do_not(drafts: TestDatabase) -> None:
    """`update_all` is noticed by who holds a record; increments overwrite nothing, so nobody need notice."""
    held, counted = Draft.find(1), Draft.find(1)
    counted.increment(views=1)
    held.update(text="after the increment")
    assert Draft.find_all().update_all(views=5) == 1
    held.text = "again"
    with pytest.raises(StaleRecord, match=r"lock_version 1: somebody changed or deleted it"):
        held.save()
    assert drafts.rows("SELECT text, views, lock_version FROM drafts") == [("after the increment", 5, 2)]


def test_a_rollback_takes_the_version_back(drafts: TestDatabase) -> None:
    """In memory as in the database, so that the record can be saved again."""
    draft = Draft.find(1)
    with pytest.raises(RuntimeError), Draft.transaction():
        draft.update(text="a")
        draft.update(text="b")
        raise RuntimeError
    assert (draft.lock_version, draft.changes) == (0, {"text": ("first", "b")})
    draft.save()
    assert drafts.rows("SELECT text, lock_version FROM drafts") == [("b", 1)]


def test_a_version_that_was_assigned_decides_nothing(drafts: TestDatabase) -> None:
    """The row's own version is what a write expects and counts on from."""
    draft = Draft.find(1)
    draft.lock_version = 77
    draft.text = "x"
    draft.save()
    assert draft.lock_version == 1
    assert drafts.rows("SELECT text, lock_version FROM drafts") == [("x", 1)]


def test_a_deleted_row_is_hidden_from_queries_and_relations(library: Pair) -> None:
    """Every way to find it, in eager loading too, unless deleted rows are asked for."""
    writer = Writer.find(1)
    with logged_statements() as log:
        writer.delete()
    assert [statement.sql.split()[0] for statement in log.statements] == ["UPDATE"]
    assert writer.is_deleted
    assert writer.deleted_at is not None
    with pytest.raises(RecordNotFound):
        Writer.find(1)
    assert Writer.find_by(name="ada") is None
    assert Writer.find_by(id=[1]) is None
    assert Writer.find_all().pluck("name") == ["bob"]
    assert Writer.find_all().count() == 1
    assert Writer.find_all().where(id=1).exists() is False
    assert Novel.find(1).writer() is None
    novels = Novel.find_all().order_by("id").with_("writer").all()
    assert [novel.writer() is None for novel in novels] == [True, True, False, False]
    Novel.find(3).delete()
    assert [novel.id for novel in Writer.find(2).novels()] == [4]
    assert Writer.find_all().with_deleted().order_by("id").pluck("name") == ["ada", "bob"]
    assert Writer.find_all().only_deleted().pluck("name") == ["ada"]
    assert Writer.find_all().with_deleted().where(id=1).one() == writer
    assert library.first.scalar("SELECT count(*) FROM writers") == 2


def test_a_hidden_row_comes_back_or_goes_for_good(library: Pair) -> None:
    """`restore` and `delete_forever`; a second delete is refused as one of a vanished row is."""
    writer = Writer.find(1)
    writer.delete()
    with pytest.raises(StaleRecord):
        writer.delete()
    assert writer.refresh().is_deleted
    writer.restore()
    assert not writer.is_deleted
    assert Writer.find(1) == writer
    writer.delete_forever()
    assert writer.is_deleted
    assert library.first.rows("SELECT name FROM writers") == [("bob",)]
    with pytest.raises(InvalidQuery, match="restore"):
        Writer(name="new").restore()


def test_many_rows_are_hidden_in_one_statement(library: Pair) -> None:
    """`delete_all` leaves alone what is hidden already; `forever` deletes."""
    Novel.find(1).delete()
    before = library.second.scalar("SELECT deleted_at FROM novels WHERE id = 1")
    with logged_statements() as log:
        assert Novel.find_all().where(writer_id=1).with_deleted().delete_all() == 1
    assert len(log) == 1
    assert library.second.scalar("SELECT deleted_at FROM novels WHERE id = 1") == before
    assert Novel.find_all().count() == 2
    assert Novel.find_all().update_all(title="seen") == 2
    assert Novel.find_all().only_deleted().delete_all(forever=True) == 2
    assert library.second.scalar("SELECT count(*) FROM novels") == 2
    with pytest.raises(InvalidQuery, match="SoftDeleteMixin"):
        Draft.find_all().with_deleted()


def test_a_rollback_brings_a_hidden_row_back(library: Pair) -> None:
    """The record as well."""
    writer = Writer.find(1)
    with pytest.raises(RuntimeError), Writer.transaction():
        writer.delete()
        raise RuntimeError
    assert not writer.is_deleted
    assert writer.changes == {}
    assert Writer.find(1) == writer


def test_a_saga_that_is_undone_restores_versions_and_hidden_rows(library: Pair) -> None:
    """Like any column."""
    before = library.second.rows("SELECT id, title, lock_version, deleted_at FROM novels ORDER BY id")

    def fail() -> None:
        raise RuntimeError("the saga fails")

    with armed("saga.branch-committed", fail), pytest.raises(SagaAborted), saga("library"):
        Writer(name="home").save()
        Novel.find(1).delete()
        Novel.find(2).update(title="changed")
        Novel.find_all().where(writer_id=2).delete_all()
    assert library.second.rows("SELECT id, title, lock_version, deleted_at FROM novels ORDER BY id") == before


def test_a_key_of_several_fields(configured_database: TestDatabase) -> None:
    """Found by a tuple; every write of one row touches that row alone."""
    Consignment.create_table()
    for order_id, sku in [(1, "a"), (1, "b"), (2, "a")]:
        Consignment(order_id=order_id, sku=sku).save()
    consignment = Consignment.find((1, "b"))
    consignment.update(amount=5)
    consignment.increment(amount=2)
    Consignment.find((2, "a")).delete()
    rows = configured_database.rows("SELECT order_id, sku, amount FROM consignments ORDER BY order_id, sku")
    assert rows == [(1, "a", 0), (1, "b", 7)]
    assert consignment.refresh().amount == 7
    assert Consignment(order_id=1, sku="b", amount=9).upsert(on=["order_id", "sku"]).amount == 9
    for key in (1, (1,), (1, None), (1, "b", 2)):
        with pytest.raises(InvalidQuery, match=r"a value of \(order_id, sku\)"):
            Consignment.find(key)
    with pytest.raises(RecordNotFound):
        Consignment.find((3, "a"))
    with pytest.raises(ModelDefinitionError, match="two or more fields"):

        class Wrong(CompositePKMixin, ActiveRecord):
            __table_name__ = "wrong"
            __connection__ = "default"
            __primary_key__ = ("id",)

            id: int


def test_the_time_of_a_delete_is_the_models(library: Pair) -> None:
    """`current_time` is asked, and `updated_at` follows."""
    at = datetime(2030, 1, 1, tzinfo=UTC)
    writer = Writer.find(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "current_time", classmethod(lambda _: at))
        writer.delete()
    found = Writer.find_all().only_deleted().one()
    assert (found.deleted_at, found.updated_at) == (at, at)


def test_validated_references_of_many_records_are_asked_for_together(library: Pair) -> None:
    """One statement for all of them; a missing parent is named, by `upsert` and `bulk_update` too."""
    Critique.create_table()
    critiques = [Critique(writer_id=number % 2 + 1) for number in range(300)] + [Critique()]
    with logged_statements() as log:
        Critique.bulk_create(critiques)
    assert log.by_database["default"] == 1
    critiques[0].writer_id = 98
    for write in (
        lambda: Critique.bulk_create([Critique(writer_id=1), Critique(writer_id=99)]),
        lambda: Critique.bulk_update(critiques),
        lambda: Critique(id=1, writer_id=97).upsert(on="id"),
    ):
        with pytest.raises(RecordInvalid, match=r"a Writer with id = 9\d"):
            write()
    assert library.second.scalar("SELECT count(*) FROM critiques") == 301
