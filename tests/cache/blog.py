"""Authors in one database, kept in the cache; posts that refer to them in the other.

The models are made by a call, so that each test has its own. Child processes call it too.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Annotated, Any, ClassVar

from bench.databases import Pair
from crosstie.orm import ActiveRecord
from crosstie.orm.cache import counters
from crosstie.orm.field import Column, IntegerPKMixin
from crosstie.orm.relation import BelongsTo
from crosstie.orm.statement_log import logged_statements
from crosstie.outbox import sweep_lanes, sync_routes

__all__ = ["asked", "cached_name", "carry", "define", "events", "misses", "open_blog", "person"]


def define() -> Any:
    """Authors are found by their number and, by reviews, by their handle; cities are not cached."""

    class City(IntegerPKMixin, ActiveRecord):
        __table_name__ = "cities"
        __connection__ = "default"

        id: int | None = None
        name: str = "somewhere"

    class Author(IntegerPKMixin, ActiveRecord):
        __table_name__ = "authors"
        __connection__ = "default"

        id: int | None = None
        handle: Annotated[str, Column(unique=True)]
        name: str = "somebody"
        posts_count: int = 0
        city_id: int | None = None

        city: ClassVar[BelongsTo[City]] = BelongsTo(foreign_key="city_id", on_delete="cascade")

    class Post(IntegerPKMixin, ActiveRecord):
        __table_name__ = "posts"
        __connection__ = "secondary"

        id: int | None = None
        author_id: int | None

        author: ClassVar[BelongsTo[Author]] = BelongsTo(foreign_key="author_id", cache=True)

    class Review(IntegerPKMixin, ActiveRecord):
        __table_name__ = "reviews"
        __connection__ = "secondary"

        id: int | None = None
        handle: str

        author: ClassVar[BelongsTo[Author]] = BelongsTo(foreign_key="handle", primary_key="handle", cache=True)

    return SimpleNamespace(City=City, Author=Author, Post=Post, Review=Review)


def open_blog() -> Any:
    """The models with their tables, and the routes in both databases."""
    models = define()
    for model in vars(models).values():
        model.create_table()
    assert not sync_routes().failed
    return models


def person(blog: Any, handle: str = "ann", **values: Any) -> Any:
    """A saved author, with a post and a review of theirs that have nothing loaded."""
    author = blog.Author(handle=handle, **values).save()
    blog.Post(author_id=author.id).save()
    blog.Review(handle=handle).save()
    return author


def asked(blog: Any, author: Any) -> int:
    """How many statements it takes a fresh post to find its author."""
    post = blog.Post.find_by(author_id=author.id)
    with logged_statements() as log:
        post.author()
    return len(log)


def cached_name(blog: Any, author: Any) -> str | None:
    """The author's name as a fresh post finds it."""
    found = blog.Post.find_by(author_id=author.id).author()
    return None if found is None else str(found.name)


def carry(*sources: str) -> int:
    """Sweep the outboxes until nothing more is found; returns how many events were applied."""
    applied = 0
    while found := sum(sweep_lanes(source, owner="test") for source in sources or ("default",)):
        applied += found
    return applied


def events(pair: Pair) -> int:
    """How many events wait in the authors' database."""
    return int(pair.first.scalar("SELECT count(*) FROM crosstie_outbox"))


def misses() -> int:
    """How many parents the databases were asked for so far."""
    return counters().misses
