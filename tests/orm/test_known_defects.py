"""Defects that users have met in ORMs over several databases. None of them may become one of this ORM's.

Each section holds one of them against every kind of database, or every pair of kinds where two are needed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal
from typing import Annotated, Any, ClassVar

import pytest
import sqlalchemy as sa
from pydantic import Field

from bench.databases import Pair, TestDatabase
from crosstie.orm import ActiveRecord, any_of, not_
from crosstie.orm.callback import after_save, before_save
from crosstie.orm.declaration import connection_of
from crosstie.orm.errors import (
    CrossDatabaseQuery,
    DatabaseError,
    DatabaseUnavailable,
    InvalidQuery,
    ModelDefinitionError,
    NoSuchTable,
    ReferenceTypeMismatch,
    TransactionPoisoned,
    UnknownConnection,
)
from crosstie.orm.field import IntegerPKMixin, TimestampMixin
from crosstie.orm.local_transaction import current
from crosstie.orm.relation import BelongsTo, HasMany
from crosstie.orm.statement_log import logged_statements
from crosstie.workers.audit import run_audit
from orm.blog import Comment, Post, User, create_blog, seed_blog
from references.family import count, open_family, propagate, user_with


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
        start.wait(timeout=20)
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
    elif database.kind == "postgresql":
        database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    else:
        mine = "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
        for (number,) in database.rows(mine):
            database.execute(f"KILL {number}")


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


# -- 3. Errors of relations are swallowed: a missing table is None, or no records ---------------------------------


def test_an_error_of_a_relation_is_raised(configured: Pair) -> None:
    """Called, queried, counted, asked for or eagerly loaded, a missing table is an error that names its database."""
    User.create_table()
    user = User(username="ann").save()
    for ask in (
        user.posts,
        user.profile,
        user.posts.count,
        user.posts.query().all,
        User.find_all().with_("posts").all,
        User.find_all().with_("profile").all,
        User.find_all().with_count("posts").all,
        User.find_all().where_has("posts").all,
    ):
        with pytest.raises(NoSuchTable, match="secondary"):
            ask()


# -- 4. The children of a parent that has no key yet are all rows of the table ------------------------------------


def test_a_null_key_refers_to_nothing_and_asks_nothing(blog: Pair) -> None:
    """An unsaved parent has no children, though rows without a parent exist; a NULL reference is None."""
    Post(user_id=None, title="nobody's").save()
    with logged_statements() as log:
        assert User(username="new").posts() == []
        assert User(username="new").posts.count() == 0
        assert User(username="new").profile() is None
        assert Post(user_id=None, title="x").user() is None
        assert User(id=1, username="new, with a key").posts() == []
    assert len(log) == 0
    assert User(username="new").posts.query().all() == []
    assert User(username="new").posts.query().delete_all() == 0
    assert Post(user_id=None, title="x").user.query().count() == 0
    assert Post(user_id=1, title="new").user() == User.find(1)


# -- 5. What modifies one level of an eager load is ignored, or modifies another ----------------------------------


def test_a_modifier_of_a_nested_path_applies_to_its_own_level(blog: Pair) -> None:
    """The levels above and below are loaded whole, and each level in one query."""
    Comment.find(1).update(body="first")
    with logged_statements() as log:
        users = (
            User.find_all()
            .with_({"posts.comments": lambda comments: comments.where(body="first")}, "posts.comments.author")
            .order_by("id")
            .all()
        )
        bodies = [[comment.body for comment in post.comments()] for post in users[0].posts()]
        authors = [comment.author() for post in users[0].posts() for comment in post.comments()]
    assert [len(user.posts()) for user in users] == [2, 2, 0]
    assert sorted(bodies) == [[], ["first"]]
    assert authors == [users[0]]
    assert log.by_database == {"default": 2, "secondary": 2}
    users = User.find_all().with_({"posts": lambda posts: posts.where(title="post1.1")}, "posts.comments").all()
    assert [[len(post.comments()) for post in user.posts()] for user in users if user.posts()] == [[2]]


def test_each_level_has_a_modifier_of_its_own(blog: Pair) -> None:
    """And several for one level apply one after the other."""
    with logged_statements() as log:
        user = (
            User.find_all()
            .with_({"posts": lambda posts: posts.order_by("-id"), "posts.comments": lambda each: each.order_by("-id")})
            .with_(posts=lambda posts: posts.where(Post.c.id < 3))
            .where(id=1)
            .one()
        )
        assert [(post.id, [comment.id for comment in post.comments()]) for post in user.posts()] == [
            (2, [4, 3]),
            (1, [2, 1]),
        ]
    assert log.by_database == {"default": 1, "secondary": 2}


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


# -- 7. A parent that is missing is looked up again at each access ------------------------------------------------


def test_what_is_missing_is_looked_up_once(blog: Pair) -> None:
    """A parent, an only child and children alike, each with one query."""
    orphan = Post(user_id=99, title="orphan").save()
    lonely = User(username="lonely").save()
    with logged_statements() as log:
        for _ in range(3):
            assert orphan.user() is None
            assert lonely.profile() is None
            assert lonely.posts() == []
    assert log.by_database == {"default": 1, "secondary": 2}


def test_what_was_missing_in_an_eager_load_is_not_looked_up_again(blog: Pair) -> None:
    """Many children of few parents send few keys; a parent that is missing, or NULL, stays so."""
    Post(user_id=99, title="orphan").save()
    Post(user_id=None, title="nobody's").save()
    with logged_statements() as log:
        posts = Post.find_all().with_("user").all()
        users = {post.title: post.user() for post in posts}
    assert log.by_database == {"secondary": 1, "default": 1}
    assert users["orphan"] is None
    assert users["nobody's"] is None
    first = users["post1.1"]
    assert first is not None
    assert first is users["post1.2"]


# -- 8. Keys of different types are compared, and find nothing ----------------------------------------------------


def test_keys_that_do_not_compare_are_refused(configured: Pair) -> None:
    """Text against integer would match nothing on one database and too much on another; nothing is sent."""

    class Owner(IntegerPKMixin, ActiveRecord):
        __table_name__ = "owners"
        __connection__ = "default"

        id: int | None = None
        things: ClassVar[HasMany[Thing]] = HasMany(foreign_key="owner_id")

    class Thing(IntegerPKMixin, ActiveRecord):
        __table_name__ = "things"
        __connection__ = "secondary"

        owner_id: str
        data: dict[str, int] | None = None

        owner: ClassVar[BelongsTo[Owner]] = BelongsTo(foreign_key="owner_id")
        odd: ClassVar[BelongsTo[Owner]] = BelongsTo(foreign_key="data")

    Owner.create_table()
    configured.first.execute("INSERT INTO owners (id) VALUES (1)")
    expected = r"things\.owner_id \(str\) against owners\.id \(int\)"
    with logged_statements() as log:
        for ask in (
            lambda: Thing(owner_id="1").owner(),
            lambda: Owner(id=1).things(),
            lambda: Thing.find_all().with_("owner"),
            lambda: Owner.find_all().with_("things"),
            lambda: Owner.find_all().where_has("things"),
            lambda: Thing.find_all().where_missing("owner"),
        ):
            with pytest.raises(ReferenceTypeMismatch, match=expected):
                ask()
        with pytest.raises(ReferenceTypeMismatch, match="no key"):
            Thing(owner_id="1").odd()
    assert len(log) == 0


def test_a_key_given_as_text_is_the_same_key(blog: Pair) -> None:
    """Or is refused, where it can be none."""
    assert User.find("1") == User.find(1)
    assert Post.find_all().where(user_id="1").count() == Post.find_all().where(user_id=[1, "1"]).count() == 2
    author = Post(user_id="2", title="x").user()  # type: ignore[arg-type]
    assert author == User.find(2)
    with pytest.raises(InvalidQuery, match=r"posts\.user_id.*'x'"):
        Post.find_all().where(user_id="x")


# -- 9. Batches are dealt out by comparing each with each, and one list of keys breaks the driver's limit ----------


class Parent(IntegerPKMixin, ActiveRecord):
    __table_name__ = "parents"
    __connection__ = "default"

    children: ClassVar[HasMany[Child]] = HasMany(foreign_key="parent_id", inverse_of="parent")


class Child(IntegerPKMixin, ActiveRecord):
    __table_name__ = "children"
    __connection__ = "secondary"

    parent_id: int

    parent: ClassVar[BelongsTo[Parent]] = BelongsTo(foreign_key="parent_id")


def test_seventy_thousand_keys_are_one_query_and_linear_work(configured: Pair) -> None:
    """No driver's parameter limit is met, and ten times the keys do not cost a hundred times the time."""
    Parent.create_table()
    Child.create_table()
    many, few = 70_000, 7_000
    keys = [(key,) for key in range(1, many + 1)]
    configured.first.execute_many("INSERT INTO parents (id) VALUES (%s)", keys)
    configured.second.execute_many("INSERT INTO children (parent_id) VALUES (%s)", keys)
    spent_s = {}
    for number in (few, many):
        begin = time.perf_counter()
        with logged_statements() as log:
            parents = Parent.find_all().where(Parent.c.id <= number).with_("children").all()
            assert all(len(parent.children()) == 1 for parent in parents)
        assert len(parents) == number
        assert log.by_database == {"default": 1, "secondary": 1}
        spent_s[number] = time.perf_counter() - begin
    assert spent_s[many] < 40 * spent_s[few] + 1
    with logged_statements() as log:
        children = Child.find_all().with_("parent").all()
        assert sum(child.parent() is not None for child in children) == many
    assert log.by_database == {"secondary": 1, "default": 1}


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
            assert other.submit(is_outside).result(timeout=20)
            assert other.submit(owners).result(timeout=20) == []
            saving = other.submit(Account(owner="kept").save)
            if accounts.kind != "sqlite":  # where the open transaction excludes all other writers
                saving.result(timeout=20)
            raise Interrupted
        saving.result(timeout=20)
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


