"""Publishing: an event is in the outbox exactly if the business transaction that tells of it has committed."""

from __future__ import annotations

import json
import zlib

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from bench.databases import Pair, Solo, TestDatabase
from bench.guard import configured_databases
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrossDatabaseWriteWarning, NoSuchTable
from crosstie.orm.local_transaction import LocalTransaction, current, open_transactions
from crosstie.orm.transaction import set_active_unit, statement_connection, transaction
from crosstie.outbox import Event, publish, subscriber, sync_routes
from crosstie.outbox.errors import EventInvalid, NoOutboxChosen
from crosstie.outbox.publish import enqueue
from outbox import bank
from outbox.bank import Heard, Moved


class Rollback(Exception):
    """Raised by a test to leave a block."""


class Loose(Event):
    """An event without a key."""

    text: str


class Elsewhere(Event):
    """An event that belongs into one database's outbox."""

    __connection__ = "secondary"
    text: str


@pytest.fixture
def source(configured_database: TestDatabase) -> TestDatabase:
    """One database with a subscription to movements and to loose events."""
    bank.create_accounts("default")
    bank.subscribe(lambda event: None, database="default")
    subscriber(Loose, database="default")(lambda event: None)
    assert not sync_routes().failed
    return configured_database


def numbers(database: TestDatabase) -> list[int]:
    """The numbers of the stored movements, in the order of their ids."""
    rows = database.rows("SELECT payload FROM crosstie_outbox WHERE type = 'bank.moved' ORDER BY id")
    return [Moved.model_validate_json(row[0]).number for row in rows]


def test_an_event_is_stored_with_the_commit(source: TestDatabase) -> None:
    """Before the commit nothing is seen, after it the event and the row that it tells of."""
    with transaction("default"):
        bank.transfer("a")
        assert bank.stored(source) == 0
    assert numbers(source) == [1]
    assert source.scalar("SELECT moves FROM account WHERE name = 'a'") == 1


def test_a_rolled_back_transaction_leaves_no_event(source: TestDatabase) -> None:
    """What did not happen is not told."""
    with pytest.raises(Rollback), transaction("default"):
        bank.transfer("a")
        raise Rollback
    assert bank.stored(source) == 0


def test_a_rolled_back_savepoint_takes_its_events_along(source: TestDatabase) -> None:
    """Those from before and after it stay, in the order in which they were published."""
    with transaction("default"):
        Moved(account="a", number=1).publish()
        with pytest.raises(Rollback), transaction("default"):
            Moved(account="a", number=2).publish()
            raise Rollback
        Moved(account="a", number=3).publish()
    assert numbers(source) == [1, 3]


def test_a_savepoint_with_all_the_events_leaves_nothing_behind(source: TestDatabase) -> None:
    """Not even the hook that would have written them; the transaction around it still commits."""
    with transaction("default"), pytest.raises(Rollback), transaction("default"):
        Moved(account="a", number=1).publish()
        raise Rollback
    assert bank.stored(source) == 0
    with transaction("default"):
        with pytest.raises(Rollback), transaction("default"):
            Moved(account="a", number=1).publish()
            raise Rollback
        Moved(account="a", number=2).publish()
    assert numbers(source) == [2]


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257, 700])
def test_ids_ascend_in_the_order_of_publication(source: TestDatabase, count: int) -> None:
    """However many events one transaction publishes, below, at and above one statement's share."""
    with transaction("default"):
        for number in range(count):
            Moved(account="a", number=number).publish()
    assert numbers(source) == list(range(count))
    assert len(set(source.rows("SELECT lane FROM crosstie_outbox"))) == 1


def test_events_without_a_key_are_spread_over_the_lanes(source: TestDatabase) -> None:
    """Their key is their own uid, so nothing orders them and nothing waits for another."""
    with transaction("default"):
        for number in range(200):
            Loose(text=str(number)).publish()
    used = {row[0] for row in source.rows("SELECT lane FROM crosstie_outbox")}
    lanes = int(source.scalar("SELECT count(*) FROM crosstie_lane WHERE route = 'default'"))
    assert used <= set(range(lanes))
    assert len(used) > lanes // 2


