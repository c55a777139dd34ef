"""Models of the tests of forward recovery: transfers at home, and what follows from them in two other databases."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated, Any

import sqlalchemy as sa

from bench.databases import TestDatabase
from crosstie.orm import ActiveRecord
from crosstie.orm.column import Column
from crosstie.orm.field import IntegerPKMixin, OptimisticLockMixin, UUIDMixin
from crosstie.outbox import Event

FIRST = uuid.UUID(int=1)


class Transfer(IntegerPKMixin, ActiveRecord):
    """Lives in `default`, which numbers it."""

    __table_name__ = "transfers"
    __connection__ = "default"

    id: int | None = None
    amount: Decimal


class Account(IntegerPKMixin, OptimisticLockMixin, ActiveRecord):
    """Lives in `secondary`, numbered and with a version."""

    __table_name__ = "accounts"
    __connection__ = "secondary"

    id: int | None = None
    name: Annotated[str, Column(unique=True)]
    balance: Decimal = Decimal(0)
    note: str | None = None


class Posting(UUIDMixin, ActiveRecord):
    """Lives in `secondary`, under a key that is made here."""

    __table_name__ = "postings"
    __connection__ = "secondary"

    text: Annotated[str, Column(sa.Text())] = ""
    amount: Decimal = Decimal(0)
    counted: int = 0


class Notice(UUIDMixin, ActiveRecord):
    """Lives in `tertiary`."""

    __table_name__ = "notices"
    __connection__ = "tertiary"

    text: str = ""


class Posted(Event):
    """Published by a branch."""

    __event_type__ = "bank.posted"

    text: str


MODELS: list[type[ActiveRecord]] = [Transfer, Account, Posting, Notice]


def create_bank(names: Iterable[str]) -> None:
    """Create the tables of these databases, with accounts, a posting and a notice."""
    for model in MODELS:
        if str(model.__connection__) in names:
            model.create_table()
    for name in ("ann", "bob", "closed"):
        Account(name=name, balance=Decimal(100)).save()
    Posting(id=FIRST, text="first").save()
    if "tertiary" in names:
        Notice(id=FIRST, text="first").save()


def transfer(names: Iterable[str] = ("default", "secondary"), *, number: int = 2) -> None:
    """Inside a saga: all kinds of writes that a branch may have."""
    Transfer(amount=Decimal("12.50")).save()
    key = uuid.UUID(int=number)
    Posting(id=key, text="new: ü '\\ %s", amount=Decimal("12.50")).save()
    posting = Posting.find(FIRST)
    posting.increment(counted=3, amount=Decimal("0.1"))
    ann, closed = Account.find_by(name="ann"), Account.find_by(name="closed")
    assert ann is not None
    assert closed is not None
    ann.update(note="moved")
    ann.increment(balance=Decimal("-12.5"))
    closed.delete()
    Posting(id=uuid.UUID(int=number + 100), text="upserted").upsert(on=["id"])
    Posting(id=key, text="upserted over").upsert(on=["id"], update=["text"])
    Posted(text=f"posting {number}").publish("secondary")
    if "tertiary" in names:
        Notice(id=key, text="moved").save()


def balances(databases: dict[str, TestDatabase]) -> dict[str, list[tuple[Any, ...]]]:
    """All business rows, read by connections of the test's own."""
    return {
        str(table): database.rows(f"SELECT {columns} FROM {table} ORDER BY id")
        for name, database in databases.items()
        for connection, table, columns in _TABLES
        if connection == name
    }


_TABLES = [
    ("default", "transfers", "id, amount"),
    ("secondary", "accounts", "id, name, balance, note, lock_version"),
    ("secondary", "postings", "id, text, amount, counted"),
    ("tertiary", "notices", "id, text"),
]
