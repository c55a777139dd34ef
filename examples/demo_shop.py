"""The shop of the demo: users and what they spent in one database, their orders and deliveries in another."""

from __future__ import annotations

import random
import sys
from typing import ClassVar

from crosstie.orm import ActiveRecord
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo, HasMany
from crosstie.outbox import Event, subscriber
from crosstie.sagas import saga


class User(IntegerPKMixin, ActiveRecord):
    """A customer."""

    __table_name__ = "demo_users"
    __connection__ = "primary"

    id: int | None = None
    name: str
    spent_cents: int = 0

    orders: ClassVar[HasMany[Order]] = HasMany(foreign_key="user_id", inverse_of="user")


class Order(IntegerPKMixin, ActiveRecord):
    """What a user bought; the user lives in the other database, where no foreign key can reach."""

    __table_name__ = "demo_orders"
    __connection__ = "secondary"

    id: int | None = None
    user_id: int
    amount_cents: int

    user: ClassVar[BelongsTo[User]] = BelongsTo(foreign_key="user_id", inverse_of="orders")


class Delivery(IntegerPKMixin, ActiveRecord):
    """One row for each time that an event was applied: twice the same order would be two rows."""

    __table_name__ = "demo_deliveries"
    __connection__ = "secondary"

    id: int | None = None
    order_id: int


class OrderPlaced(Event):
    """Told by the primary database once a saga has committed."""

    __event_type__ = "demo.order-placed"
    __key__ = "user_id"

    user_id: int
    order_id: int


@subscriber(OrderPlaced, database="secondary")
def deliver(event: OrderPlaced) -> None:
    """Runs in a worker, inside one transaction with the record that it has run."""
    Delivery(order_id=event.order_id).save()


def place_order(user_id: int, amount_cents: int) -> None:
    """Two databases, one outcome."""
    with saga("place-order"):
        User.find(user_id).increment(spent_cents=amount_cents)
        order = Order(user_id=user_id, amount_cents=amount_cents).save()
        assert order.id is not None
        OrderPlaced(user_id=user_id, order_id=order.id).publish()


if __name__ == "__main__":
    # A customer's process: `python demo_shop.py FIRST_USER LAST_USER ORDERS`.
    first, last, orders = (int(argument) for argument in sys.argv[1:])
    choose = random.Random(first)
    for _ in range(orders):
        place_order(choose.randint(first, last), choose.randint(100, 99_999))
