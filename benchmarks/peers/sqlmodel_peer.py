"""SQLModel: pydantic classes that SQLAlchemy's ORM maps."""
# Without `from __future__ import annotations`, which hides relations from SQLModel.

from typing import Any, ClassVar

from sqlmodel import Field, Relationship, SQLModel

from peers.sqlalchemy_peer import SQLAlchemy

__all__ = ["SQLModelPeer"]


class Item(SQLModel, table=True):
    __tablename__ = "bench_item"

    id: int | None = Field(default=None, primary_key=True)
    name: str
    email: str
    age: int
    score: float
    active: bool


class Author(SQLModel, table=True):
    __tablename__ = "bench_author"

    id: int | None = Field(default=None, primary_key=True)
    name: str
    books: list["Book"] = Relationship(back_populates="author")


class Book(SQLModel, table=True):
    __tablename__ = "bench_book"

    id: int | None = Field(default=None, primary_key=True)
    author_id: int = Field(foreign_key="bench_author.id")
    title: str
    author: Author = Relationship(back_populates="books")


class Note(SQLModel, table=True):
    __tablename__ = "bench_note"

    id: int | None = Field(default=None, primary_key=True)
    title: str
    body: str
    n: int


class SQLModelPeer(SQLAlchemy):
    name = "SQLModel"
    distribution = "sqlmodel"
    models: ClassVar[tuple[Any, ...]] = (Item, Author, Note)
