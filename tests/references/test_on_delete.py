"""What becomes of rows in one database when the rows of another that they refer to are deleted."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar
from uuid import UUID, uuid4

import pytest

from bench.databases import Pair
from bench.faults import crash_at
from bench.waiting import eventually
from crosstie.orm import ActiveRecord, ConnectionManager, referrer, transaction
from crosstie.orm.errors import CrossDatabaseWriteWarning, DeleteRestricted, ModelDefinitionError, StaleRecord
from crosstie.orm.field import Column, IntegerPKMixin, SoftDeleteMixin
from crosstie.orm.placement import Tenants, connected_to
from crosstie.orm.relation import BelongsTo
from crosstie.orm.release import release
from crosstie.outbox import pending, propagation, sync_routes
from crosstie.outbox.errors import ReferenceUnrouted
from crosstie.sagas import SagaAborted, saga
from references.family import count, define, open_family, propagate, user_with


@pytest.fixture
def family(configured: Pair) -> Any:
    """The models, over every pair of databases."""
    return open_family()


def outboxes(pair: Pair) -> list[int]:
    """How many events wait in each database."""
    return [int(database.scalar("SELECT count(*) FROM crosstie_outbox")) for database in pair.databases]


def test_children_go_and_their_children_too(family: Any, configured: Pair) -> None:
    """From the first database to the second, and back to the first; those of another parent stay."""
    user, other = user_with(family, posts=3, comments=2), user_with(family, posts=1, comments=1)
    user.delete()
    assert (count(configured, "posts"), count(configured, "comments")) == (4, 7)
    propagate()
    assert count(configured, "posts") == count(configured, "posts", f"user_id = {other.id}") == 1
    assert count(configured, "comments") == 1
    assert outboxes(configured) == [0, 0]


def test_set_null_keeps_the_children(family: Any, configured: Pair) -> None:
    """Only the reference is taken away, and only that to the deleted row."""
    user, other = user_with(family, badges=2), user_with(family, badges=1)
    user.delete()
    propagate()
    assert count(configured, "badges", "user_id IS NULL") == 2
    assert count(configured, "badges", f"user_id = {other.id}") == 1


def test_restrict_refuses_the_delete(family: Any, configured: Pair) -> None:
    """As long as a row refers to it, by `delete` and by `delete_all`; nothing is deleted and nothing told."""
    user = user_with(family, posts=1)
    invoice = family.Invoice(user_id=user.id).save()
    with pytest.raises(DeleteRestricted, match=rf"User with id = {user.id} .*Invoice in database 'secondary'"):
        user.delete()
    with pytest.raises(DeleteRestricted):
        family.User.find_all().delete_all()
    assert not user.is_deleted
    assert (count(configured, "users"), propagate()) == (1, 0)
    invoice.delete()
    user.delete()
    assert count(configured, "users") == 0


def test_restrict_sees_what_the_same_saga_has_done(family: Any, configured: Pair) -> None:
    """An invoice that the saga has deleted holds nobody back, and one that it has inserted does."""
    user, kept = user_with(family), user_with(family)
    invoice = family.Invoice(user_id=user.id).save()
    with saga("leave"):
        invoice.delete()
        user.delete()
    with pytest.raises(DeleteRestricted), saga("leave"):
        family.Invoice(user_id=kept.id).save()
        kept.delete()
    assert (count(configured, "users"), count(configured, "invoices")) == (1, 0)


def test_delete_all_tells_of_the_rows_that_it_deleted(family: Any, configured: Pair, monkeypatch: Any) -> None:
    """As many as there are, in events of a bounded number of keys."""
    monkeypatch.setattr(propagation, "KEYS_PER_EVENT", 3)
    users = [user_with(family, posts=1) for _ in range(8)]
    assert family.User.find_all().where(id=[user.id for user in users[:7]]).delete_all() == 7
    assert outboxes(configured)[0] == 6  # 3 + 3 + 1 keys, to posts and to badges
    propagate()
    assert configured.second.rows("SELECT user_id FROM posts") == [(users[7].id,)]


@pytest.mark.parametrize("table", ["posts", "badges"])
def test_a_large_set_is_worked_off_in_transactions_of_bounded_size(
    family: Any, configured: Pair, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """What is left goes on as one event from the children's database to itself, and all of it is done."""
    monkeypatch.setattr(propagation, "ROWS_PER_TRANSACTION", 4)
    bounds: list[tuple[int, int]] = []

    def watched(*arguments: Any, limit: int) -> int:
        released = release(*arguments, limit=limit)
        bounds.append((released, limit))
        return released

    monkeypatch.setattr(propagation, "release", watched)
    users = [user_with(family, **{table: 5}) for _ in range(3)]
    kept = user_with(family, **{table: 1})
    family.User.find_all().where(id=[user.id for user in users]).delete_all()
    propagate()
    assert count(configured, table, "user_id IS NOT NULL") == count(configured, table, f"user_id = {kept.id}") == 1
    assert all(released <= limit <= 4 for released, limit in bounds)
    assert sum(released for released, _ in bounds) == 15
    assert outboxes(configured) == [0, 0]


