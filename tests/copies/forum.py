"""Users in one database; their posts, which copy names and more, in the other.

The models are made by a call, so that each test has its own. Child processes call it too.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from bench.databases import Pair, TestDatabase
from bench.waiting import eventually
from crosstie.orm import ActiveRecord
from crosstie.orm.column import Column
from crosstie.orm.denormalized import Denormalized
from crosstie.orm.field import IntegerPKMixin, OptimisticLockMixin, TimestampMixin
from crosstie.orm.relation import BelongsTo
from crosstie.outbox import sweep_lanes, sync_routes

__all__ = ["Rank", "copied", "define", "differing", "open_forum", "propagate", "settle", "stored"]


class Rank(enum.Enum):
    """What a user is."""

    GUEST = "guest"
    MEMBER = "member"


def define() -> Any:
    """The models: a post copies five columns of its user; a badge copies one by another key."""

    class User(IntegerPKMixin, ActiveRecord):
        __table_name__ = "users"
        __connection__ = "default"

        id: int | None = None
        email: Annotated[str | None, Column(unique=True)] = None
        username: str = "somebody"
        rank: Rank | None = None
        balance: Annotated[Decimal | None, Field(max_digits=12, decimal_places=2)] = None
        seen_at: datetime | None = None
        settings: dict[str, Any] | None = None
        note: str | None = None

    class Post(IntegerPKMixin, OptimisticLockMixin, TimestampMixin, ActiveRecord):
        __table_name__ = "posts"
        __connection__ = "secondary"

        id: int | None = None
        user_id: int | None = None
        title: str = ""
        username: Annotated[str | None, Denormalized("user.username")] = None
        user_rank: Annotated[Rank | None, Denormalized("user.rank")] = None
        balance: Annotated[Decimal | None, Field(max_digits=12, decimal_places=2), Denormalized("user.balance")] = None
        seen_at: Annotated[datetime | None, Denormalized("user.seen_at")] = None
        settings: Annotated[dict[str, Any] | None, Denormalized("user.settings")] = None

        user: ClassVar[BelongsTo[User]] = BelongsTo(foreign_key="user_id")

    class Badge(ActiveRecord):
        __table_name__ = "badges"
        __connection__ = "secondary"

        owner: Annotated[str | None, Column(name="owner_email")] = None
        place: Annotated[str, Column(primary_key=True)]
        number: Annotated[int, Column(primary_key=True)]
        owner_name: Annotated[str | None, Column(name="owner_username"), Denormalized("user.username")] = None

        user: ClassVar[BelongsTo[User]] = BelongsTo(foreign_key="owner", primary_key="email")

    return SimpleNamespace(User=User, Post=Post, Badge=Badge)


def open_forum(models: Any = None) -> Any:
    """The models with their tables, and the routes in both databases."""
    models = define() if models is None else models
    for model in vars(models).values():
        model.create_table()
    assert not sync_routes().failed
    return models


def propagate(sources: Iterable[str] = ("default", "secondary")) -> int:
    """Sweep all outboxes until nothing more is found; returns how many events were applied."""
    applied = 0
    while found := sum(sweep_lanes(source, owner="test") for source in sources):
        applied += found
    return applied


def stored(databases: Iterable[TestDatabase]) -> int:
    """How many events wait."""
    return sum(int(one.scalar("SELECT count(*) FROM crosstie_outbox")) for one in databases)


def settle(databases: Iterable[TestDatabase]) -> None:
    """Sweep until no event is left, which takes a moment where a lane waits for something."""
    databases = list(databases)

    def settled() -> bool:
        propagate()
        return stored(databases) == 0

    eventually(settled, describe="the outboxes are empty")


def copied(pair: Pair) -> list[tuple[Any, ...]]:
    """User and username of every post, in the order of their keys."""
    return pair.second.rows("SELECT user_id, username FROM posts ORDER BY id")


def differing(pair: Pair) -> list[tuple[Any, ...]]:
    """Posts whose username is not their user's."""
    names = dict(pair.first.rows("SELECT id, username FROM users"))
    return [row for row in copied(pair) if row[1] != names.get(row[0], row[1] if row[0] is not None else None)]
