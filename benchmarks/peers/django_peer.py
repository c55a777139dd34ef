"""Django's ORM, without the rest of Django."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import django
import pymysql
from django.conf import settings
from django.db import connection

from peers.peer import Peer, Target

__all__ = ["Django"]

ENGINES = {"postgresql": "postgresql", "mariadb": "mysql", "sqlite": "sqlite3"}


class Django(Peer):
    name = "Django"
    distribution = "django"

    def __init__(self, target: Target) -> None:
        pymysql.install_as_MySQLdb()  # crosstie, SQLAlchemy and Peewee use it too
        place = {
            "ENGINE": f"django.db.backends.{ENGINES[target.kind]}",
            "NAME": target.database,
            "HOST": target.host,
            "PORT": target.port or "",
            "USER": target.user,
            "PASSWORD": target.password,
        }
        settings.configure(DATABASES={"default": place}, DEFAULT_AUTO_FIELD="django.db.models.AutoField")
        django.setup()
        self.models: Any = _models()

    def load(self) -> Sequence[Any]:
        return list(self.models.Item.objects.all())

    def eager(self) -> int:
        authors = self.models.Author.objects.prefetch_related("books")
        return sum(len(author.books.all()) for author in authors)

    def get(self, keys: Sequence[int]) -> int:
        return sum(self.models.Item.objects.get(pk=key).id for key in keys)

    def insert(self, count: int) -> None:
        for n in range(count):
            self.models.Note.objects.create(title="title", body="body", n=n)

    def update(self, keys: Sequence[int]) -> None:
        for key in keys:
            note = self.models.Note.objects.get(pk=key)
            note.n += 1
            note.save()

    def bulk(self, count: int) -> None:
        note = self.models.Note
        note.objects.bulk_create([note(title="title", body="body", n=n) for n in range(count)])

    def close(self) -> None:
        connection.close()


def _models() -> Any:
    """The models, which Django lets be defined only once it is configured."""
    from django.db import models

    class Models:
        class Item(models.Model):
            name = models.CharField(max_length=80)
            email = models.CharField(max_length=120)
            age = models.IntegerField()
            score = models.FloatField()
            active = models.BooleanField()

            class Meta:
                app_label = "bench"
                db_table = "bench_item"

        class Author(models.Model):
            name = models.CharField(max_length=80)

            class Meta:
                app_label = "bench"
                db_table = "bench_author"

        class Note(models.Model):
            title = models.CharField(max_length=80)
            body = models.CharField(max_length=200)
            n = models.IntegerField()

            class Meta:
                app_label = "bench"
                db_table = "bench_note"

    class Book(models.Model):
        author = models.ForeignKey(Models.Author, models.DO_NOTHING, related_name="books")
        title = models.CharField(max_length=80)

        class Meta:
            app_label = "bench"
            db_table = "bench_book"

    return Models
