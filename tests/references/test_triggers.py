"""Delete triggers: what is deleted by raw SQL is told to the children's database as well."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar
from uuid import UUID, uuid4

import pytest

from bench.databases import Pair
from bench.faults import crash_at
from crosstie.orm import ActiveRecord, ConnectionManager
from crosstie.orm.errors import ModelDefinitionError
from crosstie.orm.field import Column, IntegerPKMixin, UUIDMixin
from crosstie.orm.relation import BelongsTo
from crosstie.outbox import sync_routes, trigger
from crosstie.sagas import SagaAborted, SagaNotUndoable, saga
from references.family import count, open_family, propagate, user_with


def create() -> list[str]:
    """The tables of the triggers that were made."""
    return [one.table for name in ConnectionManager.names() for one in make(name)]


def make(name: str) -> list[trigger.Trigger]:
    """The triggers that were made in one database."""
    return trigger.create_triggers(ConnectionManager.get(name))


@pytest.fixture
def family(configured: Pair) -> Any:
    """The models, over every pair of databases, with triggers."""
    models = open_family()
    assert create() == ["users", "users", "posts"]  # for posts and badges, and for comments
    return models


def test_a_delete_by_sql_is_acted_upon_and_so_are_those_that_follow(family: Any, configured: Pair) -> None:
    """Of several rows by one statement; children of others stay."""
    users = [user_with(family, posts=2, comments=1, badges=1) for _ in range(3)]
    configured.first.execute(f"DELETE FROM users WHERE id <> {users[2].id}")
    propagate()
    assert count(configured, "posts") == count(configured, "posts", f"user_id = {users[2].id}") == 2
    assert count(configured, "comments") == 2
    assert count(configured, "badges", "user_id IS NULL") == 2
    assert count(configured, "badges") == 3


def test_a_delete_of_the_orm_is_told_twice_and_done_once(family: Any, configured: Pair) -> None:
    """The second event finds nothing to do."""
    user, other = user_with(family, posts=1), user_with(family, posts=1)
    user.delete()
    assert configured.first.scalar("SELECT count(*) FROM crosstie_outbox") == 4
    propagate()
    assert count(configured, "posts", f"user_id = {other.id}") == count(configured, "posts") == 1


def test_creating_is_idempotent_and_dropping_leaves_nothing(family: Any, configured: Pair) -> None:
    """And the user's own triggers are nobody's business."""
    assert create() == []
    dropped = [
        one.table for name in ConnectionManager.names() for one in trigger.drop_triggers(ConnectionManager.get(name))
    ]
    assert sorted(dropped) == ["posts", "users", "users"]
    user = user_with(family, posts=1)
    configured.first.execute(f"DELETE FROM users WHERE id = {user.id}")
    assert (propagate(), count(configured, "posts")) == (0, 1)
    assert create() == ["users", "users", "posts"]


def test_a_statement_that_deletes_many_rows_is_told_in_events_of_bounded_size(
    configured: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row by row, or, on PostgreSQL, in portions of the statement; no key is missing."""
    monkeypatch.setattr(trigger, "KEYS_PER_EVENT", 3)
    models = open_family()
    create()
    for _ in range(8):
        user_with(models, posts=1)
    configured.first.execute("DELETE FROM users")
    waiting = int(configured.first.scalar("SELECT count(*) FROM crosstie_outbox"))
    assert waiting == (6 if configured.first.kind == "postgresql" else 16)
    propagate()
    assert count(configured, "posts") == 0


def test_keys_of_other_types_and_awkward_names(configured: Pair) -> None:
    """UUIDs, which databases store differently, text with quotes, and a table that must be quoted; NULL is no key."""

    class Order(UUIDMixin, ActiveRecord):
        __table_name__ = "order % of 'it'"
        __connection__ = "default"

        code: Annotated[str | None, Column(name="select", unique=True)] = None

    class Item(IntegerPKMixin, ActiveRecord):
        __table_name__ = "items"
        __connection__ = "secondary"

        order_id: UUID | None = None
        code: str | None = None

        order: ClassVar[BelongsTo[Order]] = BelongsTo(foreign_key="order_id", on_delete="set_null")
        by_code: ClassVar[BelongsTo[Order]] = BelongsTo(foreign_key="code", primary_key="code", on_delete="set_null")

    Order.create_table()
    Item.create_table()
    sync_routes()
    make("default")
    kept, gone = Order(id=uuid4(), code="b").save(), Order(id=uuid4(), code='it\'s 100% "ä" \\ 7').save()
    for order in (kept, gone):
        Item(order_id=order.id, code=order.code).save()
    again = Order(code="again").save()
    Item(order_id=again.id, code=None).save()
    for order in (gone, again):
        with ConnectionManager.get("default").engine.begin() as connection:
            connection.execute(Order.__table__.delete().where(Order.c.id == order.id))
    Order(id=again.id).save()
    propagate()
    found = Item.find_all().order_by("id").all()
    assert [(one.order_id, one.code) for one in found] == [(kept.id, "b"), (None, None), (again.id, None)]


def test_a_branch_may_insert_and_update_and_its_undone_insert_takes_the_children_along(
    family: Any, configured: Pair
) -> None:
    """The undo is a delete, and what referred to the row meanwhile is taken care of."""
    user = user_with(family)
    with crash_at("saga.branch-committed"), pytest.raises(SagaAborted), saga("join", home="secondary"):
        family.Badge(user_id=None).save()
        added = family.User().save().id
        user.name = "changed"
        user.save()
    family.Post(user_id=added).save()
    assert count(configured, "users") == count(configured, "users", "name = 'somebody'") == 1
    propagate()
    assert count(configured, "posts") == 0
    assert count(configured, "badges") == 0


def test_a_branch_may_not_delete_what_a_trigger_tells_of(family: Any, configured: Pair) -> None:
    """It is told at once, and an abort would come too late: its database must be home."""
    user = user_with(family, posts=1)
    with pytest.raises(SagaNotUndoable, match="crosstie_deleted_"), saga("leave", home="secondary"):
        family.Badge(user_id=None).save()
        user.delete()
    with saga("leave", home="default"):
        family.Badge(user_id=None).save()
        user.delete()
    propagate()
    assert (count(configured, "users"), count(configured, "posts"), count(configured, "badges")) == (0, 0, 1)


def test_a_key_that_no_trigger_can_tell_is_refused(configured: Pair) -> None:
    """JSON has no bytes; the ORM's own deletes of such rows are acted upon."""

    class Blob(ActiveRecord):
        __table_name__ = "blobs"
        __connection__ = "default"

        id: Annotated[bytes, Column(primary_key=True)]

    class Part(IntegerPKMixin, ActiveRecord):
        __table_name__ = "parts"
        __connection__ = "secondary"

        blob_id: bytes
        blob: ClassVar[BelongsTo[Blob]] = BelongsTo(foreign_key="blob_id", on_delete="cascade")

    for model in (Blob, Part):
        model.create_table()
    sync_routes()
    with pytest.raises(ModelDefinitionError, match="integers, text or UUIDs"):
        make("default")
    Blob(id=b"\x00\xff").save()
    Part(blob_id=b"\x00\xff").save()
    Blob.find(b"\x00\xff").delete()
    propagate()
    assert configured.second.scalar("SELECT count(*) FROM parts") == 0
