"""Change events: every write of the ORM to a model with `__publish__` is told as it was committed, and nothing else."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import types
from decimal import Decimal
from typing import Annotated, Any

import pytest
from pydantic import Field, StringConstraints

from bench.databases import Pair
from bench.faults import crash_at
from bench.processes import child_environment
from crosstie.orm import ActiveRecord, transaction, watch
from crosstie.orm.column import Column
from crosstie.orm.errors import ModelDefinitionError, StaleRecord
from crosstie.orm.field import CompositePKMixin, IntegerPKMixin, OptimisticLockMixin, TimestampMixin
from crosstie.orm.registry import registry
from crosstie.outbox import RowEvent, changes, subscriber, sweep_lanes, sync_routes
from crosstie.outbox.errors import EventDefinitionError
from crosstie.sagas import SagaAborted, saga, sweep_sagas
from outbox.bank import stored


class Rollback(Exception):
    """Raised by a test to leave a block."""


class Member(IntegerPKMixin, TimestampMixin, OptimisticLockMixin, ActiveRecord):
    """Everything of it is published but a secret."""

    __table_name__ = "change_member"
    __connection__ = "default"
    __publish__ = True
    __publish_except__ = ("password",)

    id: int | None = None
    name: Annotated[str, Column(unique=True), StringConstraints(min_length=1)]
    credit: Annotated[Decimal, Column(name="credit_eur")] = Decimal("1.10")
    born: dt.date | None = None
    tags: list[str] = Field(default_factory=list)
    password: str = "secret"


class Seat(CompositePKMixin, ActiveRecord):
    """Two columns of three, and a key of two."""

    __table_name__ = "change_seat"
    __connection__ = "secondary"
    __primary_key__ = ("row", "number")
    __publish__ = ("taken",)
    __publish_as__ = "theatre.seat"

    row: str
    number: int
    taken: bool = False
    note: str = ""


@pytest.fixture
def heard(configured_crash_pair: Pair) -> list[RowEvent]:
    """Both models have tables, and all their events arrive here."""
    events: list[RowEvent] = []
    for model in (Member, Seat):
        model.create_table()
        for cls in changes(model):

            def receive(event: RowEvent) -> None:
                events.append(event)

            subscriber(cls, database="secondary")(receive)
    assert not sync_routes().failed
    return events


def arrive(heard: list[RowEvent]) -> list[tuple[str, Any, Any, Any]]:
    """Deliver what is committed; each event's type, key, and what differs between its sides."""
    for source in ("default", "secondary"):
        while sweep_lanes(source, owner="test"):
            pass
    taken = []
    for event in heard:
        old, new = (None if side is None else side.model_dump() for side in (event.old, event.new))
        if old is not None and new is not None:
            differ = {name for name in new if old[name] != new[name]} - {"updated_at", "lock_version"}
            old, new = ({name: side[name] for name in differ} for side in (old, new))
        taken.append((event.__event_type__.rpartition(".")[2], event.key, old, new))
    heard.clear()
    return taken


def test_a_records_life_is_told_in_order(heard: list[RowEvent]) -> None:
    """With typed values on both sides, and without the secret."""
    member = Member(name="a", born=dt.date(2000, 1, 2), tags=["x"]).save()
    member.update(credit=Decimal("2.50"))
    member.increment(credit=Decimal("0.25"))
    member.update(password="other")
    member.delete()
    told = arrive(heard)
    assert [(kind, key) for kind, key, _, _ in told] == [
        (kind, member.id) for kind in ("created", "updated", "updated", "updated", "deleted")
    ]
    created = told[0][3]
    assert "password" not in created
    assert created["created_at"].tzinfo is not None
    assert {name: created[name] for name in ("id", "name", "credit", "born", "tags")} == {
        "id": member.id,
        "name": "a",
        "credit": Decimal("1.10"),
        "born": dt.date(2000, 1, 2),
        "tags": ["x"],
    }
    assert [told[n][2:] for n in (1, 2)] == [
        ({"credit": Decimal("1.10")}, {"credit": Decimal("2.50")}),
        ({"credit": Decimal("2.50")}, {"credit": Decimal("2.75")}),
    ]
    assert told[4][2]["credit"] == Decimal("2.75")


def test_a_secret_is_in_no_stored_event(heard: list[RowEvent], configured_crash_pair: Pair) -> None:
    """Neither its value nor its name."""
    Member(name="a", password="hidden").save().delete()
    stored_texts = [row[0] for row in configured_crash_pair.first.rows("SELECT payload FROM crosstie_outbox")]
    assert len(stored_texts) == 2
    assert not any(word in text for text in stored_texts for word in ("hidden", "password"))


def test_writes_of_many_rows_are_told_row_by_row(heard: list[RowEvent]) -> None:
    """In one statement's worth of events for each transaction."""
    members = Member.bulk_create([Member(name=name) for name in "abc"])
    ids = [one.id for one in members]
    assert sorted(one[:2] for one in arrive(heard)) == [("created", key) for key in ids]
    Member.find_all().where(name=["a", "b"]).update_all(credit=Decimal(5))
    for member in members:
        member.refresh().born = dt.date(2001, 1, 1)
    Member.bulk_update(members)
    Member(name="c", credit=Decimal(9)).upsert(on="name")
    members[0].touch()
    Member.find_all().where(Member.c.credit >= 5).delete_all()
    told = arrive(heard)
    by_row = {key: [kind for kind, found, _, _ in told if found == key] for key in ids}
    assert by_row[ids[0]] == ["updated", "updated", "updated", "deleted"]
    assert by_row[ids[1]] == by_row[ids[2]] == ["updated", "updated", "deleted"]


