"""A desk whose tickets are in one database and whose users are in two others, by region."""

from __future__ import annotations

from typing import Any, ClassVar

from crosstie.orm import ActiveRecord, ShardMap, connected_to
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo

__all__ = ["UNION", "WRITTEN", "define_desk"]

UNION = "default.tickets.user_id -> {region}.users.id"
WRITTEN = "default.tickets.user_id -> {secondary, tertiary}.users.id"


def define_desk() -> Any:
    """Define users, 1 to 3 in the first region and 11 to 13 in the second, and a ticket of each."""

    class User(IntegerPKMixin, ActiveRecord):
        __table_name__ = "users"
        __connection__ = ShardMap({"eu": "secondary", "us": "tertiary"}, by="region")

        id: int | None = None

    class Ticket(IntegerPKMixin, ActiveRecord):
        __table_name__ = "tickets"
        __connection__ = "default"

        id: int | None = None
        user_id: int | None = None

        user: ClassVar[BelongsTo[User]] = BelongsTo(foreign_key="user_id", audit="0 4 * * *")

    Ticket.create_table()
    for region, first in (("eu", 1), ("us", 11)):
        with connected_to(region=region):
            User.create_table()
            User.bulk_create([User(id=first + number) for number in range(3)])
    Ticket.bulk_create([Ticket(user_id=user_id) for user_id in (1, 2, 3, 11, 12, 13, None)])
    return User, Ticket
