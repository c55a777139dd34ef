"""crosstie's own ORM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from crosstie.orm import ActiveRecord, ConnectionManager
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo, HasMany
from peers.peer import Peer, Target

__all__ = ["Crosstie"]


class Item(IntegerPKMixin, ActiveRecord):
    __table_name__ = "bench_item"
    __connection__ = "bench"

    name: str
    email: str
    age: int
    score: float
    active: bool


class Author(IntegerPKMixin, ActiveRecord):
    __table_name__ = "bench_author"
    __connection__ = "bench"

    name: str
    books: ClassVar[HasMany[Book]] = HasMany(foreign_key="author_id", inverse_of="author")


class Book(IntegerPKMixin, ActiveRecord):
    __table_name__ = "bench_book"
    __connection__ = "bench"

    author_id: int
    title: str
    author: ClassVar[BelongsTo[Author]] = BelongsTo(foreign_key="author_id", inverse_of="books")


class Note(IntegerPKMixin, ActiveRecord):
    __table_name__ = "bench_note"
    __connection__ = "bench"

    title: str
    body: str
    n: int


class Crosstie(Peer):
    name = "crosstie"
    distribution = "crosstie"

    def __init__(self, target: Target) -> None:
        place: dict[str, Any] = {"driver": target.kind, "database": target.database}
        if target.host:
            place |= {
                "host": target.host,
                "port": target.port,
                "username": target.user,
                "password": target.password,
            }
        ConnectionManager.configure({"bench": place})

    def load(self) -> Sequence[Any]:
        return Item.find_all().all()

    def eager(self) -> int:
        return sum(len(author.books()) for author in Author.find_all().with_("books").all())

    def get(self, keys: Sequence[int]) -> int:
        return sum(Item.find(key).id or 0 for key in keys)

    def insert(self, count: int) -> None:
        for n in range(count):
            Note(title="title", body="body", n=n).save()

    def update(self, keys: Sequence[int]) -> None:
        for key in keys:
            note = Note.find(key)
            note.n += 1
            note.save()

    def bulk(self, count: int) -> None:
        notes = [Note(title="title", body="body", n=n) for n in range(count)]
        create: Any = getattr(Note, "bulk_create", None)
        if create is not None:
            create(notes)
            return
        with Note.transaction():
            for note in notes:
                note.save()

    def close(self) -> None:
        ConnectionManager.dispose()
