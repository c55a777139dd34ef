from __future__ import annotations

import threading
import warnings
from decimal import Decimal
from typing import Annotated

import pytest
from pydantic import Field

from bench.databases import Pair, TestDatabase
from crosstie.orm import ActiveRecord, open_transactions
from crosstie.orm.errors import (
    CrossDatabaseWriteWarning,
    DatabaseUnavailable,
    DuplicateKey,
    TransactionPoisoned,
)
from crosstie.orm.field import IntegerPKMixin, TimestampMixin
from crosstie.orm.transaction import current


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


def test_a_rolled_back_insert_leaves_a_new_record(accounts: TestDatabase) -> None:
    """The key and the times that the insert gave are gone, and saving again inserts."""
    record = Account(owner="ann", tags=["a"])
    with pytest.raises(Interrupted), Account.transaction():
        record.save()
        assert record.id is not None
        record.update(balance=Decimal(5))
        record.increment(balance=Decimal(1))
        raise Interrupted
    assert record.is_new
    assert (record.id, record.created_at, record.updated_at) == (None, None, None)
    assert record.balance == 5
    record.save()
    assert accounts.rows("SELECT id IS NULL, owner, balance FROM accounts") == [(0, "ann", Decimal(5))]


def test_a_rolled_back_update_is_an_unsaved_change_again(accounts: TestDatabase) -> None:
    """However many saves, and whatever was assigned since: the next save writes the difference to the row."""
    record = Account(owner="ann", tags=["a"]).save()
    stamped = record.updated_at
    with pytest.raises(Interrupted), Account.transaction():
        record.update(owner="bob")
        record.update(owner="eve", balance=Decimal(1))
        record.balance = Decimal(2)
        assert record.tags is not None
        record.tags.append("b")
        record.save()
        raise Interrupted
    assert record.owner == "eve"
    assert record.changes == {
        "owner": ("ann", "eve"),
        "balance": (Decimal(0), Decimal(2)),
        "tags": (["a"], ["a", "b"]),
    }
    assert record.updated_at == stamped
    record.save()
    read = Account.find(record.id)
    assert (read.owner, read.balance, read.tags) == ("eve", Decimal(2), ["a", "b"])


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


def test_each_thread_has_a_transaction_of_its_own(books: Pair) -> None:
    """One thread's rollback takes back nothing of another's commit, and neither waits for the other's end."""
    entered, decided = threading.Barrier(2), threading.Barrier(2)
    failures: list[BaseException] = []
    owners: dict[str, Account] = {}

    def work(name: str, fail: bool) -> None:
        try:
            model: type[ActiveRecord] = Account if fail else Entry
            with model.transaction():
                entered.wait(timeout=20)
                assert list(open_transactions()) == [model.__connection__]
                if fail:
                    owners[name] = Account(owner=name).save()
                else:
                    Entry(note=name).save()
                decided.wait(timeout=20)
                if fail:
                    raise Interrupted
        except Interrupted:
            pass
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(f"thread {n}", n == 0)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not failures
    assert owners["thread 0"].is_new
    assert books.first.scalar("SELECT count(*) FROM accounts") == 0
    assert books.second.rows("SELECT note FROM entries") == [("thread 1",)]


def test_eight_threads_lose_and_mix_nothing(books: Pair) -> None:
    """Half of their transactions roll back; exactly the others' rows are there, each in its database."""
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            start.wait(timeout=20)
            for turn in range(6):
                try:
                    with Account.transaction():
                        Account(owner=f"{number}.{turn}").save()
                        if turn % 2:
                            raise Interrupted
                except Interrupted:
                    continue
                Entry(note=f"{number}.{turn}").save()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=100)
    assert not failures
    expected = sorted(f"{number}.{turn}" for number in range(8) for turn in (0, 2, 4))
    assert sorted(owner for (owner,) in books.first.rows("SELECT owner FROM accounts")) == expected
    assert sorted(note for (note,) in books.second.rows("SELECT note FROM entries")) == expected


def kill_connections(database: TestDatabase) -> None:
    """End every session that the server has on this database, but the one that asks."""
    if database.kind == "postgresql":
        database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return
    ids = database.rows("SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()")
    for (number,) in ids:
        database.execute(f"KILL {number}")


def test_a_connection_killed_in_a_transaction_is_never_replaced(accounts: TestDatabase) -> None:
    """The next save fails, everything of the block is lost together, and the block cannot go on without it."""
    if accounts.kind == "sqlite":
        pytest.skip("a file has no session that could be killed")
    record = Account(owner="first")
    with pytest.raises(DatabaseUnavailable, match="'default'"), Account.transaction():
        record.save()
        kill_connections(accounts)
        Account(owner="second").save()
    assert record.is_new
    with pytest.raises((TransactionPoisoned, DatabaseUnavailable)), Account.transaction():
        Account(owner="third").save()
        kill_connections(accounts)
        with pytest.raises(DatabaseUnavailable):
            Account(owner="fourth").save()
        with pytest.raises(TransactionPoisoned):  # swallowing the error does not help
            Account(owner="fifth").save()
    assert Account.find_all().count() == 0
    assert Account(owner="sixth").save().id is not None
