from __future__ import annotations

import threading

import pytest

from bench.databases import Pair
from crosstie.orm import ActiveRecord, ConnectionManager
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.routing import router
from crosstie.orm.statement_log import logged_statements


class Note(IntegerPKMixin, ActiveRecord):
    """The `replica` of these tests replicates nothing, so what answers can be told by the text."""

    __table_name__ = "notes"
    __connection__ = "primary"
    __read_connection__ = "replica"

    text: str


class OnReplica(IntegerPKMixin, ActiveRecord):
    __table_name__ = "notes"
    __connection__ = "replica"

    text: str


class Monotonic:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Monotonic:
    """The clock that read-your-writes goes by."""
    made = Monotonic()
    monkeypatch.setattr(router, "monotonic", made)
    return made


@pytest.fixture
def notes(pair: Pair, clock: Monotonic) -> Pair:
    """A row with the same key in each database; this thread has written nothing."""
    ConnectionManager.configure({"primary": pair.first.config, "replica": {**pair.second.config}})
    Note.create_table()
    OnReplica.create_table()
    pair.first.execute("INSERT INTO notes (id, text) VALUES (100, 'primary')")
    pair.second.execute("INSERT INTO notes (id, text) VALUES (100, 'replica')")
    return pair


def answering() -> set[str]:
    """Which database each kind of read is answered by."""
    with logged_statements() as log:
        note = Note.find(100)
        by = Note.find_by(id=100)
        assert by is not None
        texts = {note.text, by.text, *Note.find_all().pluck("text"), *(one.text for one in Note.find_all())}
        Note.find_all().count()
        Note.find_all().exists()
    assert texts == set(log.by_database)
    return texts


def test_reads_go_to_the_replica(notes: Pair) -> None:
    """Every kind of read, as long as this thread has not written."""
    assert answering() == {"replica"}


def test_writes_go_to_the_primary(notes: Pair) -> None:
    """Saves, deletes, bulk writes and increments; the replica is left alone."""
    note = Note(text="new").save()
    note.update(text="newer")
    Note.find_all().where(id=100).update_all(text="changed")
    assert notes.first.rows("SELECT text FROM notes ORDER BY text") == [("changed",), ("newer",)]
    note.delete()
    assert notes.first.scalar("SELECT count(*) FROM notes") == 1
    assert notes.second.rows("SELECT text FROM notes") == [("replica",)]


def test_a_thread_reads_its_own_writes(notes: Pair, clock: Monotonic) -> None:
    """After a write the primary answers for two seconds, to this thread alone."""
    Note(text="primary").save()
    assert answering() == {"primary"}
    others: list[set[str]] = []
    thread = threading.Thread(target=lambda: others.append(answering()))
    thread.start()
    thread.join(timeout=60)
    assert others == [{"replica"}]
    clock.now_s += 1.9
    assert answering() == {"primary"}
    clock.now_s += 0.2
    assert answering() == {"replica"}


def test_a_transaction_reads_the_primary_and_its_commit_counts_as_the_write(notes: Pair, clock: Monotonic) -> None:
    """However long the block ran; one that rolled back or wrote nothing leaves nothing to read."""
    with Note.transaction():
        assert answering() == {"primary"}
    assert answering() == {"replica"}
    with Note.transaction():
        Note(text="primary").save()
        clock.now_s += 60
    assert answering() == {"primary"}
    clock.now_s += 3
    assert answering() == {"replica"}
    with pytest.raises(RuntimeError), Note.transaction():
        Note.find_all().delete_all()
        raise RuntimeError
    assert answering() == {"replica"}


def test_a_transaction_of_another_database_reads_the_primary_too(notes: Pair) -> None:
    """What a block decides it decides on rows that are true now."""
    with OnReplica.transaction():
        assert answering() == {"primary"}


def test_how_long_is_configured(notes: Pair) -> None:
    """`read_your_writes_s` of the primary; zero turns it off."""
    ConnectionManager.configure(
        {"primary": {**notes.first.config, "read_your_writes_s": 0}, "replica": notes.second.config}
    )
    Note.find_all().update_all(text="primary")
    assert answering() == {"replica"}


def test_a_refresh_asks_the_primary(notes: Pair) -> None:
    """A record that was read from a replica is refreshed from what is true."""
    assert Note.find(100).refresh().text == "primary"


def test_several_replicas_take_turns(notes: Pair) -> None:
    """A tuple of names spreads the reads over them."""
    ConnectionManager.configure({"primary": notes.first.config, "one": notes.second.config, "two": notes.second.config})

    class Spread(IntegerPKMixin, ActiveRecord):
        __table_name__ = "notes"
        __connection__ = "primary"
        __read_connection__ = ("one", "two")

        text: str

    with logged_statements() as log:
        for _ in range(4):
            Spread.find(100)
    assert log.by_database == {"one": 2, "two": 2}
