from __future__ import annotations

import copy
import pickle
import threading
from datetime import UTC, datetime

import pytest
from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator, model_validator

from bench.databases import TestDatabase
from crosstie.orm import ActiveRecord, ConnectionManager
from crosstie.orm.errors import (
    DatabaseUnavailable,
    DuplicateKey,
    InvalidQuery,
    NoSuchTable,
    ReadOnlyConnection,
    RecordInvalid,
    RecordNotFound,
    StaleRecord,
)
from crosstie.orm.field import IntegerPKMixin, TimestampMixin
from crosstie.orm.statement_log import logged_statements


class Account(IntegerPKMixin, ActiveRecord):
    __table_name__ = "accounts"
    __connection__ = "default"

    id: int | None = None
    owner: str = Field(min_length=1)
    balance: int = 0
    note: str | None = None
    tags: list[str] | None = None

    _seen: int = PrivateAttr(default=7)


@pytest.fixture
def accounts(configured_database: TestDatabase) -> TestDatabase:
    """One database with the table of accounts."""
    Account.create_table()
    return configured_database


def test_a_save_inserts_and_sets_the_key_that_the_database_gave(accounts: TestDatabase) -> None:
    """A constructed record is new; saved, it has its key and is returned."""
    record = Account(owner="ann")
    assert record.is_new
    assert record.save() is record
    assert not record.is_new
    assert record.id == 1
    assert Account.create(owner="bob", balance=5).id == 2
    rows = accounts.rows("SELECT id, owner, balance, note FROM accounts ORDER BY id")
    assert rows == [(1, "ann", 0, None), (2, "bob", 5, None)]


def test_a_key_of_the_callers_choice_is_kept(accounts: TestDatabase) -> None:
    """An explicit key is inserted as it is, and a second row with it is DuplicateKey."""
    assert Account(id=40, owner="ann").save().id == 40
    with pytest.raises(DuplicateKey):
        Account(id=40, owner="bob").save()
    assert Account.find(40).owner == "ann"


def test_a_save_writes_only_what_changed(accounts: TestDatabase) -> None:
    """Columns that were not assigned are left alone, so that two writers of two columns both count."""
    Account(owner="ann", note="first").save()
    one, other = Account.find(1), Account.find(1)
    one.note = "second"
    other.balance = 10
    one.save()
    other.save()
    assert accounts.rows("SELECT balance, note FROM accounts") == [(10, "second")]
    with logged_statements() as log:
        one.save()
        one.note = "second"
        one.save()
    assert len(log) == 0


def test_a_save_of_what_the_row_has_already_is_no_stale_record(accounts: TestDatabase) -> None:
    """MySQL's count of changed rows would be zero; the count of matched rows is what decides."""
    record = Account(owner="ann").save()
    accounts.execute("UPDATE accounts SET note = 'same'")
    record.update(note="same")
    assert Account.find_all().update_all(note="same") == 1


def test_changes_tell_what_a_save_would_write(accounts: TestDatabase) -> None:
    """The old value is the row's, whatever was assigned in between; assigned back, nothing has changed."""
    record = Account(owner="ann", balance=1).save()
    record.balance = 2
    record.balance = 3
    record.note = "x"
    assert record.changes == {"balance": (1, 3), "note": (None, "x")}
    record.balance = 1
    assert record.changes == {"note": (None, "x")}


def test_an_invalid_value_is_refused_when_it_is_assigned(accounts: TestDatabase) -> None:
    """The record keeps the value that it had, and what is written is valid."""
    record = Account(owner="ann").save()
    with pytest.raises(ValidationError):
        record.owner = ""
    with pytest.raises(ValidationError):
        record.balance = "many"  # type: ignore[assignment]
    with pytest.raises(ValidationError):
        record.update(note="fine", owner="")
    assert (record.owner, record.note, record.changes) == ("ann", None, {})
    record.balance = "12"  # type: ignore[assignment]
    assert record.save().balance == 12
    with pytest.raises(ValidationError):
        Account(owner="ann", ballance=1)  # type: ignore[call-arg]


def test_a_model_validator_that_refuses_leaves_the_record_as_it_was(accounts: TestDatabase) -> None:
    """Pydantic runs it after the value is stored; the value does not stay."""

    class Bounded(IntegerPKMixin, ActiveRecord):
        __table_name__ = "bounded"
        __connection__ = "default"

        low: int
        high: int

        @field_validator("low")
        @classmethod
        def _not_negative(cls, value: int) -> int:
            return max(value, 0)

        @model_validator(mode="after")
        def _ordered(self) -> Bounded:
            if self.low > self.high:
                raise ValueError("low must not exceed high")
            return self

    Bounded.create_table()
    record = Bounded(low=-1, high=5).save()
    with pytest.raises(ValidationError, match="low must not exceed high"):
        record.low = 6
    assert (record.low, record.changes) == (0, {})


