"""Defects that users have met in ORMs over several databases: connections, transactions, models.

None of them may become one of this ORM's. Each section holds one of them against every kind of database, or every pair
of kinds where two are needed; those of relations and queries have a file of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal
from typing import Annotated, Any

import pytest
from pydantic import Field

from bench.databases import Pair, TestDatabase
from crosstie.orm import ActiveRecord
from crosstie.orm.callback import after_save, before_save
from crosstie.orm.declaration import connection_of
from crosstie.orm.errors import (
    DatabaseError,
    DatabaseUnavailable,
    ModelDefinitionError,
    TransactionPoisoned,
    UnknownConnection,
)
from crosstie.orm.field import IntegerPKMixin, TimestampMixin
from crosstie.orm.local_transaction import current
from orm.blog import Post, User, create_blog, seed_blog


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


@pytest.fixture
def blog(configured: Pair) -> Pair:
    """Three users in the first database; in the second, two posts of each but the last, each with two comments."""
    create_blog()
    seed_blog()
    return configured


def in_threads(work: Callable[[int], None], number: int) -> None:
    """Run `work` in so many threads at once, and raise what any of them raised."""
    start = threading.Barrier(number)

    def begin(which: int) -> None:
        start.wait(timeout=60)
        work(which)

    with ThreadPoolExecutor(number) as threads:
        running: list[Future[None]] = [threads.submit(begin, which) for which in range(number)]
    for one in running:
        one.result()


# -- 1. A connection held for all models: saves go to the database that was used last ----------------------------


def test_interleaved_saves_go_to_their_own_databases(configured: Pair) -> None:
    """In whatever order, inside transactions of both, and from several threads at once."""

    class Left(IntegerPKMixin, ActiveRecord):
        __table_name__ = "things"
        __connection__ = "default"

        name: str

    class Right(Left):
        __connection__ = "secondary"

    Left.create_table()
    Right.create_table()

    def save_many(worker: int) -> None:
        for number in range(10):
            Left(name=f"left {worker}.{number}").save()
            Right(name=f"right {worker}.{number}").save()

    in_threads(save_many, 4)
    with Left.transaction(), Right.transaction():
        save_many(4)
    for database, word in [(configured.first, "left"), (configured.second, "right")]:
        names = {name for (name,) in database.rows("SELECT name FROM things")}
        assert names == {f"{word} {worker}.{number}" for worker in range(5) for number in range(10)}


# -- 2. A connection that dies inside a transaction is replaced: half is lost, the other half commits -------------


def end_connections(database: TestDatabase) -> None:
    """End every session of this database but the one that asks; for a file, the handle of the open transaction."""
    if database.kind == "sqlite":
        tx = current("default")
        assert tx is not None
        handle: Any = tx.connection.connection.dbapi_connection
        handle.close()
    else:
        database.end_sessions()


def test_a_connection_that_dies_in_a_transaction_is_never_replaced(accounts: TestDatabase) -> None:
    """The next save fails, everything of the block is lost together, and the block cannot go on without it."""
    died = DatabaseError if accounts.kind == "sqlite" else DatabaseUnavailable  # no file goes away by itself
    record = Account(owner="first")
    with pytest.raises(died, match="'default'"), Account.transaction():
        record.save()
        end_connections(accounts)
        Account(owner="second").save()
    assert record.is_new
    with pytest.raises((TransactionPoisoned, died)), Account.transaction():
        Account(owner="third").save()
        end_connections(accounts)
        with pytest.raises(died):
            Account(owner="fourth").save()
        with pytest.raises(TransactionPoisoned):  # swallowing the error does not help
            Account(owner="fifth").save()
    assert Account.find_all().count() == 0
    assert Account(owner="sixth").save().id is not None


# -- 6. After a rollback the objects claim to be saved, and the next save does nothing ----------------------------


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


# -- 10. Threads share a connection: they hang, and a rollback takes back what another has committed ---------------


def test_a_rollback_takes_back_nothing_of_another_thread(accounts: TestDatabase) -> None:
    """The other thread neither sees what is uncommitted nor waits in the same transaction, and its insert stays."""

    def owners() -> list[str]:
        return sorted(Account.find_all().pluck("owner"))

    def is_outside() -> bool:
        return current("default") is None

    with ThreadPoolExecutor(1) as other:
        with pytest.raises(Interrupted), Account.transaction():
            Account(owner="taken back").save()
            assert other.submit(is_outside).result(timeout=60)
            assert other.submit(owners).result(timeout=60) == []
            saving = other.submit(Account(owner="kept").save)
            if accounts.kind != "sqlite":  # where the open transaction excludes all other writers
                saving.result(timeout=60)
            raise Interrupted
        saving.result(timeout=60)
    assert owners() == ["kept"]


def test_eight_threads_lose_and_mix_nothing(books: Pair) -> None:
    """Half of their transactions roll back; exactly the others' rows are there, each in its database."""

    def work(number: int) -> None:
        for turn in range(6):
            try:
                with Account.transaction():
                    Account(owner=f"{number}.{turn}").save()
                    if turn % 2:
                        raise Interrupted
            except Interrupted:
                continue
            Entry(note=f"{number}.{turn}").save()

    in_threads(work, 8)
    expected = sorted(f"{number}.{turn}" for number in range(8) for turn in (0, 2, 4))
    assert sorted(owner for (owner,) in books.first.rows("SELECT owner FROM accounts")) == expected
    assert sorted(note for (note,) in books.second.rows("SELECT note FROM entries")) == expected


