"""A worker is killed while it aligns copies; the next one finishes. Parents with many children; both ways at once."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final

import pytest

from bench.databases import Pair
from bench.faults import crash_env
from bench.processes import Spawner
from bench.waiting import eventually
from copies.forum import copied, differing, open_forum, propagate, stored
from crosstie.orm import ActiveRecord
from crosstie.orm.denormalized import Denormalized
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo
from crosstie.outbox import alignment, copies, sweep_lanes, sync_routes

WORKER: Final = """
    from crosstie.outbox import copies
    from copies.forum import define, propagate
    copies.ROWS_PER_TRANSACTION = 3
    models = define()
    propagate()
"""
POINTS: Final = (
    "copies.locked",
    "copies.aligned",
    "relay.applied",
    "relay.target-committed",
    "relay.acknowledged",
    "relay.source-committed",
)


@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_in_a_batch_leaves_the_rest_to_the_next(
    configured_crash_pair: Pair, spawn: Spawner, point: str, nth: int
) -> None:
    """SIGKILL inside the first batch or a later one: every copy is right in the end."""
    pair = configured_crash_pair
    forum = open_forum()
    ann, bob = forum.User(username="ann").save(), forum.User(username="bob").save()
    forum.Post.bulk_create([forum.Post(user_id=user.id) for user in (ann, bob) for _ in range(8)])
    propagate()
    ann.update(username="anna")
    bob.update(username="rob")
    spawn.code(WORKER, environment=pair.environment | crash_env(point, nth)).wait_killed()
    assert stored(pair.databases) > 0

    def finished() -> bool:
        for database in pair.databases:
            database.execute("UPDATE crosstie_lane SET lease_until_ms = 0, ready_at_ms = 0")
        for source in ("default", "secondary"):
            sweep_lanes(source, owner="next")
        return stored(pair.databases) == 0

    eventually(finished, describe="both outboxes are empty")
    assert copied(pair) == [(ann.id, "anna")] * 8 + [(bob.id, "rob")] * 8


def test_a_parent_with_many_children_is_aligned_in_portions(configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """No transaction locks more rows than the bound; what is left goes on as another event."""
    monkeypatch.setattr(copies, "ROWS_PER_TRANSACTION", 40)
    forum = open_forum()
    users = [forum.User(username=f"user {n}").save() for n in range(4)]
    forum.Post.bulk_create([forum.Post(user_id=users[0].id) for _ in range(130)])
    forum.Post.bulk_create([forum.Post(user_id=user.id) for user in users for _ in range(5)])
    propagate()
    forum.User.find_all().update_all(username="x")
    portions = []
    align = alignment.align_children

    def counting(*arguments: Any, **named: Any) -> Any:
        found = align(*arguments, **named)
        portions.append(found[0])
        return found

    monkeypatch.setattr(copies, "align_children", counting)
    propagate()
    assert set(copied(configured)) == {(user.id, "x") for user in users}
    assert max(portions) <= 40
    assert sum(portions) == 150
    assert stored(configured.databases) == 0


def test_many_changed_parents_are_aligned_by_few_statements(configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """One UPDATE for the batch, however many values it brings."""
    forum = open_forum()
    users = forum.User.bulk_create([forum.User(username=f"user {n}") for n in range(60)])
    forum.Post.bulk_create([forum.Post(user_id=user.id) for user in users])
    propagate()
    for user in users:
        user.username += "!"
    forum.User.bulk_update(users)
    writes = []
    write = alignment._write

    def counting(*arguments: Any) -> None:
        writes.append(1)
        write(*arguments)

    monkeypatch.setattr(alignment, "_write", counting)
    propagate()
    assert differing(configured) == []
    assert copied(configured)[0] == (users[0].id, "user 0!")
    assert len(writes) == 1


def test_two_databases_that_copy_from_each_other_do_not_echo(configured: Pair) -> None:
    """A copy that is written is nobody's original."""

    class Customer(IntegerPKMixin, ActiveRecord):
        __table_name__ = "customers"
        __connection__ = "default"

        id: int | None = None
        name: str
        last_order_id: int | None = None
        last_sku: Annotated[str | None, Denormalized("last_order.sku")] = None

        last_order: ClassVar[BelongsTo[Order]] = BelongsTo(foreign_key="last_order_id")

    class Order(IntegerPKMixin, ActiveRecord):
        __table_name__ = "orders"
        __connection__ = "secondary"

        id: int | None = None
        sku: str
        customer_id: int | None
        customer_name: Annotated[str | None, Denormalized("customer.name")] = None

        customer: ClassVar[BelongsTo[Customer]] = BelongsTo(foreign_key="customer_id")

    for model in (Customer, Order):
        model.create_table()
    assert not sync_routes().failed
    customer = Customer(name="ann").save()
    order = Order(sku="a", customer_id=customer.id).save()
    customer.update(last_order_id=order.id)
    propagate()
    customer.update(name="anna")
    order.update(sku="b")
    assert propagate() == 2, "one event each, and none for what they changed"
    assert customer.refresh().last_sku == "b"
    assert order.refresh().customer_name == "anna"
    assert propagate() == 0