def test_an_update_assigns_all_or_nothing_and_names_the_nearest_field(accounts: TestDatabase) -> None:
    """`update` saves; an unknown name is refused before anything is assigned."""
    record = Account(owner="ann").save()
    record.update(owner="eve", balance=3)
    assert accounts.rows("SELECT owner, balance FROM accounts") == [("eve", 3)]
    with pytest.raises(InvalidQuery, match="Did you mean 'balance'"):
        record.update(owner="ann", ballance=4)
    assert record.owner == "eve"


def test_the_key_of_a_saved_record_cannot_change(accounts: TestDatabase) -> None:
    """Another key would be another row: references to it, in other databases too, would dangle."""
    record = Account(owner="ann").save()
    record.id = 5
    with pytest.raises(RecordInvalid, match="primary key"):
        record.save()
    record.delete()  # finds its row by the key that it had
    assert accounts.scalar("SELECT count(*) FROM accounts") == 0


def test_a_record_made_without_validation_is_checked_when_saved(accounts: TestDatabase) -> None:
    """Missing and NULL values are named before the database is asked."""
    with pytest.raises(RecordInvalid, match=r"accounts\.owner has no value"):
        Account.model_construct(balance=1).save()
    with pytest.raises(RecordInvalid, match=r"accounts\.owner is NULL"):
        Account.model_construct(owner=None).save()


def test_a_deleted_record_says_so(accounts: TestDatabase) -> None:
    """The row goes; saving, deleting or counting up what is gone is an error, not silence."""
    record, double = Account(owner="ann").save(), Account.find(1)
    record.delete()
    assert record.is_deleted
    assert not record.is_new
    assert accounts.scalar("SELECT count(*) FROM accounts") == 0
    for action in (record.save, record.delete, record.refresh, lambda: record.increment(balance=1)):
        with pytest.raises(StaleRecord, match="was deleted"):
            action()
    double.balance = 1
    for action in (double.save, double.delete):
        with pytest.raises(StaleRecord, match=r"Account \(id=1\) is no longer in database 'default'"):
            action()
    double.balance = 0
    with pytest.raises(StaleRecord):
        double.increment(balance=1)


def test_what_needs_a_row_refuses_a_new_record(accounts: TestDatabase) -> None:
    """delete, refresh and increment of an unsaved record name the mistake."""
    record = Account(owner="ann")
    for action in (record.delete, record.refresh, lambda: record.increment(balance=1)):
        with pytest.raises(InvalidQuery, match="save\\(\\) first"):
            action()


def test_increments_of_many_threads_all_count(accounts: TestDatabase) -> None:
    """The database adds, so nobody's addition is lost, and the record is not written otherwise."""
    Account(owner="ann").save()
    start = threading.Barrier(4)

    def count_up() -> None:
        record = Account.find(1)
        start.wait(timeout=60)
        for _ in range(25):
            record.increment(balance=2)

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert accounts.scalar("SELECT balance FROM accounts") == 200


def test_an_increment_is_known_to_the_record(accounts: TestDatabase) -> None:
    """The value in memory follows, is not a change to be saved, and may go down."""
    record = Account(owner="ann", balance=10).save()
    assert record.increment(balance=-3) is record
    assert (record.balance, record.changes) == (7, {})
    record.note = "kept"
    record.increment(balance=1)
    assert record.changes == {"note": (None, "kept")}
    with pytest.raises(InvalidQuery, match="numeric"):
        record.increment(owner=1)
    with pytest.raises(InvalidQuery, match="Did you mean 'balance'"):
        record.increment(balanc=1)
    with pytest.raises(InvalidQuery):
        record.increment(balance="x")
    record.balance = 100
    with pytest.raises(RecordInvalid, match="unsaved change"):
        record.increment(balance=1)


def test_a_refresh_reads_the_row_again(accounts: TestDatabase) -> None:
    """Unsaved changes are dropped; a row that has gone is RecordNotFound."""
    record = Account(owner="ann", tags=["a"]).save()
    accounts.execute("UPDATE accounts SET balance = 9")
    record.note = "unsaved"
    assert record.refresh() is record
    assert (record.balance, record.changes) == (9, {})
    assert record.note is None
    accounts.execute("DELETE FROM accounts")
    with pytest.raises(RecordNotFound):
        record.refresh()


def test_a_loaded_record_is_a_pydantic_model_in_every_way(accounts: TestDatabase) -> None:
    """Comparison, dumps, copies, repr and private attributes are those of a validated record."""
    made = Account(owner="ann", balance=3, tags=["x"]).save()
    read = Account.find(made.id)
    assert read == made
    assert repr(read) == repr(made) == "Account(id=1, owner='ann', balance=3, note=None, tags=['x'])"
    assert read.model_dump() == made.model_dump()
    assert read.model_dump_json() == made.model_dump_json()
    assert Account.model_validate(read.model_dump()) == read
    assert read.model_fields_set == set(Account.model_fields)
    assert read._seen == 7
    read._seen = 8
    assert Account.find(made.id)._seen == 7
    assert dict(read) == dict(made)


