from __future__ import annotations

import pytest
import sqlalchemy as sa

from bench.databases import TestDatabase
from crosstie.orm import ActiveRecord
from crosstie.orm.errors import InvalidQuery, LockTimeout
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.statement_log import logged_statements
from crosstie.orm.transaction import detached_transaction


class Step(IntegerPKMixin, ActiveRecord):
    __table_name__ = "steps"
    __connection__ = "default"

    name: str
    rank: int | None = None


class Place(ActiveRecord):
    __table_name__ = "places"
    __connection__ = "default"
    __primary_key__ = ("row", "number")

    row: str
    number: int


@pytest.fixture
def steps(configured_database: TestDatabase) -> TestDatabase:
    """Seven steps, ids 1 to 7."""
    Step.create_table()
    for number in range(1, 8):
        Step(name=f"step {number}", rank=number % 3).save()
    return configured_database


def test_batches_hold_every_row_once(steps: TestDatabase) -> None:
    """In the order of the key, each batch one statement, with conditions, and with a limit over all of them."""
    with logged_statements() as log:
        found = [[step.id for step in batch] for batch in Step.find_all().in_batches(3)]
    assert found == [[1, 2, 3], [4, 5, 6], [7]]
    assert len(log) == 3
    assert [step.id for step in Step.find_all().where(rank=[0, 1]).find_each(2)] == [1, 3, 4, 6, 7]
    assert [len(batch) for batch in Step.find_all().limit(5).in_batches(2)] == [2, 2, 1]
    assert list(Step.find_all().where(id=[]).in_batches()) == []
    assert list(Step.find_all().limit(0).in_batches()) == []


def test_batches_go_on_though_their_rows_change(steps: TestDatabase) -> None:
    """Rows deleted, changed or added meanwhile shift nothing: the walk goes on after the last key."""
    seen = []
    for batch in Step.find_all().in_batches(2):
        seen += [step.id for step in batch]
        for step in batch:
            step.delete()
        if len(seen) == 2:
            Step(name="late").save()
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]
    assert Step.find_all().count() == 0


def test_batches_go_by_a_key_of_several_columns(configured_database: TestDatabase) -> None:
    """The second column counts where the first is equal."""
    Place.create_table()
    keys = [(row, number) for row in ("a", "b", "c") for number in (1, 2, 10)]
    for row, number in reversed(keys):
        Place(row=row, number=number).save()
    for size in (1, 2, 4, 9, 100):
        assert [(place.row, place.number) for place in Place.find_all().find_each(size)] == keys


def test_batches_cannot_keep_an_order(steps: TestDatabase) -> None:
    """Refused at once, not at the first row."""
    for query in (Step.find_all().order_by("name"), Step.find_all().offset(1)):
        with pytest.raises(InvalidQuery, match="in_batches"):
            query.in_batches()
        with pytest.raises(InvalidQuery, match="in_batches"):
            query.find_each()
    for size in (0, -1, True, 1.5):
        with pytest.raises(InvalidQuery, match="one or more"):
            Step.find_all().in_batches(size)  # type: ignore[arg-type]


def test_pages_know_where_they_are(steps: TestDatabase) -> None:
    """Records, totals and neighbours, in two statements; without an order by primary key."""
    with logged_statements() as log:
        page = Step.find_all().paginate(2, per_page=3)
    assert len(log) == 2
    assert [step.id for step in page] == [4, 5, 6]
    assert (page.number, page.per_page, page.total, page.pages, len(page)) == (2, 3, 7, 3, 3)
    assert page.has_next
    assert page.has_previous
    last = Step.find_all().order_by("-id").paginate(3, per_page=3)
    assert [step.id for step in last.records] == [1]
    assert not last.has_next
    beyond = Step.find_all().paginate(9)
    assert (list(beyond), beyond.pages, beyond.has_next) == ([], 1, False)
    empty = Step.find_all().where(id=[]).paginate()
    assert (list(empty), empty.pages, empty.has_previous) == ([], 0, False)
    for number, per_page in [(0, 1), (1, 0), (-1, 5)]:
        with pytest.raises(InvalidQuery, match="one or more"):
            Step.find_all().paginate(number, per_page)
    with pytest.raises(InvalidQuery, match="leave them out"):
        Step.find_all().limit(3).paginate()


def test_last_is_first_from_the_other_end(steps: TestDatabase) -> None:
    """Names, expressions and windows; an order that cannot be reversed is refused."""
    rows = Step.find_all()

    def last(query: object) -> int | None:
        found = query.last()  # type: ignore[attr-defined]
        return None if found is None else found.id

    assert last(rows) == 7
    assert last(rows.order_by("-id")) == 1
    assert last(rows.order_by("rank", "-id")) == 2
    assert last(rows.order_by(Step.c.id * -1)) == 1
    assert last(rows.limit(3)) == 3
    assert last(rows.order_by("-id").offset(2)) == 1
    assert last(rows.where(id=99)) is None
    with pytest.raises(InvalidQuery, match="cannot reverse"):
        rows.order_by(Step.c.rank.desc().nulls_last()).last()


def test_rows_are_locked_until_the_transaction_ends(steps: TestDatabase) -> None:
    """Another transaction waits, is refused, or skips them; SQLite admits one writer anyway."""
    if steps.kind == "sqlite":
        with Step.transaction():
            assert [step.id for step in Step.find_all().where(id=1).for_update()] == [1]
        return
    with Step.transaction():
        locked = Step.find_all().where(id=[1, 2]).order_by("id").for_update()
        assert [step.id for step in locked] == [1, 2]
        table = Step.__table__
        with detached_transaction("default") as other:
            rest = sa.select(table.c.id).order_by(table.c.id).with_for_update(skip_locked=True)
            assert other.connection.execute(rest).scalars().all() == [3, 4, 5, 6, 7]
        with pytest.raises(LockTimeout), detached_transaction("default") as other:
            other.connection.execute(sa.select(table.c.id).where(table.c.id == 1).with_for_update(nowait=True))
    with detached_transaction("default") as other:
        other.connection.execute(sa.select(Step.__table__.c.id).where(Step.__table__.c.id == 3).with_for_update())
        with Step.transaction():
            skipping = Step.find_all().order_by("id").for_update(skip_locked=True)
            assert skipping.pluck("id") == [1, 2, 4, 5, 6, 7]
        with pytest.raises(LockTimeout), Step.transaction():
            Step.find_all().for_update(nowait=True).all()


def test_a_lock_without_a_transaction_is_refused(steps: TestDatabase) -> None:
    """It would be gone before the caller sees the row."""
    for ask in (
        lambda: Step.find_all().for_update().all(),
        lambda: Step.find_all().for_update().first(),
        lambda: Step.find_all().for_update().pluck("id"),
    ):
        with pytest.raises(InvalidQuery, match=r"with Step\.transaction\(\)"):
            ask()
    with pytest.raises(InvalidQuery, match="both"):
        Step.find_all().for_update(skip_locked=True, nowait=True)


def test_a_query_shows_its_plan_and_its_sql(steps: TestDatabase) -> None:
    """The plan is the database's; the SQL is what would be sent, without its values."""
    query = Step.find_all().where(name="step 1").order_by("-id").limit(5)
    plan = query.explain()
    words = {"sqlite": "steps", "postgresql": "Seq Scan on steps", "mariadb": "steps"}
    assert words[steps.kind] in plan
    with logged_statements() as log:
        query.all()
    assert query.to_sql() == log.statements[0].sql
    if steps.kind != "sqlite":
        assert query.for_update().to_sql().endswith("FOR UPDATE")