def test_only_the_chosen_columns_are_told(heard: list[RowEvent]) -> None:
    """With the key, under the name that the model gives; other changes are none."""
    seat = Seat(row="A", number=1, note="x").save()
    seat.update(note="y")
    seat.update(taken=True)
    told = arrive(heard)
    assert told == [
        ("created", ("A", 1), None, {"row": "A", "number": 1, "taken": False}),
        ("updated", ("A", 1), {"taken": False}, {"taken": True}),
    ]
    assert changes(Seat).created.__event_type__ == "theatre.seat.created"


def test_what_rolls_back_is_not_told(heard: list[RowEvent], configured_crash_pair: Pair) -> None:
    """Neither a transaction nor a savepoint."""
    with transaction("default"):
        kept = Member(name="kept").save()
        with pytest.raises(Rollback), transaction("default"):
            Member(name="gone").save()
            kept.update(credit=Decimal(3))
            raise Rollback
    with pytest.raises(Rollback), transaction("default"):
        kept.delete()
        raise Rollback
    assert [one[:2] for one in arrive(heard)] == [("created", kept.id)]
    assert stored(configured_crash_pair.first) == 0


def test_a_stale_record_tells_nothing(heard: list[RowEvent]) -> None:
    """Somebody else has the row's newer version; the error is swallowed and the transaction commits."""
    stale = Member(name="a").save()
    Member.find(stale.id).update(credit=Decimal(2))
    arrive(heard)
    with transaction("default"):
        for write in (lambda: stale.update(credit=Decimal(3)), stale.delete):
            with pytest.raises(StaleRecord):
                write()
        Member(name="b").save()
    assert [(kind, new["name"]) for kind, _, _, new in arrive(heard)] == [("created", "b")]


def test_a_saga_is_told_of_if_it_commits_and_its_undo_is_not(
    heard: list[RowEvent], configured_crash_pair: Pair
) -> None:
    """In home and in the branch; rows and events agree."""
    with saga("book"):
        member = Member(name="a").save()
        Seat(row="A", number=1, taken=True).save()
        Member.find_all().where(id=member.id).update_all(credit=Decimal(7))
    told = arrive(heard)
    assert [one[0] for one in told if one[1] == member.id] == ["created", "updated"]
    assert [one[0] for one in told if one[1] == ("A", 1)] == ["created"]
    assert len(told) == 3
    for point in ("saga.before-first-commit", "saga.branch-committed", "saga.home-recorded"):
        with crash_at(point), pytest.raises(SagaAborted), saga("book"):
            Member.find(member.id).update(credit=Decimal(8))
            Seat.find(("A", 1)).update(taken=False)
            Seat(row="B", number=1).save()
        for source in ("default", "secondary"):
            sweep_sagas(source)
        assert arrive(heard) == []
        assert [stored(database) for database in configured_crash_pair.databases] == [0, 0]
    assert [one.taken for one in Seat.find_all().all()] == [True]


def test_old_rows_that_the_model_would_refuse_are_told_too(heard: list[RowEvent], configured_crash_pair: Pair) -> None:
    """The constraint came later than the row."""
    member = Member(name="a").save()
    configured_crash_pair.first.execute("UPDATE change_member SET name = ''")
    arrive(heard)
    Member.find_all().where(id=member.id).update_all(credit=Decimal(2))
    assert [one[0] for one in arrive(heard)] == ["updated"]


@pytest.mark.parametrize(
    ("declared", "complaint"),
    [
        ({"__publish__": ("nme",)}, "no field 'nme'"),
        ({"__publish__": True, "__publish_except__": ("nme",)}, "no field 'nme'"),
        ({"__publish__": True, "__publish_except__": ("id",)}, "by which subscribers know the row"),
        ({}, "publishes no changes"),
    ],
)
def test_a_declaration_that_means_nothing_is_refused(declared: dict[str, Any], complaint: str) -> None:
    """With the field's name."""
    namespace: dict[str, Any] = {
        "__module__": __name__,
        "__annotations__": {"id": "int | None", "name": str},
        "__table_name__": "change_odd",
        "__connection__": "default",
        "id": None,
    }
    namespace |= declared
    bases = (IntegerPKMixin, ActiveRecord)
    with registry.isolated(), pytest.raises(ModelDefinitionError, match=complaint):
        changes(types.new_class("Odd", bases, exec_body=lambda body: body.update(namespace)))


def test_two_published_tables_of_one_name_need_names_of_their_own() -> None:
    """Their events would be the same type; the message says how to name one."""

    class Twin(IntegerPKMixin, ActiveRecord):
        __table_name__ = "change_member"
        __connection__ = "secondary"
        __publish__ = True

        id: int | None = None

    changes(Member)
    with pytest.raises(EventDefinitionError, match=r"'change_member.created' is taken"):
        changes(Twin)


def test_without_the_outbox_a_published_model_is_refused(configured_crash_pair: Pair, monkeypatch: Any) -> None:
    """Else nobody would notice that nothing is told."""
    monkeypatch.setattr(watch, "_served", set())
    with pytest.raises(ModelDefinitionError, match=r"import crosstie\.outbox"):
        Member(name="a").save()
    code = "import sys, crosstie.orm; sys.exit('crosstie.outbox' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=child_environment({}), check=False).returncode == 0
