from __future__ import annotations

import warnings
from decimal import Decimal
from typing import Annotated

import pytest
from pydantic import Field

from bench.databases import Pair, TestDatabase
from crosstie.orm import ActiveRecord, open_transactions
from crosstie.orm.errors import (
    CrossDatabaseWriteWarning,
    DuplicateKey,
    TransactionPoisoned,
)
from crosstie.orm.field import IntegerPKMixin, TimestampMixin
from crosstie.orm.local_transaction import current


class Account(TimestampMixin, IntegerPKMixin, ActiveRecord):
    __table_name__ = "accounts"
    __connection__ = "default"

    id: int | None = None
    owner: str
    balance: Annotated[Decimal, Field(max_digits=10, decimal_places=2)] = Decimal(0)
    tags: list[str] | None = None


class Entry(IntegerPKMixin, ActiveRecord):
    __table_name__ = "entries"
    __connection__ = "secondary"

    id: int | None = None
    note: str


class Interrupted(Exception):
    """What the tests leave a block with."""


@pytest.fixture
def accounts(configured_database: TestDatabase) -> TestDatabase:
    """One database with the table of accounts."""
    Account.create_table()
    return configured_database


@pytest.fixture
def books(configured: Pair) -> Pair:
    """Accounts in the first database, entries in the second."""
    Account.create_table()
    Entry.create_table()
    return configured


def test_a_block_commits_as_a_whole_or_not_at_all(accounts: TestDatabase) -> None:
    """Other connections see all writes at the end of the block, or none after an exception."""
    with Account.transaction() as tx:
        Account(owner="ann").save()
        Account(owner="bob").save()
        assert current("default") is tx
        assert Account.find_all().count() == 2  # reads go through the transaction
        assert accounts.scalar("SELECT count(*) FROM accounts") == 0
    assert accounts.scalar("SELECT count(*) FROM accounts") == 2
    with pytest.raises(Interrupted), Account.transaction():
        Account.find_all().delete_all()
        raise Interrupted
    assert accounts.scalar("SELECT count(*) FROM accounts") == 2
    assert not open_transactions()


def test_a_rolled_back_delete_leaves_a_loaded_record(accounts: TestDatabase) -> None:
    """The record has its row again, with the changes that it had."""
    record = Account(owner="ann").save()
    record.owner = "bob"
    with pytest.raises(Interrupted), Account.transaction():
        record.delete()
        raise Interrupted
    assert not record.is_deleted
    assert record.changes == {"owner": ("ann", "bob")}
    record.save()
    assert Account.find(record.id).owner == "bob"


def test_a_rolled_back_increment_gives_the_value_back(accounts: TestDatabase) -> None:
    """The record does not keep an addition that the row has lost."""
    record = Account(owner="ann", balance=Decimal(10)).save()
    with pytest.raises(Interrupted), Account.transaction():
        record.increment(balance=Decimal(1))
        record.increment(balance=Decimal(2))
        assert record.balance == 13
        raise Interrupted
    assert (record.balance, record.changes) == (Decimal(10), {})
    with pytest.raises(Interrupted), Account.transaction():
        record.increment(balance=Decimal(1))
        record.balance = Decimal(50)
        raise Interrupted
    assert record.changes == {"balance": (Decimal(10), Decimal(50))}


def test_a_nested_block_is_taken_back_alone(accounts: TestDatabase) -> None:
    """An inner failure that is caught undoes the inner writes, in the database and in memory, and no more."""
    outer = Account(owner="outer")
    inner = Account(owner="inner")
    with Account.transaction():
        outer.save()
        with pytest.raises(Interrupted), Account.transaction():
            inner.save()
            outer.update(owner="changed")
            raise Interrupted
        assert (inner.is_new, outer.changes["owner"]) == (True, ("outer", "changed"))
        with Account.transaction():
            Account(owner="second").save()
    assert not outer.is_new
    assert accounts.rows("SELECT owner FROM accounts ORDER BY id") == [("outer",), ("second",)]


def test_a_statement_that_failed_poisons_the_block_unless_it_is_nested(accounts: TestDatabase) -> None:
    """A swallowed error never commits half; inside a nested block it is taken back."""
    Account(id=100, owner="ann").save()
    with pytest.raises(TransactionPoisoned), Account.transaction():
        Account(owner="lost").save()
        with pytest.raises(DuplicateKey):
            Account(id=100, owner="twice").save()
    assert Account.find_all().pluck("owner") == ["ann"]
    with Account.transaction():
        Account(owner="kept").save()
        with pytest.raises(DuplicateKey), Account.transaction():
            Account(id=100, owner="twice").save()
    assert sorted(Account.find_all().pluck("owner")) == ["ann", "kept"]


def test_a_write_to_another_database_commits_by_itself_with_a_warning(books: Pair) -> None:
    """The limit of a transaction on one database; the warning points at the line that wrote."""
    with warnings.catch_warnings(record=True) as caught, pytest.raises(Interrupted), Account.transaction():
        warnings.simplefilter("always")
        Account(owner="ann").save()
        Entry(note="kept").save()
        raise Interrupted
    assert [warning.category for warning in caught] == [CrossDatabaseWriteWarning]
    assert caught[0].filename == __file__
    assert "'secondary'" in str(caught[0].message)
    assert books.first.scalar("SELECT count(*) FROM accounts") == 0
    assert books.second.scalar("SELECT count(*) FROM entries") == 1


def test_reads_of_another_database_are_free(books: Pair) -> None:
    """Reading elsewhere inside a block warns nobody."""
    with Account.transaction():
        assert Entry.find_all().count() == 0