def test_a_rollback_takes_the_word_back(family: Any, configured: Pair) -> None:
    """With a transaction, with a savepoint, and the delete of a row that is gone tells nobody."""
    user, gone = user_with(family, posts=1), user_with(family, posts=1)
    with pytest.raises(ZeroDivisionError), transaction("default"):
        user.delete()
        raise ZeroDivisionError
    with transaction("default"), pytest.raises(ZeroDivisionError), transaction("default"):
        user.delete()
        raise ZeroDivisionError
    assert not user.is_deleted
    configured.first.execute(f"DELETE FROM users WHERE id = {gone.id}")
    with pytest.raises(StaleRecord):
        gone.delete()
    assert (propagate(), count(configured, "posts"), count(configured, "users")) == (0, 2, 1)


@pytest.mark.parametrize("home", ["default", "secondary"])
def test_in_a_saga_the_word_leaves_if_and_only_if_it_commits(family: Any, configured: Pair, home: str) -> None:
    """Whether the parent's database is home or a branch of it."""
    user, other = user_with(family, posts=2), user_with(family, posts=1)
    with crash_at("saga.branch-committed"), pytest.raises(SagaAborted), saga("leave", home=home):
        user.delete()
        family.Post(user_id=other.id).save()
    assert (propagate(), count(configured, "posts"), count(configured, "users")) == (0, 3, 2)
    with saga("leave", home=home):
        family.User.find(user.id).delete()
        family.Post(user_id=other.id).save()
    propagate()
    assert count(configured, "posts") == count(configured, "posts", f"user_id = {other.id}") == 2


def test_children_of_a_parent_that_came_back_stay(family: Any, configured: Pair) -> None:
    """Its key was given again before word of the former parent arrived: the children are the new one's."""
    user = user_with(family)
    user.delete()
    family.User(id=user.id, name="the next").save()
    family.Post(user_id=user.id).save()
    assert propagate() > 0
    assert count(configured, "posts") == 1


def test_a_delete_before_the_routes_are_written_is_refused(configured: Pair) -> None:
    """The word would be dropped, as nobody had subscribed to it here."""
    family = define()
    for model in vars(family).values():
        model.create_table()
    user = user_with(family, posts=1)
    with pytest.raises(ReferenceUnrouted, match="crosstie init"):
        user.delete()
    assert count(configured, "users") == 1
    sync_routes()
    user.delete()
    propagate()
    assert count(configured, "posts") == 0


