"""SQLAlchemy's ORM, which all others are measured by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload

from peers.peer import Peer, Target

__all__ = ["SQLAlchemy", "url_of"]


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "bench_item"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str]
    age: Mapped[int]
    score: Mapped[float]
    active: Mapped[bool]


class Author(Base):
    __tablename__ = "bench_author"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    books: Mapped[list[Book]] = relationship(back_populates="author")


class Book(Base):
    __tablename__ = "bench_book"

    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(sa.ForeignKey("bench_author.id"))
    title: Mapped[str]
    author: Mapped[Author] = relationship(back_populates="books")


class Note(Base):
    __tablename__ = "bench_note"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    body: Mapped[str]
    n: Mapped[int]


def url_of(target: Target) -> URL:
    """The address as SQLAlchemy writes it."""
    driver = {"postgresql": "postgresql+psycopg", "mariadb": "mariadb+pymysql", "sqlite": "sqlite"}[target.kind]
    return URL.create(
        driver,
        target.user or None,
        target.password or None,
        target.host or None,
        target.port or None,
        target.database,
    )


class SQLAlchemy(Peer):
    name = "SQLAlchemy ORM"
    distribution = "sqlalchemy"
    models: ClassVar[tuple[Any, ...]] = (Item, Author, Note)

    def __init__(self, target: Target) -> None:
        self.engine = sa.create_engine(url_of(target))
        self.item, self.author, self.note = self.models

    def load(self) -> Sequence[Any]:
        with Session(self.engine) as session:
            return session.scalars(sa.select(self.item)).all()

    def eager(self) -> int:
        with Session(self.engine) as session:
            authors = session.scalars(sa.select(self.author).options(selectinload(self.author.books)))
            return sum(len(author.books) for author in authors)

    def get(self, keys: Sequence[int]) -> int:
        total = 0
        for key in keys:
            with Session(self.engine) as session:
                total += session.get_one(self.item, key).id
        return total

    def insert(self, count: int) -> None:
        for n in range(count):
            with Session(self.engine) as session:
                session.add(self.note(title="title", body="body", n=n))
                session.commit()

    def update(self, keys: Sequence[int]) -> None:
        for key in keys:
            with Session(self.engine) as session:
                session.get_one(self.note, key).n += 1
                session.commit()

    def bulk(self, count: int) -> None:
        with Session(self.engine) as session:
            session.add_all([self.note(title="title", body="body", n=n) for n in range(count)])
            session.commit()

    def close(self) -> None:
        self.engine.dispose()
