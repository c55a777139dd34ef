"""rhosocial-activerecord, with a package for each kind of server."""
# Without `from __future__ import annotations`: its relations are read from real annotations.

import importlib
from collections.abc import Sequence
from typing import Any, ClassVar

from rhosocial.activerecord.field import IntegerPKMixin
from rhosocial.activerecord.model import ActiveRecord
from rhosocial.activerecord.relation import BelongsTo, HasMany

from peers.peer import Peer, Target

__all__ = ["Rhosocial"]

BACKENDS = {
    "sqlite": ("sqlite", "SQLiteBackend", "SQLiteConnectionConfig"),
    "postgresql": ("postgres", "PostgresBackend", "PostgresConnectionConfig"),
    "mariadb": ("mariadb", "MariaDBBackend", "MariaDBConnectionConfig"),
}
BATCH = 1000


class Item(IntegerPKMixin, ActiveRecord):
    __table_name__ = "bench_item"

    id: int | None = None
    name: str
    email: str
    age: int
    score: float
    active: bool


class Author(IntegerPKMixin, ActiveRecord):
    __table_name__ = "bench_author"

    id: int | None = None
    name: str
    books: ClassVar[HasMany["Book"]] = HasMany(foreign_key="author_id", inverse_of="author")


class Book(IntegerPKMixin, ActiveRecord):
    __table_name__ = "bench_book"

    id: int | None = None
    author_id: int
    title: str
    author: ClassVar[BelongsTo["Author"]] = BelongsTo(foreign_key="author_id", inverse_of="books")


class Note(IntegerPKMixin, ActiveRecord):
    __table_name__ = "bench_note"

    id: int | None = None
    title: str
    body: str
    n: int


class Rhosocial(Peer):
    name = "rhosocial"
    distribution = "rhosocial-activerecord"

    def __init__(self, target: Target) -> None:
        package, backend, config = BACKENDS[target.kind]
        module = importlib.import_module(f"rhosocial.activerecord.backend.impl.{package}")
        place: dict[str, Any] = {"database": target.database}
        if target.host:
            place |= {
                "host": target.host,
                "port": target.port,
                "username": target.user,
                "password": target.password,
            }
        if target.kind == "mariadb":
            place["ssl_disabled"] = True  # as with the other drivers' defaults, or it refuses servers without TLS
        for model in (Item, Author, Book, Note):
            model.configure(getattr(module, config)(**place), getattr(module, backend))

    def load(self) -> Sequence[Any]:
        return Item.query().all()

    def eager(self) -> int:
        return sum(len(author.books()) for author in Author.query().with_("books").all())

    def get(self, keys: Sequence[int]) -> int:
        return sum(Item.find_one_or_fail(key).id or 0 for key in keys)

    def insert(self, count: int) -> None:
        for n in range(count):
            Note(title="title", body="body", n=n).save()

    def update(self, keys: Sequence[int]) -> None:
        for key in keys:
            note = Note.find_one_or_fail(key)
            note.n += 1
            note.save()

    def bulk(self, count: int) -> None:
        notes = [Note(title="title", body="body", n=n) for n in range(count)]
        with Note.transaction():
            Note.bulk_create(notes, batch_size=BATCH)

    def close(self) -> None:
        for model in (Item, Author, Book, Note):
            model.backend().disconnect()
