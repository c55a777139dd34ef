"""Models of the relation and query tests: users in one database, posts and comments in the other."""

from __future__ import annotations

from typing import ClassVar

from crosstie.orm import ActiveRecord
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo, HasMany, HasOne

__all__ = ["Comment", "Post", "Profile", "User", "create_blog", "seed_blog"]


class User(IntegerPKMixin, ActiveRecord):
    __table_name__ = "users"
    __connection__ = "default"

    id: int | None = None
    username: str
    email: str = "nobody@example.org"
    age: int | None = None

    posts: ClassVar[HasMany[Post]] = HasMany(foreign_key="user_id", inverse_of="user")
    profile: ClassVar[HasOne[Profile]] = HasOne(foreign_key="user_id", inverse_of="user")


class Profile(IntegerPKMixin, ActiveRecord):
    __table_name__ = "profiles"
    __connection__ = "secondary"

    user_id: int
    motto: str

    user: ClassVar[BelongsTo[User]] = BelongsTo(foreign_key="user_id", inverse_of="profile")


class Post(IntegerPKMixin, ActiveRecord):
    __table_name__ = "posts"
    __connection__ = "secondary"

    id: int | None = None
    user_id: int | None
    title: str
    likes: int = 0

    user: ClassVar[BelongsTo[User]] = BelongsTo(foreign_key="user_id", inverse_of="posts")
    comments: ClassVar[HasMany[Comment]] = HasMany(foreign_key="post_id", inverse_of="post")


class Comment(IntegerPKMixin, ActiveRecord):
    __table_name__ = "comments"
    __connection__ = "secondary"

    post_id: int
    author_id: int | None = None
    body: str

    post: ClassVar[BelongsTo[Post]] = BelongsTo(foreign_key="post_id", inverse_of="comments")
    author: ClassVar[BelongsTo[User]] = BelongsTo(foreign_key="author_id")


def create_blog() -> None:
    """Create the tables in both databases."""
    for model in (User, Profile, Post, Comment):
        model.create_table()


def seed_blog(users: int = 3, posts: int = 2, comments: int = 2) -> None:
    """So many users, each with so many posts, each with so many comments; the last user has no post."""
    for number in range(1, users + 1):
        user = User(username=f"user{number}", age=20 + number).save()
        assert user.id is not None
        Profile(user_id=user.id, motto=f"motto{number}").save()
        for nth in range(1, posts + 1) if number < users else ():
            post = Post(user_id=user.id, title=f"post{number}.{nth}").save()
            assert post.id is not None
            for _ in range(comments):
                Comment(post_id=post.id, author_id=user.id, body="!").save()
