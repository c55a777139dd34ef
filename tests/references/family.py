"""Users in one database; what refers to them in the other, and what refers to that in the first again.

The models are made by a call, so that each test has its own. Child processes call it too.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, ClassVar

from bench.databases import Pair
from crosstie.orm import ActiveRecord
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo
from crosstie.outbox import sweep_lanes, sync_routes

__all__ = ["count", "define", "open_family", "propagate", "user_with"]


def define() -> Any:
    """The models: posts go with their user, comments with their post, badges stay, invoices hold the user back."""

    class User(IntegerPKMixin, ActiveRecord):
        __table_name__ = "users"
        __connection__ = "default"

        id: int | None = None
        name: str = "somebody"

    class Post(IntegerPKMixin, ActiveRecord):
        __table_name__ = "posts"
        __connection__ = "secondary"

        id: int | None = None
        user_id: int | None

        user: ClassVar[BelongsTo[User]] = BelongsTo(foreign_key="user_id", on_delete="cascade")

    class Comment(IntegerPKMixin, ActiveRecord):
        __table_name__ = "comments"
        __connection__ = "default"

        id: int | None = None
        post_id: int

        post: ClassVar[BelongsTo[Post]] = BelongsTo(foreign_key="post_id", on_delete="cascade")

    class Badge(IntegerPKMixin, ActiveRecord):
        __table_name__ = "badges"
        __connection__ = "secondary"

        id: int | None = None
        user_id: int | None

        user: ClassVar[BelongsTo[User]] = BelongsTo(foreign_key="user_id", on_delete="set_null")

    class Invoice(IntegerPKMixin, ActiveRecord):
        __table_name__ = "invoices"
        __connection__ = "secondary"

        id: int | None = None
        user_id: int

        user: ClassVar[BelongsTo[User]] = BelongsTo(foreign_key="user_id", on_delete="restrict", validate=True)

    return SimpleNamespace(User=User, Post=Post, Comment=Comment, Badge=Badge, Invoice=Invoice)


def open_family() -> Any:
    """The models with their tables, and the routes in both databases."""
    models = define()
    for model in vars(models).values():
        model.create_table()
    assert not sync_routes().failed
    return models


def user_with(models: Any, *, posts: int = 0, comments: int = 0, badges: int = 0) -> Any:
    """A saved user with so many posts, each with so many comments, and so many badges."""
    user = models.User().save()
    for _ in range(posts):
        post = models.Post(user_id=user.id).save()
        for _ in range(comments):
            models.Comment(post_id=post.id).save()
    for _ in range(badges):
        models.Badge(user_id=user.id).save()
    return user


def propagate(sources: Iterable[str] = ("default", "secondary")) -> int:
    """Sweep all outboxes until nothing more is found; returns how many events were applied."""
    applied = 0
    while found := sum(sweep_lanes(source, owner="test") for source in sources):
        applied += found
    return applied


def count(pair: Pair, table: str, condition: str = "1 = 1") -> int:
    """How many rows of a table meet a condition; no two tables of the family have the same name."""
    database = pair.first if table in {"users", "comments"} else pair.second
    return int(database.scalar(f"SELECT count(*) FROM {table} WHERE {condition}"))