# -- 11. One statement over two databases answers with the rows of one, or with a syntax error --------------------


def test_a_statement_over_two_databases_is_refused_before_it_is_sent(blog: Pair) -> None:
    """Both databases are named; subqueries, unions, joined conditions and orders are looked into."""
    users, posts = sa.select(User.c.id), sa.select(Post.c.user_id)
    joined = User.__table__.join(Post.__table__, Post.c.user_id == User.c.id)
    with logged_statements() as log:
        for ask in (
            lambda: User.find_all().where(Post.c.title == "x"),
            lambda: User.find_all().where(User.c.id == Post.c.user_id),
            lambda: User.find_all().where(User.c.id.in_(posts)),
            lambda: User.find_all().where(User.c.id.in_(sa.union(users, posts))),
            lambda: User.find_all().where(User.c.id.in_(sa.select(User.c.id).select_from(joined))),
            lambda: User.find_all().where(sa.exists().where(Post.c.user_id == User.c.id)),
            lambda: User.find_all().where(any_of(not_(User.c.id == Post.c.user_id), username="x")),
            lambda: User.find_all().order_by(Post.c.title.desc()),
            lambda: User.find_all().where(sa.select(sa.func.count()).select_from(Post.__table__).scalar_subquery() > 1),
            lambda: User.find_all().where(Post.__table__.alias("p").c.title == "x"),
            lambda: User.find_all().group_by("username").having(sa.func.max(Post.c.id) > 1),
            lambda: User.find_all().join("posts"),
            lambda: User.find_all().left_join("posts.comments"),
        ):
            with pytest.raises(CrossDatabaseQuery, match=r"'default'.*'secondary'"):
                ask()
        with pytest.raises(InvalidQuery, match="query of User"):
            User.find_all().merge(Post.find_all())  # type: ignore[arg-type]
    assert len(log) == 0


# -- 12. A parent's delete leaves its children behind in the other database ---------------------------------------


@pytest.mark.usefixtures("own_registries")
def test_a_deleted_parents_children_do_not_stay_behind(configured: Pair) -> None:
    """Those that go with it are deleted, those that do not lose their reference; those of another parent stay."""
    family = open_family()
    user, other = (user_with(family, posts=2, comments=1, badges=1) for _ in range(2))
    user.delete()
    propagate()
    for table, left in (("posts", 2), ("badges", 1)):
        assert count(configured, table, f"user_id = {user.id}") == 0
        assert count(configured, table, f"user_id = {other.id}") == left
    assert count(configured, "comments") == 2
    assert count(configured, "badges", "user_id IS NULL") == 1


def test_children_that_were_left_behind_are_found(blog: Pair) -> None:
    """Where nothing was said about deletes, an audit names each of them."""
    User.find(1).delete()
    (result,) = run_audit(["posts.user_id"]).results
    assert result.reason is None
    assert [finding.child_key["id"] for finding in result.findings] == [1, 2]


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