# -- 13. Callbacks can be given to one record only, not to a model ------------------------------------------------


def test_callbacks_of_a_model_run_for_all_of_its_records(configured: Pair) -> None:
    """However they were made, and for those of its subclasses in another database; not for those of other models."""
    seen: list[str] = []

    class Note(IntegerPKMixin, ActiveRecord):
        __table_name__ = "notes"
        __connection__ = "default"

        text: str

        @before_save
        def tidy(self) -> None:
            self.text = self.text.strip()

        @after_save
        def tell(self) -> None:
            seen.append(self.text)

    class Letter(Note):
        __table_name__ = "letters"
        __connection__ = "secondary"

    Note.create_table()
    Letter.create_table()
    Entry.create_table()
    Note(text=" made ").save()
    Note.create(text=" created ")
    Note.find(1).update(text=" loaded ")
    Letter(text=" inherited ").save()
    Entry(note=" other ").save()
    assert seen == ["made", "created", "loaded", "inherited"]
    assert configured.first.rows("SELECT text FROM notes ORDER BY id") == [("loaded",), ("created",)]
    assert configured.second.rows("SELECT text FROM letters") == [("inherited",)]
    assert configured.second.rows("SELECT note FROM entries") == [(" other ",)]


# -- 14. Debug lines are printed unless somebody turns them off ---------------------------------------------------


def test_nothing_is_printed(blog: Pair, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither on stdout nor on stderr, whatever is done."""
    user = User(username="ann").save()
    user.update(age=1)
    with User.transaction():
        User.find_all().where(username="ann").with_("posts.comments").all()
    user.posts()
    user.delete()
    Post.find_all().where_has("user").delete_all()
    assert capfd.readouterr() == ("", "")


# -- 15. A model takes over its parent's connection unasked, and a connection of an unknown name is ignored --------


def test_a_table_of_its_own_needs_a_connection_of_its_own(configured: Pair) -> None:
    """A model never takes over another model's database by inheriting from it; an abstract base may give one."""

    class Record(IntegerPKMixin, ActiveRecord):
        __connection__ = "default"

        id: int | None = None

    class Member(Record):
        __table_name__ = "members"
        __read_connection__ = "replica"

    with pytest.raises(ModelDefinitionError, match=r"Audit declares the table 'audits' and would inherit.*'default'"):

        class Audit(Member):
            __table_name__ = "audits"

    class Moved(Member):
        __table_name__ = "moved"
        __connection__ = "secondary"

    class Admin(Member):
        def greet(self) -> str:
            return "hello"

    assert Moved.__table__.info["crosstie.connection"] == "secondary"
    assert Admin.__table__.info["crosstie.connection"] == "default"
    assert Admin.__table__.name == "members"
    assert connection_of(Member) == ("default", ("replica",))
    assert connection_of(Admin) == ("default", ("replica",))
    assert connection_of(Moved) == ("secondary", ())  # the parent's replica holds another database's rows
    for model in (Admin, Moved):
        model.create_table()
        model().save()
    assert Moved.find_all().count() == 1
    assert configured.first.rows("SELECT id FROM members") == configured.second.rows("SELECT id FROM moved") == [(1,)]


def test_a_model_without_a_connection_is_refused_when_it_is_defined() -> None:
    """There is no default: a model says in which database its table is."""
    with pytest.raises(ModelDefinitionError, match="__connection__"):

        class Homeless(IntegerPKMixin, ActiveRecord):
            __table_name__ = "homeless"

    with pytest.raises(ModelDefinitionError, match="found ''"):

        class Nameless(IntegerPKMixin, ActiveRecord):
            __table_name__ = "nameless"
            __connection__ = ""


def test_an_unknown_connection_names_the_nearest(configured_database: TestDatabase) -> None:
    """A misspelt name is an error at first use, for reading, writing, transactions and replicas."""

    class Lost(IntegerPKMixin, ActiveRecord):
        __table_name__ = "lost"
        __connection__ = "defualt"

    class Replicated(IntegerPKMixin, ActiveRecord):
        __table_name__ = "replicated"
        __connection__ = "default"
        __read_connection__ = "defautl"

    def enter() -> None:
        with Lost.transaction():
            pass

    for ask in (Lost.find_all().all, Lost().save, lambda: Lost.find(1), Lost.create_table, enter):
        with pytest.raises(UnknownConnection, match=r"'defualt'. Did you mean 'default'\?"):
            ask()
    with pytest.raises(UnknownConnection, match=r"'defautl'. Did you mean 'default'\?"):
        Replicated.find_all().all()
