"""Tortoise ORM: asynchronous, so each row runs in one coroutine and pays for no start of a loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from tortoise import Tortoise, fields
from tortoise.models import Model

from peers.peer import Peer, Target

__all__ = ["TortoisePeer"]

ENGINES = {"postgresql": "tortoise.backends.asyncpg", "mariadb": "tortoise.backends.mysql"}
BATCH = 1000


class Item(Model):
    id = fields.IntField(primary_key=True)
    name = fields.CharField(max_length=80)
    email = fields.CharField(max_length=120)
    age = fields.IntField()
    score = fields.FloatField()
    active = fields.BooleanField()

    class Meta:
        table = "bench_item"


class Author(Model):
    id = fields.IntField(primary_key=True)
    name = fields.CharField(max_length=80)
    books: Any

    class Meta:
        table = "bench_author"


class Book(Model):
    id = fields.IntField(primary_key=True)
    author: Any = fields.ForeignKeyField("models.Author", related_name="books")
    title = fields.CharField(max_length=80)

    class Meta:
        table = "bench_book"


class Note(Model):
    id = fields.IntField(primary_key=True)
    title = fields.CharField(max_length=80)
    body = fields.CharField(max_length=200)
    n = fields.IntField()

    class Meta:
        table = "bench_note"


class TortoisePeer(Peer):
    name = "Tortoise"
    distribution = "tortoise-orm"

    def __init__(self, target: Target) -> None:
        self.runner = asyncio.Runner()  # one loop and one context, in which Tortoise remembers its connections
        place: dict[str, Any] = {
            "engine": "tortoise.backends.sqlite",
            "credentials": {"file_path": target.database},
        }
        if target.kind != "sqlite":
            credentials: dict[str, Any] = {
                "host": target.host,
                "port": target.port,
                "user": target.user,
                "password": target.password,
                "database": target.database,
            }
            place = {"engine": ENGINES[target.kind], "credentials": credentials}
        config = {"connections": {"default": place}, "apps": {"models": {"models": [__name__]}}}
        self._run(Tortoise.init(config=config))

    def load(self) -> Sequence[Any]:
        return self._run(_load())

    def eager(self) -> int:
        return self._run(_eager())

    def get(self, keys: Sequence[int]) -> int:
        return self._run(_get(keys))

    def insert(self, count: int) -> None:
        self._run(_insert(count))

    def update(self, keys: Sequence[int]) -> None:
        self._run(_update(keys))

    def bulk(self, count: int) -> None:
        self._run(_bulk(count))

    def close(self) -> None:
        self._run(Tortoise.close_connections())
        self.runner.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)


async def _load() -> Sequence[Any]:
    return await Item.all()


async def _eager() -> int:
    return sum(len(author.books) for author in await Author.all().prefetch_related("books"))


async def _get(keys: Sequence[int]) -> int:
    return sum([(await Item.get(id=key)).id for key in keys])


async def _insert(count: int) -> None:
    for n in range(count):
        await Note.create(title="title", body="body", n=n)


async def _update(keys: Sequence[int]) -> None:
    for key in keys:
        note = await Note.get(id=key)
        note.n += 1
        await note.save()


async def _bulk(count: int) -> None:
    await Note.bulk_create([Note(title="title", body="body", n=n) for n in range(count)], batch_size=BATCH)
