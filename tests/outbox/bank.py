"""A small bank for the outbox's tests: accounts in one database, what was heard of them in the other.

Child processes import it as `outbox.bank` too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Final

import sqlalchemy as sa

from bench.databases import TestDatabase
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.transaction import statement_connection, transaction
from crosstie.outbox import Event, subscriber, sweep_lanes, sync_routes
from crosstie.outbox.subscription import subscriptions

__all__ = [
    "Heard",
    "Moved",
    "Poison",
    "arrivals",
    "create_accounts",
    "create_received",
    "drain_all",
    "open_bank",
    "parked",
    "poisoned_by",
    "ready_now",
    "record",
    "stored",
    "subscribe",
    "transfer",
]

METADATA: Final = sa.MetaData()
account: Final = sa.Table(
    "account",
    METADATA,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("moves", sa.Integer, nullable=False),
    mariadb_engine="InnoDB",
)
received: Final = sa.Table(
    "received",
    METADATA,
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("account", sa.String(40), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    mariadb_engine="InnoDB",
)


class Moved(Event):
    """The `number`th movement of an account; events of one account are ordered."""

    __event_type__ = "bank.moved"
    __key__ = "account"

    account: str
    number: int


class Heard(Event):
    """What the receiving side publishes for each movement that it records."""

    __event_type__ = "bank.heard"
    __key__ = "account"

    account: str
    number: int


def record(event: Moved, database: str = "secondary") -> None:
    """The subscriber: a row for each event that arrives, numbered by the database in the order of arrival."""
    with statement_connection(database, write=True) as connection:
        connection.execute(sa.insert(received).values(account=event.account, number=event.number))


def subscribe(function: Callable[[Moved], object] = record, *, database: str = "secondary") -> None:
    """Register a subscriber to movements."""

    def receive(event: Moved) -> None:
        function(event)

    receive.__qualname__ = f"receive_in_{database}"
    subscriber(Moved, database=database)(receive)


def create_accounts(name: str, accounts: Iterable[str] = ("a", "b", "c")) -> None:
    """The business table, in the source."""
    with ConnectionManager.get(name).engine.begin() as connection:
        account.create(connection)
        connection.execute(sa.insert(account), [{"name": one, "moves": 0} for one in accounts])


def create_received(name: str) -> None:
    """The table that subscribers write to, in the target."""
    with ConnectionManager.get(name).engine.begin() as connection:
        received.create(connection)


def open_bank(accounts: Iterable[str] = ("a", "b", "c")) -> None:
    """Both tables, one subscriber in `secondary` unless there is one, and the routes in every database."""
    create_accounts("default", accounts)
    create_received("secondary")
    if not subscriptions():
        subscribe()
    assert not sync_routes().failed


def transfer(name: str, *, times: int = 1) -> None:
    """Move an account's money `times` times, each with its event, in one transaction of `default`."""
    with transaction("default") as tx:
        for _ in range(times):
            tx.mark_written()
            # The row's lock is taken before the event's id: that is what makes the order of ids that of commits.
            tx.connection.execute(sa.update(account).where(account.c.name == name).values(moves=account.c.moves + 1))
            number = tx.connection.execute(sa.select(account.c.moves).where(account.c.name == name)).scalar_one()
            Moved(account=name, number=number).publish()


def arrivals(database: TestDatabase) -> list[tuple[str, int]]:
    """What has durably arrived, in order of arrival."""
    return [(str(a), int(n)) for a, n in database.rows("SELECT account, number FROM received ORDER BY position")]


def stored(database: TestDatabase) -> int:
    """How many events wait in the outbox."""
    return int(database.scalar("SELECT count(*) FROM crosstie_outbox"))


def parked(database: TestDatabase) -> list[tuple[int, str, int, str]]:
    """Id, state, attempts and error of each parked event, in the order of their ids."""
    rows = database.rows("SELECT id, state, attempts, error FROM crosstie_parked ORDER BY id")
    return [(int(number), str(state), int(attempts), str(error)) for number, state, attempts, error in rows]


class Poison(Exception):
    """Raised by subscribers that fail."""


def poisoned_by(*numbers: int, cured: threading.Event | None = None) -> Callable[[Moved], None]:
    """A subscriber that fails for these movements, after having written something, until it is cured."""

    def receive(event: Moved) -> None:
        record(event)
        if event.number in numbers and not (cured and cured.is_set()):
            raise Poison(f"secret of {event.account}")

    return receive


def ready_now(database: TestDatabase) -> None:
    """Let every lane and key be tried again at once: as if leases had run out and back-offs had passed."""
    database.execute("UPDATE crosstie_lane SET lease_until_ms = 0, ready_at_ms = 0")
    database.execute("UPDATE crosstie_parked SET next_at_ms = 0")


def drain_all(source: str = "default", owner: str = "test") -> int:
    """Sweep until nothing more is found; returns how many events were applied."""
    applied = 0
    while found := sweep_lanes(source, owner=owner):
        applied += found
    return applied