def test_a_copy_is_a_new_record(accounts: TestDatabase) -> None:
    """However it was copied, saving it inserts; the original keeps its row."""
    read = Account.find(Account(owner="ann", tags=["x"]).save().id)
    for number, made in enumerate([copy.copy(read), copy.deepcopy(read), read.model_copy(update={"owner": "bob"})], 2):
        assert made.is_new
        made.id = None
        assert made.save().id == number
    assert not read.is_new
    assert Account.find_all().pluck("owner") == ["ann", "ann", "ann", "bob"]


def test_a_pickled_record_is_still_the_row(accounts: TestDatabase) -> None:
    """A record sent to another process updates its row there, changes included."""
    read = Account.find(Account(owner="ann", tags=["x"]).save().id)
    read.balance = 5
    back = pickle.loads(pickle.dumps(read))  # noqa: S301 - made on the line itself
    assert back == read
    assert (back.is_new, back.changes) == (False, {"balance": (0, 5)})
    back.save()
    assert accounts.rows("SELECT id, balance FROM accounts") == [(1, 5)]
    assert pickle.loads(pickle.dumps(Account(owner="x"))).is_new  # noqa: S301
    back.delete()
    assert pickle.loads(pickle.dumps(back)).is_deleted  # noqa: S301


class Stamped(TimestampMixin, IntegerPKMixin, ActiveRecord):
    __table_name__ = "stamped"
    __connection__ = "default"

    name: str

    @classmethod
    def current_time(cls) -> datetime:
        return TIMES.pop(0)


TIMES: list[datetime] = []


def test_timestamps_are_set_by_the_models_clock(configured_database: TestDatabase) -> None:
    """Both at the insert, `updated_at` at each update that writes something; a value of the caller's is kept."""
    Stamped.create_table()
    first, second, third = (datetime(2026, 1, day, 12, 0, 0, day, tzinfo=UTC) for day in (1, 2, 3))
    TIMES[:] = [first, first, second]
    record = Stamped(name="a").save()
    assert (record.created_at, record.updated_at) == (first, first)
    record.save()
    record.update(name="b")
    read = Stamped.find(record.id)
    assert (read.created_at, read.updated_at, TIMES) == (first, second, [])
    read.update(name="c", updated_at=third)
    assert Stamped.find(record.id).updated_at == third
    TIMES[:] = [second]
    assert Stamped(name="d", created_at=first).save().created_at == first


def test_a_missing_table_is_an_error(configured_database: TestDatabase) -> None:
    """Nothing is swallowed: reading and writing name the table."""
    for action in (Account.find_all().all, Account(owner="x").save, lambda: Account.find(1)):
        with pytest.raises(NoSuchTable, match="accounts"):
            action()


def test_a_database_that_is_down_is_named(database: TestDatabase) -> None:
    """Reading, writing and transactions raise DatabaseUnavailable with the connection's name, and it is retryable."""
    wrong = {"database": "/nowhere/at/all.sqlite3"} if database.kind == "sqlite" else {"host": "127.0.0.1", "port": 1}
    ConnectionManager.configure({"default": {**database.config, **wrong}})

    def enter() -> None:
        with Account.transaction():
            Account.find_all().count()

    for action in (lambda: Account.find(1), Account(owner="x").save, Account.find_all().all, enter):
        with pytest.raises(DatabaseUnavailable, match="'default'") as caught:
            action()
        assert caught.value.retryable


def test_a_write_through_a_read_only_connection_is_refused(database: TestDatabase) -> None:
    """A replica named as the primary by mistake is not written to."""
    ConnectionManager.configure({"default": {**database.config}})
    Account.create_table()
    record = Account(owner="ann").save()
    ConnectionManager.configure({"default": {**database.config, "read_only": True}})
    with pytest.raises(ReadOnlyConnection, match="'default'"):
        record.update(balance=1)
    with pytest.raises(ReadOnlyConnection):
        Account.find_all().delete_all()
    assert Account.find(1).balance == 0


def test_a_model_is_still_a_pydantic_model_for_others(accounts: TestDatabase) -> None:
    """Records nest in other models and are serialised by them."""

    class Answer(BaseModel):
        account: Account

    record = Account.find(Account(owner="ann").save().id)
    answer = Answer(account=record)
    assert answer.account is record
    assert answer.model_dump()["account"]["owner"] == "ann"
    assert Account.model_json_schema()["required"] == ["owner"]