def test_what_cannot_go_on_waits_for_its_route(family: Any, configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the children's database lost the subscription to its own rest, nothing is dropped, and nobody need act."""
    monkeypatch.setattr(propagation, "ROWS_PER_TRANSACTION", 2)
    user = user_with(family, posts=3)
    configured.second.execute("DELETE FROM crosstie_route WHERE event_type LIKE %s", ("%secondary>secondary",))
    user.delete()
    propagate()
    assert "Run `crosstie init`" in str([one.last_error for one in pending("default")])
    assert count(configured, "posts") == 3
    sync_routes()
    eventually(lambda: [propagate(), count(configured, "posts")][1] == 0, describe="the children are deleted")


def test_a_delete_that_nobody_would_carry_is_refused(
    family: Any, configured: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has not loaded the outbox must not leave children behind without a word."""
    user = user_with(family, posts=1)
    monkeypatch.setattr(referrer, "_carriers", [])
    with pytest.raises(ModelDefinitionError, match=r"import crosstie\.outbox"):
        user.delete()
    assert (count(configured, "users"), user.is_deleted) == (1, False)


def test_a_delete_inside_another_databases_transaction_warns(family: Any) -> None:
    """It commits by itself, as any write there does."""
    user = user_with(family)
    with transaction("secondary"), pytest.warns(CrossDatabaseWriteWarning, match="'default'"):
        user.delete()
    assert user.is_deleted


def test_a_hidden_row_is_there_until_it_is_deleted_for_ever(configured: Pair) -> None:
    """A soft delete tells nobody; hidden children hold a parent back, and go with it, like others."""

    class Album(SoftDeleteMixin, IntegerPKMixin, ActiveRecord):
        __table_name__ = "albums"
        __connection__ = "default"

    class Track(SoftDeleteMixin, IntegerPKMixin, ActiveRecord):
        __table_name__ = "tracks"
        __connection__ = "secondary"

        album_id: int
        album: ClassVar[BelongsTo[Album]] = BelongsTo(foreign_key="album_id", on_delete="cascade")

    class Cover(SoftDeleteMixin, IntegerPKMixin, ActiveRecord):
        __table_name__ = "covers"
        __connection__ = "secondary"

        album_id: int
        album: ClassVar[BelongsTo[Album]] = BelongsTo(foreign_key="album_id", on_delete="restrict")

    for model in (Album, Track, Cover):
        model.create_table()
    sync_routes()
    album = Album().save()
    assert album.id is not None
    track, cover = Track(album_id=album.id).save(), Cover(album_id=album.id).save()
    for record in (album, track, cover):
        record.delete()
    assert propagate() == 0
    with pytest.raises(DeleteRestricted):
        album.delete_forever()
    cover.delete_forever()
    album.delete_forever()
    propagate()
    assert configured.second.scalar("SELECT count(*) FROM tracks") == 0


def test_children_in_the_same_database_go_the_same_way(configured: Pair) -> None:
    """A tree in one table, level by level."""

    class Node(IntegerPKMixin, ActiveRecord):
        __table_name__ = "nodes"
        __connection__ = "secondary"

        id: int | None = None
        parent_id: int | None = None

        parent: ClassVar[BelongsTo[Node]] = BelongsTo(foreign_key="parent_id", on_delete="cascade")

    Node.create_table()
    sync_routes()
    root = Node().save()
    for _ in range(2):
        child = Node(parent_id=root.id).save()
        for _ in range(2):
            Node(parent_id=child.id).save()
    Node().save()
    root.delete()
    propagate(["secondary"])
    assert configured.second.scalar("SELECT count(*) FROM nodes") == 1


def test_keys_of_other_types_and_columns_that_are_no_primary_key(configured: Pair) -> None:
    """UUIDs, and text in a column of its own, to children with a composite key; the row counts, not what is unsaved."""

    class Account(ActiveRecord):
        __table_name__ = "accounts"
        __connection__ = "default"

        id: Annotated[UUID, Column(primary_key=True)]
        email: Annotated[str, Column(unique=True)]

    class Seat(ActiveRecord):
        __table_name__ = "seats"
        __connection__ = "secondary"

        row: Annotated[str, Column(primary_key=True)]
        number: Annotated[int, Column(primary_key=True)]
        account_id: UUID | None = None
        email: str | None = None

        account: ClassVar[BelongsTo[Account]] = BelongsTo(foreign_key="account_id", on_delete="cascade")
        holder: ClassVar[BelongsTo[Account]] = BelongsTo(foreign_key="email", primary_key="email", on_delete="set_null")

    for model in (Account, Seat):
        model.create_table()
    sync_routes()
    one, two = (Account(id=uuid4(), email=email).save() for email in ("ä'%", "b"))
    for number, (account_id, email) in enumerate([(one.id, "b"), (two.id, "ä'%"), (None, "old"), (two.id, None)]):
        Seat(row="A", number=number, account_id=account_id, email=email).save()
    one.email = "b"  # not saved: children of the row's own value are meant
    one.delete()
    propagate()
    assert configured.second.rows("SELECT number, email FROM seats ORDER BY number") == [
        (1, None),
        (2, "old"),
        (3, None),
    ]


@pytest.mark.parametrize(
    ("upper", "lower", "nullable", "complaint"),
    [
        ("set_null", "none", False, "takes no NULL"),
        ("cascade", "restrict", True, "could delete neither the rows nor leave them"),
    ],
)
def test_what_could_never_be_done_is_refused(
    configured: Pair, upper: Any, lower: Any, nullable: bool, complaint: str
) -> None:
    """At the first delete and when routes are written, not in a worker again and again."""

    class Top(IntegerPKMixin, ActiveRecord):
        __table_name__ = "tops"
        __connection__ = "default"

    if nullable:

        class Middle(IntegerPKMixin, ActiveRecord):
            __table_name__ = "middles"
            __connection__ = "secondary"

            top_id: int | None
            top: ClassVar[BelongsTo[Top]] = BelongsTo(foreign_key="top_id", on_delete=upper)

    else:

        class Middle(IntegerPKMixin, ActiveRecord):  # type: ignore[no-redef]
            __table_name__ = "middles"
            __connection__ = "secondary"

            top_id: int
            top: ClassVar[BelongsTo[Top]] = BelongsTo(foreign_key="top_id", on_delete=upper)

    class Bottom(IntegerPKMixin, ActiveRecord):
        __table_name__ = "bottoms"
        __connection__ = "default"

        middle_id: int
        middle: ClassVar[BelongsTo[Middle]] = BelongsTo(foreign_key="middle_id", on_delete=lower)

    Top.create_table()
    top = Top().save()
    with pytest.raises(ModelDefinitionError, match=complaint):
        top.delete()
    with pytest.raises(ModelDefinitionError, match=complaint):
        sync_routes()


def test_models_of_tenants_are_refused(configured: Pair) -> None:
    """Nobody would know in whose database the children are; and a tenant's own deletes are none of this."""

    class Tenant(IntegerPKMixin, ActiveRecord):
        __table_name__ = "tenants"
        __connection__ = Tenants("{tenant}")

    class Room(IntegerPKMixin, ActiveRecord):
        __table_name__ = "rooms"
        __connection__ = "secondary"

        tenant_id: int
        tenant: ClassVar[BelongsTo[Tenant]] = BelongsTo(foreign_key="tenant_id", on_delete="cascade")

    Room.create_table()
    with pytest.raises(ModelDefinitionError, match="chosen anew for each statement"):
        Room(tenant_id=1).save().delete()
    with connected_to(tenant="default"):
        Tenant.create_table()
        Tenant().save().delete()


def test_another_word_is_refused() -> None:
    """At the declaration, with the nearest word that is meant."""
    with pytest.raises(ModelDefinitionError, match="'cascade'"):
        BelongsTo(foreign_key="user_id", on_delete="cascad")  # type: ignore[arg-type]


def test_a_worker_without_the_model_leaves_the_event_alone(family: Any, configured: Pair) -> None:
    """It says what to import, and a worker that has it does the work."""
    from crosstie.orm.registry import registry
    from crosstie.outbox import subscription

    user_with(family, posts=1).delete()
    known = registry._models
    registry._models = {}
    registry.generation += 1
    subscription._subscriptions.clear()
    assert propagate() == 0
    assert "no subscriber" in str([one.last_error for one in pending("default")])
    registry._models = known
    registry.generation += 1
    ConnectionManager.get("default")
    configured.first.execute("UPDATE crosstie_lane SET ready_at_ms = 0")
    propagate()
    assert count(configured, "posts") == 0