@pytest.mark.parametrize("text", ["", "\"\\'", "\x00\x1f\x7f", "ü€😀\u2028", "%s :events {x}", "x" * 2_000_000])
def test_no_text_is_changed_on_its_way_into_the_outbox(source: TestDatabase, text: str) -> None:
    """However it is quoted on that way, and however long it is."""
    with transaction("default"):
        Loose(text=text).with_headers({"text": text}).publish()
        Loose(text="another").publish()
    rows = source.rows("SELECT payload, headers FROM crosstie_outbox ORDER BY id")
    assert [Loose.model_validate_json(payload).text for payload, _ in rows] == [text, "another"]
    assert json.loads(rows[0][1]) == {"text": text}
    assert rows[1][1] == "{}"


@pytest.mark.parametrize("key", ["ü€😀", "\"\\'", "\x01", "x" * 190])
def test_no_key_is_changed_on_its_way_into_the_outbox(source: TestDatabase, key: str) -> None:
    """Else it would go another lane than events that another version has written."""
    Moved(account=key, number=1).publish("default")
    quote = "`key`" if source.kind == "mariadb" else '"key"'
    (row,) = source.rows(f"SELECT {quote}, lane FROM crosstie_outbox")
    stored = row[0].decode() if isinstance(row[0], bytes) else row[0]
    lanes = int(source.scalar("SELECT count(*) FROM crosstie_lane WHERE route = 'default'"))
    assert (stored, row[1]) == (key, zlib.crc32(key.encode()) % lanes)


def test_an_event_that_nobody_subscribes_to_costs_no_row(source: TestDatabase) -> None:
    """The stored subscriptions decide, in the transaction that publishes."""
    Heard(account="a", number=1).publish("default")
    assert bank.stored(source) == 0


def test_an_event_published_by_a_hook_of_the_commit_is_stored_too(source: TestDatabase) -> None:
    """Also where the hook runs after the one that writes the events."""
    with transaction("default") as tx:
        Moved(account="a", number=1).publish()
        tx.before_commit(lambda _: Moved(account="a", number=2).publish())
    assert numbers(source) == [1, 2]


def test_outside_a_transaction_a_named_database_is_enough(source: TestDatabase) -> None:
    """The event gets a transaction of its own."""
    Moved(account="a", number=1).publish("default")
    assert numbers(source) == [1]


def test_without_any_hint_the_error_says_what_would_help(source: TestDatabase) -> None:
    """No transaction, no database named: nothing is guessed."""
    with pytest.raises(NoOutboxChosen, match=r"no transaction is open.*publish\(database="):
        Moved(account="a", number=1).publish()


def test_two_open_transactions_need_a_name(configured: Pair) -> None:
    """Either could be meant; with a name each is served, and by __connection__ too."""
    bank.open_bank()
    subscriber(Elsewhere, database="secondary")(lambda event: None)
    sync_routes()
    with transaction("default"), transaction("secondary"):
        with pytest.raises(NoOutboxChosen, match="'default', 'secondary'"):
            Moved(account="a", number=1).publish()
        Moved(account="a", number=2).publish("default")
        Elsewhere(text="x").publish()
    assert numbers(configured.first) == [2]
    assert bank.stored(configured.second) == 1


def test_a_foreign_outbox_inside_a_transaction_is_warned_of(configured_crash_pair: Pair) -> None:
    """It commits by itself, as any other single write to another database would."""
    bank.open_bank()
    with pytest.raises(Rollback), transaction("default"):
        with pytest.warns(CrossDatabaseWriteWarning, match="'secondary' inside a transaction of 'default'"):
            Moved(account="a", number=1).publish("secondary")
        raise Rollback
    assert bank.stored(configured_crash_pair.second) == 1


