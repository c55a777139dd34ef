from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import pytest

from bench.databases import Pair, TestDatabase
from crosstie.orm import ActiveRecord
from crosstie.orm.errors import (
    CrossDatabaseWriteWarning,
    DeadlockDetected,
    DuplicateKey,
    InvalidQuery,
    RecordInvalid,
    StaleRecord,
)
from crosstie.orm.faults import armed
from crosstie.orm.field import Column, IntegerPKMixin, OptimisticLockMixin, TimestampMixin, UUIDMixin
from crosstie.orm.statement_log import logged_statements
from crosstie.sagas import SagaAborted, saga


class Guest(IntegerPKMixin, TimestampMixin, ActiveRecord):
    __table_name__ = "guests"
    __connection__ = "default"

    email: Annotated[str, Column(unique=True)]
    name: str = ""
    nick: Annotated[str | None, Column(unique=True)] = None
    visits: int = 0
    seen_at: datetime | None = None

    @classmethod
    def current_time(cls) -> datetime:
        return NOW[0]


class Token(UUIDMixin, ActiveRecord):
    __table_name__ = "tokens"
    __connection__ = "default"

    word: str


class Score(OptimisticLockMixin, ActiveRecord):
    __table_name__ = "scores"
    __connection__ = "secondary"
    __primary_key__ = ("player", "day")

    player: str
    day: int
    points: int = 0


class Match(IntegerPKMixin, ActiveRecord):
    __table_name__ = "matches"
    __connection__ = "default"

    title: str


DAYS = [datetime(2024, 3, day, tzinfo=UTC) for day in (1, 2, 3)]
NOW = [DAYS[0]]


@pytest.fixture
def guests(configured_database: TestDatabase) -> TestDatabase:
    """An empty table of guests, on the first of the days."""
    NOW[0] = DAYS[0]
    Guest.create_table()
    return configured_database


@pytest.fixture
def games(configured: Pair) -> Pair:
    """Matches in the first database, scores in the second, of which one is there."""
    Match.create_table()
    Score.create_table()
    Score(player="ada", day=1, points=5).save()
    return configured


def test_many_records_are_inserted_in_few_statements_and_know_their_keys(guests: TestDatabase) -> None:
    """Every record has the key of its own row, and what was filled in; a chosen key is kept."""
    records = [Guest(email=f"{number}@example.org", visits=number) for number in range(2500)]
    records[7].id = 1_000_000
    with logged_statements() as log:
        assert Guest.bulk_create(records) == records
    assert len(log) <= 10
    assert len({record.id for record in records}) == 2500
    assert records[7].id == 1_000_000
    in_rows = dict(guests.rows("SELECT email, id FROM guests"))
    assert in_rows == {record.email: record.id for record in records}
    assert not any(record.is_new or record.changes for record in records)
    assert records[0].created_at == DAYS[0]
    assert Guest.find(records[1234].id) == records[1234]
    assert Guest.bulk_create([]) == []


def test_more_records_than_one_statement_takes_know_their_keys(guests: TestDatabase) -> None:
    """Chunk after chunk: the numbers rise in the records' order, though rows went before and holes are among them."""
    Guest(email="before@example.org").save()
    Guest(email="hole@example.org").save().delete()
    records = Guest.bulk_create(Guest(email=f"{number}@example.org", name="é%s ?':x\\") for number in range(5_101))
    numbers = [record.id for record in records]
    assert numbers == sorted(set(numbers))  # type: ignore[type-var]
    in_rows = dict(guests.rows("SELECT email, id FROM guests"))
    assert {record.email: record.id for record in records} == {
        email: number for email, number in in_rows.items() if email != "before@example.org"
    }
    assert Guest.find_all().where(name="é%s ?':x\\").count() == 5_101


def test_keys_made_here_are_inserted_as_they_are(configured_database: TestDatabase) -> None:
    """UUIDs are known before and after."""
    Token.create_table()
    made = Token.bulk_create(Token(word=f"word {number}") for number in range(1200))
    found: dict[UUID, str] = dict(Token.find_all().pluck("id", "word"))
    assert found == {token.id: token.word for token in made}


def test_many_are_inserted_all_or_none(guests: TestDatabase) -> None:
    """A duplicate in the last chunk leaves no row, and every record new, also inside an open transaction."""
    records = [Guest(email=f"{number}@example.org") for number in range(1500)]
    records[-1].email = records[0].email
    with pytest.raises(DuplicateKey):
        Guest.bulk_create(records)
    with Guest.transaction():
        Guest(email="kept@example.org").save()
        with pytest.raises(DuplicateKey):
            Guest.bulk_create(records)
    assert Guest.find_all().pluck("email") == ["kept@example.org"]
    assert all(record.is_new and record.id is None and record.created_at is None for record in records)
    records[-1].email = "other@example.org"
    assert len(Guest.bulk_create(records)) == 1500


