"""Peewee."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import peewee

from peers.peer import Peer, Target

__all__ = ["Peewee"]

proxy = peewee.DatabaseProxy()
BATCH = 1000


class Base(peewee.Model):
    class Meta:
        database = proxy


class Item(Base):
    name = peewee.CharField()
    email = peewee.CharField()
    age = peewee.IntegerField()
    score = peewee.DoubleField()
    active = peewee.BooleanField()

    class Meta:
        table_name = "bench_item"


class Author(Base):
    name = peewee.CharField()

    class Meta:
        table_name = "bench_author"


class Book(Base):
    author = peewee.ForeignKeyField(Author, backref="books", column_name="author_id")
    title = peewee.CharField()

    class Meta:
        table_name = "bench_book"


class Note(Base):
    title = peewee.CharField()
    body = peewee.CharField()
    n = peewee.IntegerField()

    class Meta:
        table_name = "bench_note"


class Peewee(Peer):
    name = "Peewee"
    distribution = "peewee"

    def __init__(self, target: Target) -> None:
        served: dict[str, Any] = {
            "host": target.host,
            "port": target.port,
            "user": target.user,
            "password": target.password,
        }
        if target.kind == "sqlite":
            self.database = peewee.SqliteDatabase(target.database, pragmas={"journal_mode": "wal"})
        elif target.kind == "postgresql":
            self.database = peewee.PostgresqlDatabase(target.database, prefer_psycopg3=True, **served)
        else:
            self.database = peewee.MySQLDatabase(target.database, **served)
        proxy.initialize(self.database)
        self.database.connect()

    def load(self) -> Sequence[Any]:
        return list(Item.select())

    def eager(self) -> int:
        return sum(len(author.books) for author in peewee.prefetch(Author.select(), Book.select()))

    def get(self, keys: Sequence[int]) -> int:
        return sum(Item.get_by_id(key).id for key in keys)

    def insert(self, count: int) -> None:
        for n in range(count):
            Note.create(title="title", body="body", n=n)

    def update(self, keys: Sequence[int]) -> None:
        for key in keys:
            note = Note.get_by_id(key)
            note.n += 1
            note.save()

    def bulk(self, count: int) -> None:
        notes = [Note(title="title", body="body", n=n) for n in range(count)]
        with self.database.atomic():
            Note.bulk_create(notes, batch_size=BATCH)

    def close(self) -> None:
        self.database.close()
