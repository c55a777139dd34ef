"""Models with a reference between two databases and one within a database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from crosstie.orm import ActiveRecord
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo

USERS = "secondary.posts.user_id -> default.users.id"
POSTS = "secondary.comments.post_id -> secondary.posts.id"


@dataclass
class Blog:
    """The model classes, defined anew for each test."""

    user: Any
    post: Any
    comment: Any


def define_blog() -> Blog:
    """Define the models and create their tables."""

    class User(IntegerPKMixin, ActiveRecord):
        __table_name__ = "users"
        __connection__ = "default"

        id: int | None = None
        name: str = ""

    class Post(IntegerPKMixin, ActiveRecord):
        __table_name__ = "posts"
        __connection__ = "secondary"

        id: int | None = None
        user_id: int | None = None

        user: ClassVar[BelongsTo[User]] = BelongsTo(foreign_key="user_id")

    class Comment(IntegerPKMixin, ActiveRecord):
        __table_name__ = "comments"
        __connection__ = "secondary"

        id: int | None = None
        post_id: int | None = None

        post: ClassVar[BelongsTo[Post]] = BelongsTo(foreign_key="post_id")

    for model in (User, Post, Comment):
        model.create_table()
    return Blog(User, Post, Comment)