def test_what_cannot_be_inserted_in_bulk_is_refused(guests: TestDatabase) -> None:
    """Saved records, records twice, records of another model, invalid ones: before anything is sent."""
    saved, new = Guest(email="a").save(), Guest(email="b")
    invalid = Guest.model_construct(email="x" * 300)
    with logged_statements() as log:
        for records in ([saved], [new, new], [Token(word="x")]):
            with pytest.raises(InvalidQuery, match="bulk_create"):
                Guest.bulk_create(records)  # type: ignore[arg-type]
        with pytest.raises(RecordInvalid):
            Guest.bulk_create([new, invalid])
    assert len(log) == 0


def test_many_changed_records_are_written_together(guests: TestDatabase) -> None:
    """What changed and nothing else, in one batch for each set of fields; unchanged records cost nothing."""
    records = Guest.bulk_create(Guest(email=f"{number}@example.org") for number in range(600))
    NOW[0] = DAYS[1]
    for number, record in enumerate(records[:400], 1):
        record.visits = number
    for record in records[300:500]:
        record.name = "x"
    guests.execute("UPDATE guests SET nick = 'theirs' WHERE id = %s", [records[0].id])
    assert Guest.bulk_update(records) == 500
    assert not any(record.changes for record in records)
    rows = {row[0]: row[1:] for row in guests.rows("SELECT email, visits, name, nick FROM guests")}
    assert rows["0@example.org"] == (1, "", "theirs")
    assert rows["399@example.org"] == (400, "x", None)
    assert rows["450@example.org"] == (0, "x", None)
    assert records[450].updated_at == DAYS[1]
    assert records[550].updated_at == DAYS[0]
    with logged_statements() as log:
        assert Guest.bulk_update(records) == 0
    assert len(log) == 0


def test_many_are_updated_all_or_none(guests: TestDatabase) -> None:
    """One row that has vanished leaves all as they were, in the database and in memory."""
    records = Guest.bulk_create(Guest(email=f"{number}@example.org") for number in range(5))
    guests.execute("DELETE FROM guests WHERE id = %s", [records[3].id])
    for record in records:
        record.visits = 9
    with pytest.raises(StaleRecord, match="of 5 records of Guest only 4"):
        Guest.bulk_update(records)
    assert guests.rows("SELECT DISTINCT visits FROM guests") == [(0,)]
    assert all(record.changes == {"visits": (0, 9)} for record in records)
    with pytest.raises(InvalidQuery, match="bulk_update"):
        Guest.bulk_update([Guest(email="new")])


def test_the_record_is_found_or_created(guests: TestDatabase) -> None:
    """Once created it is found, with what was given by default only when it was made."""
    made = Guest.find_or_create_by({"name": "Ada"}, email="ada@example.org")
    assert (made.name, made.is_new) == ("Ada", False)
    found = Guest.find_or_create_by({"name": "Other"}, email="ada@example.org")
    assert (found.id, found.name) == (made.id, "Ada")
    with pytest.raises(DuplicateKey):
        Guest.find_or_create_by({"email": "ada@example.org"}, name="Eve")
    for ask in (lambda: Guest.find_or_create_by({"name": "x"}), lambda: Guest.find_or_create_by(naem="x")):
        with pytest.raises(InvalidQuery):
            ask()


def test_of_two_callers_one_creates_and_the_other_finds(guests: TestDatabase) -> None:
    """All threads get the one row, inside transactions too, which stay whole."""
    barrier, found, errors = threading.Barrier(6), [], []

    def join(number: int) -> int | None:
        while True:
            try:
                with Guest.transaction():
                    Guest(email=f"{number}@example.org").save()
                    return Guest.find_or_create_by(email="one@example.org").id
            except DeadlockDetected:
                assert guests.kind == "mariadb"

    def call(number: int) -> None:
        try:
            barrier.wait(60)
            found.append(join(number) if number % 2 else Guest.find_or_create_by(email="one@example.org").id)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(found) == 6
    assert len(set(found)) == 1
    assert guests.scalar("SELECT count(*) FROM guests") == 4


def test_touch_writes_the_time_and_nothing_else(guests: TestDatabase) -> None:
    """Unsaved changes stay unsaved; a rollback takes the time back."""
    guest = Guest(email="a@example.org").save()
    NOW[0] = DAYS[1]
    guest.name = "unsaved"
    assert guest.touch() is guest
    assert guest.updated_at == DAYS[1]
    guest.touch("seen_at")
    assert Guest.find(guest.id).seen_at == DAYS[1]
    assert guest.changes == {"name": ("", "unsaved")}
    assert guests.scalar("SELECT name FROM guests") == ""
    NOW[0] = DAYS[2]
    with pytest.raises(RuntimeError), Guest.transaction():
        guest.touch("seen_at")
        raise RuntimeError
    assert (guest.updated_at, guest.seen_at) == (DAYS[1], DAYS[1])
    for names in (["name"], ["nothing"]):
        with pytest.raises(InvalidQuery):
            guest.touch(*names)
    with pytest.raises(InvalidQuery, match="touch"):
        Token.model_construct(word="x").touch()