def test_the_callers_connection_is_written_and_never_committed(source: TestDatabase) -> None:
    """The caller decides, and its savepoints hold as for any statement of its own."""
    with ConnectionManager.get("default").engine.connect() as connection:
        publish(Moved(account="a", number=1), connection)
        nested = connection.begin_nested()
        publish(Moved(account="a", number=2), connection)
        nested.rollback()
        assert bank.stored(source) == 0
        connection.commit()
        publish(Moved(account="a", number=3), connection)
    assert numbers(source) == [1]


def test_the_callers_session_is_flushed_and_never_committed(source: TestDatabase) -> None:
    """Pending objects are written first, because a row's lock must come before its event's id."""

    class Base(sa.orm.DeclarativeBase):
        pass

    class Account(Base):
        __table__ = bank.account.to_metadata(Base.metadata)

    with Session(ConnectionManager.get("default").engine) as session:
        session.add(Account(name="new", moves=1))
        publish(Moved(account="new", number=1), session)
        assert not session.new
        session.commit()
        publish(Moved(account="new", number=2), session)
    assert numbers(source) == [1]
    assert source.scalar("SELECT count(*) FROM account WHERE name = 'new'") == 1


def test_missing_tables_are_named_with_the_way_out(database: TestDatabase) -> None:
    """Publishing where `crosstie init` has not run says so, and the business transaction rolls back."""
    with configured_databases(Solo(database), tables=False):
        database.execute("CREATE TABLE plain (id INTEGER PRIMARY KEY)")
        with pytest.raises(NoSuchTable, match="crosstie init"), transaction("default"):
            with statement_connection("default", write=True) as connection:
                connection.exec_driver_sql("INSERT INTO plain VALUES (1)")
            Moved(account="a", number=1).publish()
        assert database.scalar("SELECT count(*) FROM plain") == 0
        with (
            ConnectionManager.get("default").engine.connect() as connection,
            pytest.raises(NoSuchTable, match="crosstie init"),
        ):
            publish(Moved(account="a", number=1), connection)


@pytest.mark.parametrize("key", ["", "x" * 191, "nul\x00"])
def test_a_key_that_cannot_be_stored_is_refused_at_once(source: TestDatabase, key: str) -> None:
    """Not at the commit, where nobody knows any more which event it was; and the text of the key is not quoted."""
    with transaction("default"):
        with pytest.raises(EventInvalid, match=r"Moved.account is its key") as caught:
            Moved(account=key, number=1).publish()
        assert key == "" or key not in str(caught.value)
    assert bank.stored(source) == 0


class Unit:
    """A unit of work that keeps events, as a saga does."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.opened: list[LocalTransaction] = []

    def transaction(self, database: str) -> LocalTransaction:
        self.opened.append(LocalTransaction(ConnectionManager.get(database)))
        return self.opened[-1]

    def buffer_event(self, event: Event) -> None:
        self.events.append(event)


def test_inside_a_unit_of_work_events_wait_for_its_outcome(source: TestDatabase) -> None:
    """A saga decides at its end whose outbox they go to; the rows of a branch carry the saga's id."""
    unit = Unit()
    set_active_unit(unit)
    try:
        Moved(account="a", number=1).publish()
        assert [type(event) for event in unit.events] == [Moved]
        assert not open_transactions()
        Moved(account="a", number=2).publish("default")
        assert unit.opened == [current("default")]
    finally:
        set_active_unit(None)
    (tx,) = unit.opened
    assert tx.written
    enqueue(tx, unit.events)
    tx.ledger("outbox.saga_id")[:] = ["saga-7"]
    tx.commit()
    assert numbers(source) == [2, 1]
    assert source.rows("SELECT DISTINCT saga_id FROM crosstie_outbox") == [("saga-7",)]


def test_an_empty_transaction_is_not_called_written(source: TestDatabase) -> None:
    """Enqueueing nothing leaves a saga's participants as they were."""
    with transaction("default") as tx:
        enqueue(tx, [])
        assert not tx.written