def test_upsert_inserts_and_then_updates_the_same_row(guests: TestDatabase) -> None:
    """The record becomes the row: its key, what was kept, what was written."""
    first = Guest(email="a@example.org", name="first", visits=3).upsert(on="email")
    assert not first.is_new
    assert first.id is not None
    NOW[0] = DAYS[1]
    second = Guest(email="a@example.org", name="second").upsert(on="email", update=["name"])
    assert (second.id, second.name, second.visits) == (first.id, "second", 3)
    assert (second.created_at, second.updated_at) == (DAYS[0], DAYS[1])
    assert second == Guest.find(first.id)
    assert not second.changes
    third = Guest(email="a@example.org", name="third").upsert(on=["email"])
    assert (third.id, third.name, third.visits, third.created_at) == (first.id, "third", 0, DAYS[0])
    kept = Guest(email="a@example.org", name="fourth").upsert(on="email", update=[])
    assert (kept.id, kept.name) == (first.id, "third")
    by_key = Guest(id=first.id, email="b@example.org").upsert(on="id")
    assert (by_key.id, by_key.email) == (first.id, "b@example.org")
    assert guests.scalar("SELECT count(*) FROM guests") == 1


def test_upsert_never_writes_to_another_row_than_the_one_meant(guests: TestDatabase) -> None:
    """A row of another unique constraint stays as it is, and the caller is told."""
    Guest(email="a@example.org", nick="ada").save()
    guest = Guest(email="new@example.org", nick="ada", name="x")
    with pytest.raises(DuplicateKey):
        guest.upsert(on="email")
    assert guest.is_new
    assert guests.rows("SELECT email, nick, name FROM guests") == [("a@example.org", "ada", "")]


def test_upsert_needs_a_unique_constraint_and_values(guests: TestDatabase) -> None:
    """Without one a second caller would insert the row again; the database is asked where the model says nothing."""
    for on, error, match in [
        ("name", InvalidQuery, "unique constraint"),
        (["email", "name"], InvalidQuery, "unique constraint"),
        ("nick", RecordInvalid, "NULL"),
        ("nothing", InvalidQuery, "no field"),
        ([], InvalidQuery, "at least one"),
    ]:
        with pytest.raises(error, match=match):
            Guest(email="a@example.org").upsert(on=on)
    for update in (["email"], ["id"], ["nothing"]):
        with pytest.raises(InvalidQuery):
            Guest(email="a@example.org").upsert(on="email", update=update)
    with pytest.raises(InvalidQuery, match="new"):
        Guest(email="a@example.org").save().upsert(on="email")
    guests.execute("CREATE UNIQUE INDEX visitor ON guests (name, visits)")
    one = Guest(email="b@example.org", name="b", visits=1).upsert(on=["name", "visits"])
    two = Guest(email="c@example.org", name="b", visits=1).upsert(on=["name", "visits"])
    assert (two.id, two.email) == (one.id, "c@example.org")


def test_an_upsert_that_is_rolled_back_leaves_the_record_new(guests: TestDatabase) -> None:
    """As an insert would."""
    guest = Guest(email="a@example.org")
    with pytest.raises(RuntimeError), Guest.transaction():
        guest.upsert(on="email")
        raise RuntimeError
    assert guest.is_new
    assert guest.id is None
    assert guest.created_at is None
    assert guests.scalar("SELECT count(*) FROM guests") == 0


def test_upserts_and_bulk_writes_of_a_saga_are_undone(games: Pair) -> None:
    """A composite key and a lock version too: the branch is as it was, in every column."""
    before = games.second.rows("SELECT player, day, points, lock_version FROM scores")

    def fail() -> None:
        raise RuntimeError("the saga fails")

    with armed("saga.branch-committed", fail), pytest.raises(SagaAborted), saga("match"):
        Match(title="final").save()
        updated = Score(player="ada", day=1, points=50).upsert(on=["player", "day"])
        assert (updated.points, updated.lock_version) == (50, 1)
        inserted = Score(player="bob", day=1, points=7).upsert(on=["player", "day"])
        assert inserted.lock_version == 0
        many = Score.bulk_create(Score(player=f"p{number}", day=2) for number in range(600))
        for number, score in enumerate(many, 1):
            score.points = number
        assert Score.bulk_update(many) == 600
        inserted.increment(points=2)
        updated.delete()
    assert games.second.rows("SELECT player, day, points, lock_version FROM scores") == before


def test_a_bulk_write_beside_another_databases_transaction_warns(games: Pair) -> None:
    """It commits by itself, as any other write there would."""
    with Match.transaction():
        for write in (
            lambda: Score.bulk_create([Score(player="x", day=1)]),
            lambda: Score(player="y", day=1).upsert(on=["player", "day"]),
        ):
            with pytest.warns(CrossDatabaseWriteWarning):
                write()
